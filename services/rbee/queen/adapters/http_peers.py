"""Hives and workers over HTTP, with connections kept open between requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rbee.core.client import EventStream, ServiceClient, TransportFailure
from rbee.core.errors import BadHiveResponse, InvalidApiKey, MissingApiKey, RelayedError
from rbee.core.lifecycle import WorkerState
from rbee.queen.adapters.followed_stream import FollowedStream
from rbee.queen.adapters.hive_answers import read_capabilities, read_url, read_worker
from rbee.queen.ports import (
    Capabilities,
    Download,
    HiveHealth,
    NotAHive,
    WorkerAccess,
    WorkerRecord,
)
from rbee.queen.registry import Node

_CALL_TIMEOUT_S = 30.0
"""Limit of a call that has none of its own; a hive that is reached answers far sooner."""
_SPAWN_TIMEOUT_S = 300.0
"""A spawn may provision the model itself; its answer comes when the preflight has passed."""
_PRUNE_TIMEOUT_S = 110.0
"""Removing many large files takes its time on some file systems."""
_WORKERS_KEPT = 256


class HttpPeers:
    """Makes clients and keeps them.

    Args:
        fleet_key: the key in force, asked for when a client is made.
        address_of: names the address of a node; raises ``TransportFailure`` when it cannot be reached.
        correlation_id: of the current request.
    """

    def __init__(
        self,
        fleet_key: Callable[[], str | None],
        address_of: Callable[[Node], str],
        correlation_id: Callable[[], str | None],
    ) -> None:
        self._fleet_key = fleet_key
        self._address_of = address_of
        self._correlation_id = correlation_id
        self._hives: dict[tuple[str, str, int], HiveHttp] = {}
        self._workers: dict[WorkerAccess, WorkerHttp] = {}

    def hive(self, node: Node) -> HiveHttp:
        """The hive of ``node``."""
        address = self._address_of(node)
        key = (node.ssh_host, address, node.hive_port)
        if key not in self._hives:
            url = f"http://{bracketed(address)}:{node.hive_port}"
            self._hives[key] = HiveHttp(node.ssh_host, node.hive_port, self._client(url, self._fleet_key()))
        return self._hives[key]

    def worker(self, access: WorkerAccess) -> WorkerHttp:
        """The worker behind ``access``."""
        if access not in self._workers:
            while len(self._workers) >= _WORKERS_KEPT:
                # Connections in use outlive their pool; only idle ones are closed here.
                self._workers.pop(next(iter(self._workers))).close()
            self._workers[access] = WorkerHttp(access, self._client(access.url, access.api_key))
        return self._workers[access]

    def drop_gone(self) -> None:
        """Close the clients of workers that have closed their connections, as a process that ends does."""
        for access, worker in list(self._workers.items()):
            if not worker.is_connected():
                del self._workers[access]
                worker.close()

    def forget_all(self) -> None:
        """Drop every client, so that the next one is made with the key now in force."""
        clients: list[HiveHttp | WorkerHttp] = [*self._hives.values(), *self._workers.values()]
        for client in clients:
            client.close()
        self._hives.clear()
        self._workers.clear()

    def _client(self, url: str, key: str | None) -> ServiceClient:
        return ServiceClient(
            url,
            api_key=key,
            correlation_id=self._correlation_id,
            timeout_s=_CALL_TIMEOUT_S,
            stream_type=FollowedStream,
        )


class HiveHttp:
    """One hive; ``host`` is how messages name its machine."""

    def __init__(self, host: str, port: int, client: ServiceClient) -> None:
        self.host = host
        self.port = port
        self._client = client

    def close(self) -> None:
        self._client.close()

    def health(self, timeout_s: float) -> HiveHealth:
        try:
            with self._readable():
                body = self._client.get("/v1/health", timeout_s=timeout_s)
        except BadHiveResponse as error:
            raise NotAHive(error.message) from error
        if not isinstance(body, dict) or body.get("service") != "rbee-hive":
            raise NotAHive("something other than a hive answers")
        pid, owner = body.get("pid"), body.get("owner")
        return HiveHealth(
            status=str(body.get("status")),
            version=str(body.get("version")),
            owner=owner if isinstance(owner, str) else None,
            pid=pid if isinstance(pid, int) and pid > 1 else None,
        )

    def workers(self, timeout_s: float | None = None) -> list[WorkerRecord]:
        with self._readable():
            body = self._client.get("/v1/workers/list", timeout_s=timeout_s)
            return [read_worker(entry) for entry in body["workers"]]

    def spawn(self, model_ref: str, backend: str | None, device: int | None) -> WorkerAccess:
        body = {"model_ref": model_ref, "backend": backend, "device": device}
        return self._spawn({name: value for name, value in body.items() if value is not None})

    def access(self, worker_id: str) -> WorkerAccess:
        return self._spawn({"worker_id": worker_id})

    def _spawn(self, body: Mapping[str, Any]) -> WorkerAccess:
        with self._readable():
            answer = self._client.post("/v1/workers/spawn", body, timeout_s=_SPAWN_TIMEOUT_S)
            key = answer["api_key"]
            return WorkerAccess(
                str(answer["worker_id"]), read_url(answer["url"]), None if key is None else str(key)
            )

    def narration(self, worker_id: str) -> EventStream:
        return self._stream(f"/v1/workers/{worker_id}/narration")

    def end_worker(self, worker_id: str) -> None:
        with self._readable():
            self._client.delete(f"/v1/workers/{worker_id}")

    def download(self, model_ref: str) -> Download:
        with self._readable():
            answer = self._client.post("/v1/models/download", {"model_ref": model_ref})
            path = answer["local_path"]
            return Download(str(answer["download_id"]), None if path is None else str(path))

    def download_progress(self, download_id: str) -> EventStream:
        return self._stream("/v1/models/download/progress", {"id": download_id})

    def capabilities(self) -> Capabilities:
        with self._readable():
            return read_capabilities(self._client.get("/v1/capabilities"))

    def models(self) -> list[dict[str, Any]]:
        with self._readable():
            return list(self._client.get("/v1/models")["models"])

    def model(self, model_ref: str) -> dict[str, Any]:
        with self._readable():
            return dict(self._client.get("/v1/models/show", params={"model_ref": model_ref}))

    def verify_models(self, model_ref: str | None) -> EventStream:
        body = {} if model_ref is None else {"model_ref": model_ref}
        with self._readable():
            return self._client.stream("POST", "/v1/models/verify", body=body)

    def prune_models(self, unused_for_days: float | None, dry_run: bool) -> dict[str, Any]:
        body = {"unused_for_days": unused_for_days, "dry_run": dry_run}
        with self._readable():
            return dict(self._client.post("/v1/models/prune", body, timeout_s=_PRUNE_TIMEOUT_S))

    def remove_model(self, model_ref: str) -> None:
        with self._readable():
            self._client.post("/v1/models/remove", {"model_ref": model_ref})

    def measure_quality(self, model_ref: str) -> EventStream:
        with self._readable():
            return self._client.stream("POST", "/v1/models/quality", body={"model_ref": model_ref})

    def logs(self, follow: bool, lines: int, worker_id: str | None) -> EventStream:
        query: dict[str, Any] = {"follow": "true" if follow else "false", "lines": lines}
        if worker_id is not None:
            query["worker_id"] = worker_id
        return self._stream("/v1/logs", query)

    def renew_lease(self, owner: str, ttl_s: float) -> None:
        with self._readable():
            self._client.post("/v1/lease", {"owner": owner, "ttl_seconds": ttl_s})

    def _stream(self, path: str, params: Mapping[str, Any] | None = None) -> EventStream:
        with self._readable():
            return self._client.stream("GET", path, params=params)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Name the machine in authentication failures, and an answer that is not the contract's as such."""
        try:
            yield
        except (InvalidApiKey, MissingApiKey):
            raise InvalidApiKey(self.host) from None
        except RelayedError as error:
            raise BadHiveResponse(self.host, error.message) from error
        except TransportFailure as error:
            if error.kind != "unreadable":
                raise
            raise BadHiveResponse(self.host) from error
        except (KeyError, TypeError, ValueError) as error:
            raise BadHiveResponse(self.host) from error


class WorkerHttp:
    """One worker, called with its own key."""

    def __init__(self, access: WorkerAccess, client: ServiceClient) -> None:
        self.access = access
        self._client = client

    def close(self) -> None:
        self._client.close()

    def is_connected(self) -> bool:
        """Whether a connection from an earlier call is still open."""
        return self._client.has_open_connection()

    def ready(self, timeout_s: float) -> dict[str, Any]:
        return self._mapping(self._client.get("/v1/ready", timeout_s=timeout_s))

    def probe(self, timeout_s: float) -> WorkerState:
        body = self._mapping(self._client.get("/v1/health", timeout_s=timeout_s))
        try:
            return WorkerState(str(body.get("state")))
        except ValueError:
            raise TransportFailure("unreadable", "the worker names no state") from None

    def loading_progress(self) -> EventStream:
        return self._client.stream("GET", "/v1/loading/progress")

    def infer(self, body: Mapping[str, Any]) -> EventStream:
        return self._client.stream("POST", "/v1/inference", body=body)

    def cancel(self, request_id: str, timeout_s: float) -> None:
        self._client.delete(f"/v1/inference/{request_id}", timeout_s=timeout_s)

    @staticmethod
    def _mapping(body: Any) -> dict[str, Any]:
        if not isinstance(body, dict):
            raise TransportFailure("unreadable", "the worker's answer is not an object")
        return body


def bracketed(host: str) -> str:
    """A host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host
