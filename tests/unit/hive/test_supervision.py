"""Probes, strikes, idle time, loading, ends of processes, and the cascade – over fakes, with short times."""

from __future__ import annotations

import signal
import time
from typing import Any

import gevent
import pytest

from rbee.core.clock import utc_iso
from rbee.core.errors import InvalidApiKey, MissingApiKey, WorkerAlreadyRegistered, WorkerNotFound
from rbee.core.lifecycle import WorkerState
from rbee.core.schemas import WorkerReadyCallback
from rbee.hive.ports import NoAnswer, WorkerReport
from rbee.hive.spawning import Spawned
from rbee.hive.supervision import exit_text
from rbee.hive.vram import is_recovered
from rbee.hive.workers import EndReason
from support.supervised import REF, SHORT, Supervised

SILENT = NoAnswer("timeout", "no answer")


def probe(hive: Supervised) -> None:
    hive.probes.probe_all()
    gevent.sleep(0.01)


def watch_idle_time(hive: Supervised) -> gevent.Greenlet:
    def rounds() -> None:
        while True:
            gevent.sleep(hive.keep_alive.until_next_check())
            hive.keep_alive.check()

    return gevent.spawn(rounds)


# Health


def test_three_missed_probes_in_a_row_end_a_worker_and_one_answer_forgives() -> None:
    hive = Supervised()
    spawned = hive.idle()
    connection = hive.connection(spawned)
    connection.failure = SILENT
    probe(hive)
    probe(hive)
    assert hive.state(spawned) is WorkerState.UNHEALTHY
    connection.failure = None
    probe(hive)
    assert hive.state(spawned) is WorkerState.IDLE
    connection.failure = SILENT
    probe(hive)
    probe(hive)
    assert hive.registry.get(spawned.record.id).failed_health_checks == 2
    probe(hive)
    hive.until_gone(spawned)
    assert hive.launcher.processes[0].signals == [signal.SIGKILL]
    assert hive.metric("worker_stops_total", reason="unhealthy") == 1
    assert hive.metric("health_checks_total", result="missed") == 5
    (killed,) = hive.log.of("forced_kill")
    assert killed["signal"] == "SIGKILL"
    assert killed["worker_id"] == spawned.record.id
    assert [line["strikes"] for line in hive.log.of("health_strike")] == [1, 2, 1, 2, 3]


def test_one_hanging_worker_takes_no_other_down() -> None:
    hive = Supervised()
    silent, well = hive.idle(), hive.idle()
    hive.connection(silent).failure = SILENT
    for _ in range(3):
        probe(hive)
    hive.until_gone(silent)
    assert hive.state(well) is WorkerState.IDLE
    assert hive.registry.get(well.record.id).failed_health_checks == 0


def test_a_worker_is_not_probed_twice_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hive = Supervised()
    spawned = hive.idle()
    connection = hive.connection(spawned)
    asked = []

    def slow(_timeout_s: float) -> WorkerReport:
        asked.append(1)
        gevent.sleep(0.05)
        return connection.report

    monkeypatch.setattr(connection, "health", slow)
    for _ in range(3):
        probe(hive)
    assert len(asked) == 1
    gevent.sleep(0.06)
    probe(hive)
    assert len(asked) == 2


def test_a_probe_refreshes_last_activity_and_not_the_idle_time() -> None:
    hive = Supervised()
    spawned = hive.idle(utc_iso(time.time() - 0.1))
    before = hive.registry.get(spawned.record.id)
    gevent.sleep(0.01)
    probe(hive)
    after = hive.registry.get(spawned.record.id)
    assert after.last_activity > before.last_activity
    assert after.idle_since == before.idle_since


def test_lists_wait_once_for_a_silent_worker_and_take_it_back_when_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hive = Supervised()
    hanging, well = hive.idle(), hive.idle()
    connection = hive.connection(hanging)

    def hang(timeout_s: float) -> WorkerReport:
        gevent.sleep(timeout_s)
        raise SILENT

    monkeypatch.setattr(connection, "ready", hang)
    waited = []
    for _ in range(3):
        begun = time.monotonic()
        hive.connection(well).asked.clear()
        assert len(hive.supervisor.refresh(0.2)) == 2
        assert hive.connection(well).asked == ["ready"]
        waited.append(time.monotonic() - begun)
    assert waited[0] >= 0.19
    assert max(waited[1:]) < 0.1
    monkeypatch.undo()
    gevent.sleep(0.3)
    hive.supervisor.refresh(0.2)
    gevent.sleep(0)
    connection.become(WorkerState.BUSY)
    hive.supervisor.refresh(0.2)
    assert hive.state(hanging) is WorkerState.BUSY


# Idle time


def test_an_idle_worker_is_ended_after_its_time_and_not_before() -> None:
    hive = Supervised()
    spawned = hive.idle(utc_iso())
    rounds = watch_idle_time(hive)
    begun = time.monotonic()
    hive.until(lambda: "shutdown" in hive.connection(spawned).asked)
    rounds.kill()
    assert 0.15 <= time.monotonic() - begun < 0.5
    assert hive.state(spawned) is WorkerState.DRAINING
    hive.launcher.processes[0].end(0)
    hive.until_gone(spawned)
    assert hive.metric("worker_stops_total", reason="idle_timeout") == 1
    assert hive.metric("worker_crashes_total") == 0


def test_a_worker_that_was_used_meanwhile_is_kept() -> None:
    hive = Supervised()
    spawned = hive.idle(utc_iso(time.time() - 10))
    hive.connection(spawned).become(WorkerState.IDLE, utc_iso(time.time() + 10))
    rounds = watch_idle_time(hive)
    gevent.sleep(0.1)
    rounds.kill()
    assert "shutdown" not in hive.connection(spawned).asked
    assert hive.state(spawned) is WorkerState.IDLE


def test_a_worker_that_the_hive_believes_busy_is_found_idle_and_ended() -> None:
    hive = Supervised()
    spawned = hive.idle(utc_iso())
    hive.connection(spawned).become(WorkerState.BUSY)
    hive.supervisor.refresh(1)
    assert hive.state(spawned) is WorkerState.BUSY
    hive.connection(spawned).become(WorkerState.IDLE, utc_iso())
    rounds = watch_idle_time(hive)
    hive.until(lambda: "shutdown" in hive.connection(spawned).asked)
    rounds.kill()


def test_a_busy_worker_is_never_ended_by_the_idle_rule() -> None:
    hive = Supervised()
    spawned = hive.idle(utc_iso())
    hive.connection(spawned).become(WorkerState.BUSY)
    hive.supervisor.refresh(1)
    rounds = watch_idle_time(hive)
    gevent.sleep(0.4)
    rounds.kill()
    assert "shutdown" not in hive.connection(spawned).asked


def test_infinite_keeps_and_immediate_ends_right_after_a_request() -> None:
    kept, ended = Supervised(policy="infinite"), Supervised(policy="immediate")
    old = kept.idle(utc_iso(time.time() - 1000))
    used = ended.idle(utc_iso())
    rounds = [watch_idle_time(kept), watch_idle_time(ended)]
    gevent.sleep(0.05)
    assert "shutdown" not in ended.connection(used).asked
    ended.connection(used).become(WorkerState.IDLE, utc_iso(time.time() + 0.001))
    ended.until(lambda: "shutdown" in ended.connection(used).asked)
    assert "shutdown" not in kept.connection(old).asked
    gevent.killall(rounds)


# Loading


def test_the_end_of_loading_is_seen_at_once_and_not_at_the_next_poll() -> None:
    hive = Supervised(SHORT.model_copy(update={"ready_poll_interval_s": 30}))
    spawned = hive.up()
    gevent.sleep(0.02)
    hive.connection(spawned).become(WorkerState.IDLE, utc_iso())
    begun = time.monotonic()
    hive.connection(spawned).loaded.set()
    hive.until(lambda: hive.state(spawned) is WorkerState.IDLE)
    assert time.monotonic() - begun < 0.5


def test_a_worker_whose_loading_failed_can_be_read_for_a_moment_and_is_then_ended() -> None:
    hive = Supervised(SHORT.model_copy(update={"ready_poll_interval_s": 0.15}))
    spawned = hive.up()
    hive.connection(spawned).become(WorkerState.ERROR)
    hive.connection(spawned).loaded.set()
    hive.until(lambda: hive.state(spawned) is WorkerState.DRAINING)
    assert "shutdown" not in hive.connection(spawned).asked
    hive.until(lambda: "shutdown" in hive.connection(spawned).asked)
    hive.launcher.processes[0].end(0)
    hive.until_gone(spawned)
    assert hive.metric("worker_stops_total", reason="loading_failed") == 1


def test_a_load_without_progress_is_given_up_so_that_no_worker_loads_for_ever() -> None:
    hive = Supervised()
    spawned = hive.up()
    begun = time.monotonic()
    hive.until(lambda: "shutdown" in hive.connection(spawned).asked)
    assert time.monotonic() - begun >= 0.35
    hive.launcher.processes[0].end(0)
    hive.until_gone(spawned)
    assert hive.metric("worker_stops_total", reason="loading_stuck") == 1


def test_a_slow_load_that_moves_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    hive = Supervised()
    spawned = hive.spawn()

    def layers(_silence_s: float) -> Any:
        for layer in range(12):
            gevent.sleep(0.1)
            yield {"stage": "loading_to_vram", "layers_loaded": layer}

    monkeypatch.setattr(hive.connection(spawned), "loading_events", layers)
    hive.until(lambda: hive.launcher.processes)
    hive.registry.seat(spawned.record.id).up.set()
    gevent.sleep(1.0)
    assert hive.state(spawned) is WorkerState.LOADING
    assert "shutdown" not in hive.connection(spawned).asked


# Processes


@pytest.mark.parametrize(
    ("status", "text"), [(1, "exit status 1"), (-9, "killed by SIGKILL"), (-250, "killed by signal 250")]
)
def test_a_crash_is_logged_with_its_status_and_the_last_lines(status: int, text: str) -> None:
    hive = Supervised()
    spawned = hive.idle()
    hive.launcher.processes[0].end(status)
    hive.until_gone(spawned)
    (line,) = hive.log.of("worker_crashed")
    assert text in line["message"]
    assert line["exit_status"] == status
    assert line["last_lines"] == [f"last line of {spawned.record.id}"]
    assert hive.ports.reserve() == 8001
    assert hive.connection(spawned).is_closed
    assert hive.journal.rows() == []


def test_a_worker_that_ends_by_itself_with_status_0_has_not_crashed() -> None:
    hive = Supervised()
    spawned = hive.idle()
    hive.launcher.processes[0].end(0)
    hive.until_gone(spawned)
    assert hive.log.of("worker_crashed") == []
    assert hive.metric("worker_stops_total", reason="by_itself") == 1


def test_a_worker_that_began_to_drain_by_itself_is_escorted_to_its_end() -> None:
    hive = Supervised(ignores=(signal.SIGTERM,))
    spawned = hive.idle()
    hive.connection(spawned).become(WorkerState.DRAINING)
    hive.supervisor.refresh(1)
    assert hive.state(spawned) is WorkerState.DRAINING
    hive.until_gone(spawned)
    assert hive.launcher.processes[0].signals[-1] == signal.SIGKILL


def test_ending_an_unknown_worker_is_not_found() -> None:
    with pytest.raises(WorkerNotFound):
        Supervised().supervisor.stop("worker-x", EndReason.REQUESTED)


def test_ending_a_worker_twice_asks_it_once() -> None:
    hive = Supervised()
    spawned = hive.idle()
    for _ in range(3):
        hive.supervisor.stop(spawned.record.id, EndReason.REQUESTED)
    gevent.sleep(0.02)
    assert hive.connection(spawned).asked.count("shutdown") == 1
    assert hive.connection(spawned).drains == [0.3]
    hive.launcher.processes[0].end(0)
    hive.until_gone(spawned)


def test_a_worker_that_does_not_acknowledge_gets_sigterm_and_then_sigkill() -> None:
    hive = Supervised(ignores=(signal.SIGTERM,))
    spawned = hive.idle()
    connection = hive.connection(spawned)
    connection.acknowledges = False
    connection.failure = SILENT
    begun = time.monotonic()
    hive.supervisor.stop(spawned.record.id, EndReason.REQUESTED)
    hive.until_gone(spawned)
    assert 0.15 < time.monotonic() - begun < 0.6
    assert hive.launcher.processes[0].signals == [signal.SIGTERM, signal.SIGKILL]
    assert [line["signal"] for line in hive.log.of("forced_kill")] == ["SIGTERM", "SIGKILL"]


def test_a_worker_that_drains_after_sigterm_is_not_killed_early() -> None:
    hive = Supervised(ignores=(signal.SIGTERM,))
    spawned = hive.idle()
    connection = hive.connection(spawned)
    connection.acknowledges = False
    connection.become(WorkerState.DRAINING)
    hive.supervisor.stop(spawned.record.id, EndReason.REQUESTED)
    gevent.sleep(0.3)
    assert hive.launcher.processes[0].signals == [signal.SIGTERM]
    hive.launcher.processes[0].end(0)
    hive.until_gone(spawned)


def test_exit_statuses_in_words() -> None:
    assert exit_text(0) == "exit status 0"
    assert exit_text(-11) == "killed by SIGSEGV"


# Registration


def call_back(hive: Supervised, spawned: Spawned, header: str | None, **changes: Any) -> None:
    fields = {
        "worker_id": spawned.record.id,
        "url": spawned.record.url,
        "model_ref": REF,
        "backend": "cpu",
        "device": 0,
        **changes,
    }
    hive.registration.accept(WorkerReadyCallback(**fields), header)


def test_a_callback_needs_the_workers_own_key_its_id_and_its_url() -> None:
    hive = Supervised()
    spawned = hive.spawn()
    mine = f"Bearer {spawned.key}"
    with pytest.raises(MissingApiKey):
        call_back(hive, spawned, None)
    with pytest.raises(InvalidApiKey):
        call_back(hive, spawned, "Bearer key-of-somebody-else")
    with pytest.raises(WorkerNotFound):
        call_back(hive, spawned, mine, worker_id="worker-x")
    with pytest.raises(WorkerAlreadyRegistered):
        call_back(hive, spawned, mine, url="http://node:9999")
    assert not hive.registry.seat(spawned.record.id).up.is_set()


def test_a_callback_counts_once_and_is_passed_on_once() -> None:
    hive = Supervised()
    spawned = hive.spawn()
    for _ in range(2):
        call_back(hive, spawned, f"Bearer {spawned.key}")
    gevent.sleep(0.01)
    assert hive.registry.seat(spawned.record.id).up.is_set()
    assert hive.notices == [
        {
            "worker_id": spawned.record.id,
            "url": spawned.record.url,
            "model_ref": REF,
            "backend": "cpu",
            "device": 0,
        }
    ]


# Device memory


@pytest.mark.parametrize(("now_mb", "expected"), [(1899, False), (1900, True), (2500, True)])
def test_memory_counts_as_recovered_at_its_share(now_mb: int, expected: bool) -> None:
    assert is_recovered(1000, now_mb, 1000, 0.9) is expected


def end_cuda_worker(hive: Supervised) -> None:
    spawned = hive.idle(backend="cuda")
    hive.registry.seat(spawned.record.id).vram_bytes = 1000 * 1024 * 1024
    probe(hive)
    hive.launcher.processes[-1].end(-9)
    hive.until_gone(spawned)


def test_a_spawn_waits_until_the_memory_of_an_ended_cuda_worker_is_back() -> None:
    hive = Supervised(SHORT.model_copy(update={"vram_recovery_timeout_s": 5}))
    end_cuda_worker(hive)
    waiting = gevent.spawn(hive.spawn)
    gevent.sleep(0.05)
    assert not waiting.ready()
    hive.vram_meter.free = 2000
    waiting.get(timeout=1)
    assert hive.log.of("vram_not_recovered") == []


def test_memory_that_does_not_come_back_is_a_warning_and_no_obstacle() -> None:
    hive = Supervised()
    end_cuda_worker(hive)
    hive.spawn()
    assert len(hive.log.of("vram_not_recovered")) == 1


# Cascade


def test_a_cascade_asks_all_workers_at_once_and_ends_when_they_have() -> None:
    hive = Supervised()
    workers = [hive.idle() for _ in range(3)]
    cascade = gevent.spawn(hive.cascade.run)
    hive.until(lambda: all("shutdown" in hive.connection(w).asked for w in workers))
    assert [hive.connection(w).drains for w in workers] == [[0.3]] * 3
    for process in hive.launcher.processes:
        assert not cascade.ready()
        process.end(0)
        gevent.sleep(0.01)
    cascade.get(timeout=1)
    assert [line["message"] for line in hive.log.of("shutdown_progress")] == [
        f"{n}/3 workers ended" for n in (1, 2, 3)
    ]
    assert hive.registry.records() == []
    assert hive.journal.rows() == []
    assert hive.models_closed.is_set()


def test_a_cascade_kills_what_is_left_when_its_time_is_over() -> None:
    hive = Supervised()
    workers = [hive.idle() for _ in range(2)]
    hive.launcher.processes[0].ignores = hive.launcher.processes[1].ignores = (signal.SIGTERM,)
    begun = time.monotonic()
    hive.cascade.run()
    assert 0.5 < time.monotonic() - begun < 2
    assert {line["worker_id"] for line in hive.log.of("forced_kill")} == {w.record.id for w in workers}
    assert hive.registry.records() == []


def test_a_cascade_ends_a_worker_that_is_still_being_converted() -> None:
    hive = Supervised()
    hive.models.is_converted = False
    hive.models.conversion_may_end.clear()
    hive.spawn()
    gevent.sleep(0.01)
    hive.cascade.run()
    assert hive.registry.records() == []
    assert hive.launcher.processes == []


def test_a_cascade_without_workers_ends_at_once() -> None:
    hive = Supervised()
    begun = time.monotonic()
    hive.cascade.run()
    assert time.monotonic() - begun < 0.2
