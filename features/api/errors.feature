Feature: Cross-Node Inference Request Flow - the form of errors

  Rule: Every refusal is one error of the documented table in one form

    Scenario: Error response structure validation
      Given a hive on "workstation" that has the embedded model
      When the hive on "workstation" is asked
        | POST /v1/workers/spawn | $api_key          | {"model_ref": "$workstation.model", "backend": "metal"}         |
        | GET /v1/workers/list   | not-the-fleet-key |                                                                 |
        | GET /v1/health         | not-the-fleet-key |                                                                 |
        | GET /v1/payload-marker | $api_key          |                                                                 |
        | PUT /v1/workers/list   | $api_key          | {"marker": "payload-marker"}                                    |
        | POST /v1/workers/spawn | $api_key          | {"model_ref": "payload-marker"                                  |
        | POST /v1/workers/spawn | $api_key          | {"model_ref": "$workstation.model", "marker": "payload-marker"} |
        | POST /v1/workers/spawn | $api_key          | {"model_ref": "$two_megabytes"}                                 |
      Then the answers are
        | 422 | BACKEND_UNAVAILABLE |
        | 401 | INVALID_API_KEY     |
        | 401 | INVALID_API_KEY     |
        | 404 | NOT_FOUND           |
        | 405 | METHOD_NOT_ALLOWED  |
        | 400 | INVALID_REQUEST     |
        | 400 | INVALID_REQUEST     |
        | 413 | PAYLOAD_TOO_LARGE   |
      And each answer has the form of a documented error

    Scenario: Error response structure validation - at the queen
      Given a queen
      When the queen is asked
        | POST /v2/tasks         | $api_key          | {"prompt": "payload-marker", "node": "mac"}   |
        | POST /v2/tasks         | $api_key          | {"prompt": "payload-marker", "max_tokens": 0} |
        | POST /v2/tasks         | $api_key          | {"promt": "payload-marker"}                   |
        | POST /v2/tasks         | not-the-fleet-key | {"prompt": "payload-marker"}                  |
        | GET /v2/tasks          | $api_key          |                                               |
        | GET /v2/payload-marker | $api_key          |                                               |
        | POST /v2/tasks         | $api_key          | {"prompt": "$two_megabytes"}                  |
      Then the answers are
        | 404 | NODE_NOT_FOUND     |
        | 400 | INVALID_REQUEST    |
        | 400 | INVALID_REQUEST    |
        | 401 | INVALID_API_KEY    |
        | 405 | METHOD_NOT_ALLOWED |
        | 404 | NOT_FOUND          |
        | 413 | PAYLOAD_TOO_LARGE  |
      And each answer has the form of a documented error

    Scenario: Error response structure validation - too little memory
      Given "hardware.ram_available_mb" is 100 on "workstation"
      And a hive on "workstation" that has the embedded model
      When the hive on "workstation" is asked
        | POST /v1/workers/spawn | $api_key | {"model_ref": "$workstation.model"} |
      Then the answers are
        | 507 | VRAM_EXHAUSTED |
      And each answer has the form of a documented error
      And the details of the answer are
        | required  | 113 |
        | available | 100 |
        | resource  | ram |

    Scenario: Error response structure validation - a busy worker
      Given a hive on "workstation" that has the embedded model
      And an idle worker "A" on "workstation"
      And worker "A" is kept busy by one long request
      When worker "A" is asked
        | POST /v1/inference | $A.key | {"prompt": "payload-marker", "max_tokens": 3} |
      Then the answers are
        | 503 | ALL_SLOTS_BUSY |
      And each answer has the form of a documented error
      And the body of the answer is
        """
        {"error": {"code": "ALL_SLOTS_BUSY", "message": "Worker is busy, try again later",
         "slots_total": 1, "slots_busy": 1, "details": {"slots_total": 1, "slots_busy": 1},
         "suggestion": "Wait for current request to complete or use a different node"}}
        """

  Rule: A stream ends with the same form, and then with its last event

    Scenario: Error response structure validation - in a stream
      Given a queen
      And a hive on "localhost" that has the embedded model
      When the queen is asked
        | POST /v2/tasks | $api_key | {"prompt": "payload-marker", "model": "file:/nonexistent/model.gguf"} |
      Then the answer is a stream that ends with the error MODEL_NOT_FOUND and then [DONE]
      And the error in the stream has the form of a documented error
