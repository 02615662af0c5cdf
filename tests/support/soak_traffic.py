"""The traffic of a soak: clients that finish, leave, cancel, look and die, and a killer, from one seed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import requests

from rbee.core.events import Event, EventReader
from support.daemons import environment
from support.keeper import COMMAND
from support.soak_fleet import SoakFleet

TASK_LIMIT_S = 30
CLIENT_PATIENCE_S = 120
NEVER = {"INTERNAL_ERROR", "INVALID_REQUEST", "NODE_NOT_FOUND", "MODEL_NOT_FOUND", "MODEL_INCOMPATIBLE"}
"""Errors that no kill can excuse."""
LOOKS = ("/health", "/v2/workers/list", "/v2/registry/beehives/list", "/metrics")


class Traffic:
    """Clients and a killer that run until they are told to stop.

    Args:
        models: references that tasks ask for.
        kill_hives_of: nodes whose hives are killed; workers are killed on every node.
        kill_every_s: mean time between two kills.
    """

    def __init__(
        self, fleet: SoakFleet, seed: int, models: list[str], kill_hives_of: list[str], kill_every_s: float
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.defects: list[str] = []
        self.examples: dict[str, str] = {}
        """The first message of each error code."""
        self._fleet = fleet
        self._seed = seed
        self._models = models
        self._kill_hives_of = kill_hives_of
        self._kill_every_s = kill_every_s
        self._is_over = threading.Event()
        self._lock = threading.Lock()

    def run(self, seconds: float, clients: int, *, is_killing: bool = True) -> None:
        """Block for so long, and until the last client has its answer."""
        self._is_over.clear()
        jobs: list[Callable[[random.Random], None]] = [self._client] * clients
        if is_killing:
            jobs.append(self._killer)
        threads = [
            threading.Thread(target=job, args=(random.Random(f"{self._seed}-{number}"),))
            for number, job in enumerate(jobs)
        ]
        for thread in threads:
            thread.start()
        self._is_over.wait(seconds)
        self._is_over.set()
        for thread in threads:
            thread.join(2 * CLIENT_PATIENCE_S)
            if thread.is_alive():
                self._defect("a client got no end of its answer")

    def _count(self, outcome: str) -> None:
        with self._lock:
            self.outcomes[outcome] += 1

    def _defect(self, text: str) -> None:
        with self._lock:
            self.defects.append(text)

    def _client(self, rng: random.Random) -> None:
        actions = [self._complete, self._leave, self._cancel, self._look, self._plan, self._dying_keeper]
        while not self._is_over.is_set():
            action = rng.choices(actions, [10, 3, 3, 3, 1, 1])[0]
            try:
                action(rng)
            except (requests.RequestException, AssertionError, ValueError, KeyError) as error:
                self._defect(f"{action.__name__}: {type(error).__name__}: {error}")

    def _task(self, rng: random.Random, **fields: Any) -> requests.Response:
        node = rng.choice([None, "localhost", *self._fleet.nodes])
        body = {
            "prompt": "".join(rng.choices("abcdefgh ", k=20)),
            "model": rng.choice(self._models),
            "raw": True,
            "max_tokens": rng.choice([1, 8, 40, 100]),
            "timeout_seconds": TASK_LIMIT_S,
            **({"node": node} if node else {}),
            **fields,
        }
        url = f"{self._fleet.queen.url}/v2/tasks"
        return requests.post(url, json=body, stream=True, timeout=CLIENT_PATIENCE_S)

    def _complete(self, rng: random.Random) -> None:
        with self._task(rng) as answer:
            self._count(f"complete: {self._end_of(answer)}")

    def _leave(self, rng: random.Random) -> None:
        with self._task(rng, max_tokens=200) as answer:
            reader, wanted = EventReader(), rng.randrange(1, 8)
            for chunk in answer.iter_content(None):
                wanted -= sum(not event.name for event in reader.feed(chunk))
                if wanted <= 0:
                    break
        self._count("leave")

    def _cancel(self, rng: random.Random) -> None:
        with self._task(rng, max_tokens=200) as answer:
            request_id = answer.headers.get("X-Request-Id")
            delay_s = rng.random()
            timer = threading.Timer(delay_s, self._delete, [request_id])
            timer.start()
            self._count(f"cancel: {self._end_of(answer)}")
            timer.join()

    def _delete(self, request_id: str | None) -> None:
        url = f"{self._fleet.queen.url}/v2/tasks/{request_id}"
        try:
            status = requests.delete(url, timeout=CLIENT_PATIENCE_S).status_code
        except requests.RequestException as error:
            self._defect(f"cancelling: {error}")
            return
        if status != 204:
            self._defect(f"cancelling: status {status}")

    def _look(self, rng: random.Random) -> None:
        path = rng.choice(LOOKS)
        answer = requests.get(self._fleet.queen.url + path, timeout=CLIENT_PATIENCE_S)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[:200]}"
        self._count("look")

    def _plan(self, rng: random.Random) -> None:
        body = {"model": rng.choice(self._models)}
        answer = requests.post(f"{self._fleet.queen.url}/v2/plan", json=body, timeout=CLIENT_PATIENCE_S)
        assert answer.status_code == 200, f"plan: {answer.status_code} {answer.text[:200]}"
        assert len(answer.json()["nodes"]) == 1 + len(self._fleet.nodes)
        self._count("plan")

    def _dying_keeper(self, rng: random.Random) -> None:
        home = self._fleet.folder / "keeper"
        argv = [*COMMAND, "--queen-url", self._fleet.queen.url, "infer", "--prompt", "x", "--raw", "--quiet"]
        keeper = subprocess.Popen(
            [*argv, "--model", rng.choice(self._models), "--max-tokens", "100"],
            env=environment(home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            keeper.wait(0.3 + 1.5 * rng.random())
        except subprocess.TimeoutExpired:
            keeper.kill()
            keeper.wait()
        self._count("dying keeper")

    def _end_of(self, answer: requests.Response) -> str:
        """How an answer ended; a defect unless it ended by the book."""
        if answer.status_code != 200:
            code = str(answer.json()["error"]["code"])
            if answer.status_code not in (503,):
                self._defect(f"status {answer.status_code} {code}")
            return code
        reader = EventReader()
        events: list[Event] = [event for chunk in answer.iter_content(None) for event in reader.feed(chunk)]
        assert events, "no event"
        assert events[-1].is_done_marker, f"the last event is {events[-1]}"
        data = [json.loads(event.data) for event in events[:-1] if not event.name]
        ends = [entry for entry in data if "done" in entry or "error" in entry]
        assert len(ends) == 1, f"{len(ends)} terminal events"
        assert ends == data[-1:], "a terminal event is not the last"
        if "done" in ends[0]:
            told = sum("token" in entry for entry in data)
            assert ends[0]["total_tokens"] == told, f"{told} tokens, {ends[0]}"
            return "ok"
        code = str(ends[0]["error"]["code"])
        self.examples.setdefault(code, str(ends[0]["error"]["message"]))
        if code in NEVER:
            self._defect(f"{code}: {ends[0]['error']['message']}")
        return code

    def _killer(self, rng: random.Random) -> None:
        while not self._is_over.wait(rng.uniform(0.5, 1.5) * self._kill_every_s):
            if self._kill_hives_of and rng.random() < 0.25:
                hive = self._fleet.hive(rng.choice(self._kill_hives_of))
                number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
                self._kill("hive", hive.pid if hive else None, number)
            else:
                workers = self._fleet.workers()
                number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
                self._kill("worker", rng.choice(workers).pid if workers else None, number)

    def _kill(self, kind: str, pid: int | None, number: signal.Signals) -> None:
        if pid is None:
            return
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        with self._lock:
            self.kills[f"{kind} {number.name}"] += 1


def summary(traffic: Traffic) -> str:
    """How often what came about."""
    lines = [f"{count:6d}  {name}" for name, count in sorted(traffic.outcomes.items())]
    lines += [f"{count:6d}  killed {name}" for name, count in sorted(traffic.kills.items())]
    return "\n".join([*lines, *(f"        {code}: {text}" for code, text in traffic.examples.items())])
