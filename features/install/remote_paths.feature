@install
Feature: Cross-Node Inference Request Flow - programs and checkouts on nodes

  Rule: The configuration names them, else they lie below the install path

    Scenario Outline: Remote binary path configuration
      Given a queen with <configuration> for the programs of "workstation"
      And a repository of this project with the branch "main"
      And the registered machine "workstation" with that repository and the branch "main"
      And "workstation" has the embedded model
      When blep runs "setup install --node workstation"
      Then the exit code is 0
      And "<checkout>" of the installation on "workstation" is a checkout of the branch "main"
      When blep runs "infer --node workstation --prompt hello --max-tokens 3"
      Then the exit code is 0
      And stdout has a text
      And the hive of "workstation" was started as "<program>" of the installation

      Examples:
        | configuration    | checkout | program                |
        | no configuration | src      | current/bin/rbee-hive  |
        | own paths        | checkout | programs/own-rbee-hive |
