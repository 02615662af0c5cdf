"""What queen and hive add to a warm request, against talking to the worker directly, in turn."""

from __future__ import annotations

from bench.fleet import Fleet
from bench.measuring import Goal, Table, median, milliseconds, percentile
from bench.streams import StreamClient

PROMPT = "Bees"
# As few as they can be: what reading a longer prompt takes varies by more than what is measured here.
ROUNDS = 100
TOKENS = 12
_WARM_UP = 4


def measure() -> Table:
    """Alternate direct and relayed requests on one idle worker; compare medians of first token and gap."""
    body = {"prompt": PROMPT, "raw": True, "max_tokens": TOKENS, "temperature": 0.0}
    first: dict[str, list[float]] = {"worker alone": [], "through queen and hive": []}
    gaps: dict[str, list[float]] = {name: [] for name in first}
    with Fleet() as fleet:
        url, _, key = fleet.warm_worker()
        clients = {
            "worker alone": StreamClient(url, "/v1/inference", key),
            "through queen and hive": StreamClient(fleet.url, "/v2/tasks"),
        }
        for turn in range(ROUNDS + _WARM_UP):
            # Either goes first as often as the other.
            for name, client in list(clients.items())[:: 1 if turn % 2 else -1]:
                times = client.run(body)
                if turn >= _WARM_UP:
                    first[name].append(times.first)
                    gaps[name] += times.gaps
        for client in clients.values():
            client.close()
    rows = [
        [
            name,
            milliseconds(median(first[name])),
            milliseconds(percentile(first[name], 0.95)),
            milliseconds(median(gaps[name])),
        ]
        for name in first
    ]
    alone, relayed = first.values()
    gap_alone, gap_relayed = gaps.values()
    rows.append(
        [
            "added",
            milliseconds(median(relayed) - median(alone)),
            milliseconds(percentile(relayed, 0.95) - percentile(alone, 0.95)),
            milliseconds(median(gap_relayed) - median(gap_alone)),
        ]
    )
    return Table(
        "Relay cost of a warm request",
        ["path", "first token p50", "first token p95", "between tokens p50"],
        rows,
        f"{ROUNDS} requests of one prompt token and {TOKENS} greedy tokens each, in turn. "
        "Less is added than the engine's own times vary by: a figure may be negative.",
        [
            Goal("added to a warm first token, p50", 1000 * (median(relayed) - median(alone)), 5, "ms"),
            Goal("added per token, p50", 1000 * (median(gap_relayed) - median(gap_alone)), 0.3, "ms"),
        ],
    )
