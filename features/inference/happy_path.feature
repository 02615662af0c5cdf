Feature: Cross-Node Inference Request Flow - from a command to a text

  Rule: One command brings up whatever is missing

    Scenario Outline: Happy path - cold start inference on remote node
      Given a hub that offers "TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF" with
        | tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf | the embedded model |
        | tinyllama-1.1b-chat-v1.0.Q8_0.gguf   | the 5 MB model     |
      And the hub sends 60 MB a second
      And a queen
      And the registered machine "workstation", whose hive is recorded
      And "hardware.ram_available_mb" is 8000 on "workstation"
      And "worker.compute_type" is "float32" on "workstation"
      And "workstation" runs no hive, and its catalog has no model
      When blep runs "infer --node workstation --model hf:TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF --prompt 'write a story' --max-tokens 20 --temperature 0.7 --backend <backend> --device <device>"
      And the only worker on "workstation" is called "A"
      Then the exit code is 0

      # The hive.
      And "workstation" has seen one login, with blep's key
      And one command of that login to "workstation" started its hive
      And "workstation" runs 1 hive and 1 worker
      And the hive on "workstation" is no child of the queen
      And the hive on "workstation" answers "GET /v1/health" with
        | status      | alive |
        | version     | 0.1.0 |
        | api_version | v1    |
      And the registry row of "workstation" was connected no earlier than the command
      And the hive on "workstation" has answered "GET /v1/workers/list" with the body
        """
        {"workers":[]}
        """

      # The model.
      And the hub has sent one file, "tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf"
      And stderr has a download bar that ends at 100 %
      And the catalog of "workstation" has one model, with
        | provider  | hf                                     |
        | reference | TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF |
      And that model of "workstation" was pulled during the command; its row has the size and digest of its file
      And stderr shows in order
        """
        Preflight RAM 113 MB required, 8000 MB available: passed
        Preflight backend <backend>: available: passed
        Preflight device <backend>:<device>: available: passed
        Converting model...
        """
      And stderr has a conversion bar that ends at 100 %

      # The worker.
      And the only worker on "workstation" runs with "--backend <backend> --device <device>"
      And worker "A" is on the first worker port of "workstation"
      And the hive on "workstation" has logged "POST /v1/workers/ready" with 200
      And the hive lists worker "A" with
        | state     | idle                                      |
        | backend   | <backend>                                 |
        | device    | <device>                                  |
        | model_ref | hf:TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF |
      And worker "A" was asked "GET /v1/ready" and "GET /v1/loading/progress" for the task while it was loading
      And stderr has a loading bar that ends at 100 %
      And stderr has the line "Model ready!"

      # The text.
      And the stream of "POST /v2/tasks" has the event "started" with
        | node       | workstation                               |
        | worker_id  | $A.id                                     |
        | worker_url | $A.url                                    |
        | model      | hf:TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF |
      And the request_id of the event "started" is that of the one request worker "A" was asked "POST /v1/inference"
      And stdout began while worker "A" was still busy
      And the stream of the last task has 20 tokens, fewer only at the end of the text
      And stdout is the text of the stream
      And worker "A" says at "GET /v1/ready"
        | state           | idle |
        | slots_available | 1    |

      Examples:
        | backend | device |
        | cpu     | 0      |

      @needs-cuda
      Examples: with CUDA
        | backend | device |
        | cuda    | 1      |

  Rule: What is up already is used again

    Scenario: Warm start - reuse existing idle worker
      Given a queen
      And the registered machine "workstation", whose hive is recorded
      And a hive on "workstation" that has the embedded model
      When blep runs "infer --node workstation --prompt 'write a story' --max-tokens 20"
      And the only worker on "workstation" is called "A"
      And blep runs "infer --node workstation --prompt 'write a story' --max-tokens 20"
      Then the exit code is 0
      And the command took less than 5 s
      And the event "started" of the last task names worker "A"
      And for the last task the hive on "workstation" was asked for no download and no new worker
      And worker "A" has been asked "POST /v1/inference" 2 times
      And no worker but "A" was spawned on "workstation"
      And stdout is the text of the stream
      When the queen is ended and started anew
      And blep runs "infer --node workstation --prompt 'write a story' --max-tokens 20"
      Then the exit code is 0
      And the command took less than 5 s
      And the event "started" of the last task names worker "A"
      And for the last task the hive on "workstation" was asked for no download and no new worker
      And worker "A" has been asked "POST /v1/inference" 3 times
      And no worker but "A" was spawned on "workstation"
      And stdout is the text of the stream
