Feature: Cross-Node Inference Request Flow - the start of a worker

  Rule: A worker listens, calls back, loads, and is idle without being asked

    Scenario: Worker startup sequence
      Given a hive on "workstation" that has the embedded model in float32
      When the hive on "workstation" is asked for a worker "A" of "$workstation.model" on cpu 0
      And the hive has logged that worker "A" went from loading to idle
      Then the hive on "workstation" has answered the request for worker "A" with
        | worker_id | $A.id              |
        | url       | $A.url             |
        | state     | loading            |
        | model_ref | $workstation.model |
        | backend   | cpu                |
        | device    | 0                  |
        | api_key   | $A.key             |
        | reused    | false              |
      And between the request for worker "A" and its being idle the hive was asked nothing but "POST /v1/workers/ready"
      And worker "A" was listening before its callback, and its callback came before its model was loaded
      And the hive on "workstation" has logged the callback of worker "A" with
        | url       | $A.url             |
        | model_ref | $workstation.model |
        | backend   | cpu                |
        | device    | 0                  |
      And a process of worker "A" comes to run with "--backend cpu --device 0"
      And the process of worker "A" has the arguments
        | --model   | $workstation.converted_folder |
        | --port    | $A.port                       |
        | --api-key | @$A.key_file                  |
      And "$A.key_file" has mode 0600 and holds the key of worker "A", which is in no argument

  Rule: The callback is checked, and may be repeated

    Scenario: Worker ready callback
      Given a hive on "workstation" that has the embedded model
      And an idle worker "A" on "workstation"
      When the hive on "workstation" is asked
        | POST /v1/workers/ready | $A.key | {"worker_id": "$A.id", "url": "$A.url", "model_ref": "$workstation.model", "backend": "cpu", "device": 0} |
      Then the body of the answer is
        """
        {"message": "Worker registered as ready"}
        """
      And the hive on "workstation" has logged "POST /v1/workers/ready" twice with 200
      And the hive on "workstation" has logged the callback of worker "A" with
        | url       | $A.url             |
        | model_ref | $workstation.model |
        | backend   | cpu                |
        | device    | 0                  |
      And the record of worker "A" has the pid of its process, and its last activity since then

    Scenario: Worker ready callback - callbacks that are refused
      Given a hive on "workstation" that has the embedded model
      And an idle worker "A" on "workstation"
      When the hive on "workstation" is asked
        | POST /v1/workers/ready |        | {"worker_id": "$A.id", "url": "$A.url", "model_ref": "$workstation.model", "backend": "cpu", "device": 0}             |
        | POST /v1/workers/ready | $A.key | {"worker_id": "worker-unknown", "url": "$A.url", "model_ref": "$workstation.model", "backend": "cpu", "device": 0}    |
        | POST /v1/workers/ready | $A.key | {"worker_id": "$A.id", "url": "http://127.0.0.1:9", "model_ref": "$workstation.model", "backend": "cpu", "device": 0} |
      Then the answers are
        | 401 | MISSING_API_KEY           |
        | 404 | WORKER_NOT_FOUND          |
        | 409 | WORKER_ALREADY_REGISTERED |
      And each answer has the form of a documented error
      And the hive lists worker "A" with
        | url   | $A.url |
        | state | idle   |

  Rule: The registry of workers is in memory

    Scenario: Worker registration in in-memory registry
      Given a hive on "workstation" that has the embedded model in float32
      When the hive on "workstation" is asked for a worker "A" of "$workstation.model" on cpu 0
      Then the hive lists worker "A" with
        | id              | $A.id              |
        | url             | $A.url             |
        | model_ref       | $workstation.model |
        | backend         | cpu                |
        | device          | 0                  |
        | state           | loading            |
        | slots_total     | 1                  |
        | slots_available | 0                  |
        | idle_since      | null               |
      And the record of worker "A" does not have its key
      And the hive comes to list worker "A" with
        | state           | idle |
        | slots_available | 1    |
      And no database of "workstation" has worker "A", but for its process in the PID journal
      When the hive on "workstation" is killed and started anew
      Then the hive on "workstation" lists no worker
      And the process of worker "A" has ended
