Feature: Cross-Node Inference Request Flow - the preflight of a pool

  Rule: A hive that is alive is asked for the model next

    Scenario: Pool preflight health check succeeds
      Given a queen
      And the registered machine "workstation", whose hive is recorded
      And a hive on "workstation" that has the embedded model
      When blep runs "infer --node workstation --prompt hello --max-tokens 3"
      Then the hive on "workstation" has answered each "GET /v1/health" with 200 and
        | status      | alive |
        | version     | 0.1.0 |
        | api_version | v1    |
      And the hive on "workstation" was asked in a row
        | GET /v1/health           |
        | POST /v1/models/download |
      And the exit code is 0

  Rule: A hive of another version is not used

    Scenario: Pool preflight detects version mismatch
      Given a queen
      And the registered machine "workstation", whose hive is recorded
      And a stand-in hive of version "0.2.0" on "workstation"
      When blep runs "infer --node workstation --prompt hello"
      Then the keeper sent "POST /v2/tasks" with the header "X-Rbee-Version: 0.1.0"
      And the stream of "POST /v2/tasks" ends with the error VERSION_MISMATCH and
        | keeper_version | "0.1.0" |
        | hive_version   | "0.2.0" |
      And the hive on "workstation" was not asked "POST /v1/models/download"
      And the hive on "workstation" was not asked "POST /v1/workers/spawn"
      And stderr shows in order
        """
        Error: Version mismatch
          rbee-keeper: v0.1.0
          rbee-hive: v0.2.0
        Please upgrade rbee-keeper to v0.2.0:
          pip install rbee==0.2.0
        """
      And stdout is empty
      And the exit code is 1

  Rule: A hive that does not answer is tried three times

    Scenario Outline: Pool preflight connection timeout with retry
      Given "timing.hive_connect_timeout_s" is <timeout> on "blep"
      And a queen
      And the registered machine "workstation", on whose hive port nobody ever answers
      When blep runs "infer --node workstation --prompt hello"
      Then the silent port has counted 3 connections, each given up after <timeout> s
      And the second and third came 200 ms and 400 ms after the one before
      And the stream of "POST /v2/tasks" ends with the error CONNECTION_TIMEOUT and
        | host      | $workstation.host            |
        | port      | $workstation.hive_port |
        | attempts  | 3                            |
        | timeout_s | <timeout>                    |
      And stderr shows in order
        """
        Error: Cannot connect to $workstation.host:$workstation.hive_port after 3 attempts
        Suggestion: Check if rbee-hive is running on workstation
        """
      And nobody has logged in to "workstation" since its registration
      And stdout is empty
      And the exit code is 1

      Examples:
        | timeout |
        | 1       |

      @slow
      Examples: the default
        | timeout |
        | 10      |
