Feature: Cross-Node Inference Request Flow - provisioning of models

  Rule: A model that is here is used as it is

    Scenario: Model found in SQLite catalog
      Given a hub that has no models
      And a queen
      And the registered machine "workstation", whose hive is recorded
      And a hive on "workstation" that has the embedded model, pulled from the hub as "org/small-GGUF"
      When blep runs "infer --node workstation --model hf:org/small-GGUF --prompt hello --max-tokens 3"
      Then the hive on "workstation" has answered "POST /v1/models/download" with 200 and
        | download_id | cached                  |
        | local_path  | $workstation.model_file |
      And the hub was asked nothing
      And stderr does not have "Downloading model..."
      And the hive on "workstation" was asked in a row
        | POST /v1/models/download |
        | POST /v1/workers/spawn   |
      And the hive on "workstation" has logged the preflight
        | check   | passed |
        | ram     | True   |
        | backend | True   |
        | device  | True   |
      And the catalog of "workstation" has one model, with
        | provider   | hf                      |
        | reference  | org/small-GGUF          |
        | local_path | $workstation.model_file |
      And that model of "workstation" was used during the command
      And stdout is the text of the stream
      And the exit code is 0

  Rule: A model that is not here is fetched in sight of everybody who asks

    Scenario: Model not found - download with progress
      Given a hub that offers "org/five-GGUF" with
        | five.Q8_0.gguf | the 5 MB model |
      And the hub sends 3 MB a second
      And a queen
      And the registered machine "workstation", whose hive is recorded
      And a hive on "workstation"
      When blep starts "infer --node workstation --model hf:org/five-GGUF --prompt hello --max-tokens 3"
      And somebody else reads the progress of the download on "workstation"
      And the command ends
      Then the reader has seen the download of 5242880 bytes grow to its end, and then [DONE]
      And stderr has a download bar that ends at 100 %
      And the catalog of "workstation" has one model, with
        | provider   | hf            |
        | reference  | org/five-GGUF |
        | size_bytes | 5242880       |
      And the hive on "workstation" was asked in a row
        | POST /v1/models/download         |
        | GET /v1/models/download/progress |
        | POST /v1/workers/spawn           |
      And stdout is the text of the stream
      And the exit code is 0

    Scenario: Model not found - download with progress - an unknown download
      Given a hive on "workstation"
      When the hive on "workstation" is asked
        | GET /v1/models/download/progress?id=download-unknown | $api_key | |
      Then the answers are
        | 404 | DOWNLOAD_NOT_FOUND |
      And each answer has the form of a documented error

  Rule: A transfer that breaks off is continued, six times in all

    Scenario: Model download fails with retry
      Given a hub that offers "org/five-GGUF" with
        | five.Q8_0.gguf | the 5 MB model |
      And the hub resets connections for good once 40 % of a file have been sent
      And a queen
      And a hive on "localhost"
      When blep runs "infer --model hf:org/five-GGUF --prompt hello --max-tokens 3"
      Then the hub was asked for the model with the ranges
        |                |
        | bytes=2097152- |
        | bytes=2097152- |
        | bytes=2097152- |
        | bytes=2097152- |
        | bytes=2097152- |
      And the hub was asked again after
        | 100 ms  |
        | 200 ms  |
        | 400 ms  |
        | 800 ms  |
        | 1600 ms |
      And the stream of "POST /v2/tasks" ends with the error DOWNLOAD_FAILED and
        | attempts   | 6                        |
        | last_error | Connection reset by peer |
      And stderr has the line "Error: Model download failed after 6 attempts: Connection reset by peer"
      And stdout is empty
      And the catalog of "localhost" has no model
      And the partial file on "localhost" has 2097152 bytes
      And "localhost" runs 1 hive and 0 worker
      And the exit code is 1

  Rule: What has arrived is in the catalog, with what proves it

    Scenario: Model catalog registration after download
      Given a hub that offers "org/five-GGUF" with
        | five.Q8_0.gguf | the 5 MB model |
      And a queen
      And the registered machine "workstation"
      And a hive on "workstation"
      When blep runs "models pull hf:org/five-GGUF --node workstation"
      Then the exit code is 0
      And the catalog of "workstation" has one model, with
        | id         | five.Q8_0     |
        | provider   | hf            |
        | reference  | org/five-GGUF |
        | size_bytes | 5242880       |
      And that model of "workstation" was pulled during the command; its row has the size and digest of its file
      And stdout is the path of that model's file on "workstation"
      When blep runs "models list --node workstation"
      Then stdout has "hf:org/five-GGUF"
      When the hub forgets what it was asked
      And blep runs "models pull hf:org/five-GGUF --node workstation"
      Then the hub was asked nothing
      And stdout is the path of that model's file on "workstation"
      And the exit code is 0
