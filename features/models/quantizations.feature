@gguf
Feature: Cross-Node Inference Request Flow - quantisations and sizes of GGUF files

  Rule: Every quantisation is read

    Scenario Outline: GGUF quantization formats supported
      Given the file "$folder/small.gguf" is a small model in <quantization>
      And a queen
      And "worker.compute_type" is "int8" on "localhost"
      And a hive on "localhost"
      When blep runs "infer --model file:$folder/small.gguf --prompt hello --max-tokens 5 --temperature 0"
      Then the exit code is 0
      And the stream of the last task has 5 tokens, fewer only at the end of the text
      And stdout is the text of the stream
      And the hive on "localhost" lists one model, with
        | quantization | <quantization> |

      Examples:
        | quantization |
        | Q4_K_M       |
        | Q5_K_M       |
        | Q8_0         |

    Scenario: GGUF quantization formats supported - compute types
      Given the file "$folder/small.gguf" is a small model in Q8_0
      And "worker.compute_type" is "int8" on "workstation"
      And "worker.compute_type" is "float32" on "mac"
      And a hive on "workstation"
      And a hive on "mac"
      When the hive on "workstation" is asked for a worker "int8" of "file:$folder/small.gguf" on cpu 0
      And the hive on "mac" is asked for a worker "float32" of "file:$folder/small.gguf" on cpu 0
      Then the workers "int8" and "float32" come to be idle, and each answers a request
      And the memory and the folder of worker "float32" are larger than those of worker "int8"

  Rule: The size of a file is what the preflight goes by

    Scenario: GGUF model size calculation
      Given a hub that offers "org/five-GGUF" with
        | five.Q8_0.gguf | the 5 MB model |
      And a queen
      And the registered machine "workstation"
      And "worker.compute_type" is "int8" on "workstation"
      And "hardware.ram_available_mb" is 7 on "workstation"
      And a hive on "workstation"
      When blep runs "models pull hf:org/five-GGUF --node workstation"
      And the hive on "workstation" is asked for a worker "A" of "hf:org/five-GGUF" on cpu 0
      Then the hive on "workstation" lists one model, with
        | size_bytes | 5242880 |
      And that model of "workstation" was pulled during the command; its row has the size and digest of its file
      And the hive on "workstation" has logged the preflight
        | check | passed | required_mb | available_mb |
        | ram   | True   | 6           | 7            |
      And the hive comes to list worker "A" with
        | state | idle |

    Scenario: GGUF model size calculation - too little memory
      Given the file "$folder/five.gguf" is the 5 MB model
      And "hardware.ram_available_mb" is 5 on "workstation"
      And a hive on "workstation"
      When the hive on "workstation" is asked
        | POST /v1/workers/spawn | $api_key | {"model_ref": "file:$folder/five.gguf"} |
      Then the answers are
        | 507 | VRAM_EXHAUSTED |
      And the details of the answer are
        | required  | 6   |
        | available | 5   |
        | resource  | ram |
      And the hive on "workstation" has logged the preflight
        | check | passed | required_mb | available_mb |
        | ram   | False  | 6           | 5            |
      And "workstation" runs 1 hive and 0 worker
