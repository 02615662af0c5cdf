"""What a roll-out costs: seconds and tasks a host for installing, for nothing to do and for an upgrade.

The hosts are network namespaces of this machine with systemd and sshd, the same as in the fleet tests; it
needs root and the packages that ``make fleet-test`` names.
"""

from __future__ import annotations

import re
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import requests

from bench.measuring import Table, seconds

if TYPE_CHECKING:
    from fleet.served_fleet import ServedFleet

ROOT = Path(__file__).resolve().parents[1]
HOSTS = 3
_POLL_S = 0.02


def measure() -> Table:
    """Playbooks over SSH with pipelining, as the keeper runs them; the upgrade under a queen."""
    sys.path.append(str(ROOT / "tests"))
    from fleet.hosts import missing_prerequisite, running_lab
    from fleet.releases import build_release
    from fleet.served_fleet import ServedFleet

    columns = ["step", "hosts", "tasks per host", "changed per host", "seconds", "seconds per host"]
    reason = missing_prerequisite()
    if reason is not None:
        return Table("Roll-out", columns, [], f"Not measured. {reason}.")
    with tempfile.TemporaryDirectory(prefix="rbee-bench-") as folder:
        here = Path(folder)
        (here / "source").mkdir()
        build_release(here / "source", here / "dist", "0.1.1")
        with running_lab(104, HOSTS) as lab, ServedFleet(here / "served", lab, here / "dist") as fleet:
            fleet.register()
            rows = [
                _timed(fleet, "install, the packages built first", "install", "--limit", "n1"),
                _timed(fleet, "install, the other hosts at once", "install", "--limit", "n2,n3"),
                _timed(fleet, "install again, nothing to do", "install"),
            ]
            fleet.load_models()
            with _Watch({host: f"http://{lab.address(host)}:9200/v1/health" for host in lab.hosts}) as watch:
                rows.append(
                    _timed(fleet, "upgrade, one host after the other", "upgrade", "-e", "rbee_version=0.1.1")
                )
            out = fleet.times_out_of_service()
            rows.append(_timed(fleet, "upgrade again, nothing to do", "upgrade", "-e", "rbee_version=0.1.1"))
    silent = ", ".join(f"{host} {seconds(gap)}" for host, gap in watch.gaps.items())
    cordoned = ", ".join(f"{host} {seconds(gap)}" for host, gap in out.items())
    note = (
        "Hosts share the cores of this machine with the control process. Out of service during the upgrade "
        f"(cordon to uncordon, with one real token in between): {cordoned}. No hive answered on the node "
        f"for: {silent}."
    )
    return Table("Roll-out", columns, rows, note)


def _timed(fleet: ServedFleet, step: str, playbook: str, *args: str) -> list[str]:
    began = time.monotonic()
    played = fleet.playbook(playbook, *args)
    took = time.monotonic() - began
    if played.code != 0:
        raise RuntimeError(played.stdout + played.stderr)
    recap = re.findall(r"^\S+\s+: ok=(\d+)\s+changed=(\d+)", played.stdout, re.M)
    tasks, changed = ([int(counts[i]) for counts in recap] for i in (0, 1))
    return [
        step,
        str(len(recap)),
        f"{sum(tasks) / len(recap):.0f}",
        f"{sum(changed) / len(recap):.0f}",
        seconds(took),
        seconds(took / len(recap)),
    ]


class _Watch:
    """Asks hives again and again; ``gaps`` is the longest silence of each, in seconds."""

    def __init__(self, urls: dict[str, str]) -> None:
        self.gaps = dict.fromkeys(urls, 0.0)
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._watch, args=each) for each in urls.items()]

    def __enter__(self) -> _Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _watch(self, host: str, url: str) -> None:
        heard = time.monotonic()
        while not self._over.wait(_POLL_S):
            try:
                requests.get(url, timeout=1)
            except requests.RequestException:
                continue
            now = time.monotonic()
            self.gaps[host] = max(self.gaps[host], now - heard)
            heard = now
