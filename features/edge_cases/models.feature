Feature: Cross-Node Inference Request Flow - models that cannot be had, do not fit or do not load

  Rule: A transfer that breaks off goes on from its last byte

    Scenario: EC2 - Model download failure with retry
      Given a hub that offers "org/five-GGUF" with
        | five.Q8_0.gguf | the 5 MB model |
      And the hub resets the first connection once 40 % of a file have been sent
      And a queen
      And a hive on "localhost"
      When blep runs "infer --model hf:org/five-GGUF --prompt hello --max-tokens 3 --temperature 0"
      Then stderr shows in order
        """
         40% (2.0 MB / 5.0 MB)
        Error: Connection reset by peer
        Retrying download (attempt 2/6)... delay 100ms
        """
      And after "Retrying download (attempt 2/6)" stderr has a download bar of 60 % to 99 %
      And stderr has a download bar that ends at 100 %
      And the hub was asked for the model with the ranges
        |                |
        | bytes=2097152- |
      And that model of "localhost" was pulled during the command; its row has the size and digest of its file
      And stdout is the text of the stream
      And the exit code is 0

    Scenario: EC2 - Model download failure with retry - all six attempts fail
      Given a hub that offers "org/five-GGUF" with
        | five.Q8_0.gguf | the 5 MB model |
      And the hub resets connections for good once 40 % of a file have been sent
      And "timing.download_delays_ms" is [10, 10, 10, 10, 10] on "localhost"
      And a queen
      And a hive on "localhost"
      When blep runs "infer --model hf:org/five-GGUF --prompt hello"
      Then stderr shows in order
        """
        Retrying download (attempt 2/6)... delay 10ms
        Retrying download (attempt 3/6)... delay 10ms
        Retrying download (attempt 4/6)... delay 10ms
        Retrying download (attempt 5/6)... delay 10ms
        Retrying download (attempt 6/6)... delay 10ms
        Error: Model download failed after 6 attempts: Connection reset by peer
        """
      And the error code in the stream of "POST /v2/tasks" is DOWNLOAD_FAILED
      And stdout is empty
      And the exit code is 1

  Rule: A model that does not fit is refused in numbers

    Scenario: EC3 - Insufficient VRAM
      Given the file "$folder/large.gguf" is the 5000 MB model
      And a queen
      And the registered machine "workstation"
      And "hardware.devices" is "cuda:2,cpu:1" on "workstation"
      And "hardware.vram_available_mb" is 4000 on "workstation"
      And "hardware.ram_available_mb" is 64000 on "workstation"
      And a hive on "workstation"
      When blep runs "infer --node workstation --model file:$folder/large.gguf --prompt hello --backend cuda --device 1"
      Then stderr shows the lines in a row
        """
        Error: Insufficient VRAM on workstation
          Required: 6000 MB
          Available: 4000 MB
        Suggestion: Try a smaller quantized model (Q4 instead of Q8)
        """
      And the stream of "POST /v2/tasks" ends with the error VRAM_EXHAUSTED and
        | resource  | vram |
        | required  | 6000 |
        | available | 4000 |
      And stdout is empty
      And no model was converted on "workstation"
      And "workstation" runs 1 hive and 0 worker
      And the exit code is 1

  Rule: A model that does not get loaded is given up

    Scenario Outline: EC7 - Model loading timeout
      Given "timing.loading_timeout_s" is <seconds> on "blep"
      And a queen
      And the registered machine "workstation"
      And workers on "workstation" can be told to get stuck while loading
      And the next workers on "workstation" get stuck while loading
      And a hive on "workstation" that has the embedded model
      When blep runs "infer --node workstation --prompt hello"
      Then stderr shows the lines in a row
        """
        Error: Model loading timeout after <told>
        Worker state: loading (stuck at 28/32 layers)
        Suggestion: Check worker logs on workstation for errors
        """
      And stdout is empty
      And the exit code is 1

      Examples:
        | seconds | told      |
        | 3       | 3 seconds |

      @slow
      Examples: the default
        | seconds | told      |
        | 300     | 5 minutes |
