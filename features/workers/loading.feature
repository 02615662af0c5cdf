Feature: Cross-Node Inference Request Flow - a worker that loads

  Rule: A worker answers while it loads, and says where it stands

    Scenario: Worker health check while loading
      Given a hive on "workstation" that has the embedded model in float32
      When the hive on "workstation" is asked for a worker "A" of "$workstation.model" on cpu 0
      And the loading progress of worker "A" is read
      And worker "A" is polled every 10 ms until it is ready
      Then each time worker "A" was loading it has answered "GET /v1/ready" with 200 and
        | ready        | false                |
        | state        | loading              |
        | progress_url | /v1/loading/progress |
      And meanwhile it has refused inference with 503 WORKER_NOT_READY, and its health came within 1 s
      And a reader of that progress_url has seen layers

    Scenario: Worker loading progress stream
      Given a queen
      And a hive on "localhost" that has the embedded model in float32
      When blep starts "infer --prompt hello --max-tokens 3"
      And somebody reads the loading progress of the next worker on "localhost" as "A"
      And the command ends
      Then the exit code is 0
      And the reader has seen each layer of the embedded model on "localhost", then ready, then [DONE]
      And stderr has a loading bar that ends at 100 %
      And stderr has the line "Model ready!"
      When the loading progress of worker "A" is read
      Then the reader has seen nothing but ready and [DONE]

    Scenario: Worker health check when ready
      Given a hive on "workstation" that has the embedded model
      And an idle worker "A" on "workstation"
      Then worker "A" says at "GET /v1/ready"
        | ready           | true |
        | state           | idle |
        | model_loaded    | true |
        | slots_total     | 1    |
        | slots_available | 1    |
      When worker "A" is asked for a stream of
        | prompt     | hello |
        | max_tokens | 3     |
      Then the stream has come with the headers of one, its end told by done and [DONE]
      And worker "A" comes to say "idle" at "GET /v1/ready"
      And the idle_since of worker "A" comes to have moved

  Rule: A worker that does not get ready in time is given up

    Scenario: Worker loading timeout
      Given "timing.loading_timeout_s" is 3 on "blep"
      And a queen
      And the registered machine "workstation"
      And workers on "workstation" can be told to get stuck while loading
      And the next workers on "workstation" get stuck while loading
      And a hive on "workstation" that has the embedded model
      When blep runs "infer --node workstation --prompt hello"
      Then the stream of "POST /v2/tasks" ends with the error LOADING_TIMEOUT and
        | state         | loading |
        | layers_loaded | 28      |
        | layers_total  | 32      |
      And that error came 3 s to 6 s after the worker on "workstation" had called back
      And stderr has "Check worker logs on workstation for errors"
      And stdout is empty
      And the exit code is 1
      And "workstation" comes to run 1 hive and 0 workers
      And the hive on "workstation" comes to list no worker
