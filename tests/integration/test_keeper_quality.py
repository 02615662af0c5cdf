"""The keeper's comparison with float32: its bar, its figures, and streams that fail or break off."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rbee.core.errors import ModelNotFound
from rbee_keeper.failures import KeeperFailure
from rbee_keeper.quality import measure_quality
from rbee_keeper.session import GlobalOptions, Session
from rbee_keeper.terminal import Terminal
from support.scripted_queen import ScriptedQueen, Stream

ROUTE = "POST /v2/models/quality"
QUALITY = {"compute_type": "int8", "kl_nats": 0.01}


@contextmanager
def session(queen: ScriptedQueen, home: Path) -> Iterator[tuple[Session, io.StringIO]]:
    stderr = io.StringIO()
    environ = {"HOME": str(home), "RBEE_HOME": f"{home}/.rbee"}
    keeper = Session(environ, Terminal(io.StringIO(), stderr), options=GlobalOptions(queen_url=queen.url))
    try:
        yield keeper, stderr
    finally:
        keeper.close()


def test_the_bar_is_shown_and_the_figures_are_returned(tmp_path: Path) -> None:
    def script(stream: Stream) -> None:
        stream.progress(stage="measuring", layers_done=15, layers_total=30)
        stream.event({"done": True, "model": "hf:a/b", "quality": QUALITY})

    with ScriptedQueen(streams={ROUTE: script}) as queen, session(queen, tmp_path) as (keeper, stderr):
        result = measure_quality(keeper, "hf:a/b", "localhost")
        (sent,) = queen.requests("POST", "/v2/models/quality")
    assert sent.body == {"node": "localhost", "model": "hf:a/b"}
    assert (result.model, result.quality) == ("hf:a/b", QUALITY)
    assert "Measuring quality... [██████████----------] 50% (15/30 layers)" in stderr.getvalue()


def test_the_error_of_the_stream_is_raised(tmp_path: Path) -> None:
    def script(stream: Stream) -> None:
        stream.error("MODEL_NOT_FOUND", "no such model", {"model_ref": "hf:a/b"})

    with (
        ScriptedQueen(streams={ROUTE: script}) as queen,
        session(queen, tmp_path) as (keeper, _),
        pytest.raises(ModelNotFound),
    ):
        measure_quality(keeper, "hf:a/b", "localhost")


def test_a_stream_without_figures_is_no_success(tmp_path: Path) -> None:
    def script(stream: Stream) -> None:
        stream.event({"done": True, "model": "hf:a/b"})

    with (
        ScriptedQueen(streams={ROUTE: script}) as queen,
        session(queen, tmp_path) as (keeper, _),
        pytest.raises(KeeperFailure),
    ):
        measure_quality(keeper, "hf:a/b", "localhost")
