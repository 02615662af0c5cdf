"""What a hive does when a worker hangs, dies, fails to load, or is idle – with stand-in worker processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from rbee.core.clock import parse_utc
from support.daemons import wait_until
from support.hives import HiveNode, ask_worker

Start = Callable[..., HiveNode]


def pid_of(hive: HiveNode, spawned: dict[str, Any]) -> int:
    record = hive.worker(spawned["worker_id"])
    assert record is not None
    return int(record["pid"])


def hold_slot(spawned: dict[str, Any]) -> Any:
    """A request that runs for long; close it to end it."""
    body = {"request_id": "held", "prompt": "x", "max_tokens": 2048}
    return ask_worker(spawned, "POST", "/v1/inference", body, stream=True)


# Process death


def test_a_crash_is_noticed_within_a_second_and_told_with_status_and_last_lines(
    start_hive: Start, model: str
) -> None:
    hive = start_hive(worker="--with-child")
    spawned = hive.idle_worker(model)
    pid = pid_of(hive, spawned)
    children = psutil.Process(pid).children()
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    hive.wait_gone(spawned["worker_id"], 2)
    assert time.monotonic() - killed < 1
    (line,) = hive.log("worker_crashed")
    assert (line["exit_status"], line["worker_id"]) == (-9, spawned["worker_id"])
    assert len(line["last_lines"]) > 0
    assert hive.spawn(model)["url"] == spawned["url"]
    assert hive.call("GET", "/health/ready").status_code == 200
    assert not [child for child in children if child.is_running() and child.status() != "zombie"]


def test_no_crashed_worker_becomes_a_zombie(start_hive: Start, model: str) -> None:
    hive = start_hive()
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM):
        spawned = hive.idle_worker(model)
        os.kill(pid_of(hive, spawned), number)
        hive.wait_gone(spawned["worker_id"], 5)
    assert psutil.Process(hive.serving_pid).children() == []


def test_a_worker_that_dies_while_loading_is_a_crash_and_its_place_is_free(
    start_hive: Start, model: str
) -> None:
    hive = start_hive(worker="--layers 8 --crash-at 3 --layer-ms 20")
    spawned = hive.spawn(model)
    hive.wait_gone(spawned["worker_id"])
    assert hive.log("worker_crashed")[0]["exit_status"] == -signal.SIGSEGV
    assert hive.spawn(model)["url"] == spawned["url"]


# Start and loading


def test_a_worker_without_http_is_given_up_and_killed(start_hive: Start, model: str) -> None:
    hive = start_hive(worker="--no-http --ignore-term", timing={"worker_start_timeout_s": 1})
    spawned = hive.spawn(model)
    *_, error, _ = hive.events(f"/v1/workers/{spawned['worker_id']}/narration")
    assert error[1]["error"]["code"] == "WORKER_START_FAILED"
    assert "no HTTP within 1 s" in error[1]["error"]["message"]
    assert error[1]["error"]["details"]["log_path"].endswith(f"{spawned['worker_id']}.log")
    hive.wait_gone(spawned["worker_id"], 3)
    assert psutil.Process(hive.serving_pid).children() == []


def test_a_worker_whose_callback_never_came_is_found(start_hive: Start, model: str) -> None:
    hive = start_hive(worker="--no-callback")
    record = hive.worker(hive.idle_worker(model)["worker_id"])
    assert record is not None
    assert record["state"] == "idle"


def test_the_record_turns_idle_without_any_request(start_hive: Start, model: str) -> None:
    hive = start_hive(worker="--layers 4 --layer-ms 100", timing={"ready_poll_interval_s": 60})
    spawned = hive.spawn(model)
    moves = wait_until(
        lambda: hive.log("worker_state", worker_id=spawned["worker_id"], after="idle"), 10, "idle in the log"
    )
    assert moves[0]["before"] == "loading"
    assert moves[0]["reason"] == "loading"


def test_a_worker_stuck_while_loading_stays_loading_until_it_is_ended(start_hive: Start, model: str) -> None:
    hive = start_hive(worker="--layers 32 --stuck-at 28", timing={"loading_timeout_s": 30})
    spawned = hive.spawn(model)
    hive.events(f"/v1/workers/{spawned['worker_id']}/narration")
    progress = ask_worker(spawned, "GET", "/v1/loading/progress", stream=True)
    lines = progress.iter_lines(chunk_size=1)
    wait_until(lambda: b'"layers_loaded": 28' in next(lines), 5, "28 layers")
    progress.close()
    record = hive.worker(spawned["worker_id"])
    assert record is not None
    assert (record["state"], record["slots_available"]) == ("loading", 0)
    hive.call("DELETE", f"/v1/workers/{spawned['worker_id']}")
    hive.wait_gone(spawned["worker_id"], 5)


def test_a_load_without_any_progress_ends_by_itself(start_hive: Start, model: str) -> None:
    hive = start_hive(worker="--stuck-at 1", timing={"loading_timeout_s": 1})
    spawned = hive.spawn(model)
    hive.wait_gone(spawned["worker_id"], 10)
    assert hive.log("worker_ended")[0]["reason"] == "loading_stuck"


def test_a_worker_whose_loading_failed_is_ended_after_its_reason_could_be_read(
    start_hive: Start, model: str
) -> None:
    hive = start_hive(worker="--load-error broken", timing={"ready_poll_interval_s": 2})
    spawned = hive.spawn(model)
    hive.events(f"/v1/workers/{spawned['worker_id']}/narration")
    told = ask_worker(spawned, "GET", "/v1/loading/progress").text
    assert '"message": "broken"' in told
    hive.wait_gone(spawned["worker_id"], 10)
    assert hive.log("worker_ended")[0]["reason"] == "loading_failed"


# Health


PROBES = {"health_probe_interval_s": 0.5, "health_probe_timeout_s": 0.3}


def test_a_stopped_worker_is_unhealthy_first_and_killed_at_the_third_strike(
    start_hive: Start, model: str
) -> None:
    hive = start_hive(timing=PROBES)
    spawned = hive.idle_worker(model)
    pid = pid_of(hive, spawned)
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: hive.log("health_strike"), 5, "the first strike")
    (move,) = hive.log("worker_state", before="idle")
    assert (move["after"], "health probe missed" in move["reason"]) == ("unhealthy", True)
    hive.wait_gone(spawned["worker_id"], 10)
    assert [line["strikes"] for line in hive.log("health_strike")] == [1, 2, 3]
    (kill,) = hive.log("forced_kill")
    assert (kill["worker_id"], kill["pid"], kill["signal"]) == (spawned["worker_id"], pid, "SIGKILL")
    assert not psutil.pid_exists(pid)


def test_a_worker_that_goes_on_after_one_miss_is_restored(start_hive: Start, model: str) -> None:
    hive = start_hive(timing=PROBES)
    spawned = hive.idle_worker(model)
    pid = pid_of(hive, spawned)
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: hive.log("health_strike"), 5, "the first strike")
    os.kill(pid, signal.SIGCONT)
    record = hive.wait_state(spawned["worker_id"], "idle", 5)
    assert record["failed_health_checks"] == 0
    assert pid_of(hive, spawned) == pid


def test_probes_come_at_their_interval_and_do_not_postpone_the_idle_time(
    start_hive: Start, model: str
) -> None:
    hive = start_hive(timing={**PROBES, "idle_timeout_s": 3})
    spawned = hive.idle_worker(model)
    first = hive.worker(spawned["worker_id"])
    assert first is not None
    wait_until(
        lambda: len(hive.worker_requests(spawned["worker_id"], "GET", "/v1/health")) >= 4, 10, "four probes"
    )
    later = hive.worker(spawned["worker_id"])
    assert later is not None
    assert later["last_activity"] > first["last_activity"]
    assert later["idle_since"] == first["idle_since"]
    hive.wait_gone(spawned["worker_id"], 5)


def test_a_hanging_worker_delays_one_list_by_a_second_and_no_later_one(start_hive: Start, model: str) -> None:
    hive = start_hive()
    stuck, well = hive.idle_worker(model), hive.idle_worker(model)
    os.kill(pid_of(hive, stuck), signal.SIGSTOP)
    begun = time.monotonic()
    states = {worker["id"]: worker["state"] for worker in hive.workers()}
    assert 0.9 < time.monotonic() - begun < 2
    assert states[well["worker_id"]] == "idle"
    begun = time.monotonic()
    assert len(hive.workers()) == 2
    assert time.monotonic() - begun < 0.7


# Idle time


def test_an_idle_worker_is_ended_at_its_time_and_a_busy_one_is_not(start_hive: Start, model: str) -> None:
    hive = start_hive(timing={"idle_timeout_s": 2})
    busy = hive.idle_worker(model)
    held = hold_slot(busy)
    idle = hive.idle_worker(model)
    record = hive.worker(idle["worker_id"])
    assert record is not None
    hive.wait_gone(idle["worker_id"], 6)
    gone = time.time()
    idle_since = parse_utc(record["idle_since"])
    (request,) = hive.worker_requests(idle["worker_id"], "POST", "/v1/admin/shutdown")
    assert 2 <= parse_utc(request["timestamp"]) - idle_since < 3
    assert gone - idle_since < 4
    state = hive.worker(busy["worker_id"])
    assert state is not None
    assert state["state"] == "busy"
    held.close()
    hive.wait_gone(busy["worker_id"], 8)
    assert [line["reason"] for line in hive.log("worker_ended")] == ["idle_timeout"] * 2
    assert hive.call("GET", "/health/ready").status_code == 200


def test_a_request_before_the_deadline_moves_it(start_hive: Start, model: str) -> None:
    hive = start_hive(worker="--token-ms 1", timing={"idle_timeout_s": 2})
    spawned = hive.idle_worker(model)
    first = hive.worker(spawned["worker_id"])
    assert first is not None
    started = parse_utc(first["idle_since"])
    wait_until(lambda: time.time() > started + 1.2, 5, "most of the idle time")
    ask_worker(spawned, "POST", "/v1/inference", {"request_id": "r", "prompt": "x", "max_tokens": 3})
    wait_until(lambda: time.time() > started + 2.6, 5, "the first deadline")
    assert hive.worker(spawned["worker_id"]) is not None
    hive.wait_gone(spawned["worker_id"], 5)


@pytest.mark.parametrize("policy", ["immediate", "infinite"])
def test_the_other_keep_alive_policies(start_hive: Start, model: str, policy: str) -> None:
    config = {"pool": {"keep_alive_policy": policy}}
    hive = start_hive(worker="--token-ms 1", timing={"idle_timeout_s": 60}, config=config)
    spawned = hive.idle_worker(model)
    ask_worker(spawned, "POST", "/v1/inference", {"request_id": "r", "prompt": "x", "max_tokens": 3})
    if policy == "immediate":
        hive.wait_gone(spawned["worker_id"], 5)
        assert hive.log("worker_ended")[0]["reason"] == "idle_timeout"
    else:
        assert hive.worker(spawned["worker_id"]) is not None
