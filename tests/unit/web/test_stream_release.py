"""What a stream and its task held goes with their end: looks for cycles are rare, memory must stay flat."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import gevent
import gevent.socket
import pytest
from flask import Flask

from rbee.core.errors import RbeeError
from rbee.core.schemas import TaskRequest, validate
from rbee.core.settings import Timing
from rbee.queen.inference import TaskFlow
from rbee.queen.known_workers import KnownWorkers
from rbee.queen.metrics import Metrics
from rbee.queen.task import Task
from rbee.queen.tasks import OpenTask
from rbee.web.sse import Emitter, OpenStreams
from support.crowd import Crowd


@pytest.fixture(autouse=True)
def no_look_for_cycles() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Producer:
    """Sends one event."""

    def __call__(self, emit: Emitter) -> None:
        emit.conclude(b'data: {"done":true}\n\n')


def test_a_stream_that_is_over_holds_nothing() -> None:
    server, client = gevent.socket.socketpair()
    streams = OpenStreams("test", keepalive_s=60)
    app = Flask("test")
    producer = Producer()
    with app.test_request_context(environ_overrides={"gunicorn.socket": server}):
        answer = streams.respond(producer)
    for piece in answer.iter_encoded():
        server.sendall(piece)
    answer.close()
    gevent.sleep(0.01)
    assert len(streams) == 0
    held = weakref.ref(producer)
    del producer, answer
    assert held() is None
    server.close()
    client.close()


def test_a_task_that_is_over_holds_nothing() -> None:
    crowd = Crowd(1)
    crowd.nodes.cordons.set("n0", "new disk")
    flow = TaskFlow(crowd.fleet, crowd.scheduler, KnownWorkers(), Timing(), Metrics())
    task = Task("r-1", None, "file:/m.gguf", validate(TaskRequest, {"prompt": "Hi"}), None, 0.0)
    with pytest.raises(RbeeError):
        flow.run(task, Emitter(), OpenTask("r-1"))
    held = weakref.ref(task)
    del task
    assert held() is None
