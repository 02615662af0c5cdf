"""``models verify --quality``: its bar, its figures, and streams that fail or break off."""

import json
from collections.abc import Callable
from pathlib import Path

from support.keeper import Outcome, run_keeper
from support.scripted_queen import ScriptedQueen, Stream

QUALITY = {"compute_type": "int8", "kl_nats": 0.01}


def verified(stream: Stream) -> None:
    stream.event({"done": True})


def verify(home: Path, measured: Callable[[Stream], None], *args: str) -> tuple[Outcome, list[object]]:
    """The command against a queen whose verification succeeds, and the bodies of its quality requests."""
    streams = {"POST /v2/models/verify": verified, "POST /v2/models/quality": measured}
    with ScriptedQueen(streams=streams) as queen:
        outcome = run_keeper(home, "--queen-url", queen.url, "models", "verify", *args)
        return outcome, [request.body for request in queen.requests("POST", "/v2/models/quality")]


def test_the_bar_is_shown_and_the_figures_are_printed(tmp_path: Path) -> None:
    def measured(stream: Stream) -> None:
        stream.progress(stage="measuring", layers_done=15, layers_total=30)
        stream.event({"done": True, "model": "hf:a/b", "quality": QUALITY})

    run, bodies = verify(tmp_path, measured, "hf:a/b", "--quality", "--json")
    assert run.code == 0, run.stderr
    assert bodies == [{"node": "localhost", "model": "hf:a/b"}]
    assert json.loads(run.stdout) == {"model": "hf:a/b", "quality": QUALITY}
    assert "Measuring quality... [██████████----------] 50% (15/30 layers)" in run.stderr


def test_the_error_of_the_stream_ends_the_command(tmp_path: Path) -> None:
    def measured(stream: Stream) -> None:
        stream.error("MODEL_NOT_FOUND", "no such model", {"model_ref": "hf:a/b"})

    run, _ = verify(tmp_path, measured, "hf:a/b", "--quality")
    assert run.code == 1
    assert "Error: no such model" in run.stderr


def test_a_stream_without_figures_is_no_success(tmp_path: Path) -> None:
    def measured(stream: Stream) -> None:
        stream.event({"done": True, "model": "hf:a/b"})

    run, _ = verify(tmp_path, measured, "hf:a/b", "--quality")
    assert run.code == 1
    assert "Error: The stream ended without figures" in run.stderr


def test_quality_is_asked_of_one_model_and_only_when_asked_for(tmp_path: Path) -> None:
    run, bodies = verify(tmp_path, verified, "hf:a/b")
    assert (run.code, bodies) == (0, [])
    run, bodies = verify(tmp_path, verified, "--quality")
    assert (run.code, bodies) == (2, [])
    assert "--quality needs MODEL" in run.stderr
