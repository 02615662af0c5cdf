Feature: Cross-Node Inference Request Flow - models and what happens to them on the way

  Rule: Work for one model is done once

    Scenario: Model not found - download with progress - two tasks for one model
      Given a hub that offers "org/five-GGUF" with
        | five.Q8_0.gguf | the 5 MB model |
      And the hub sends 3 MB a second
      And a queen
      And a hive on "localhost"
      When blep runs 2 times at once "infer --model hf:org/five-GGUF --prompt hello --max-tokens 3 --temperature 0"
      Then each of the 2 commands ended with exit code 0 and a text
      And the hub has sent one file, "five.Q8_0.gguf"
      And the hive on "localhost" has logged 1 "download_started", 1 "conversion_started" and 1 "worker_spawn"
      And "localhost" runs 1 hive and 1 worker

  Rule: What has arrived is not fetched again

    Scenario: Model download fails with retry - the hive is killed
      Given a hub that offers "org/five-GGUF" with
        | five.Q8_0.gguf | the 5 MB model |
      And the hub sends 3 MB a second
      And a queen
      And a hive on "localhost"
      When blep starts "infer --model hf:org/five-GGUF --prompt hello --max-tokens 3"
      And "localhost" has received 1 MB of the file
      And the hive on "localhost" is killed
      And the command ends
      Then the exit code is 0
      And stderr has a line that starts with "Bad answer from the hive"
      And the hub has sent the file in two parts, the second from where the first had been written
      And that model of "localhost" was pulled during the command; its row has the size and digest of its file
      And stdout is the text of the stream

    Scenario: Model found in SQLite catalog - its file is gone
      Given a hub that offers "org/five-GGUF" with
        | five.Q8_0.gguf | the 5 MB model |
      And a queen
      And a hive on "localhost"
      When blep runs "models pull hf:org/five-GGUF"
      And the only model's file on "localhost" is removed
      And the hub forgets what it was asked
      And blep runs "models list --json"
      Then stdout is JSON with
        | models | [] |
      When blep runs "models pull hf:org/five-GGUF"
      Then the exit code is 0
      And the hub has sent one file, "five.Q8_0.gguf"
      And stdout is the path of that model's file on "localhost"

    Scenario: Worker startup sequence - the hive is killed during the conversion
      Given "localhost" has the embedded model's file alone
      And "worker.compute_type" is "float32" on "localhost"
      And a queen
      And a hive on "localhost"
      When blep starts "infer --prompt hello --max-tokens 3"
      And the conversion on "localhost" is under way
      And the hive on "localhost" is killed
      And the command ends
      Then the exit code is 0
      And stderr has a line that starts with "Bad answer from the hive"
      And stdout is the text of the stream
      And "localhost" has one converted model and nothing half done

  Rule: What cannot be had is told apart

    Scenario Outline: Model download fails with retry - <what>
      Given a hub that offers "org/five-GGUF" with
        | five.Q8_0.gguf | the 5 MB model |
      And "org/five-GGUF" is gated at the hub for all but the token "hf_reader"
      And the token of all machines is "<token>"
      And a queen
      And a hive on "localhost"
      When blep runs "models pull hf:org/<repo>"
      Then the error code in the stream of "POST /v2/models/pull" is <code>
      And stderr has "<told>"
      And stdout is empty
      And the catalog of "localhost" has no model
      And the exit code is 1

      Examples:
        | what                | repo      | token     | code                | told     |
        | no such repository  | none-GGUF | hf_reader | MODEL_NOT_FOUND     | hf:org/none-GGUF |
        | access not granted  | five-GGUF | hf_other  | MODEL_ACCESS_DENIED | HF_TOKEN |

    Scenario: Model download fails with retry - access granted
      Given a hub that offers "org/five-GGUF" with
        | five.Q8_0.gguf | the 5 MB model |
      And "org/five-GGUF" is gated at the hub for all but the token "hf_reader"
      And the token of all machines is "hf_reader"
      And a queen
      And a hive on "localhost"
      When blep runs "models pull hf:org/five-GGUF"
      Then the exit code is 0
      And stdout is the path of that model's file on "localhost"
      And neither "hf_reader" nor "$api_key" is in an output or a log

    Scenario: Model download fails with retry - a wrong digest
      Given a hub that offers "org/five-GGUF" with
        | five.Q8_0.gguf | the 5 MB model |
      And the hub sends files with a flipped bit
      And a queen
      And a hive on "localhost"
      When blep runs "models pull hf:org/five-GGUF"
      Then the error code in the stream of "POST /v2/models/pull" is CHECKSUM_MISMATCH
      And the hub was asked for the model with the ranges
        |  |
        |  |
      And stdout is empty
      And the catalog of "localhost" has no model
      And "localhost" has no partial file
      And the exit code is 1
