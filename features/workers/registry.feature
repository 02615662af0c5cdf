Feature: Cross-Node Inference Request Flow - the worker registry of a hive

  Background:
    Given a queen
    And the registered machine "workstation", whose hive is recorded

  Rule: Without a matching worker the queen goes on to the preflight and the model

    Scenario: Worker registry returns empty list
      Given a hive on "workstation" that has the embedded model
      When blep runs "infer --node workstation --prompt hello --max-tokens 3"
      Then the hive on "workstation" has answered "GET /v1/workers/list" with the body
        """
        {"workers":[]}
        """
      And the hive on "workstation" was asked in a row
        | GET /v1/workers/list     |
        | GET /v1/health           |
        | POST /v1/models/download |
      And the exit code is 0

  Rule: An idle worker with the model is used as it is

    Scenario: Worker registry returns matching idle worker
      Given a hive on "workstation" that has the embedded model
      And an idle worker "matching" on "workstation"
      And an idle worker "other" on "workstation" with the model "file:$workstation.model_file"
      When blep runs "infer --node workstation --prompt hello --max-tokens 3"
      Then the hive lists worker "matching" with
        | model_ref | $workstation.model |
        | state     | idle               |
      And worker "matching" has been asked "POST /v1/inference" 1 time
      And worker "other" has not been asked "POST /v1/inference"
      And the hive on "workstation" was not asked "POST /v1/models/download"
      And no worker but "matching" and "other" was spawned on "workstation"
      And the exit code is 0

  Rule: A busy worker is waited for, not doubled

    Scenario: Worker registry returns matching busy worker
      Given a hive on "workstation" that has the embedded model
      And an idle worker "A" on "workstation"
      And worker "A" is kept busy by one long request
      When blep starts "infer --node workstation --prompt hello --max-tokens 3"
      And worker "A" has answered "POST /v1/inference" with 503
      And the long request to worker "A" is cancelled
      And the command ends
      Then stderr has the line "Worker is busy, retrying in 1 second..."
      And the answers of worker "A" to "POST /v1/inference" of the command were
        | 503 | ALL_SLOTS_BUSY |
        | 200 |                |
      And no worker but "A" was spawned on "workstation"
      And stdout is the text of the stream
      And the exit code is 0

    Scenario: Inference request when worker is busy - more commands than slots are all answered
      Given a hive on "workstation" that has the embedded model
      And an idle worker "A" on "workstation"
      When blep runs 3 times at once "infer --node workstation --raw --prompt '1, 2, 3, 4, 5, 6, 7, 8, 9, 10,' --max-tokens 160"
      Then each of the 3 commands ended with exit code 0 and a text
      And no worker but "A" was spawned on "workstation"
