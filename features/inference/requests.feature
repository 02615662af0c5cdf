Feature: Cross-Node Inference Request Flow - requests to a worker

  Background:
    Given a queen
    And a hive on "localhost" that has the embedded model
    And an idle worker "A" on "localhost"

  Rule: Tokens are sent as they are made

    Scenario: Inference request with SSE streaming
      When worker "A" is asked for a stream of
        | prompt      | Tell me a story. |
        | max_tokens  | 20               |
        | temperature | 0.7              |
        | stream      | true             |
      Then worker "A" says at "GET /v1/ready"
        | state           | busy |
        | slots_available | 0    |
        | idle_since      | null |
      And the stream has come with the headers of one, token by token, its end told by done and [DONE]
      And worker "A" comes to say "idle" at "GET /v1/ready"
      When blep runs "infer --prompt 'Tell me a story.' --max-tokens 20 --temperature 0.7"
      Then stdout is the text of the stream
      And the exit code is 0

    Scenario: Inference request with SSE streaming - without a key
      When worker "A" is asked
        | POST /v1/inference |           | {"prompt": "payload-marker", "max_tokens": 3} |
        | POST /v1/inference | wrong-key | {"prompt": "payload-marker", "max_tokens": 3} |
      Then the answers are
        | 401 | MISSING_API_KEY |
        | 401 | INVALID_API_KEY |
      And each answer has the form of a documented error

  Rule: A worker without a free slot says so, and is asked again

    Scenario: Inference request when worker is busy
      Given worker "A" is kept busy by one long request
      When worker "A" is asked
        | POST /v1/inference | $A.key | {"prompt": "payload-marker", "max_tokens": 3} |
      Then the answers are
        | 503 | ALL_SLOTS_BUSY |
      And the body of the answer is
        """
        {"error": {"code": "ALL_SLOTS_BUSY", "message": "Worker is busy, try again later",
         "slots_total": 1, "slots_busy": 1, "details": {"slots_total": 1, "slots_busy": 1},
         "suggestion": "Wait for current request to complete or use a different node"}}
        """
      When blep runs "infer --prompt hello --max-tokens 3"
      Then the command was refused 4 times by worker "A", 1 s, 2 s and 4 s apart
      And the stream of "POST /v2/tasks" ends with the error ALL_SLOTS_BUSY and
        | slots_total | 1 |
        | slots_busy  | 1 |
        | retries     | 3 |
      And stderr has "Wait for current request to complete or use a different node"
      And stdout is empty
      And the exit code is 1
      And the long request to worker "A" goes on undisturbed
