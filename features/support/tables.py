"""Reads the tables and texts of scenarios."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from features.support.world import World


def cells(table: Any) -> list[list[str]]:
    """All rows of a table without headings."""
    return [list(table.headings), *(list(row.cells) for row in table.rows)]


def values(world: World, table: Any) -> dict[str, Any]:
    """A table of two columns: names, and values with placeholders put in; JSON where they are JSON."""
    return {name: value(world, text) for name, text in cells(table)}


def value(world: World, text: str) -> Any:
    filled = world.fill(text)
    try:
        return json.loads(filled)
    except ValueError:
        return filled


def check_fields(seen: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> None:
    """Every wanted field is there with its value; others may be there too."""
    assert seen is not None, f"there is nothing that could have {dict(wanted)}"
    found = {name: seen[name] for name in wanted if name in seen}
    assert found == dict(wanted), f"{found} is not {dict(wanted)}; all: {seen}"


def check_order(text: str, wanted: list[str]) -> None:
    """Each wanted piece is in the text, after the one before it."""
    assert text or not wanted, f"nothing is there that could have {wanted}"
    position = 0
    for piece in wanted:
        found = text.find(piece, position)
        assert found >= 0, f"missing (in this order): {piece!r}\n--- in:\n{text}"
        position = found + len(piece)
