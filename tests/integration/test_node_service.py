"""How the roles take a node out of the queen's service, try it and put it back; the note of a roll-out."""

from __future__ import annotations

import io
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from rbee_keeper.provisioning.serving_queen import noted_rollout
from rbee_keeper.session import GlobalOptions, Session
from rbee_keeper.terminal import Terminal
from support.queens import QueenUnderTest, start_queen
from support.scripted import OpenTask, ScriptedHive, run_task

MODULE = runpy.run_path(str(Path(__file__).parents[2] / "roles" / "rbee" / "library" / "rbee_queen.py"))
MODEL = "file:/models/m.gguf"
OURS = "its software is being changed"
drain, try_node, uncordon = MODULE["drain"], MODULE["try_node"], MODULE["uncordon"]


@pytest.fixture
def queen(tmp_path: Path) -> Iterator[QueenUnderTest]:
    running = start_queen(tmp_path)
    with running.daemon:
        yield running


def asked(queen: QueenUnderTest, node: str = "localhost") -> Any:
    """The module's view of the queen."""
    return MODULE["Queen"](queen.url, "", node)


def test_a_node_is_out_of_service_from_its_draining_until_it_is_put_back(
    queen: QueenUnderTest, tmp_path: Path
) -> None:
    with ScriptedHive(tmp_path, port=queen.hive_port, models=[MODEL]):
        assert drain(asked(queen), OURS, 5)["changed"] is True
        assert run_task(queen.url, {"prompt": "hi", "model": MODEL}).error["code"] == "NODE_CORDONED"
        tried = try_node(asked(queen), MODEL, 10)
        assert tried["model"] == MODEL
        assert tried["text"]
        assert uncordon(asked(queen), OURS)["changed"] is True
        assert run_task(queen.url, {"prompt": "hi", "model": MODEL}).terminal["done"] is True
        assert uncordon(asked(queen), OURS)["changed"] is False


def test_a_node_that_somebody_else_has_cordoned_stays_so(queen: QueenUnderTest, tmp_path: Path) -> None:
    with ScriptedHive(tmp_path, port=queen.hive_port, models=[MODEL]):
        requests.post(f"{queen.url}/v2/nodes/localhost/cordon", json={"reason": "bad disk"}, timeout=5)
        assert drain(asked(queen), OURS, 5)["changed"] is False
        assert uncordon(asked(queen), OURS)["changed"] is False
    state = requests.get(f"{queen.url}/v2/nodes/localhost", timeout=5).json()
    assert (state["cordoned"], state["reason"]) == (True, "bad disk")


def test_a_stream_that_does_not_end_in_time_keeps_the_node_from_being_changed(
    queen: QueenUnderTest, tmp_path: Path
) -> None:
    with ScriptedHive(tmp_path, port=queen.hive_port, models=[MODEL], tokens=400, token_interval_s=0.05):
        task = OpenTask(queen.url, {"prompt": "hi", "model": MODEL})
        task.read_until('"token"')
        with pytest.raises(MODULE["Refused"], match=r"1 tasks and .* busy on localhost after 0 seconds"):
            drain(asked(queen), OURS, 0)
        task.close()


def test_a_node_without_a_model_is_not_tried(queen: QueenUnderTest, tmp_path: Path) -> None:
    with ScriptedHive(tmp_path, port=queen.hive_port, models=[]):
        assert try_node(asked(queen), "", 10)["model"] == ""


def test_a_node_that_gives_no_token_is_told_with_the_reason(queen: QueenUnderTest, tmp_path: Path) -> None:
    failure = {"code": "WORKER_START_FAILED", "message": "the engine is broken", "details": {}}
    with (
        ScriptedHive(tmp_path, port=queen.hive_port, catalog={MODEL: 5}, spawn_error=failure),
        pytest.raises(MODULE["Refused"], match="the engine is broken"),
    ):
        try_node(asked(queen), "", 10)


def test_a_node_nobody_has_registered_has_nothing_to_be_put_back(queen: QueenUnderTest) -> None:
    assert uncordon(asked(queen, "nobody"), OURS)["changed"] is False
    with pytest.raises(MODULE["Refused"], match="nobody"):
        drain(asked(queen, "nobody"), OURS, 1)


@pytest.mark.parametrize("end", [None, KeyboardInterrupt])
def test_the_queen_knows_of_a_roll_out_until_it_ends_however_it_ends(
    queen: QueenUnderTest, end: type[BaseException] | None
) -> None:
    session = Session(
        {"HOME": str(queen.home), "RBEE_HOME": str(queen.home / "keeper")},
        Terminal(io.StringIO(), io.StringIO()),
        options=GlobalOptions(queen_url=queen.url),
    )

    def noted() -> Any:
        return requests.get(f"{queen.url}/v2/nodes", timeout=10).json()["rollout"]

    try:
        with noted_rollout(session, "0.1.1", is_needed=True):
            assert noted()["version"] == "0.1.1"
            if end is not None:
                raise end
    except KeyboardInterrupt:
        pass
    finally:
        session.close()
    assert noted() is None


def test_a_cordon_that_an_interrupted_run_has_left_is_known_by_its_reason(queen: QueenUnderTest) -> None:
    see = MODULE["see"]
    assert see(asked(queen, "nobody"), OURS)["is_left"] is False
    assert see(asked(queen), OURS)["is_left"] is False
    requests.post(f"{queen.url}/v2/nodes/localhost/cordon", json={"reason": OURS}, timeout=5)
    assert see(asked(queen), OURS)["is_left"] is True
