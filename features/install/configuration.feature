@install
Feature: Cross-Node Inference Request Flow - finding the configuration

  Rule: The first file that exists is used, the environment beats it, and the command line beats both

    Scenario: Config file loading with XDG priority
      Given blep has no configuration
      And the queen URLs in the configuration files of blep
        | RBEE_CONFIG                | http://127.0.0.1:21 |
        | ~/.config/rbee/config.toml | http://127.0.0.1:22 |
      When blep runs "queen status --json"
      Then stdout is JSON with
        | url | http://127.0.0.1:21 |
      When the variable RBEE_QUEEN_URL is "http://127.0.0.1:31"
      And blep runs "queen status --json"
      Then stdout is JSON with
        | url | http://127.0.0.1:31 |
      When blep runs "queen status --json --queen-url http://127.0.0.1:41"
      Then stdout is JSON with
        | url | http://127.0.0.1:41 |
      When the variable RBEE_QUEEN_URL is not set
      And the variable RBEE_CONFIG is not set
      And blep runs "queen status --json"
      Then stdout is JSON with
        | url | http://127.0.0.1:22 |
      When "~/.config/rbee/config.toml" is removed
      And blep runs "queen status --json"
      Then stdout is JSON with
        | url | http://127.0.0.1:8080 |

    @needs-root
    Scenario: Config file loading with XDG priority - the system's file
      Given blep has no configuration
      And blep's system folders are copies
      And the queen URLs in the configuration files of blep
        | ~/.config/rbee/config.toml | http://127.0.0.1:22 |
        | /etc/rbee/config.toml      | http://127.0.0.1:23 |
      When blep runs "queen status --json"
      Then stdout is JSON with
        | url | http://127.0.0.1:22 |
      When "~/.config/rbee/config.toml" is removed
      And blep runs "queen status --json"
      Then stdout is JSON with
        | url | http://127.0.0.1:23 |
      When "/etc/rbee/config.toml" is removed
      And blep runs "queen status --json"
      Then stdout is JSON with
        | url | http://127.0.0.1:8080 |

  Rule: A configuration that cannot be used stops the program and names file and key

    Scenario: Config file loading with XDG priority - a missing file
      Given blep has no configuration
      When the variable RBEE_CONFIG is "$folder/missing.toml"
      And blep runs "queen status --json"
      Then the exit code is 1
      And stderr has a line that starts with "Error:"
      And stderr has "RBEE_CONFIG names a missing file: $folder/missing.toml"

    Scenario: Config file loading with XDG priority - an unknown key
      Given blep has no configuration
      And the file "$folder/wrong.toml"
        """
        [queen]
        colour = "yellow"
        """
      When the variable RBEE_CONFIG is "$folder/wrong.toml"
      And blep runs "queen status --json"
      Then the exit code is 1
      And stderr has a line that starts with "Error:"
      And stderr has "$folder/wrong.toml: queen.colour: unknown key"
