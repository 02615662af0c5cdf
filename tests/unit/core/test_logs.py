"""Log lines: one line per event, no secrets, no raw control characters."""

import json

import pytest

from rbee.core.logs import escape_control, fingerprint, redact, render_line


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
