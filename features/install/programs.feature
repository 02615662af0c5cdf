@install
Feature: Cross-Node Inference Request Flow - installing the programs

  Rule: A user gets the programs below the home

    Scenario: CLI command - install to user paths
      Given blep has no configuration
      When blep runs "install"
      Then the exit code is 0
      And each program in "~/.local/bin" has mode 0755 and prints its version
        | rbee-keeper     | rbee-keeper 0.1.0     |
        | rbee            | rbee-keeper 0.1.0     |
        | queen-rbee      | queen-rbee 0.1.0      |
        | rbee-hive       | rbee-hive 0.1.0       |
        | llm-worker-rbee | llm-worker-rbee 0.1.0 |
      And "~/.config/rbee/config.toml" is TOML that "~/.local/bin/rbee-keeper" loads
      And "~/.local/share/rbee/models" is a folder
      And stdout has "Next steps"
      And stdout has "~/.local/bin is not in your PATH"
      When "~/.config/rbee/config.toml" is edited
      And blep runs "install"
      Then the exit code is 0
      And "~/.config/rbee/config.toml" is as it was edited

  Rule: Root gets the programs for all users

    Scenario: CLI command - install to system paths
      Given blep has no configuration
      When the variable DESTDIR is "$folder/image"
      And blep runs "install --system"
      Then the exit code is 0
      And each program in "$folder/image/usr/local/bin" has mode 0755 and prints its version
        | rbee-keeper     | rbee-keeper 0.1.0     |
        | rbee            | rbee-keeper 0.1.0     |
        | queen-rbee      | queen-rbee 0.1.0      |
        | rbee-hive       | rbee-hive 0.1.0       |
        | llm-worker-rbee | llm-worker-rbee 0.1.0 |
      And "$folder/image/etc/rbee/config.toml" is TOML with the models in "/var/lib/rbee/models"
      And "$folder/image/var/lib/rbee/models" is a folder

    @needs-root
    Scenario: CLI command - install to system paths - root
      Given blep has no configuration
      And blep's system folders are copies
      When blep runs "install --system"
      Then the exit code is 0
      And each program in "/usr/local/bin" has mode 0755 and prints its version
        | rbee-keeper     | rbee-keeper 0.1.0     |
        | rbee            | rbee-keeper 0.1.0     |
        | queen-rbee      | queen-rbee 0.1.0      |
        | rbee-hive       | rbee-hive 0.1.0       |
        | llm-worker-rbee | llm-worker-rbee 0.1.0 |
      And "/etc/rbee/config.toml" is TOML with the models in "/var/lib/rbee/models"
      And "/var/lib/rbee/models" is a folder

    Scenario: CLI command - install to system paths - neither root nor DESTDIR
      Given blep has no configuration
      And blep's user is not root
      When blep runs "install --system"
      Then the exit code is 1
      And stderr has a line that starts with "Error:"
      And stderr has "sudo rbee-keeper install --system"
      And stdout is empty
      And nothing was installed below /usr/local/bin, /etc/rbee and /var/lib/rbee
