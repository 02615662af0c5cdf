"""The worker's web application around a fake engine, called in process, and readers of its event streams."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import flask
import gevent
from flask.testing import FlaskClient
from gevent.event import Event

from rbee.core import events as sse
from rbee.core.logs import get_logger
from rbee.testing.fake_engine import FakeEngine
from rbee.testing.fake_text_model import ByteTextModel
from rbee.web.auth import KeyRing
from rbee.web.server import Serving
from rbee.web.sse import OpenStreams
from rbee.worker.admission import Admission
from rbee.worker.app import PROGRAM, AppPorts, create_app
from rbee.worker.inference import Workplace
from rbee.worker.loading import LoadingJournal, ModelLoader
from rbee.worker.metrics import Metrics
from rbee.worker.ports import CallbackFailed
from rbee.worker.service import Identity, Parts, WorkerService
from rbee.worker.shutdown import Shutdown
from rbee.worker.slots import Slots

KEY = "key-0123456789abcdef"
AUTH = {"Authorization": f"Bearer {KEY}"}
MODEL = "hf:org/repo"


class FakeHive:
    """Takes callbacks while ``answers`` is set, or refuses the first ``refusals`` of them."""

    def __init__(self) -> None:
        self.refusals = 0
        self.answers = Event()
        self.answers.set()
        self.reports: list[dict[str, object]] = []

    def report_ready(self, report: dict[str, object]) -> None:
        self.answers.wait()
        if self.refusals:
            self.refusals -= 1
            raise CallbackFailed("refused")
        self.reports.append(report)


class FakeWorker:
    """A worker with a fake engine; it loads when ``start`` is called, as if HTTP were up."""

    def __init__(
        self,
        answer: Sequence[int] | None = None,
        *,
        slots: int = 1,
        context_tokens: int = 2048,
        stall_s: float = 60.0,
        drain_timeout_s: float = 30.0,
    ) -> None:
        self.engine = FakeEngine(answer=answer)
        self.text = ByteTextModel()
        self.hive = FakeHive()
        self.narrated: list[tuple[str, str, str]] = []
        self.stops: list[str] = []
        self.failures: list[str] = []
        self.metrics = Metrics()
        self.journal = LoadingJournal()
        self.slots = Slots(slots)
        log = get_logger(PROGRAM)
        serving = Serving("127.0.0.1", 8001, 4242)
        serving._stop.append(lambda: self.stops.append("stop"))
        serving._fail.append(self.failures.append)
        self.metrics.watch(self.slots, lambda: self.engine.memory_bytes)
        place = Workplace("worker-1", MODEL, self.engine, self.metrics, log, stall_s=stall_s)
        self.admission = Admission(place, self.slots, context_tokens=context_tokens)
        loading_streams = OpenStreams(PROGRAM, 10.0)
        self.shutdown = Shutdown(
            self.slots,
            self.engine,
            self.admission,
            loading_streams,
            serving,
            log,
            drain_timeout_s=drain_timeout_s,
        )
        self.app: flask.Flask = create_app(
            AppPorts(
                worker_id="worker-1",
                keys=KeyRing(KEY),
                slots=self.slots,
                engine=self.engine,
                journal=self.journal,
                admission=self.admission,
                metrics=self.metrics,
                shutdown=self.shutdown,
                inference_streams=OpenStreams(PROGRAM, 10.0),
                loading_streams=loading_streams,
                cancel_ack_s=5.0,
                body_bytes=1_048_576,
                invalid_per_second=1000,
            )
        )
        parts = Parts(
            identity=Identity("worker-1", MODEL, "cpu", 0, "http://127.0.0.1:8001", 4242),
            slots=self.slots,
            engine=self.engine,
            loader=ModelLoader(self.engine, lambda: self.text, self.journal, self._narrate, model_name=MODEL),
            journal=self.journal,
            admission=self.admission,
            hive=self.hive,
            serving=serving,
            narrate=self._narrate,
            log=log,
            callback_pause_s=0.001,
        )
        self.service = WorkerService(self.app, parts, self.shutdown, lambda: None)

    @property
    def client(self) -> FlaskClient:
        return self.app.test_client()

    def start(self) -> FakeWorker:
        """Begin to load, and wait until there is nothing more to do."""
        self.service.listening()
        while self.slots.state == "loading" and not self.failures and self.engine.loading.is_set():
            gevent.sleep(0.001)
        return self

    def post(self, body: dict[str, Any]) -> Any:
        return self.client.post("/v1/inference", json=body, headers=AUTH)

    def get(self, path: str) -> Any:
        return self.client.get(path, headers=AUTH)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def _narrate(self, actor: str, action: str, human: str) -> None:
        self.narrated.append((actor, action, human))


def events_of(chunks: Iterable[bytes]) -> Iterator[sse.Event]:
    """The events of a stream, as they come."""
    reader = sse.EventReader()
    for chunk in chunks:
        yield from reader.feed(chunk)


def unnamed(events: Iterable[sse.Event]) -> list[Any]:
    """The data of the unnamed events before ``[DONE]``, which has to be last."""
    listed = list(events)
    assert listed[-1].is_done_marker
    return [json.loads(event.data) for event in listed[:-1] if not event.name]


def text_of(data: Iterable[Any]) -> str:
    return "".join(each["token"] for each in data if "token" in each)
