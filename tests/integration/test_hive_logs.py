"""The logs of a node over a real hive: their end, what follows, and that nothing is left open."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rbee.core.client import ServiceClient
from rbee.core.errors import InvalidRequest, WorkerNotFound
from support.daemons import Daemon, environment, wait_until


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("home")
    with Daemon("rbee-hive", ["daemon", "--addr", "127.0.0.1:0"], environment(home)) as daemon:
        yield daemon


@pytest.fixture
def client(hive: Daemon) -> Iterator[ServiceClient]:
    client = ServiceClient(str(hive.url), timeout_s=10)
    yield client
    client.close()


@pytest.fixture(scope="module")
def log_dir(hive: Daemon) -> Path:
    return Path(psutil.Process(hive.pid).environ()["RBEE_HOME"]) / "logs"


def read(client: ServiceClient, **query: Any) -> list[dict[str, str]]:
    """All lines of a stream that ends by itself; the last event must be ``[DONE]``."""
    with client.stream("GET", "/v1/logs", params=query, read_timeout_s=10) as stream:
        events = list(stream)
    assert events[-1].is_done_marker
    return [event.json() for event in events[:-1]]


def write(path: Path, *texts: str) -> None:
    with path.open("a") as file:
        for text in texts:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + ".000Z"
            file.write(json.dumps({"timestamp": stamp, "message": text}) + "\n")


def test_the_stream_holds_lines_of_the_log_files_and_ends(client: ServiceClient, log_dir: Path) -> None:
    client.get("/v1/health")
    lines = read(client, lines=10000)
    file = (log_dir / "rbee-hive.log").read_text().splitlines()
    assert lines
    assert all(line["source"] == "rbee-hive" and line["line"] in file for line in lines)
    assert len(read(client, lines=1)) == 1
    assert read(client, lines=0) == []


def test_a_crashed_workers_log_can_still_be_read(client: ServiceClient, log_dir: Path) -> None:
    write(log_dir / "worker-gone.log", "one", "two")
    lines = read(client, worker_id="worker-gone")
    assert [line["source"] for line in lines] == ["worker-gone"] * 2
    assert "worker-gone" in {line["source"] for line in read(client, lines=10000)}


@pytest.mark.parametrize("worker_id", ["worker-none", "../rbee-hive", "rbee-hive", "queen-rbee", ""])
def test_an_unknown_worker_has_no_logs(client: ServiceClient, worker_id: str) -> None:
    with pytest.raises(WorkerNotFound):
        client.get("/v1/logs", params={"worker_id": worker_id})


@pytest.mark.parametrize("query", [{"lines": "10001"}, {"lines": "-1"}, {"follow": "yes"}])
def test_a_bad_query_is_refused(client: ServiceClient, query: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        client.get("/v1/logs", params=query)


def test_a_follower_sees_new_lines_within_a_second_and_leaves_nothing_open(
    client: ServiceClient, hive: Daemon, log_dir: Path
) -> None:
    other = ServiceClient(str(hive.url))
    with client.stream("GET", "/v1/logs", params={"follow": "true", "lines": 0}) as stream:
        events = iter(stream)
        wait_until(lambda: connections(hive) >= 1, 5, "the open stream")
        for number in range(3):
            written = time.monotonic()
            write(log_dir / f"worker-{number}.log", f"line {number}")
            while (line := next(events).json())["source"] != f"worker-{number}":
                assert line["source"] == "rbee-hive"
            assert time.monotonic() - written < 1.0
            assert f"line {number}" in line["line"]
    other.get("/v1/health")
    other.close()
    wait_until(lambda: connections(hive) == 0, 5, "no open connection")


def connections(hive: Daemon) -> int:
    """Established connections to the hive's port."""
    return sum(
        connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == hive.port
        for process in [psutil.Process(hive.pid), *hive.descendants()]
        for connection in process.net_connections("tcp")
    )


def test_a_hive_that_ends_ends_the_streams_of_its_followers(tmp_path: Path) -> None:
    with Daemon("rbee-hive", ["daemon", "--addr", "127.0.0.1:0"], environment(tmp_path)) as hive:
        client = ServiceClient(str(hive.url))
        with client.stream("GET", "/v1/logs", params={"follow": "true"}, read_timeout_s=15) as stream:
            events = iter(stream)
            first = next(events)
            hive.process.terminate()
            rest = list(events)
        client.close()
        assert first.json()["source"] == "rbee-hive"
        assert rest[-1].is_done_marker
        assert rest[-2].json()["error"]["code"] == "SERVICE_UNAVAILABLE"
        assert hive.process.wait(10) == 0
