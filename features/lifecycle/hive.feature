@lifecycle
Feature: Cross-Node Inference Request Flow - the life of a hive

  Rule: A hive stays, whatever happens to its workers

    @critical
    Scenario: Rbee-hive remains running as persistent HTTP daemon
      Given "timing.health_probe_interval_s" is 1 on "workstation"
      And "timing.idle_timeout_s" is 12 on "workstation"
      And a hive on "workstation" that has the embedded model
      And an idle worker "A" on "workstation"
      When 5 seconds pass
      Then worker "A" has been asked "GET /v1/health" about once a second
      And the hive lists worker "A" with
        | state                | idle |
        | failed_health_checks | 0    |
      And the hive on "workstation" answers "GET /v1/health" with
        | status      | alive    |
        | version     | 0.1.0    |
        | api_version | v1       |
        | owner       | operator |
      And the hive on "workstation" accepts another worker
      And worker "A" is asked to end 12 s after its idle_since
      And the hive on "workstation" is still the process that was started

  Rule: A worker that does not answer is noticed, marked and ended

    Scenario: Rbee-hive monitors worker health
      Given "timing.health_probe_interval_s" is 1 on "workstation"
      And "timing.health_probe_timeout_s" is 0.5 on "workstation"
      And a hive on "workstation" that has the embedded model
      And an idle worker "A" on "workstation"
      When 2 seconds pass
      Then the last_activity of worker "A" has moved
      And the idle_since of worker "A" has not moved
      When worker "A" gets SIGSTOP
      Then the hive comes to list worker "A" with
        | state                | unhealthy |
        | failed_health_checks | 1         |
      And the hive comes to list no worker "A"
      And the process of worker "A" comes to its end
      And the hive on "workstation" has logged 3 "health_strike" for worker "A"
      And the hive on "workstation" has logged 1 "forced_kill" for worker "A"
      And the hive on "workstation" is still the process that was started

    Scenario: Rbee-hive monitors worker health - a worker that answers again
      Given "timing.health_probe_interval_s" is 1 on "workstation"
      And "timing.health_probe_timeout_s" is 0.5 on "workstation"
      And a hive on "workstation" that has the embedded model
      And an idle worker "A" on "workstation"
      When worker "A" gets SIGSTOP
      And the hive has logged a "health_strike" for worker "A"
      And worker "A" gets SIGCONT
      Then the hive comes to list worker "A" with
        | state                | idle |
        | failed_health_checks | 0    |
      And the process of worker "A" lives

  Rule: An idle worker ends after its time, the hive and busy workers stay

    @critical
    Scenario: Rbee-hive enforces idle timeout (worker dies, pool lives)
      Given "timing.health_probe_interval_s" is 1 on "workstation"
      And "timing.idle_timeout_s" is 3 on "workstation"
      And a hive on "workstation" that has the embedded model
      And an idle worker "busy" on "workstation"
      And worker "busy" is kept busy by requests
      And an idle worker "idle" on "workstation"
      When 5 seconds pass
      Then worker "idle" is asked to end 3 s after its idle_since
      And worker "idle" comes to its end with exit status 0
      And the hive comes to list no worker "idle"
      And the port of worker "idle" is free
      And worker "idle" was probed while it was idle
      And worker "busy" has not been asked "POST /v1/admin/shutdown"
      And worker "busy" finishes its requests
      And the hive on "workstation" is still the process that was started
