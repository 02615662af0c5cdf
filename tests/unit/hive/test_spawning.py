"""Starting a worker: what refuses it at once, what fails later, and that nothing of a failed start stays."""

from __future__ import annotations

from collections.abc import Callable

import gevent
import pytest

from rbee.core.errors import (
    MemoryExhausted,
    ModelNotFound,
    RbeeError,
    ServiceUnavailable,
    WorkerNotFound,
    WorkerStartFailed,
)
from rbee.core.lifecycle import WorkerState
from rbee.core.settings import Settings
from rbee.hive.devices import Devices
from rbee.hive.local_models import LocalModel, ModelFormat
from rbee.hive.preflight import Preflight
from rbee.hive.spawning import Spawned
from rbee.hive.workers import EndReason, WorkerRegistry
from rbee.testing.fake_device_probe import FakeDeviceProbe
from support.supervised import HIVE_PORT, REF, Supervised
from support.tiny_ct2 import write_tiny_model


def failure_of(hive: Supervised, spawned: Spawned) -> RbeeError:
    """The error that readers of the start-up get."""
    hive.until_gone(spawned)
    log = hive.supervisor.failed_starts.get(spawned.record.id)
    assert log.error is not None
    return log.error


def assert_nothing_stays(hive: Supervised, spawned: Spawned) -> None:
    hive.until_gone(spawned)
    assert hive.journal.rows() == []
    assert hive.launcher.forgotten == [spawned.record.id]
    assert hive.connection(spawned).is_closed
    assert hive.ports.reserve() == 8001
    assert all(process.wait() is not None for process in hive.launcher.processes)


def test_the_answer_comes_while_the_worker_is_loading() -> None:
    hive = Supervised()
    hive.models.is_converted = False
    hive.models.conversion_may_end.clear()
    wire = hive.spawn(backend="cpu", device=0).wire()
    assert wire["worker_id"].startswith("worker-")
    assert wire["api_key"].startswith("key-")
    assert wire["url"] == "http://node:8001"
    assert {k: wire[k] for k in ("state", "model_ref", "backend", "device", "reused")} == {
        "state": "loading",
        "model_ref": REF,
        "backend": "cpu",
        "device": 0,
        "reused": False,
    }


def test_a_worker_is_started_with_what_was_decided_and_is_written_into_the_journal() -> None:
    hive = Supervised()
    spawned = hive.up()
    (order,) = hive.launcher.orders
    assert (order.worker_id, order.model_ref, order.port) == (spawned.record.id, REF, 8001)
    assert order.key == spawned.key
    assert str(order.model_folder) == "/models/ct2/x"
    (row,) = hive.journal.rows()
    assert (row.worker_id, row.hive_port, row.pid, row.port) == (order.worker_id, HIVE_PORT, 4000, 8001)
    assert [str(ref) for ref in hive.models.touched] == [REF]


def test_the_live_worker_that_is_named_is_given_with_its_key_and_nothing_starts() -> None:
    hive = Supervised()
    first = hive.idle()
    again = hive.spawn(worker_id=first.record.id)
    assert again.reused
    assert (again.record.id, again.key, again.record.state) == (first.record.id, first.key, WorkerState.IDLE)
    assert len(hive.launcher.processes) == 1


def test_an_unknown_worker_without_a_model_is_not_found() -> None:
    with pytest.raises(WorkerNotFound):
        Supervised().spawn(worker_id="worker-x", model_ref=None)


def test_an_unknown_worker_with_a_model_is_a_new_one_under_its_own_name() -> None:
    spawned = Supervised().spawn(worker_id="rbee-hive")
    assert not spawned.reused
    assert spawned.record.id.startswith("worker-")


def test_a_missing_model_is_provided_before_the_checks() -> None:
    hive = Supervised()
    hive.models.present = False
    spawned = hive.up()
    story = list(_story(hive, spawned))
    assert b'"downloading"' in story[0]
    assert b'"checked"' in story[1]


def _story(hive: Supervised, spawned: Spawned) -> list[bytes]:
    return list(hive.registry.seat(spawned.record.id).startup.follow())


@pytest.mark.parametrize("error", [ModelNotFound(REF), MemoryExhausted(6000, 4000, "ram")])
def test_a_refusal_leaves_no_record_no_port_and_no_process(error: RbeeError) -> None:
    hive = Supervised()
    hive.models.present = False
    if isinstance(error, ModelNotFound):
        hive.models.error = error
    else:
        hive.checks.error = error
    with pytest.raises(type(error)):
        hive.spawn()
    assert hive.registry.records() == []
    assert hive.ports.reserve() == 8001
    assert hive.launcher.processes == []
    assert hive.metric("worker_starts_total", outcome="refused") == 1


def test_a_missing_program_is_told_at_once() -> None:
    hive = Supervised()
    hive.launcher.is_missing = True
    with pytest.raises(WorkerStartFailed):
        hive.spawn()


def test_two_spawns_get_different_ports_and_the_fourth_of_three_none() -> None:
    hive = Supervised()
    urls = {hive.spawn().record.url for _ in range(3)}
    assert urls == {"http://node:8001", "http://node:8002", "http://node:8003"}
    with pytest.raises(WorkerStartFailed, match="no free port"):
        hive.spawn()


def test_a_hive_that_ends_spawns_nothing() -> None:
    hive = Supervised()
    hive.spawner.close()
    with pytest.raises(ServiceUnavailable):
        hive.spawn()


def test_a_failed_conversion_is_the_error_of_the_start() -> None:
    hive = Supervised()
    hive.models.is_converted = False
    hive.models.error = MemoryExhausted(6000, 4000, "ram")
    spawned = hive.spawn()
    assert failure_of(hive, spawned).code == "VRAM_EXHAUSTED"
    assert hive.launcher.processes == []
    assert hive.metric("worker_starts_total", outcome="failed") == 1
    assert_nothing_stays(hive, spawned)


def test_a_model_that_no_longer_fits_after_its_conversion_starts_no_process() -> None:
    hive = Supervised()
    hive.models.is_converted = False
    hive.checks.later_error = MemoryExhausted(6000, 4000, "ram")
    spawned = hive.spawn()
    assert failure_of(hive, spawned).code == "VRAM_EXHAUSTED"
    assert hive.launcher.processes == []


def test_a_process_that_cannot_be_started_is_a_failed_start() -> None:
    hive = Supervised(error="Exec format error")
    spawned = hive.spawn()
    assert "Exec format error" in failure_of(hive, spawned).message
    assert_nothing_stays(hive, spawned)


def test_a_process_that_ends_before_its_http_is_a_failed_start_with_its_status() -> None:
    hive = Supervised()
    spawned = hive.spawn()
    hive.until(lambda: hive.launcher.processes)
    hive.launcher.processes[0].end(3)
    error = failure_of(hive, spawned)
    assert error.code == "WORKER_START_FAILED"
    assert error.details == {"exit_code": 3, "log_path": f"/nowhere/{spawned.record.id}.log"}
    assert hive.metric("worker_crashes_total") == 1
    assert_nothing_stays(hive, spawned)


def test_no_http_in_time_is_a_failed_start_and_the_process_is_killed() -> None:
    hive = Supervised()
    spawned = hive.spawn()
    hive.connection(spawned).failure = _refused()
    error = failure_of(hive, spawned)
    assert "no HTTP within 0.3 s" in error.message
    assert hive.launcher.processes[0].wait() == -9
    assert_nothing_stays(hive, spawned)


def _refused() -> Exception:
    from rbee.hive.ports import NoAnswer

    return NoAnswer("refused", "connection refused")


def test_a_worker_whose_callback_got_lost_is_found_by_the_poll() -> None:
    hive = Supervised()
    spawned = hive.spawn()
    hive.connection(spawned).become(WorkerState.IDLE, "2026-01-31T08:00:00.000Z")
    hive.until(lambda: hive.state(spawned) is WorkerState.IDLE)
    assert hive.metric("worker_starts_total", outcome="ok") == 1


def test_a_worker_that_is_ended_while_its_model_is_converted_never_starts() -> None:
    hive = Supervised()
    hive.models.is_converted = False
    hive.models.conversion_may_end.clear()
    spawned = hive.spawn()
    gevent.sleep(0.01)
    hive.supervisor.stop(spawned.record.id, EndReason.REQUESTED)
    assert "ended before it was ready" in failure_of(hive, spawned).message
    hive.models.conversion_may_end.set()
    gevent.sleep(0.02)
    assert hive.launcher.processes == []
    assert_nothing_stays(hive, spawned)


def test_a_worker_that_is_ended_while_it_starts_is_asked_and_gone() -> None:
    hive = Supervised()
    spawned = hive.spawn()
    hive.until(lambda: hive.launcher.processes)
    hive.connection(spawned).acknowledges = False
    hive.supervisor.stop(spawned.record.id, EndReason.REQUESTED)
    assert failure_of(hive, spawned).code == "WORKER_START_FAILED"
    assert hive.launcher.processes[0].signals[0] == 15
    assert_nothing_stays(hive, spawned)


def test_the_whole_life_of_a_worker_is_told_with_reasons() -> None:
    hive = Supervised()
    spawned = hive.idle()
    hive.launcher.processes[0].end(-11)
    hive.until_gone(spawned)
    assert [(event.after, event.reason) for event in hive.told] == [
        ("loading", "spawn"),
        ("idle", "loading"),
        (None, "crashed"),
    ]


# -- memory that is promised ------------------------------------------------------------------------------


def admitting(probe: FakeDeviceProbe) -> Callable[[WorkerRegistry], Preflight]:
    """The real checks, on a machine as the probe tells it."""
    settings = Settings()
    return lambda registry: Preflight(Devices(probe, settings.hardware), settings, registry.open_claims)


@pytest.fixture(scope="module")
def model_on_disk(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = write_tiny_model(tmp_path_factory.mktemp("ready"))
    return LocalModel(folder, ModelFormat.CTRANSLATE2, 1000 * 1024 * 1024)


class SlowProbe(FakeDeviceProbe):
    """Lets other greenlets run between a look and what is made of it."""

    def ram_available_mb(self) -> int:
        seen = super().ram_available_mb()
        gevent.sleep(0.01)
        return seen


def test_of_spawns_at_the_same_moment_only_as_many_pass_as_fit(model_on_disk: LocalModel) -> None:
    probe = SlowProbe(ram_mb=16_000)
    hive = Supervised(make_checks=admitting(probe))
    hive.models.local = model_on_disk
    spawned = hive.spawn()
    (needed,) = [claim.ram_mb for claim, _ in hive.registry.open_claims()]
    hive.supervisor.stop(spawned.record.id, EndReason.REQUESTED)
    hive.until_gone(spawned)
    # The first check asks for 1,200 MB on top of what is promised.
    probe.ram = 1200 + needed
    outcomes = [gevent.spawn(spawn_outcome, hive) for _ in range(3)]
    gevent.joinall(outcomes, timeout=10, raise_error=True)
    told = [outcome.get() for outcome in outcomes]
    assert sum(isinstance(each, Spawned) for each in told) == 2
    (refused,) = [each for each in told if isinstance(each, MemoryExhausted)]
    assert refused.details == {"required": 1200, "available": 1200 - needed, "resource": "ram"}


def spawn_outcome(hive: Supervised) -> Spawned | RbeeError:
    try:
        return hive.spawn()
    except RbeeError as error:
        return error


def test_a_claim_ends_when_the_model_is_loaded() -> None:
    hive = Supervised()
    spawned = hive.spawn()
    assert [claim.ram_mb for claim, _ in hive.registry.open_claims()] == [100]
    hive.until(lambda: hive.launcher.processes)
    hive.until(lambda: hive.registry.open_claims()[0][1] == hive.launcher.processes[0].pid)
    hive.connection(spawned).become(WorkerState.IDLE, "2026-01-31T08:00:00.000Z")
    hive.until(lambda: hive.state(spawned) is WorkerState.IDLE)
    assert hive.registry.open_claims() == []


def test_a_worker_that_is_busy_when_it_is_first_seen_has_loaded_its_model() -> None:
    hive = Supervised()
    spawned = hive.up()
    hive.connection(spawned).become(WorkerState.BUSY, None)
    hive.connection(spawned).loaded.set()
    hive.until(lambda: hive.state(spawned) is WorkerState.BUSY)
    assert hive.registry.open_claims() == []


def _dies(hive: Supervised, _spawned: Spawned) -> None:
    hive.until(lambda: hive.launcher.processes)
    hive.launcher.processes[0].end(-9)


def _is_stopped(hive: Supervised, spawned: Spawned) -> None:
    hive.supervisor.stop(spawned.record.id, EndReason.REQUESTED)


def _fails_to_load(hive: Supervised, spawned: Spawned) -> None:
    hive.until(lambda: hive.registry.get(spawned.record.id).pid is not None)
    hive.registry.seat(spawned.record.id).up.set()
    hive.connection(spawned).become(WorkerState.ERROR, None)
    hive.connection(spawned).loaded.set()


def _never_answers(hive: Supervised, spawned: Spawned) -> None:
    hive.connection(spawned).failure = _refused()


@pytest.mark.parametrize("end", [_dies, _is_stopped, _fails_to_load, _never_answers])
def test_a_claim_goes_with_its_worker_and_not_before_its_process(end: Callable[..., None]) -> None:
    hive = Supervised()
    spawned = hive.spawn()
    end(hive, spawned)
    while hive.registry.find(spawned.record.id) is not None:
        assert len(hive.registry.open_claims()) == 1
        gevent.sleep(0.005)
    assert hive.registry.open_claims() == []
    assert all(process.wait() is not None for process in hive.launcher.processes)


@pytest.mark.parametrize("how", ["conversion", "later", "launch"])
def test_a_start_that_fails_without_a_process_leaves_no_claim(how: str) -> None:
    hive = Supervised(**({"error": "Exec format error"} if how == "launch" else {}))
    hive.models.is_converted = how == "launch"
    if how == "conversion":
        hive.models.error = MemoryExhausted(6, 4, "ram")
    elif how == "later":
        hive.checks.later_error = MemoryExhausted(6, 4, "ram")
    spawned = hive.spawn()
    assert len(hive.registry.open_claims()) == 1
    hive.until_gone(spawned)
    assert hive.registry.open_claims() == []


def test_a_refused_spawn_claims_nothing_and_lets_the_next_one_in() -> None:
    hive = Supervised()
    hive.checks.error = MemoryExhausted(6, 4, "ram")
    with pytest.raises(MemoryExhausted):
        hive.spawn()
    assert hive.registry.open_claims() == []
    hive.checks.error = None
    hive.spawn()
