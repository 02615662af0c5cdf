Feature: Cross-Node Inference Request Flow - the command infer

  Rule: What the flags say is what the queen is asked and what happens

    Scenario Outline: CLI command - basic inference
      Given a queen
      And the registered machine "workstation"
      And a hive on "workstation" that has the embedded model
      When blep runs "infer --node workstation --model $workstation.model --prompt hello --max-tokens 20 --temperature 0.7 --backend <backend> --device <device>"
      Then the queen was asked "POST /v2/tasks" once with exactly
        | node        | workstation        |
        | model       | $workstation.model |
        | prompt      | hello              |
        | max_tokens  | 20                 |
        | temperature | 0.7                |
        | backend     | <backend>          |
        | device      | <device>           |
      And the only worker on "workstation" runs with "--backend <backend> --device <device>"
      And stdout is the text of the stream
      And the exit code is 0

      Examples:
        | backend | device |
        | cpu     | 0      |

      @needs-cuda
      Examples: with CUDA
        | backend | device |
        | cuda    | 1      |

    Scenario: CLI command - basic inference - into a file
      Given a queen
      And a hive on "localhost" that has the embedded model
      And an idle worker "A" on "localhost"
      When blep runs "infer --prompt hello --max-tokens 5" into a file
      Then stdout is the text of the stream
      And the exit code is 0

    Scenario: CLI command - basic inference - only a prompt
      Given a queen
      And a hive on "localhost" that has the embedded model
      And an idle worker "A" on "localhost"
      When blep runs "infer --prompt hello"
      Then the stream of "POST /v2/tasks" has the event "started" with
        | node      | localhost        |
        | worker_id | $A.id            |
        | model     | $localhost.model |
      And stdout is the text of the stream
      And the exit code is 0

    Scenario: CLI command - basic inference - as JSON
      Given a queen
      And a hive on "localhost" that has the embedded model
      And an idle worker "A" on "localhost"
      When blep runs "infer --prompt hello --max-tokens 5 --json"
      Then stdout is JSON with
        | worker_id    | $A.id      |
        | total_tokens | 5          |
        | stop_reason  | MAX_TOKENS |
        | error        | null       |
      And the "text" of that JSON is the text of the stream
      And the exit code is 0

    Scenario: CLI command - basic inference - quiet
      Given a queen
      And a hive on "localhost" that has the embedded model
      And an idle worker "A" on "localhost"
      When blep runs "infer --prompt hello --max-tokens 5 --quiet"
      Then stderr is empty
      And stdout is the text of the stream
      And the exit code is 0

    Scenario: CLI command - basic inference - the same seed twice
      Given a queen
      And a hive on "localhost" that has the embedded model
      And an idle worker "A" on "localhost"
      When blep runs "infer --prompt 'Tell me a story.' --max-tokens 12 --temperature 1.5 --seed 7"
      And blep runs "infer --prompt 'Tell me a story.' --max-tokens 12 --temperature 1.5 --seed 7"
      Then both commands ended with exit code 0 and the same text

    Scenario: CLI command - basic inference - a stop string
      Given a queen
      And a hive on "localhost" that has the embedded model
      And an idle worker "A" on "localhost"
      When blep runs "infer --prompt '1, 2, 3, 4, 5,' --raw --temperature 0 --max-tokens 40 --stop ' 8' --json"
      Then stdout is JSON with
        | stop_reason | STOP_SEQUENCE |
        | text        | " 6, 7,"      |
      And the exit code is 0

  Rule: Wrong usage is told before anything is asked

    Scenario: CLI command - basic inference - an unknown flag
      Given a queen
      When blep runs "infer --prompt hello --colour yellow"
      Then the exit code is 2
      And stderr has "No such option"
      And stderr has "--colour"
      And stdout is empty
      And the queen was asked nothing
