"""The literal lines a user sees for each error."""

from typing import Any

import pytest

from rbee.core.errors import (
    AllSlotsBusy,
    BackendUnavailable,
    ConnectionTimeout,
    DownloadFailed,
    InternalError,
    InvalidApiKey,
    InvalidRequest,
    LoadingTimeout,
    MemoryExhausted,
    MissingApiKey,
    ModelNotFound,
    NodeNotFound,
    RbeeError,
    VersionMismatch,
    WorkerStartFailed,
    error_table,
)
from rbee_keeper.error_lines import ErrorContext, duration, error_lines, failure_lines
from rbee_keeper.failures import KeeperFailure

CONTEXT = ErrorContext("workstation", "blep.home.arpa", "/home/u/.config/rbee/config.toml")


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (
            NodeNotFound("mac"),
            [
                "[queen-rbee] ❌ ERROR: Node 'mac' not found in rbee-hive registry",
                "",
                "To add this node, run:",
                "  rbee-keeper setup add-node --name mac --ssh-host mac.home.arpa --ssh-user <user> "
                "--install-path ~/rbee",
            ],
        ),
        (
            ConnectionTimeout("workstation.home.arpa", 9200, 3, 10.0),
            [
                "Error: Cannot connect to workstation.home.arpa:9200 after 3 attempts",
                "Suggestion: Check if rbee-hive is running on workstation",
            ],
        ),
        (
            MemoryExhausted(6000, 4000, "vram"),
            [
                "Error: Insufficient VRAM on workstation",
                "  Required: 6000 MB",
                "  Available: 4000 MB",
                "Suggestion: Try a smaller quantized model (Q4 instead of Q8)",
            ],
        ),
        (
            MemoryExhausted(6, 5, "ram"),
            [
                "Error: Insufficient RAM on workstation",
                "  Required: 6 MB",
                "  Available: 5 MB",
                "Suggestion: Try a smaller quantized model (Q4 instead of Q8)",
            ],
        ),
        (
            AllSlotsBusy(1, 1, retries=3),
            [
                "Error: Worker still busy after 3 retries",
                "Suggestion: Wait for current request to complete or use a different node",
            ],
        ),
        (
            AllSlotsBusy(1, 1, retries=1),
            [
                "Error: Worker still busy after 1 retry",
                "Suggestion: Wait for current request to complete or use a different node",
            ],
        ),
        (
            LoadingTimeout("loading", 28, 32, 300.0),
            [
                "Error: Model loading timeout after 5 minutes",
                "Worker state: loading (stuck at 28/32 layers)",
                "Suggestion: Check worker logs on workstation for errors",
            ],
        ),
        (
            VersionMismatch("0.1.0", hive_version="0.2.0"),
            [
                "Error: Version mismatch",
                "  rbee-keeper: v0.1.0",
                "  rbee-hive: v0.2.0",
                "Please upgrade rbee-keeper to v0.2.0:",
                "  pip install rbee==0.2.0",
            ],
        ),
        (
            VersionMismatch("0.1.0", queen_version="0.10.0"),
            [
                "Error: Version mismatch",
                "  rbee-keeper: v0.1.0",
                "  queen-rbee: v0.10.0",
                "Please upgrade rbee-keeper to v0.10.0:",
                "  pip install rbee==0.10.0",
            ],
        ),
        (
            VersionMismatch("0.10.0", hive_version="0.9.0"),
            [
                "Error: Version mismatch",
                "  rbee-keeper: v0.10.0",
                "  rbee-hive: v0.9.0",
                "Please upgrade rbee-hive on workstation to v0.10.0:",
                "  pip install rbee==0.10.0",
            ],
        ),
        (
            InvalidApiKey("workstation.home.arpa"),
            [
                "Error: Authentication failed",
                "  Invalid API key for workstation.home.arpa",
                "Check your configuration:",
                "  /home/u/.config/rbee/config.toml",
            ],
        ),
        (
            MissingApiKey(),
            [
                "Error: Authentication failed",
                "  Invalid API key for blep.home.arpa",
                "Check your configuration:",
                "  /home/u/.config/rbee/config.toml",
            ],
        ),
        (
            BackendUnavailable("metal", ["cpu", "cuda"]),
            [
                "Error: Backend 'metal' is not available on workstation",
                "  Available: cpu, cuda",
                "Suggestion: Use an available backend: --backend cpu, --backend cuda",
            ],
        ),
        (
            DownloadFailed(6, "Connection reset by peer"),
            ["Error: Model download failed after 6 attempts: Connection reset by peer"],
        ),
        (
            ModelNotFound("hf:a/b"),
            ["Error: Model 'hf:a/b' not found", "Suggestion: Check the model reference"],
        ),
        (
            InvalidRequest([{"field": "a", "message": "too big"}, {"field": "b", "message": "too small"}]),
            ["Error: Invalid request", "  a: too big", "  b: too small"],
        ),
        (
            InvalidRequest([{"field": "a", "message": "too big"}]),
            ["Error: Invalid request: a: too big"],
        ),
        (
            WorkerStartFailed("it exited", exit_code=1, log_path="/l/w.log"),
            [
                "Error: Worker failed to start: it exited",
                "  Log: /l/w.log",
                "Suggestion: Run rbee-keeper setup install for the node, or see its logs: rbee-keeper logs",
            ],
        ),
        (
            InternalError("unexpected", details={"correlation_id": "c-1"}),
            ["Error: unexpected", "  Correlation id: c-1"],
        ),
    ],
    ids=lambda value: value.code if isinstance(value, RbeeError) else "",
)
def test_an_error_is_told_in_the_words_of_the_specification(error: RbeeError, lines: list[str]) -> None:
    assert failure_lines(error, CONTEXT) == lines


@pytest.mark.parametrize("code", sorted(error_table()))
@pytest.mark.parametrize(
    "details", [{}, None, "text", {"errors": None}, {"resource": "ram", "required": "x"}]
)
def test_an_error_without_its_details_is_told_all_the_same(code: str, details: Any) -> None:
    lines = error_lines({"code": code, "message": "it failed", "details": details}, CONTEXT)
    assert lines[0].startswith("Error: ")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (300, "5 minutes"),
        (60, "1 minute"),
        (3, "3 seconds"),
        (1, "1 second"),
        (90, "90 seconds"),
        (2.6, "3 seconds"),
    ],
)
def test_whole_minutes_are_told_as_minutes(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_failure_found_by_the_keeper_is_told_with_details_and_suggestion() -> None:
    failure = KeeperFailure("no queen", details=["Log: /l"], suggestion="start one")
    assert failure_lines(failure, CONTEXT) == ["Error: no queen", "  Log: /l", "Suggestion: start one"]
    assert failure.fields() == {
        "code": "SERVICE_UNAVAILABLE",
        "message": "no queen",
        "details": {},
        "suggestion": "start one",
    }
