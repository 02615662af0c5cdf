"""Tasks that wait for a slot: who comes first, and who is told when a slot becomes free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from gevent.event import Event

from rbee.queen.placement import Wanted


@dataclass(eq=False)
class Place:
    """A task's place in the line."""

    wanted: Wanted
    node_name: str | None
    """The only node that it can run on, if it named one."""
    called: Event = field(default_factory=Event)
    """Set when it should look again: a slot may be free, or it has moved up."""

    def competes_with(self, wanted: Wanted, node_name: str | None) -> bool:
        return self.wanted == wanted and (None in (self.node_name, node_name) or self.node_name == node_name)


class Asking:
    """One request to a worker, up to the head of its answer."""

    def __init__(self, line: WaitingLine, worker_id: str) -> None:
        self._line = line
        self._worker_id = worker_id
        self.was_beside_others = False
        """Whether at any time other tasks of this queen held its slots or asked for them.

        Then a refusal may be their doing and out of date when it arrives.
        """

    def __enter__(self) -> Asking:
        line, worker_id = self._line, self._worker_id
        self.was_beside_others = line.is_served_by(worker_id)
        line._asking[worker_id] += 1
        line._asked[worker_id] += 1
        self._number = line._asked[worker_id]
        return self

    def __exit__(self, *_: object) -> None:
        line, worker_id = self._line, self._worker_id
        self.was_beside_others |= line._asked[worker_id] > self._number
        line._asking[worker_id] -= 1
        if not line._asking[worker_id]:
            del line._asking[worker_id], line._asked[worker_id]
        self.was_beside_others |= line.is_served_by(worker_id)


class WaitingLine:
    """First come, first served among tasks that the same worker could serve; nothing here yields.

    A task for another model, or for another node than the one ahead of it needs, is not held up.
    """

    def __init__(self) -> None:
        self._places: list[Place] = []
        self._served: Counter[str] = Counter()
        self._asking: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()
        """How often each worker has been asked, since a time when nobody was asking it."""

    def __len__(self) -> int:
        return len(self._places)

    def has(self, wanted: Wanted, node_name: str | None) -> bool:
        """Whether a task would have to get in line behind others."""
        return any(place.competes_with(wanted, node_name) for place in self._places)

    def join(self, wanted: Wanted, node_name: str | None) -> Place:
        """The last place."""
        place = Place(wanted, node_name)
        self._places.append(place)
        return place

    def leave(self, place: Place) -> None:
        """Give the place up, with a slot or without; who was behind it moves up and is called."""
        if place not in self._places:
            return
        behind = self._places[self._places.index(place) + 1 :]
        self._places.remove(place)
        for other in behind:
            if other.competes_with(place.wanted, place.node_name):
                other.called.set()

    def position(self, place: Place) -> tuple[int, int]:
        """Its number in the line, from 1, and how many wait there in all."""
        rivals = [each for each in self._places if each.competes_with(place.wanted, place.node_name)]
        return rivals.index(place) + 1, len(rivals)

    @contextmanager
    def serving(self, worker_id: str, model_ref: str) -> Iterator[None]:
        """While a worker serves a task of this queen; then the first who could use its slot is called."""
        self._served[worker_id] += 1
        try:
            yield
        finally:
            self._served[worker_id] -= 1
            if not self._served[worker_id]:
                del self._served[worker_id]
            self._call(model_ref)

    def asking(self, worker_id: str) -> Asking:
        """To be entered while a worker is asked: it may have given its slot before its answer is here."""
        return Asking(self, worker_id)

    def is_served_by(self, worker_id: str) -> bool:
        """Whether tasks of this queen hold or may hold slots of a worker: it knows when one becomes free."""
        return self._served[worker_id] > 0 or self._asking[worker_id] > 0

    def _call(self, model_ref: str) -> None:
        """Call whoever of those that want the model has nobody ahead of it."""
        called: list[Place] = []
        for place in self._places:
            if place.wanted.model_ref != model_ref:
                continue
            if not any(other.competes_with(place.wanted, place.node_name) for other in called):
                place.called.set()
                called.append(place)
