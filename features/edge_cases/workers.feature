Feature: Cross-Node Inference Request Flow - workers that crash, are cancelled, are busy or idle

  Background:
    Given a queen

  Rule: What was generated before a crash is kept

    Scenario: EC4 - Worker crash during inference
      Given a hive on "localhost" that has the embedded model
      And an idle worker "A" on "localhost"
      When blep starts "infer --prompt 'Count on for ever: 1, 2, 3, 4, 5, 6, 7, 8, 9,' --raw --temperature 0 --max-tokens 500"
      And the command has printed 12 tokens
      And worker "A" gets SIGKILL
      And the command ends
      Then stdout is the text of the stream so far
      And stderr shows in order
        """
        Error: SSE stream closed unexpectedly
        Partial result saved to: $blep_tmp/rbee-partial-
        Tokens generated: 
        """
      And stderr counts the tokens of the stream out of 500
      And the partial result has mode 0600 and is what stdout has
      And within 2 s of the signal the hive has logged the crash of worker "A" with exit status -9
      And the hive comes to list no worker "A"
      And the hive on "localhost" is still the process that was started
      And the queen is still the process that was started
      And the exit code is 1

  Rule: A user who leaves is believed

    Scenario: EC5 - Client cancellation with Ctrl+C
      Given a hive on "localhost" that has the embedded model
      And an idle worker "A" on "localhost"
      When blep starts "infer --prompt 'Count on for ever: 1, 2, 3, 4, 5, 6, 7, 8, 9,' --raw --temperature 0 --max-tokens 1000"
      And the command has printed 12 tokens
      And the keeper gets SIGINT
      And the command ends
      Then the exit code is 130
      And stderr ends with the line "Canceled."
      And within 5 s of the signal the queen has answered the cancellation of the task with 204
      And within 5 s of the signal worker "A" has answered the cancellation of the task with 204
      And the token counter of worker "A" stands still
      And worker "A" says at "GET /v1/ready"
        | state           | idle |
        | slots_available | 1    |
      When the cancellation of the task is sent to the queen again
      Then the queen has answered the cancellation of the task with 204 once more

    Scenario: EC5 - Client cancellation with Ctrl+C - the keeper is killed
      Given a hive on "localhost" that has the embedded model
      And an idle worker "A" on "localhost"
      When blep starts "infer --prompt 'Count on for ever: 1, 2, 3, 4, 5, 6, 7, 8, 9,' --raw --temperature 0 --max-tokens 1000"
      And the command has printed 12 tokens
      And the keeper gets SIGKILL
      Then worker "A" went from busy to idle within 1 s of the signal
      And the token counter of worker "A" stands still

  Rule: A busy worker is asked again as often as the user wants

    Scenario: EC6 - Queue full with retry
      Given a hive on "localhost" that has the embedded model
      And an idle worker "A" on "localhost"
      And worker "A" is kept busy by one long request
      When blep runs "infer --prompt hello --max-tokens 3"
      Then the command was refused 4 times by worker "A", 1 s, 2 s and 4 s apart
      And stderr shows in order
        """
        Worker is busy, retrying in 1 second...
        Worker is busy, retrying in 2 seconds...
        Worker is busy, retrying in 4 seconds...
        Error: Worker still busy after 3 retries
        Suggestion: Wait for current request to complete or use a different node
        """
      And stderr has "Worker is busy" 3 times
      And stdout is empty
      And the exit code is 1
      When blep runs "infer --prompt hello --max-tokens 3 --retry 1"
      Then stderr has "Worker is busy" 1 times
      And stderr has the line "Error: Worker still busy after 1 retry"
      And stdout is empty
      And the exit code is 1

  Rule: An idle worker is ended, and what it takes is free again

    Scenario Outline: EC10 - Idle timeout and worker auto-shutdown
      Given "timing.idle_timeout_s" is <seconds> on "localhost"
      And a hive on "localhost" that has the embedded model
      And an idle worker "A" on "localhost"
      When <before> seconds pass
      And worker "A" is asked for a stream of
        | prompt     | hello |
        | max_tokens | 3     |
      Then the idle_since of worker "A" comes to have moved
      When worker "A" is idle again
      Then worker "A" is asked to end <seconds> s after its idle_since
      And worker "A" comes to its end with exit status 0
      And worker "A" unloaded its model within 1 s of being asked to end, and was gone within 2 s
      And no process of worker "A" is left on "localhost"
      And the hive comes to list no worker "A"
      And the hive on "localhost" is still the process that was started
      And the queen is still the process that was started
      When blep runs "infer --prompt hello --max-tokens 3"
      Then the exit code is 0
      And the event "started" of the last task names another worker than "A"
      And no model was converted on "localhost"
      And no model was downloaded on "localhost"
      And stdout is the text of the stream

      Examples:
        | seconds | before |
        | 3       | 1      |

      @slow
      Examples: the default
        | seconds | before |
        | 300     | 290    |
