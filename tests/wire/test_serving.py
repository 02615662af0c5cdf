"""What the shared web half does on real sockets and signals."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from support.daemons import Daemon, environment, wait_until


@pytest.fixture
def sample(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon("sample", [], environment(tmp_path)) as daemon:
        yield daemon


def health(daemon: Daemon) -> dict[str, Any]:
    answer: dict[str, Any] = requests.get(f"{daemon.url}/v1/health", timeout=5).json()
    return answer


def connect(daemon: Daemon) -> socket.socket:
    return socket.create_connection(("127.0.0.1", daemon.port), timeout=5)


@pytest.mark.parametrize("half_closed", [False, True], ids=["closed", "half-closed"])
@pytest.mark.parametrize("kind", ["steady", "silent"])
def test_a_client_that_leaves_is_noticed_within_a_second(
    sample: Daemon, kind: str, half_closed: bool
) -> None:
    with connect(sample) as client:
        client.sendall(f"GET /v1/stream/{kind} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b"200 OK" in client.recv(4096)
        left = time.monotonic()
        client.shutdown(socket.SHUT_WR) if half_closed else client.close()
        wait_until(lambda: health(sample)["ended"] == [kind], 2, "the end of the producer")
        assert time.monotonic() - left < 1.0
    wait_until(lambda: health(sample)["open"] == 0, 2, "no open stream")


def test_a_client_that_does_not_read_is_disconnected_and_holds_no_memory(sample: Daemon) -> None:
    with connect(sample) as client:
        client.sendall(b"GET /v1/stream/flood HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: health(sample)["ended"] == ["flood"], 20, "the disconnection")
    wait_until(lambda: health(sample)["open"] == 0, 5, "no open stream")


def test_a_burst_that_overtakes_its_reader_arrives_whole_and_in_order(sample: Daemon) -> None:
    with requests.get(f"{sample.url}/v1/stream/burst", stream=True, timeout=10) as answer:
        assert answer.headers["Transfer-Encoding"] == "chunked"
        lines = [line for line in answer.iter_lines() if line.startswith(b"data: ")]
    events = [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]
    assert lines[-1] == b"data: [DONE]"
    assert events[-1] == {"done": True}
    assert [event["index"] for event in events[:-1]] == list(range(3000))


@pytest.mark.parametrize(
    ("kind", "code"),
    [("failing", "DISK_FULL"), ("crashing", "INTERNAL_ERROR"), ("forgetful", "INTERNAL_ERROR")],
)
def test_a_stream_ends_exactly_once_with_its_error_and_done(sample: Daemon, kind: str, code: str) -> None:
    text = requests.get(f"{sample.url}/v1/stream/{kind}", timeout=5).text
    events = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert events[-1] == "data: [DONE]"
    assert f'"code":"{code}"' in events[-2]
    assert sum('"error"' in event for event in events) == 1
    assert "must not leak" not in text


def test_silence_is_broken_by_comments(sample: Daemon) -> None:
    with connect(sample) as client:
        client.sendall(b"GET /v1/stream/silent HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while received.count(b": keep-alive\n\n") < 2:
            piece = client.recv(4096)
            assert piece, f"the stream ended after {received!r}"
            received += piece


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_daemon_with_0_and_every_open_stream_properly(
    sample: Daemon, number: signal.Signals
) -> None:
    with requests.get(f"{sample.url}/v1/stream/steady", stream=True, timeout=5) as answer:
        lines = answer.iter_lines()
        assert next(lines)
        sample.process.send_signal(number)
        rest = b"\n".join(lines)
    assert b"SERVICE_UNAVAILABLE" in rest
    assert rest.rstrip().endswith(b"data: [DONE]")
    assert sample.process.wait(5) == 0


def test_an_idle_keep_alive_connection_does_not_delay_the_end(sample: Daemon) -> None:
    with requests.Session() as session:
        session.get(f"{sample.url}/v1/health", timeout=5)
        started = time.monotonic()
        assert sample.stop() == 0
        assert time.monotonic() - started < 3


def test_a_request_to_shut_down_ends_the_daemon_with_0(sample: Daemon) -> None:
    assert requests.post(f"{sample.url}/v1/stop", timeout=5).status_code == 202
    assert sample.process.wait(5) == 0


def test_a_daemon_whose_serving_process_dies_ends_with_1_instead_of_forgetting(sample: Daemon) -> None:
    assert health(sample)["daemon_pid"] == sample.pid
    (serving,) = psutil.Process(sample.pid).children()
    os.kill(serving.pid, signal.SIGKILL)
    assert sample.process.wait(5) == 1


def test_sighup_reloads_and_serving_goes_on(sample: Daemon) -> None:
    sample.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "reloaded" in health(sample)["ended"], 5, "the reload")


def test_an_upload_over_the_limit_gets_its_answer_and_not_a_reset(sample: Daemon) -> None:
    answer = requests.post(f"{sample.url}/v1/body", data=b"x" * (2 << 20), timeout=5)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert answer.json()["error"]["details"] == {"limit_bytes": 1 << 20}


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET\r\n\r\n", b"A B C D\r\n\r\n"]
)
def test_what_is_not_http_gets_an_envelope(sample: Daemon, garbage: bytes) -> None:
    with connect(sample) as client:
        client.sendall(garbage)
        received = b""
        while piece := client.recv(4096):
            received += piece
    assert b'{"error":{"code":"INVALID_REQUEST"' in received
    assert b"Traceback" not in received
