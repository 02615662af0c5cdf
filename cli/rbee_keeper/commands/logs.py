"""``logs``: log lines of a node's hive and workers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import Any

import click

from rbee_keeper.failures import KeeperFailure
from rbee_keeper.parameters import NODE_NAME, WORKER_ID, KeeperCommand, json_option
from rbee_keeper.results import Streamed
from rbee_keeper.session import Session
from rbee_keeper.terminal import printable

_ALL_LINES = 10000
_AGE = re.compile(r"(\d+)([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _since(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """Unix seconds of an age (``90s``, ``10m``, ``2h``, ``1d``) or an ISO-8601 time (UTC by default)."""
    if value is None:
        return None
    age = _AGE.fullmatch(value)
    if age:
        return time.time() - int(age[1]) * _UNIT_S[age[2]]
    from datetime import UTC, datetime

    try:
        moment = datetime.fromisoformat(value.replace("Z", "+00:00"))
    except ValueError:
        raise click.BadParameter(
            f"'{value}' is neither an age like 10m nor a time like 2026-01-31T08:00:00Z"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@click.command(cls=KeeperCommand)
@click.option("--node", type=NODE_NAME, required=True, help="The node to ask.")
@click.option("--follow", is_flag=True, help="Go on with new lines until Ctrl+C.")
@click.option(
    "--lines", type=click.IntRange(0, _ALL_LINES), help="How many of the last lines.  [default: 100]"
)
@click.option("--since", callback=_since, help="Only lines from then on: an age (10m) or a UTC time.")
@click.option("--worker", "--id", "worker_id", type=WORKER_ID, help="Only this worker.")
@json_option
@click.pass_obj
def logs(
    session: Session,
    /,
    node: str,
    follow: bool,
    lines: int | None,
    since: float | None,
    worker_id: str | None,
) -> Streamed:
    """Print log lines of a node; never starts a queen."""
    session.node = node
    wanted = lines if lines is not None else (_ALL_LINES if since is not None else 100)
    params: dict[str, Any] = {"node": node, "follow": str(follow).lower(), "lines": wanted}
    if worker_id is not None:
        params["worker_id"] = worker_id
    _print_lines(session, params, _Since(since, None if lines is not None else _ALL_LINES))
    return Streamed()


class _Since:
    """Lets young enough lines through; a line without a time goes the way of the one before.

    Args:
        limit: how many lines the node gives at most where the user has not said how many to read.
    """

    def __init__(self, earliest: float | None, limit: int | None = None) -> None:
        self._earliest = earliest
        self._is_open = earliest is None
        self._limit = limit
        self._seen = 0
        self._is_first_open = False

    @property
    def is_cut(self) -> bool:
        """Whether the node gave as many lines as it gives, and the oldest of them is young enough already."""
        return self._earliest is not None and self._seen == self._limit and self._is_first_open

    def lets_through(self, line: str) -> bool:
        """Whether to print the next line."""
        is_open = self._judge(line)
        self._is_first_open = is_open if self._seen == 0 else self._is_first_open
        self._seen += 1
        return is_open

    def _judge(self, line: str) -> bool:
        if self._earliest is not None:
            moment = _time_of(line)
            self._is_open = moment >= self._earliest if moment is not None else self._is_open
        return self._is_open


def _time_of(line: str) -> float | None:
    from rbee.core.clock import parse_utc

    try:
        return parse_utc(json.loads(line)["timestamp"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _print_lines(session: Session, params: Mapping[str, Any], since: _Since) -> None:
    queen = session.queen(may_start=False)
    from rbee.core.client import TransportFailure
    from rbee.core.errors import error_from_fields

    is_complete = False
    try:
        with queen.stream("GET", "/v2/logs", params=params) as stream:
            for event in stream:
                if event.is_done_marker:
                    is_complete = True
                    break
                data = event.json()
                if "error" in data:
                    raise error_from_fields(data["error"])
                if since.lets_through(str(data.get("line", ""))):
                    _print_line(session, data)
                if since.is_cut:
                    session.terminal.note(f"Older lines are left out: a node gives the last {_ALL_LINES}")
    except TransportFailure as failure:
        raise queen.unreachable(failure.reason) from None
    except ValueError:
        raise KeeperFailure("The stream holds an event that is not JSON", code="INTERNAL_ERROR") from None
    if not is_complete:
        raise KeeperFailure("SSE stream closed unexpectedly", code="INTERNAL_ERROR")


def _print_line(session: Session, data: Mapping[str, Any]) -> None:
    if session.as_json:
        session.terminal.line(json.dumps(data, ensure_ascii=False))
    else:
        session.terminal.line(printable(str(data.get("line", ""))))
