Feature: Cross-Node Inference Request Flow - nodes that cannot be used

  Rule: An unreachable node is tried three times, in sight of the user

    Scenario: EC1 - Connection timeout with retry and backoff
      Given a machine "workstation" that runs an SSH server
      And "ssh.command" is "ssh -o HostName=$workstation.host" on "blep"
      And a queen
      And the registered machine "workstation", known as "unreachable.home.arpa" and port 9200
      And the queen is replaced by one with MOCK_SSH
      When blep runs "infer --node workstation --prompt hello"
      Then stderr shows in order
        """
        Attempt 1: Connecting to unreachable.home.arpa:9200... (timeout 10s)
        Attempt 2: Connecting to unreachable.home.arpa:9200... (timeout 10s, delay 200ms)
        Attempt 3: Connecting to unreachable.home.arpa:9200... (timeout 10s, delay 400ms)
        Error: Cannot connect to unreachable.home.arpa:9200 after 3 attempts
        Suggestion: Check if rbee-hive is running on workstation
        """
      And the registry row of "workstation" has
        | status | unreachable |
      And the registry row of "workstation" has an error that names "unreachable.home.arpa"
      And stdout is empty
      And no hive runs anywhere
      And the exit code is 1

  Rule: Versions must be equal

    Scenario: EC8 - Version mismatch
      Given a queen
      And the registered machine "workstation"
      And a stand-in hive of version "0.2.0" on "workstation"
      When blep runs "infer --node workstation --prompt hello"
      Then stderr shows the lines in a row
        """
        Error: Version mismatch
          rbee-keeper: v0.1.0
          rbee-hive: v0.2.0
        Please upgrade rbee-keeper to v0.2.0:
          pip install rbee==0.2.0
        """
      And stdout is empty
      And the exit code is 1

  Rule: A wrong key is told with the file to look at, and never shown

    Scenario: EC9 - Invalid API key
      Given a queen
      And the registered machine "workstation", whose hive is recorded
      And a hive on "workstation" with the key "another-key-0123456789"
      When blep runs "infer --node workstation --prompt hello"
      Then the hive on "workstation" has refused "GET /v1/health" with 401 INVALID_API_KEY and "WWW-Authenticate: Bearer"
      And stderr shows the lines in a row
        """
        Error: Authentication failed
          Invalid API key for $workstation.host
        Check your configuration:
          $blep_config
        """
      And stdout is empty
      And the exit code is 1
      And neither "$api_key" nor "another-key-0123456789" is in an output or a log
      When the hive on "workstation" is asked
        | GET /v1/workers/list | $api_key |  |
        | GET /v1/health       | $api_key |  |
      Then the answers are
        | 401 | INVALID_API_KEY |
        | 401 | INVALID_API_KEY |
      And each answer has the header "WWW-Authenticate: Bearer"
      And the hive on "workstation" answers "GET /v1/health" without a key

    Scenario: EC9 - Invalid API key - at the queen
      Given a queen
      When the variable RBEE_API_KEY is "another-key-0123456789"
      And blep runs "infer --prompt hello"
      Then stderr shows the lines in a row
        """
        Error: Authentication failed
          Invalid API key for 127.0.0.1
        Check your configuration:
          $blep_config
        """
      And stdout is empty
      And the exit code is 1
      And neither "$api_key" nor "another-key-0123456789" is in an output or a log
