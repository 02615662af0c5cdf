Feature: Cross-Node Inference Request Flow - the preflight of a worker

  Rule: Memory is checked first, 1.2 times the size of the file

    Scenario: Worker preflight RAM check passes
      Given the file "$folder/large.gguf" is the 5000 MB model
      And "hardware.ram_available_mb" is 8000 on "workstation"
      And a hive on "workstation"
      When the hive on "workstation" is asked
        | POST /v1/workers/spawn | $api_key | {"model_ref": "file:$folder/large.gguf", "backend": "metal"} |
      Then the hive on "workstation" has logged the preflight
        | check   | passed | required_mb | available_mb |
        | ram     | True   | 6000        | 8000         |
        | backend | False  |             |              |
      And the answers are
        | 422 | BACKEND_UNAVAILABLE |
      And each answer has the form of a documented error
      And "workstation" runs 1 hive and 0 worker

    Scenario: Worker preflight RAM check fails
      Given the file "$folder/large.gguf" is the 5000 MB model
      And a queen
      And the registered machine "workstation", whose hive is recorded
      And "hardware.ram_available_mb" is 4000 on "workstation"
      And a hive on "workstation"
      When blep runs "infer --node workstation --model file:$folder/large.gguf --prompt hello --backend cpu"
      Then the hive on "workstation" has answered "POST /v1/workers/spawn" with 507 VRAM_EXHAUSTED and
        | required  | 6000 |
        | available | 4000 |
        | resource  | ram  |
      And stderr shows in order
        """
        Error: Insufficient RAM on workstation
          Required: 6000 MB
          Available: 4000 MB
        Suggestion: Try a smaller quantized model (Q4 instead of Q8)
        """
      And stdout is empty
      And no model was converted on "workstation"
      And "workstation" runs 1 hive and 0 worker
      And the exit code is 1

  Rule: Backend and device must be on the node

    Scenario Outline: Worker preflight backend check passes
      Given the file "$folder/five.gguf" is the 5 MB model
      And "hardware.devices" is "cuda:2,cpu:1" on "workstation"
      And "hardware.vram_available_mb" is 64000 on "workstation"
      And "hardware.ram_available_mb" is 64000 on "workstation"
      And a hive on "workstation"
      When the hive on "workstation" is asked for a worker "A" of "file:$folder/five.gguf" on <backend> <device>
      Then a process of worker "A" comes to run with "--backend <backend> --device <device>"
      And the hive on "workstation" has logged the passed checks
        | check   | backend   | device   |
        | backend | <backend> |          |
        | device  |           | <device> |

      Examples:
        | backend | device |
        | cpu     | 0      |
        | cuda    | 1      |

    Scenario: Worker preflight backend check passes - a device that is not there
      Given the file "$folder/five.gguf" is the 5 MB model
      And "hardware.devices" is "cuda:2,cpu:1" on "workstation"
      And "hardware.vram_available_mb" is 64000 on "workstation"
      And "hardware.ram_available_mb" is 64000 on "workstation"
      And a hive on "workstation"
      When the hive on "workstation" is asked
        | POST /v1/workers/spawn | $api_key | {"model_ref": "file:$folder/five.gguf", "backend": "cuda", "device": 2} |
      Then the answers are
        | 400 | DEVICE_UNAVAILABLE |
      And each answer has the form of a documented error
      And the details of the answer are
        | backend   | cuda   |
        | requested | 2      |
        | available | [0, 1] |
      And "workstation" runs 1 hive and 0 worker

    Scenario: Worker preflight backend check fails
      Given a queen
      And the registered machine "workstation", whose hive is recorded
      And a hive on "workstation" that has the embedded model
      When blep runs "infer --node workstation --prompt hello --backend metal"
      Then the hive on "workstation" has answered "POST /v1/workers/spawn" with 422 BACKEND_UNAVAILABLE and
        | requested | metal   |
        | available | ["cpu"] |
      And stderr shows in order
        """
        Error: Backend 'metal' is not available on workstation
          Available: cpu
        """
      And stdout is empty
      And "workstation" runs 1 hive and 0 worker
      And the exit code is 1
