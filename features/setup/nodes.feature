@setup
Feature: Cross-Node Inference Request Flow - registering nodes

  Rule: A node is stored only after a real login

    @critical
    Scenario: Add remote rbee-hive node to registry
      Given a queen
      And a machine "workstation" that runs an SSH server
      When blep runs "setup add-node --name workstation --ssh-host $workstation.host --ssh-port $workstation.ssh_port --ssh-user $workstation.user --ssh-key ~/.ssh/id_ed25519 --git-repo https://git.home.arpa/rbee.git --git-branch main --install-path ~/rbee"
      Then the queen was asked "POST /v2/registry/beehives/add" once with exactly
        | node_name     | workstation                    |
        | ssh_host      | $workstation.host              |
        | ssh_port      | $workstation.ssh_port          |
        | ssh_user      | $workstation.user              |
        | ssh_key_path  | $key                           |
        | git_repo_url  | https://git.home.arpa/rbee.git |
        | git_branch    | main                           |
        | install_path  | $workstation.remote_home/rbee  |
        | hive_port     | 9200                           |
      And the queen has answered "POST /v2/registry/beehives/add" with 200
      And "workstation" has seen one login, with blep's key
      And the only command of that login was "echo 'connection test'"
      And the registry row of "workstation" has
        | ssh_host      | $workstation.host              |
        | ssh_port      | $workstation.ssh_port          |
        | ssh_user      | $workstation.user              |
        | ssh_key_path  | $key                           |
        | git_repo_url  | https://git.home.arpa/rbee.git |
        | git_branch    | main                           |
        | install_path  | $workstation.remote_home/rbee  |
        | hive_port     | 9200                           |
        | status        | reachable                      |
      And the registry row of "workstation" was connected no earlier than the command
      And stdout shows in order
        """
        [queen-rbee] 🔌 Testing SSH connection to $workstation.host
        [queen-rbee] ✅ SSH connection successful! Node 'workstation' saved to registry
        """
      And the exit code is 0

    Scenario: Add node with SSH connection failure
      Given "timing.ssh_connect_timeout_s" is 1 on "blep"
      And a queen
      And a machine "workstation" whose SSH port accepts connections and stays silent
      When blep runs "setup add-node --name workstation --ssh-host $workstation.host --ssh-port $workstation.ssh_port --ssh-user nobody --ssh-key $key --install-path ~/rbee"
      Then the silent port has counted 3 connections, each given up after 1 s
      And the second and third came 200 ms and 400 ms after the one before
      And the queen has answered "POST /v2/registry/beehives/add" with 502 SSH_CONNECTION_FAILED
      And the details of the error of "POST /v2/registry/beehives/add" are
        | host   | $workstation.host  |
        | reason | Connection timeout |
      And the registry has no row "workstation"
      And stdout shows in order
        """
        [queen-rbee] 🔌 Testing SSH connection to $workstation.host
        [queen-rbee] ❌ SSH connection failed: Connection timeout
        """
      And stderr has a line that starts with "Error:"
      And stderr has a line that starts with "Suggestion:"
      And the exit code is 1

    Scenario: Add node with SSH connection failure - unreachable host
      Given a queen with MOCK_SSH
      When blep runs "setup add-node --name ghost --ssh-host unreachable.home.arpa --ssh-user nobody --install-path ~/rbee"
      Then the queen has answered "POST /v2/registry/beehives/add" with 502 SSH_CONNECTION_FAILED
      And the details of the error of "POST /v2/registry/beehives/add" are
        | host   | unreachable.home.arpa |
        | reason | Connection timeout    |
      And the registry has no row "ghost"
      And stdout shows in order
        """
        [queen-rbee] 🔌 Testing SSH connection to unreachable.home.arpa
        [queen-rbee] ❌ SSH connection failed: Connection timeout
        """
      And stderr has a line that starts with "Error:"
      And stderr has a line that starts with "Suggestion:"
      And the exit code is 1

    Scenario Outline: Add node with SSH connection failure - <reason>
      Given a queen
      And a machine "workstation" that runs an SSH server
      And <circumstance>
      When blep runs "setup add-node --name workstation --ssh-host $workstation.host --ssh-port $workstation.ssh_port --ssh-user $workstation.user --ssh-key $key --install-path ~/rbee"
      Then the queen has answered "POST /v2/registry/beehives/add" with 502 SSH_CONNECTION_FAILED
      And the registry has no row "workstation"
      And stdout has "[queen-rbee] ❌ SSH connection failed: <reason>"
      And stderr has a line that starts with "Error:"
      And stderr has a line that starts with "Suggestion:"
      And the exit code is 1

      Examples:
        | circumstance                                      | reason                       |
        | the SSH server of "workstation" is stopped        | Connection refused           |
        | the SSH server of "workstation" knows another key | Permission denied            |
        | blep knows another host key of "workstation"      | Host key verification failed |

    Scenario: Add node with SSH connection failure - a key that is no longer accepted
      Given a queen
      And the registered machine "workstation"
      And the SSH server of "workstation" knows another key
      When blep runs "setup add-node --name twin --ssh-host $workstation.host --ssh-port $workstation.ssh_port --ssh-user $workstation.user --ssh-key $key --install-path ~/rbee"
      Then the queen has answered "POST /v2/registry/beehives/add" with 502 SSH_CONNECTION_FAILED
      And the registry has no row "twin"
      And stdout has "[queen-rbee] ❌ SSH connection failed: Permission denied"
      And stderr has a line that starts with "Error:"
      And stderr has a line that starts with "Suggestion:"
      And the exit code is 1

    Scenario: Add node with SSH connection failure - no such key file
      Given a queen
      And a machine "workstation" that runs an SSH server
      When blep runs "setup add-node --name workstation --ssh-host $workstation.host --ssh-user $workstation.user --ssh-key $folder/missing --install-path ~/rbee"
      Then the queen was not asked "POST /v2/registry/beehives/add"
      And "workstation" has seen no login
      And stderr has "SSH key file not found: $folder/missing"
      And stderr has a line that starts with "Suggestion:"
      And the exit code is 1

    Scenario: Add remote rbee-hive node to registry - a name that is taken
      Given a queen
      And the registered machine "workstation"
      When blep runs "setup add-node --name workstation --ssh-host $workstation.host --ssh-port $workstation.ssh_port --ssh-user $workstation.user --ssh-key $key --install-path ~/other"
      Then the queen has answered "POST /v2/registry/beehives/add" with 409 NODE_EXISTS
      And the registry row of "workstation" has
        | install_path | $workstation.install_path |
      And stderr has a line that starts with "Error:"
      And stderr has a line that starts with "Suggestion:"
      And the exit code is 1

  Rule: The list shows what is registered

    Scenario: List registered rbee-hive nodes
      Given a queen
      And the registered machine "workstation"
      And the registered machine "mac"
      When blep runs "setup list-nodes"
      Then stdout starts with "Registered rbee-hive Nodes:"
      And stdout lists localhost and then "workstation" and "mac", as they are registered
      And the exit code is 0
      When blep runs "setup list-nodes --json"
      Then stdout is the body of the answer to "GET /v2/registry/beehives/list"
      And the exit code is 0

  Rule: Removing takes exactly one node away

    Scenario: Remove node from rbee-hive registry
      Given a queen
      And the registered machine "workstation"
      And the registered machine "mac"
      When blep runs "setup remove-node --name mac"
      Then stdout is the line "[queen-rbee] ✅ Node 'mac' removed from registry"
      And the exit code is 0
      And the registry has no row "mac"
      And the registry has a row "workstation"
      When blep runs "setup remove-node --name mac"
      Then the queen has answered "POST /v2/registry/beehives/remove" with 404 NODE_NOT_FOUND
      And stderr has "Node 'mac' not found in rbee-hive registry"
      And stdout is empty
      And the exit code is 1
      When blep runs "setup remove-node --name localhost"
      Then the queen has answered "POST /v2/registry/beehives/remove" with 409 NODE_PROTECTED
      And stderr has "Error: Node 'localhost' is built in"
      And stdout is empty
      And the exit code is 1
      And the registry has a row "workstation"

  Rule: An unknown node is refused before anything starts

    @critical
    Scenario: Inference fails when node not in registry
      Given a queen
      And a machine "mac" that runs an SSH server
      When blep runs "infer --node mac --prompt hello"
      Then the queen has answered "POST /v2/tasks" with 404 NODE_NOT_FOUND
      And stderr shows in order
        """
        [queen-rbee] ❌ ERROR: Node 'mac' not found in rbee-hive registry

        To add this node, run:
          rbee-keeper setup add-node --name mac --ssh-host mac.home.arpa
        """
      And stdout is empty
      And "mac" has seen no login
      And no hive runs anywhere
      And the exit code is 1
