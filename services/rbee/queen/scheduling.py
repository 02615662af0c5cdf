"""Placing a task: look at every node at once, judge each, choose one and say why."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import gevent

from rbee.core.client import TransportFailure
from rbee.core.errors import RbeeError
from rbee.queen.fleet import Fleet
from rbee.queen.greenlets import spawn
from rbee.queen.placement import NodeView, Verdict, Wanted, choose_node, judge, known_fit, known_size
from rbee.queen.registry import Node
from rbee.queen.survey import LIST_TIMEOUT_S


def plan(fleet: Fleet, wanted: Wanted) -> list[Verdict]:
    """A verdict for every node, in the order of the registry; starts no hive."""
    views = _views(fleet, fleet.nodes.all(), lambda _view: False)
    return _judge_all(views, wanted)


def place(fleet: Fleet, wanted: Wanted, failed: Collection[str] = ()) -> tuple[Node, str | None]:
    """The node that serves the task best, and why; no reason is needed where it is the only one.

    Args:
        failed: nodes that are out of the question.

    Raises:
        what ``choose_node`` raises when none fits.
    """
    registered = fleet.nodes.all()
    nodes = [node for node in registered if node.node_name not in failed]
    if len(registered) == 1 and nodes:
        return nodes[0], None

    def is_enough(view: NodeView) -> bool:
        return judge(view, wanted).rank == 0

    chosen = choose_node(_judge_all(_views(fleet, nodes, is_enough), wanted))
    return fleet.nodes.find(chosen.node_name), chosen.reason


def _judge_all(views: list[NodeView], wanted: Wanted) -> list[Verdict]:
    ref = wanted.model_ref
    wanted = replace(wanted, size_bytes=known_size(views, ref), fit=known_fit(views, ref))
    return [judge(view, wanted) for view in views]


def _views(fleet: Fleet, nodes: list[Node], is_enough: Callable[[NodeView], bool]) -> list[NodeView]:
    """All nodes, asked in parallel, or those that had answered when one was good enough."""
    asked = [spawn(_view, fleet, node) for node in nodes]
    for answered in gevent.iwait(asked):
        if is_enough(answered.get()):
            break
    views = [answer.get() for answer in asked if answer.ready()]
    gevent.killall([answer for answer in asked if not answer.ready()], block=False)
    return views


def _view(fleet: Fleet, node: Node) -> NodeView:
    cordon = fleet.nodes.cordons.of(node.node_name)
    if cordon is not None:
        return NodeView(node.node_name, problem=f"takes no new tasks: {cordon.reason}")
    try:
        hive = fleet.look(node, LIST_TIMEOUT_S)
        if hive is None:
            found = fleet.launcher_for(node).detect(node)
            return NodeView(node.node_name, capabilities=found, model_sizes=dict(found.model_sizes))
        workers = hive.workers(LIST_TIMEOUT_S)
        models = hive.models()
        return NodeView(
            node.node_name,
            workers=workers,
            capabilities=hive.capabilities(),
            model_sizes={str(model["model_ref"]): int(model["size_bytes"]) for model in models},
            model_fits={str(m["model_ref"]): _fit(m["fit_mb"]) for m in models if m.get("fit_mb")},
        )
    except RbeeError as error:
        return NodeView(node.node_name, problem=error.message)
    except TransportFailure as failure:
        return NodeView(node.node_name, problem=failure.reason)
    except (AttributeError, KeyError, TypeError, ValueError):
        return NodeView(node.node_name, problem="unreadable answer of its hive")


def _fit(told: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    return {
        str(backend): {str(resource): int(mb) for resource, mb in needs.items()}
        for backend, needs in told.items()
    }
