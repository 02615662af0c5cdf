"""Results as text for people or JSON for programs: the only place that prints them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from functools import singledispatch
from typing import Any

from rbee_keeper.error_lines import ErrorContext, error_lines
from rbee_keeper.progress import megabytes
from rbee_keeper.results import (
    FleetState,
    Inference,
    Message,
    ModelDetails,
    ModelList,
    ModelQuality,
    NodeDetails,
    NodeDrained,
    NodeList,
    Plan,
    PrunedModels,
    PulledModel,
    QueenStatus,
    Record,
    Result,
    RunList,
    VerifiedModels,
    WorkerHealth,
    WorkerList,
)
from rbee_keeper.terminal import Terminal, printable


def show(result: Result, terminal: Terminal, *, as_json: bool) -> None:
    """Print a result on standard output; what concerns its making goes to standard error."""
    if as_json:
        data = json_data(result)
        if data is not None:
            terminal.line(json.dumps(data, ensure_ascii=False))
    else:
        for line in text_lines(result):
            terminal.line(line)
    if isinstance(result, VerifiedModels) and result.error is not None:
        terminal.error(error_lines(result.error, ErrorContext()))
    if isinstance(result, WorkerList):
        for name in result.unreachable:
            terminal.note(f"Warning: node '{name}' could not be reached; its workers are not listed")


def json_data(result: Result) -> Any:
    """The JSON value of a result: the fields of its class (the body of the queen's answer), else None."""
    if isinstance(result, NodeDetails):
        return dict(result.node)
    if isinstance(result, NodeDrained):
        return dict(result.state)
    if isinstance(result, ModelDetails):
        return dict(result.model)
    names = [entry.name for entry in fields(result) if entry.name != "exit_code"]
    return {name: getattr(result, name) for name in names} if names else None


@singledispatch
def text_lines(_result: Result) -> list[str]:
    """The lines of a result; none for one that printed itself while it ran."""
    return []


@text_lines.register
def _message(result: Message) -> list[str]:
    return list(result.lines)


@text_lines.register
def _node_list(result: NodeList) -> list[str]:
    lines = ["Registered rbee-hive Nodes:"]
    for node in result.nodes:
        lines.append(f"{node.get('node_name')} ({node.get('ssh_host')})")
        lines.append(f"  Status: {node.get('status')}")
        lines.append(f"  Last connected: {_moment(node.get('last_connected_unix'))}")
        lines.append(f"  Install path: {node.get('install_path') or 'built in'}")
    if all(node.get("builtin") for node in result.nodes):
        lines.append("No remote nodes registered")
    return lines


@text_lines.register
def _fleet_state(result: FleetState) -> list[str]:
    lines = []
    for node in result.nodes:
        state = "takes tasks"
        if node.get("cordoned"):
            state = f"takes no new tasks since {_moment(node.get('since_unix'))}: {node.get('reason')}"
        lines.append(f"{node.get('node')} ({node.get('status')})")
        lines.append(f"  {state}")
        lines.append(f"  {_activity(node)}")
    if result.rollout is not None:
        since = _moment(result.rollout.get("since_unix"))
        told = (
            f"Roll-out of {result.rollout.get('version')} by {result.rollout.get('operator')} since {since}"
        )
        lines.append(told)
    return lines


@text_lines.register
def _node_drained(result: NodeDrained) -> list[str]:
    node = result.state
    if node.get("drained"):
        return [f"[queen-rbee] Node '{node.get('node')}' takes no new tasks, and nothing runs there"]
    return [f"[queen-rbee] Node '{node.get('node')}' takes no new tasks, but {_activity(node)} still run"]


def _activity(node: Record) -> str:
    return f"{node.get('open_tasks')} open tasks, {node.get('busy_slots')} busy slots"


@text_lines.register
def _node_details(result: NodeDetails) -> list[str]:
    node = result.node
    lines = [f"{node.get('node_name')} ({node.get('ssh_host')})"]
    for key, value in node.items():
        if key in ("node_name", "ssh_host"):
            continue
        if key == "last_connected_unix":
            key, value = "last_connected", _moment(value)
        label = key.replace("_", " ").capitalize().replace("Ssh", "SSH").replace(" url", " URL")
        lines.append(f"  {label}: {_plain(value)}")
    return lines


@text_lines.register
def _worker_list(result: WorkerList) -> list[str]:
    if not result.workers:
        return ["No workers registered"]
    return _table(
        ("WORKER", "NODE", "STATE", "MODEL", "URL"),
        [[w.get(k) for k in ("worker_id", "node", "state", "model_ref", "url")] for w in result.workers],
    )


@text_lines.register
def _worker_health(result: WorkerHealth) -> list[str]:
    if not result.workers:
        return ["No workers on this node"]
    return _table(
        ("WORKER", "STATE", "READY"),
        [[w.get(k) for k in ("worker_id", "state", "ready")] for w in result.workers],
    )


@text_lines.register
def _model_list(result: ModelList) -> list[str]:
    if not result.models:
        return ["No models in catalog"]
    return _table(
        ("MODEL", "FORMAT", "QUANTIZATION", "SIZE", "PATH"), [_model_row(model) for model in result.models]
    )


def _model_row(model: Record) -> list[Any]:
    return [
        model.get("model_ref"),
        model.get("format"),
        model.get("quantization"),
        megabytes(model.get("size_bytes") or 0),
        model.get("local_path"),
    ]


@text_lines.register
def _pulled_model(result: PulledModel) -> list[str]:
    return [result.local_path]


@text_lines.register
def _model_quality(result: ModelQuality) -> list[str]:
    figures = result.quality
    whole = {**figures, "text": "all"}
    rows = [
        [
            str(entry["text"]),
            str(entry["positions"]),
            f"{entry['perplexity']:.2f} ({entry['perplexity'] / entry['reference_perplexity'] - 1:+.1%})",
            f"{entry['reference_perplexity']:.2f}",
            f"{entry['kl_nats']:.4f}",
            f"{entry['same_top']:.1%}",
        ]
        for entry in [*figures["texts"], whole]
    ]
    heading = f"{result.model} as {figures['compute_type']} against {figures['reference']}"
    columns = ["TEXT", "TOKENS", "PERPLEXITY", "REFERENCE", "KL (NATS)", "SAME FIRST CHOICE"]
    return [heading, *_table(columns, rows)]


@text_lines.register
def _plan(result: Plan) -> list[str]:
    table = _table(
        ("NODE", "FITS", "REASON"),
        [[v.get("node"), "yes" if v.get("fits") else "no", v.get("reason")] for v in result.nodes],
    )
    outcome = f"no node fits: {_plain(result.why)}"
    if result.node is not None:
        outcome = f"node '{_plain(result.node)}' would be chosen: {_plain(result.why)}"
    return [f"Model {_plain(result.model)}", *table, outcome[0].upper() + outcome[1:]]


@text_lines.register
def _model_details(result: ModelDetails) -> list[str]:
    model = result.model
    size = model.get("size_bytes") or 0
    facts = {
        "Path": model.get("local_path"),
        "Files": len(model.get("files") or [0]),
        "Size": f"{megabytes(size)} ({size} bytes)",
        "Format": model.get("format"),
        "Architecture": model.get("architecture"),
        "Quantization": model.get("quantization"),
        "Context": model.get("context_length"),
        "Digest": f"sha256:{model['digest']}" if model.get("digest") else None,
        "Revision": model.get("revision"),
        "Downloaded": _moment(model.get("downloaded_at_unix")),
        "Last used": _moment(model.get("last_used_unix")),
        "Workers": ", ".join(model.get("workers") or []) or None,
    }
    lines = [
        f"{_plain(model.get('model_ref'))}",
        *(f"  {key}: {_plain(fact)}" for key, fact in facts.items()),
    ]
    conversions = model.get("conversions") or []
    lines.append("  Conversions:" if conversions else "  Conversions: -")
    for found in conversions:
        amount = megabytes(found.get("size_bytes") or 0)
        state = "" if found.get("usable") else " (cannot be used; made anew at the next use)"
        lines.append(f"    {_plain(found.get('compute_type'))}: {amount}, {_plain(found.get('path'))}{state}")
    return lines


@text_lines.register
def _verified_models(result: VerifiedModels) -> list[str]:
    if not result.models:
        return ["No models in catalog"]
    lines = []
    for verdict in result.models:
        lines.append(f"{_plain(verdict.get('model_ref'))}: {'ok' if verdict.get('ok') else 'damaged'}")
        for found in verdict.get("problems") or []:
            lines.append(f"  {_plain(found.get('path'))}: {_plain(found.get('problem'))}")
            lines.append(f"  Suggestion: {_plain(found.get('suggestion'))}")
    return lines


@text_lines.register
def _pruned_models(result: PrunedModels) -> list[str]:
    if not result.removed:
        return ["Nothing to remove"]
    verb = "Would remove" if result.dry_run else "Removed"
    lines = []
    for item in result.removed:
        what = f"{_plain(item.get('kind'))} {_plain(item.get('model_ref') or item.get('path'))}"
        lines.append(
            f"{verb} {what} ({megabytes(item.get('size_bytes') or 0)}): {_plain(item.get('reason'))}"
        )
    total = f"{megabytes(result.bytes_freed)} ({result.bytes_freed} bytes)"
    return [*lines, f"{total} would be freed" if result.dry_run else f"{total} freed"]


@text_lines.register
def _queen_status(result: QueenStatus) -> list[str]:
    if not result.running:
        return [
            f"queen-rbee is not running at {result.url}" + (f" ({result.reason})" if result.reason else "")
        ]
    lines = [f"queen-rbee is running at {result.url}", f"  Version: {result.version or 'unknown'}"]
    return [*lines, f"  Pid: {result.pid if result.pid is not None else 'unknown (not started here)'}"]


@text_lines.register
def _run_list(result: RunList) -> list[str]:
    if not result.runs:
        return ["No runs recorded"]
    return _table(
        ("STARTED (UTC)", "WHO", "WHAT", "VERSION", "NODES", "OUTCOME", "SECONDS"),
        [_run_row(run) for run in result.runs],
    )


def _run_row(run: Record) -> list[Any]:
    what = f"{run.get('operation')} --check" if run.get("check") else run.get("operation")
    nodes = ", ".join(str(name) for name in run.get("nodes") or [])
    return [
        run.get("started"),
        run.get("who"),
        what,
        run.get("version"),
        nodes,
        run.get("outcome"),
        run.get("duration_s"),
    ]


@text_lines.register
def _inference(_result: Inference) -> list[str]:
    return []


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Columns padded to their widest cell; nothing is cut, so that ids and paths can be copied."""
    cells = [list(header), *([_plain(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return printable(json.dumps(value) if isinstance(value, (list, dict)) else str(value))


def _moment(unix: Any) -> str:
    """``YYYY-MM-DD HH:MM:SS`` in UTC, or ``never``."""
    if not isinstance(unix, (int, float)):
        return "never"
    return datetime.fromtimestamp(unix, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
