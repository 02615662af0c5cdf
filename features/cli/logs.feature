Feature: Cross-Node Inference Request Flow - the command logs

  Rule: What is printed are lines of the log files on the node

    Scenario: CLI command - view logs
      Given a queen
      And the registered machine "workstation"
      And a hive on "workstation" that has the embedded model
      And an idle worker "A" on "workstation"
      When blep runs "logs --node workstation"
      Then every line of stdout is a line of the logs of the hive or of worker "A"
      And stdout has lines of the log of the hive on "workstation"
      And stdout has lines of the log of worker "A"
      And the exit code is 0

    Scenario: CLI command - view logs - following
      Given a queen
      And the registered machine "workstation"
      And a hive on "workstation" that has the embedded model
      And an idle worker "A" on "workstation"
      When blep starts "logs --node workstation --follow"
      And the command comes to print a text
      And worker "A" is asked
        | GET /v1/nothing | $A.key | |
      Then within 1 s the command prints "GET /v1/nothing 404"
      When the keeper gets SIGINT
      And the command ends
      Then the exit code is 130
      And the hive on "workstation" comes to have ended the stream "GET /v1/logs"
