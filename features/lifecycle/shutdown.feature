@lifecycle
Feature: Cross-Node Inference Request Flow - the end of a hive

  Rule: A hive that is told to end ends its workers first, in parallel and in order

    @critical
    Scenario Outline: Cascading shutdown when rbee-hive receives SIGTERM
      Given a hive on "workstation" that has the embedded model
      And the idle workers "A", "B" and "C" on "workstation"
      When the hive on "workstation" gets <signal>
      Then the hive on "workstation" ends with exit code 0 within 30 s
      And the workers "A", "B" and "C" were asked to end within 5 s of the signal and 1 s of each other
      And the workers "A", "B" and "C" have ended with exit status 0, before their hive
      And the hive on "workstation" has logged the progress "1/3", "2/3" and "3/3"
      And the ports of the hive on "workstation" and of the workers "A", "B" and "C" are free
      And the PID journal of "workstation" is empty
      And the model catalog of "workstation" is sound and still has the embedded model

      Examples:
        | signal  |
        | SIGTERM |
        | SIGINT  |

    Scenario: Cascading shutdown when rbee-hive receives SIGTERM - a worker that does not react
      Given "timing.shutdown_ack_timeout_s" is 1 on "workstation"
      And "timing.shutdown_kill_after_s" is 3 on "workstation"
      And a hive on "workstation" that has the embedded model
      And the idle workers "A" and "stuck" on "workstation"
      When worker "stuck" gets SIGSTOP
      And the hive on "workstation" gets SIGTERM
      Then the hive on "workstation" ends with exit code 0 within 30 s
      And worker "A" has ended with exit status 0
      And the hive on "workstation" has logged the forced kill of worker "stuck" by SIGKILL, 3 s after the signal
      And the process of worker "stuck" has ended
      And the PID journal of "workstation" is empty
