"""What every node said last, so that a placement needs to ask only those that look best."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gevent
from gevent.pool import Pool

from rbee.core.client import TransportFailure
from rbee.core.errors import RbeeError
from rbee.queen.fleet import Fleet
from rbee.queen.greenlets import spawn
from rbee.queen.placement import NodeView, Ranking, Wanted, judge, known_fit, known_size
from rbee.queen.ports import HiveApi
from rbee.queen.registry import Node
from rbee.queen.survey import LIST_TIMEOUT_S

FEW = 4
"""So many nodes are asked at once for a placement; a fleet of no more is always asked as a whole."""
_ASKED_AT_ONCE = 16
"""By a sweep, at most."""
_RANKINGS = 16
"""Of the models that were asked for last."""
_Place = tuple[str, str, int, int]
"""What tells apart nodes that bear the same name one after the other."""


class NodeViews:
    """Asks nodes, and keeps what they said; where no hive runs only a placement asks, over SSH."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._kept: dict[_Place, NodeView] = {}
        self._rankings: OrderedDict[Wanted, Ranking] = OrderedDict()

    def ask(self, nodes: Iterable[Node], wanted: Wanted | None = None) -> list[NodeView]:
        """The nodes, asked now and in parallel; with ``wanted``, until one could serve it at once."""
        return _views(self._ask, nodes, wanted)

    def confirm(self, nodes: Iterable[Node], wanted: Wanted) -> list[NodeView]:
        """The same, but what can hardly have changed since they were asked last is not asked."""
        return _views(lambda node: self._confirmed(node, wanted), nodes, wanted)

    def ranking(self, nodes: Sequence[Node], wanted: Wanted) -> Ranking | None:
        """The nodes by what they said, a sweep's interval ago at most; None when most said nothing."""
        if 2 * len(self._kept) < len(nodes):
            return None
        known = self._rankings.pop(wanted, None)
        complete = completed(wanted, self._kept.values())
        if known is None or known.wanted != complete:
            known = Ranking(complete, self._kept.values())
        self._rankings[wanted] = known
        if len(self._rankings) > _RANKINGS:
            self._rankings.popitem(last=False)
        return known

    def unknown(self, nodes: Iterable[Node]) -> Iterator[Node]:
        """Those of the nodes that have not been asked yet."""
        return (node for node in nodes if _place(node) not in self._kept)

    def sweep(self, over_s: float = 0.0) -> None:
        """Ask every hive, unless the fleet is small enough to be asked whenever a task is placed.

        Args:
            over_s: the time over which the calls are spread, so that no stream has to wait for many of them.
        """
        nodes = self._fleet.nodes.all()
        places = {_place(node) for node in nodes}
        for gone in [place for place in self._kept if place not in places]:
            self._forget(gone)
        if len(nodes) > FEW:
            pool = Pool(_ASKED_AT_ONCE)
            for node in nodes:
                pool.spawn(self._ask_hive, node)
                gevent.sleep(over_s / len(nodes))
            pool.join()

    def _ask(self, node: Node) -> NodeView:
        return self._look(node, lambda: self._of_hive(node) or self._detect(node))

    def _ask_hive(self, node: Node) -> None:
        # Where no hive runs, what was found over SSH before still holds.
        before = self._kept.get(_place(node))
        is_detected = before is not None and before.capabilities is not None and not before.has_hive
        self._look(node, lambda: self._of_hive(node) or (before if is_detected else None))

    def _confirmed(self, node: Node, wanted: Wanted) -> NodeView:
        known = self._kept.get(_place(node))
        if known is None or not known.has_hive:
            return self._ask(node)

        def look() -> NodeView:
            hive = self._fleet.peers.hive(node)
            view = replace(known, workers=hive.workers(LIST_TIMEOUT_S))
            if judge(view, wanted).is_best:
                return view
            return replace(view, capabilities=hive.capabilities())

        return self._look(node, look)

    def _of_hive(self, node: Node) -> NodeView | None:
        hive = self._fleet.look(node, LIST_TIMEOUT_S)
        return None if hive is None else _told_by(node, hive)

    def _detect(self, node: Node) -> NodeView:
        found = self._fleet.launcher_for(node).detect(node)
        return NodeView(node.node_name, capabilities=found, model_sizes=dict(found.model_sizes))

    def _look(self, node: Node, look: Callable[[], NodeView | None]) -> NodeView:
        """What ``look`` finds, kept; a cordoned node is not asked, and what it said before still holds."""
        cordon = self._fleet.nodes.cordons.of(node.node_name)
        if cordon is not None:
            return NodeView(node.node_name, problem=f"takes no new tasks: {cordon.reason}")
        try:
            view = look()
        except RbeeError as error:
            view = NodeView(node.node_name, problem=error.message)
        except TransportFailure as failure:
            view = NodeView(node.node_name, problem=failure.reason)
        except (AttributeError, KeyError, TypeError, ValueError):
            view = NodeView(node.node_name, problem="unreadable answer of its hive")
        if view is None:
            self._forget(_place(node))
            return NodeView(node.node_name)
        self._kept[_place(node)] = view
        for ranking in self._rankings.values():
            ranking.put(view)
        return view

    def _forget(self, place: _Place) -> None:
        self._kept.pop(place, None)
        for ranking in self._rankings.values():
            ranking.drop(place[0])


def completed(wanted: Wanted, views: Iterable[NodeView]) -> Wanted:
    """With what any node knows of the model."""
    ref = wanted.model_ref
    views = list(views)
    return replace(wanted, size_bytes=known_size(views, ref), fit=known_fit(views, ref))


def _views(ask: Callable[[Node], NodeView], nodes: Iterable[Node], wanted: Wanted | None) -> list[NodeView]:
    asked = [spawn(ask, node) for node in nodes]
    for answered in gevent.iwait(asked):
        if wanted is not None and judge(answered.get(), wanted).is_best:
            break
    views = [answer.get() for answer in asked if answer.ready()]
    gevent.killall([answer for answer in asked if not answer.ready()], block=False)
    return views


def _place(node: Node) -> _Place:
    return node.node_name, node.ssh_host, node.ssh_port, node.hive_port


def _told_by(node: Node, hive: HiveApi) -> NodeView:
    workers = hive.workers(LIST_TIMEOUT_S)
    models = hive.models()
    return NodeView(
        node.node_name,
        workers=workers,
        capabilities=hive.capabilities(),
        model_sizes={str(model["model_ref"]): int(model["size_bytes"]) for model in models},
        model_fits={str(m["model_ref"]): _fit(m["fit_mb"]) for m in models if m.get("fit_mb")},
        has_hive=True,
    )


def _fit(told: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    return {
        str(backend): {str(resource): int(mb) for resource, mb in needs.items()}
        for backend, needs in told.items()
    }
