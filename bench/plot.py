"""The goals of a run as one picture: a bar for each figure, the line where its goal ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.measuring import Goal

_MOST = 3.0
"""Bars end here, so that one figure far off leaves the others visible; the number beside it tells."""
_ROW_INCHES = 0.3


def plot_goals(goals: Sequence[Goal], subtitle: str, path: Path) -> None:
    """Write a PNG with the share of each goal that is used; left of 1 it is met."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 1.6 + _ROW_INCHES * len(goals)), layout="constrained")
    shares = [min(_MOST, max(0.0, goal.share)) for goal in goals]
    colours = ["tab:green" if goal.is_met else "tab:red" for goal in goals]
    rows = range(len(goals))
    axes.barh(rows, shares, color=colours, alpha=0.75)
    for row, (goal, share) in enumerate(zip(goals, shares, strict=True)):
        _, measured, limit, *_ = goal.cells()
        axes.text(share + 0.02, row, f"{measured} ({limit})", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(rows, [goal.what for goal in goals], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, _MOST * 1.35)
    axes.set_xlabel("share of the goal used (1: just met)")
    axes.set_title(subtitle, fontsize=7)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
