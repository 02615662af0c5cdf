"""Log lines: one line per event, no secrets, no raw control characters."""

import contextvars
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rbee.core import logs
from rbee.core.logs import (
    begin_request,
    bind_request,
    configure_logging,
    escape_control,
    fingerprint,
    get_logger,
    redact,
    render_line,
)


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer hunter2-hunter2",
        "api_key=hunter2-hunter2",
        "token: hunter2-hunter2",
        "password = hunter2-hunter2",
        "https://user:hunter2-hunter2@example.org/x",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2-hunter2\n-----END OPENSSH PRIVATE KEY-----",
    ],
)
def test_secrets_are_redacted(text: str) -> None:
    assert "hunter2" not in redact(text)
    assert "[REDACTED]" in redact(text)


def test_ordinary_words_and_uuids_stay() -> None:
    text = "worker-5b1fd1e4-7d51-4f0c-9a31-6c4a7c0f7a11 generated 12 tokens at http://127.0.0.1:8001/v1"
    assert redact(text) == text


def test_an_event_is_one_line_of_json_without_control_characters() -> None:
    line = render_line({"event": "e", "message": "a\nb\x1b[31mred\x9b\x7f", "component": "c"})
    assert "\n" not in line
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in line)
    assert json.loads(line)["message"].startswith("a\nb")


def test_control_characters_become_visible() -> None:
    assert escape_control("a\nb\x1b") == "a\\x0ab\\x1b"


def test_a_fingerprint_shows_six_hex_digits_only() -> None:
    assert fingerprint("0123456789abcdef") == "token:9f9f51"


def test_what_is_bound_to_the_request_and_the_logger_stands_in_every_line(tmp_path: Path) -> None:
    file = tmp_path / "log" / "x.log"

    def write() -> None:
        begin_request(correlation_id="one")
        bind_request(request_id="two")
        log = get_logger("part").bind(node="here")
        log.info("happened", message="done", count=3)
        log.error("failed", exc_info=ValueError("token=hunter2-hunter2"))

    with restored_logging():
        configure_logging("info", file=file)
        contextvars.copy_context().run(write)
        logging.getLogger("other").warning("a %s", "line")
    first, second, third = (json.loads(line) for line in file.read_text().splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "level": "info",
        "component": "part",
        "event": "happened",
        "correlation_id": "one",
        "request_id": "two",
        "node": "here",
        "message": "done",
        "count": 3,
    }
    assert second["level"] == "error"
    assert "ValueError" in second["exception"]
    assert "hunter2" not in second["exception"]
    assert (third["component"], third["event"], third["message"]) == ("other", "library_log", "a line")


def test_events_below_the_level_are_not_written(tmp_path: Path) -> None:
    file = tmp_path / "x.log"
    with restored_logging():
        configure_logging("warn", file=file)
        get_logger("part").info("quiet")
        get_logger("part").warning("loud")
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()] == ["loud"]


def test_a_full_log_is_set_aside_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "ROTATE_BYTES", 2000)
    file = tmp_path / "x.log"

    def write() -> None:
        begin_request()
        for number in range(25):
            get_logger("part").info("line", number=number, text="é" * 100)

    with restored_logging():
        configure_logging("info", file=file)
        contextvars.copy_context().run(write)
    files = sorted(tmp_path.iterdir(), reverse=True)
    assert [path.name for path in files] == ["x.log.3", "x.log.2", "x.log.1", "x.log"]
    lines = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(25))
    longest = max(len(line.encode()) for path in files for line in path.read_text().splitlines(keepends=True))
    assert all(path.stat().st_size < 2000 + longest for path in files)


def test_lines_go_to_what_is_no_file_too() -> None:
    with restored_logging():
        configure_logging("info", file=Path("/dev/null"))
        get_logger("part").info("line")
    assert not Path("/dev/null.1").exists()


@contextmanager
def restored_logging() -> Iterator[None]:
    """Logging as it was before, whatever is configured within."""
    root, own = logging.getLogger(), logging.getLogger("rbee")
    before = (root.handlers[:], root.level, own.level)
    try:
        yield
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        own.setLevel(before[2])
