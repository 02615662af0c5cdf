Feature: Cross-Node Inference Request Flow - the commands workers

  Background:
    Given a queen
    And the registered machine "workstation"

  Rule: The list is what the hives report now

    Scenario: CLI command - list workers
      Given the registered machine "mac"
      And the registered machine "attic", on whose hive port nobody ever answers
      And a hive on "workstation" that has the embedded model
      And a hive on "mac" that has the embedded model
      And an idle worker "A" on "workstation"
      And an idle worker "B" on "mac"
      When blep runs "workers list"
      Then stdout has one line for each worker that its hive lists, with
        | A | workstation |
        | B | mac         |
      And stderr has "attic"
      And the exit code is 0

    Scenario: CLI command - list workers - there are none
      Given a hive on "workstation" that has the embedded model
      When blep runs "workers list"
      Then stdout is the line "No workers registered"
      And the exit code is 0

  Rule: Health is asked from each worker of the node

    Scenario: CLI command - check worker health
      Given the registered machine "mac"
      And workers on "workstation" can be told to get stuck while loading
      And a hive on "workstation" that has the embedded model
      And a hive on "mac" that has the embedded model
      And an idle worker "idle" on "workstation"
      And a worker "loading" on "workstation" that is stuck while loading
      And an idle worker "elsewhere" on "mac"
      When blep runs "workers health --node workstation"
      Then stdout has one line for each worker that answers "GET /v1/ready", with
        | idle    | idle    | true  |
        | loading | loading | false |
      And stdout does not have "$elsewhere.id"
      And the exit code is 0

    Scenario: CLI command - check worker health - an unknown node
      When blep runs "workers health --node mac"
      Then the queen has answered "GET /v2/workers/health" with 404 NODE_NOT_FOUND
      And stderr shows in order
        """
        Node 'mac' not found in rbee-hive registry
        To add this node, run:
          rbee-keeper setup add-node --name mac
        """
      And stdout is empty
      And the exit code is 1

  Rule: A worker that is to end does so in order

    Scenario: CLI command - manually shutdown worker
      Given a hive on "workstation" that has the embedded model
      And an idle worker "A" on "workstation"
      When blep runs "workers shutdown --id $A.id"
      Then the hive on "workstation" has logged "DELETE /v1/workers/$A.id" with 202
      And worker "A" has been asked "POST /v1/admin/shutdown" 1 time
      And worker "A" has unloaded its model
      And worker "A" comes to its end with exit status 0
      And the hive comes to list no worker "A"
      And stdout is the line "Shutdown command sent to worker '$A.id'"
      And the exit code is 0

    Scenario: CLI command - manually shutdown worker - an unknown id
      Given a hive on "workstation" that has the embedded model
      When blep runs "workers shutdown --id worker-unknown"
      Then the queen has answered "POST /v2/workers/shutdown" with 404 WORKER_NOT_FOUND
      And stderr has "worker-unknown"
      And stderr has a line that starts with "Error:"
      And stdout is empty
      And the exit code is 1
