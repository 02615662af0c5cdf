@setup
Feature: Cross-Node Inference Request Flow - registering nodes

  Background:
    Given a queen

  Rule: A node is stored only after a real login

    @critical
    Scenario: Add remote rbee-hive node to registry
      Given a machine "workstation" that runs an SSH server
      When blep adds the node "workstation" with every flag
      Then the queen has answered "POST /v2/registry/beehives/add" with 200 exactly once
      And the SSH server of "workstation" has accepted one login with the scenario's key
      And the SSH server of "workstation" has run "echo 'connection test'"
      And the registry row of "workstation" holds what the flags said
      And the registry row of "workstation" is reachable since the command
      And stdout shows in order
        """
        [queen-rbee] 🔌 Testing SSH connection to 127.0.0.11
        [queen-rbee] ✅ SSH connection successful! Node 'workstation' saved to registry
        """
      And the exit code is 0

    Scenario: Add node with SSH connection failure
      Given an SSH port of "workstation" that accepts connections and stays silent
      And the SSH connect timeout is 1 second
      When blep adds the node "workstation"
      Then the silent port has counted 3 connections with gaps of at least 200 and 400 ms
      And the queen has answered "POST /v2/registry/beehives/add" with 502 exactly once
      And the registry has no row "workstation"
      And stdout shows in order
        """
        [queen-rbee] 🔌 Testing SSH connection to 127.0.0.1
        [queen-rbee] ❌ SSH connection failed: Connection timeout
        """
      And stderr has a line that starts with "Error:"
      And the exit code is 1

    Scenario: Add node with SSH connection failure - unreachable host
      Given the queen was started with MOCK_SSH
      When blep adds the node "ghost" at "unreachable.home.arpa"
      Then the queen has answered "POST /v2/registry/beehives/add" with 502 exactly once
      And the registry has no row "ghost"
      And stdout shows in order
        """
        [queen-rbee] 🔌 Testing SSH connection to unreachable.home.arpa
        [queen-rbee] ❌ SSH connection failed: Connection timeout
        """
      And stderr has a line that starts with "Error:"
      And the exit code is 1

    Scenario Outline: A failed login names its reason - <reason>
      Given a machine "workstation" that runs an SSH server
      And <circumstance>
      When blep adds the node "workstation"
      Then stdout has "[queen-rbee] ❌ SSH connection failed: <reason>"
      And the registry has no row "workstation"
      And the exit code is 1

      Examples:
        | circumstance                                        | reason                       |
        | the SSH server of "workstation" is stopped          | Connection refused           |
        | the SSH server of "workstation" knows another key   | Permission denied            |
        | blep knows another host key of "workstation"        | Host key verification failed |

    Scenario: A missing key file is reported before any request
      When blep adds the node "mac" with the key "/nonexistent/key"
      Then stderr has "/nonexistent/key"
      And the queen has seen no "POST /v2/registry/beehives/add"
      And the exit code is 1

    Scenario: A name can be taken only once
      Given a machine "workstation" that runs an SSH server
      And "workstation" is registered
      When blep adds the node "workstation"
      Then the queen has answered "POST /v2/registry/beehives/add" with 409 exactly once
      And stderr has "already registered"
      And the exit code is 1

  Rule: The list shows what is registered

    Scenario: List registered rbee-hive nodes
      Given the machines "workstation" and "mac" are registered in this order
      When blep runs "setup list-nodes"
      Then stdout starts with "Registered rbee-hive Nodes:"
      And stdout shows the nodes "localhost", "workstation", "mac" in this order, each as its registry row says
      And the exit code is 0
      When blep runs "setup list-nodes --json"
      Then stdout is the JSON that "GET /v2/registry/beehives/list" answers
      And the exit code is 0

  Rule: Removing takes exactly one node away

    Scenario: Remove node from rbee-hive registry
      Given the machines "workstation" and "mac" are registered in this order
      When blep runs "setup remove-node --name mac"
      Then stdout has "[queen-rbee] ✅ Node 'mac' removed from registry"
      And the exit code is 0
      And the registry has no row "mac"
      And the registry has a row "workstation"
      When blep runs "setup remove-node --name mac"
      Then the queen has answered "POST /v2/registry/beehives/remove" with 404 exactly once
      And the exit code is 1
      When blep runs "setup remove-node --name localhost"
      Then the queen has answered "POST /v2/registry/beehives/remove" with 409 exactly once
      And the exit code is 1
      And the registry has a row "workstation"

  Rule: An unknown node is refused before anything starts

    @critical
    Scenario: Inference fails when node not in registry
      Given a machine "mac" that runs an SSH server
      When blep runs "infer --node mac --prompt hello"
      Then the queen has answered "POST /v2/tasks" with 404 exactly once
      And stderr shows in order
        """
        [queen-rbee] ❌ ERROR: Node 'mac' not found in rbee-hive registry

        To add this node, run:
          rbee-keeper setup add-node --name mac --ssh-host mac.home.arpa
        """
      And stdout is empty
      And the SSH server of "mac" has accepted no login
      And no hive runs anywhere
      And the exit code is 1
