@lifecycle
Feature: Cross-Node Inference Request Flow - who ends what

  Rule: The keeper ends with its command, daemons that were there stay

    @critical
    Scenario: rbee-keeper exits after inference (CLI dies, daemons live)
      Given a queen
      And a hive on "localhost" that has the embedded model
      And an idle worker "A" on "localhost"
      When blep runs "infer --prompt hello --max-tokens 5"
      Then the exit code is 0
      And stdout is the text of the stream
      And the process of the keeper has ended
      And the queen is still the process that was started
      And the hive on "localhost" is still the process that was started
      And the process of worker "A" lives
      When blep runs "workers list --json"
      Then stdout lists the workers
        | worker_id | node      | state |
        | $A.id     | localhost | idle  |

  Rule: What came up for a command is gone after it

    @critical
    Scenario: Ephemeral mode - rbee-keeper spawns rbee-hive
      Given "localhost" has the embedded model
      And no queen runs
      When blep starts "infer --prompt hello --max-tokens 20"
      Then the keeper has a queen as its child, below it a hive and below that a worker, all on loopback
      When the command ends
      Then the exit code is 0
      And stdout has a text
      And none of these processes is left and their ports are free
      And "beehives.db" and "models.db" of "localhost" are sound

    Scenario: Ephemeral mode - rbee-keeper spawns rbee-hive - the port is taken
      Given "localhost" has the embedded model
      And another web server holds the port of the queen URL
      When blep starts "infer --prompt hello --max-tokens 20"
      Then the keeper has a queen as its child, below it a hive and below that a worker, all on loopback
      And the queen does not listen on the port of the queen URL
      When the command ends
      Then the exit code is 0
      And stdout has a text
      And none of these processes is left and their ports are free

    Scenario: Ephemeral mode - rbee-keeper spawns rbee-hive - the keeper is killed
      Given "localhost" has the embedded model
      And no queen runs
      When blep starts "infer --prompt hello --max-tokens 2000"
      Then the keeper has a queen as its child, below it a hive and below that a worker, all on loopback
      And the command comes to print a text
      When the keeper gets SIGKILL
      Then within 35 s none of these processes is left and their ports are free

    Scenario: Ephemeral mode - rbee-keeper spawns rbee-hive - Ctrl+C
      Given "localhost" has the embedded model
      And no queen runs
      When blep starts "infer --prompt hello --max-tokens 2000"
      Then the keeper has a queen as its child, below it a hive and below that a worker, all on loopback
      And the command comes to print a text
      When the keeper gets SIGINT
      And the command ends
      Then the exit code is 130
      And stderr ends with the line "Canceled."
      And none of these processes is left and their ports are free

  Rule: A queen ends the hives it started, and no others

    @critical
    Scenario: Persistent mode - rbee-hive pre-started
      Given a queen
      And the registered machine "workstation"
      And a hive on "workstation" that has the embedded model
      When blep runs "infer --node workstation --prompt hello --max-tokens 5"
      Then the exit code is 0
      And the hive on "workstation" answers "GET /v1/health" with
        | owner | operator |
      And nobody has logged in to "workstation" since its registration
      And "workstation" runs 1 hive and 1 worker
      When the queen gets SIGTERM
      And the queen has ended
      Then "workstation" runs 1 hive and 1 worker
      And the hive on "workstation" is still the process that was started

    Scenario Outline: Persistent mode - rbee-hive pre-started - a hive that the queen started
      Given "timing.lease_ttl_s" is 3 on "blep"
      And "timing.lease_renew_s" is 1 on "blep"
      And a queen
      And the registered machine "workstation"
      And "timing.lease_ttl_s" is 3 on "workstation"
      And "workstation" has the embedded model
      When blep runs "infer --node workstation --prompt hello --max-tokens 5"
      Then the exit code is 0
      And "workstation" runs 1 hive and 1 worker
      When the queen gets <signal>
      Then "workstation" comes to run 0 hives and 0 workers

      Examples:
        | signal  |
        | SIGTERM |
        | SIGKILL |
