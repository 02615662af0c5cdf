@setup
Feature: Cross-Node Inference Request Flow - installing nodes

  Rule: An installation puts the software on the node by the real playbook, and a second one changes nothing

    Scenario: Install rbee-hive on remote node
      Given a queen
      And a repository of this project with the branch "stable"
      And the registered machine "workstation" with that repository and the branch "stable"
      When blep runs "setup install --node workstation"
      Then the exit code is 0
      And stdout shows in order
        """
        [queen-rbee] 📦 Cloning repository on workstation
        [queen-rbee] 🔨 Building rbee-hive and llm-worker-rbee
        [queen-rbee] ✅ Installation complete on workstation!
        """
      And the queen has answered "GET /v2/registry/beehives/workstation" with 200
      And every login to "workstation" used blep's key
      And "src" of the installation on "workstation" is a checkout of the branch "stable"
      And these programs of the installation on "workstation" print
        | rbee-hive       | rbee-hive 0.1.0       |
        | llm-worker-rbee | llm-worker-rbee 0.1.0 |
      And "workstation" has a configuration for its hive, and the fleet key with mode 0600
      And no output holds the fleet key
      When blep runs "setup install --node workstation"
      Then the exit code is 0
      And nothing was changed on "workstation"
      When blep runs "setup uninstall --node workstation"
      Then the exit code is 0
      And stdout shows in order
        """
        [queen-rbee] 🗑 Removing rbee from workstation
        [queen-rbee] ✅ Uninstall complete on workstation!
        """
      And neither software nor configuration is left on "workstation"

    Scenario: Install rbee-hive on remote node - the packages of the control machine
      Given a queen
      And the registered machine "workstation"
      When blep runs "setup install --node workstation --check"
      Then the exit code is 0
      And neither software nor configuration is left on "workstation"
      When blep runs "setup install --node workstation"
      Then the exit code is 0
      And stdout shows in order
        """
        [queen-rbee] 📦 Copying packages to workstation
        [queen-rbee] 🔨 Building rbee-hive and llm-worker-rbee
        [queen-rbee] ✅ Installation complete on workstation!
        """
      And these programs of the installation on "workstation" print
        | rbee-hive       | rbee-hive 0.1.0       |
        | llm-worker-rbee | llm-worker-rbee 0.1.0 |
      When blep runs "setup history --json"
      Then stdout lists the runs, the newest first
        | install | succeeded |
        | install | succeeded |

  Rule: A failure names the node, the task and the reason

    Scenario: Install rbee-hive on remote node - a branch that does not exist
      Given a queen
      And a repository of this project with the branch "stable"
      And the registered machine "workstation" with that repository and the branch "missing"
      When blep runs "setup install --node workstation"
      Then the exit code is 1
      And stdout has the line "[queen-rbee] ❌ Installation failed on workstation: Clone the repository"
      And stdout does not have "✅"
      And stderr has "Error: Installation failed on workstation: Clone the repository"
      And stderr has "missing"
      When blep runs "setup history --json"
      Then stdout lists the runs, the newest first
        | install | failed |

    Scenario: Install rbee-hive on remote node - a node that cannot be reached
      Given a queen
      And the registered machine "workstation"
      And the SSH server of "workstation" is stopped
      When blep runs "setup install --node workstation"
      Then the exit code is 1
      And stdout has "[queen-rbee] ❌ Installation failed on workstation"
      And stderr has "Connection refused"

    Scenario: Install rbee-hive on remote node - this machine
      Given a queen
      When blep runs "setup install --node localhost"
      Then the exit code is 1
      And stderr has a line that starts with "Error: Node 'localhost'"
      And stderr has a line that starts with "Suggestion:"
      And the queen was asked nothing

    Scenario: Install rbee-hive on remote node - an unknown node
      Given a queen
      When blep runs "setup upgrade --node ghost"
      Then the exit code is 1
      And the queen has answered "GET /v2/registry/beehives/ghost" with 404 NODE_NOT_FOUND
      And stderr has "Node 'ghost' not found in rbee-hive registry"

  Rule: One person changes the fleet at a time

    Scenario: Install rbee-hive on remote node - somebody else is at it
      Given a queen
      And the registered machine "workstation"
      And "ada@blep" holds the fleet for "upgrade of mac"
      When blep runs "setup install --node workstation"
      Then the exit code is 1
      And stderr has "Error: The fleet is being changed by ada@blep"
      And stderr has "upgrade of mac"
      And stderr has a line that starts with "Suggestion:"
      And neither software nor configuration is left on "workstation"
