"""The tasks that are open: how many may be, and how one is cancelled from outside its own stream."""

from __future__ import annotations

import gevent
from gevent.event import Event

from rbee.core.errors import QueueFull


class TaskCanceled(gevent.GreenletExit):
    """Raised inside a task's greenlet when somebody cancels it by its request id."""


class OpenTask:
    """A task that holds one of the places."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.node_name: str | None = None
        """Where it runs; None while it has no node yet."""
        self.greenlet: gevent.Greenlet | None = None
        self.ended = Event()


class OpenTasks:
    """At most ``capacity`` tasks at once."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._open: dict[str, OpenTask] = {}
        self._none_left = Event()
        self._none_left.set()

    def __len__(self) -> int:
        return len(self._open)

    def refuse_when_full(self) -> None:
        """Raises QueueFull when no place is free."""
        if len(self._open) >= self.capacity:
            raise QueueFull(len(self._open), self.capacity)

    def enter(self, request_id: str) -> OpenTask:
        """Take a place for the current greenlet.

        Raises:
            QueueFull: none is free.
        """
        self.refuse_when_full()
        task = OpenTask(request_id)
        task.greenlet = gevent.getcurrent()
        self._open[request_id] = task
        self._none_left.clear()
        return task

    def leave(self, task: OpenTask) -> None:
        """Give the place back."""
        self._open.pop(task.request_id, None)
        task.ended.set()
        if not self._open:
            self._none_left.set()

    def cancel(self, request_id: str, wait_s: float) -> bool:
        """Cancel a task and wait for its end; False when the id is not open or the end did not come."""
        task = self._open.get(request_id)
        if task is None or task.greenlet is None:
            return False
        task.greenlet.kill(TaskCanceled, block=False)
        return bool(task.ended.wait(wait_s))

    def on_node(self, node_name: str) -> int:
        """How many tasks run on a node, or are on their way to it."""
        return sum(task.node_name == node_name for task in self._open.values())

    def wait_until_none(self, timeout_s: float) -> bool:
        """Whether no task is open any more, after waiting at most ``timeout_s``."""
        return bool(self._none_left.wait(timeout_s))
