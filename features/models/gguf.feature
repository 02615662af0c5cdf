@gguf
Feature: Cross-Node Inference Request Flow - GGUF files

  Rule: A GGUF is told by its name and by its first bytes

    Scenario: GGUF model detection by file extension
      Given the file "$folder/five.gguf" is the 5 MB model
      And a queen
      And "worker.compute_type" is "int8" on "localhost"
      And a hive on "localhost"
      When blep runs "infer --model file:$folder/five.gguf --prompt hello --max-tokens 5 --temperature 0"
      Then "localhost" has "$folder/five.gguf" converted to int8, with
        | model.bin           |
        | config.json         |
        | tokenizer.json      |
        | chat_template.jinja |
      And the hive on "localhost" lists one model, with
        | format     | gguf                     |
        | model_ref  | file:$folder/five.gguf   |
        | local_path | $folder/five.gguf        |
      And stdout is the text of the stream
      And the exit code is 0

    Scenario Outline: GGUF model detection by file extension - what only looks like one
      Given the file "$folder/<file>" is <content>
      And a queen
      And a hive on "localhost"
      When blep runs "infer --model file:$folder/<file> --prompt hello"
      Then the error code in the stream of "POST /v2/tasks" is MODEL_INCOMPATIBLE
      And stderr has a line that starts with "Error:"
      And stdout is empty
      And no model was converted on "localhost"
      And "localhost" runs 1 hive and 0 worker
      And the exit code is 1

      Examples:
        | file       | content        |
        | five.bin   | the 5 MB model |
        | notes.gguf | a text         |

    Scenario: GGUF model detection by file extension - a folder in the engine's own format
      Given the file "$folder/converted" is the embedded model, converted
      And a queen
      And a hive on "localhost"
      When blep runs "infer --model file:$folder/converted --prompt hello --max-tokens 5"
      Then no model was converted on "localhost"
      And the only worker on "localhost" runs with "--model $folder/converted"
      And the hive on "localhost" lists one model, with
        | format    | ctranslate2            |
        | model_ref | file:$folder/converted |
      And stdout is the text of the stream
      And the exit code is 0

  Rule: What the header says is what is shown and used

    Scenario: GGUF metadata extraction
      Given a hub that offers "org/words-GGUF" with
        | words.Q4_K_M.gguf | a model of 32000 tokens |
      And a queen
      And "worker.compute_type" is "int8" on "localhost"
      And a hive on "localhost"
      When blep runs "models pull hf:org/words-GGUF"
      Then the exit code is 0
      And the hive on "localhost" lists one model, with
        | vocab_size   | 32000  |
        | eos_token_id | 2      |
        | quantization | Q4_K_M |
        | architecture | llama  |
      And the record on "localhost" has what the gguf library reads from the file
      When the hive on "localhost" is asked for a worker "A" of "hf:org/words-GGUF" on cpu 0
      And the hive has logged that worker "A" went from loading to idle
      Then the vocabulary of the model converted on "localhost" has 32000 entries

    Scenario: GGUF metadata extraction - the end of a text
      Given a queen
      And a hive on "localhost" that has the embedded model
      When blep runs "infer --prompt 'What is the capital of France? Answer with one word.' --max-tokens 200 --temperature 0"
      Then the stream of the last task ended with stop_reason EOS before 200 tokens, without "<|im_end|>"
      And stdout is the text of the stream
      And the exit code is 0
