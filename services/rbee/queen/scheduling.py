"""Placing a task: look at the nodes, judge each, choose one and say why."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from itertools import islice

from rbee.queen.fleet import Fleet
from rbee.queen.node_views import FEW, NodeViews, completed
from rbee.queen.placement import NodeView, Verdict, Wanted, choose_node, judge, preference
from rbee.queen.registry import Node

_ROUNDS = 4
"""How often a few nodes are asked before all of them are."""


class Scheduler:
    """Chooses nodes for tasks."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.views = NodeViews(fleet)

    def plan(self, wanted: Wanted) -> list[Verdict]:
        """A verdict for every node, in the order of the registry; starts no hive."""
        return _judge_all(self.views.ask(self._fleet.nodes.all()), wanted)

    def place(self, wanted: Wanted, failed: Collection[str] = ()) -> tuple[Node, str | None]:
        """The node that serves the task best, and why; no reason is needed where it is the only one.

        Args:
            failed: nodes that are out of the question.

        Raises:
            what ``choose_node`` raises when none fits.
        """
        registered = self._fleet.nodes.all()
        nodes = [node for node in registered if node.node_name not in failed]
        if len(registered) == 1 and nodes:
            return nodes[0], None
        chosen = self._place_by_what_is_known(nodes, wanted) if len(nodes) > FEW else None
        if chosen is None:
            chosen = choose_node(_judge_all(self.views.ask(nodes, wanted), wanted))
        return self._fleet.nodes.find(chosen.node_name), chosen.reason

    def _place_by_what_is_known(self, nodes: Sequence[Node], wanted: Wanted) -> Verdict | None:
        """The best of the few that looked best and were asked; None: all have to be asked.

        Nobody is refused by what was known before, and nobody gets a node that was not asked just now.
        """
        ranking = self.views.ranking(nodes, wanted)
        if ranking is None:
            return None
        wanted = ranking.wanted
        by_name = {node.node_name: node for node in nodes}
        cordons = self._fleet.nodes.cordons
        candidates = (
            (by_name[name], preferred)
            for name, preferred in ranking
            if name in by_name and cordons.of(name) is None
        )
        left = list(islice(candidates, _ROUNDS * FEW))
        unknown = list(self.views.unknown(nodes))
        few = random.sample(unknown, min(FEW, len(unknown)))
        best: Verdict | None = None
        while left or few:
            few += [node for node, _ in left[:FEW]]
            found = [judge(view, wanted) for view in self.views.confirm(few, wanted)]
            fitting = [verdict for verdict in [best, *found] if verdict is not None and verdict.fits]
            best = min(fitting, key=preference, default=None)
            left, few = left[FEW:], []
            if left and best is not None and preference(best)[:2] <= left[0][1][:2]:
                break
        return best


def _judge_all(views: Sequence[NodeView], wanted: Wanted) -> list[Verdict]:
    wanted = completed(wanted, views)
    return [judge(view, wanted) for view in views]
