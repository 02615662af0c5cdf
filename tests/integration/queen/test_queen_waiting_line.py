"""Tasks that find no free slot wait in line, in the order in which they came."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import requests

from support.daemons import wait_until
from support.queens import QueenUnderTest, start_queen
from support.scripted import OpenTask, ScriptedHive, TaskAnswer, run_task

MODEL = "file:/models/m.gguf"
TASK = {"prompt": "write about bees", "model": MODEL}
Start = Callable[..., ScriptedHive]


@pytest.fixture(scope="module")
def queen(tmp_path_factory: pytest.TempPathFactory):
    running = start_queen(tmp_path_factory.mktemp("queen"), max_pending=40)
    with running.daemon:
        yield running


@pytest.fixture(autouse=True)
def _nothing_stays_open(queen: QueenUnderTest):
    yield
    wait_until(lambda: open_tasks(queen) == 0, 5, "no open task")


def open_tasks(queen: QueenUnderTest) -> int:
    text = requests.get(f"{queen.url}/metrics", timeout=5).text
    return int(float(text.partition("\nrbee_queen_queue_depth ")[2].split()[0]))


def inferences(peer: ScriptedHive) -> list[str]:
    """The ids of the requests that the worker was asked for, each as often as it was asked."""
    return [request["body"]["request_id"] for request in peer.requests("/v1/inference", "POST")]


def holding(queen: QueenUnderTest) -> OpenTask:
    task = OpenTask(queen.url, {**TASK, "max_tokens": 1000})
    task.read_until("bee0")
    return task


def waiting(queen: QueenUnderTest, **body: object) -> OpenTask:
    """A task that has been told its place in the line."""
    task = OpenTask(queen.url, {**TASK, "max_tokens": 2, **body})
    task.read_until("waiting")
    return task


def test_those_who_wait_are_served_in_the_order_in_which_they_came(queen, hive: Start) -> None:
    peer = hive(models=[MODEL], slots=1, tokens=1000, token_interval_s=0.02)
    held = holding(queen)
    line = [waiting(queen) for _ in range(5)]
    places = [next(e.json() for e in task.events if e.name == "queued") for task in line]
    assert places == [{"position": n, "waiting": n} for n in range(1, 6)]
    held.close()
    answers = [task.read_to_end() for task in line]
    for answer in answers:
        answer.assert_well_formed()
        assert answer.text == " bee0 bee1"
    served = list(dict.fromkeys(each for each in inferences(peer) if each != held.request_id))
    assert served == [task.request_id for task in line]
    assert [place["position"] for place in answers[2].named("queued")] == [3, 2, 1]
    assert answers[2].narrated("queued")[0] == "Waiting for a free slot: position 3 of 3"


def test_only_the_first_in_line_asks_the_worker(queen, hive: Start) -> None:
    peer = hive(models=[MODEL], slots=1, tokens=1000, token_interval_s=0.02)
    held = holding(queen)
    line = [waiting(queen) for _ in range(4)]
    time.sleep(1.2)
    asked = set(inferences(peer)) - {held.request_id}
    assert asked == {line[0].request_id}
    for task in [*line, held]:
        task.close()


def test_many_clients_on_few_slots_all_get_their_answers(queen, hive: Start) -> None:
    """Eight clients on two slots for many rounds, without a request for retries."""
    hive(models=[MODEL], slots=2, tokens=1000)
    answers: list[TaskAnswer] = []

    def work() -> None:
        for length in (5, 40, 12):
            answers.append(run_task(queen.url, {**TASK, "max_tokens": length, "busy_retries": 0}))

    clients = [threading.Thread(target=work) for _ in range(8)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(60)
    assert len(answers) == 24
    assert [answer.terminal for answer in answers if "error" in answer.terminal] == []
    assert sorted(len(answer.text.split()) for answer in answers) == sorted([5, 40, 12] * 8)


def test_a_slot_that_is_just_being_given_counts_as_held(queen, hive: Start) -> None:
    """Whoever is refused because of it waits for its end, however few retries it allows."""
    peer = hive(models=[MODEL], slots=1, tokens=2, accept_delay_s=0.7)
    first = OpenTask(queen.url, TASK)
    wait_until(lambda: len(inferences(peer)) == 1, 5, "the worker is asked")
    second = run_task(queen.url, {**TASK, "busy_retries": 0})
    assert second.text == first.read_to_end().text == " bee0 bee1"


def test_a_refusal_that_is_out_of_date_when_it_arrives_does_not_count(queen, hive: Start) -> None:
    hive(models=[MODEL], slots=1, tokens=20, token_interval_s=0.02, refusal_delay_s=1.0)
    first = OpenTask(queen.url, TASK)
    first.read_until("bee0")
    second = run_task(queen.url, {**TASK, "max_tokens": 2, "busy_retries": 0})
    assert second.text == " bee0 bee1"
    assert first.read_to_end().terminal["done"]


def test_a_client_that_leaves_the_line_never_gets_a_slot(queen, hive: Start) -> None:
    peer = hive(models=[MODEL], slots=1, tokens=1000, token_interval_s=0.02)
    held = holding(queen)
    first, second, third = (waiting(queen) for _ in range(3))
    second.close()
    third.read_until('"position":2')
    held.close()
    assert first.read_to_end().text == third.read_to_end().text == " bee0 bee1"
    assert second.request_id not in inferences(peer)


def test_a_waiting_task_can_be_cancelled(queen, hive: Start) -> None:
    hive(models=[MODEL], slots=1, tokens=1000, token_interval_s=0.02)
    held = holding(queen)
    task = waiting(queen)
    assert requests.delete(f"{queen.url}/v2/tasks/{task.request_id}", timeout=5).status_code == 204
    assert task.read_to_end().error["code"] == "REQUEST_CANCELED"
    held.close()


def test_waiting_ends_with_the_time_of_the_request(queen, hive: Start) -> None:
    hive(models=[MODEL], slots=1, tokens=1000, token_interval_s=0.02)
    held = holding(queen)
    error = run_task(queen.url, {**TASK, "timeout_seconds": 1}).error
    assert error["code"] == "REQUEST_TIMEOUT"
    held.close()


def test_a_task_for_another_model_does_not_wait_behind_the_line(queen, hive: Start) -> None:
    hive(models=[MODEL], slots=1, tokens=1000, token_interval_s=0.02)
    held = holding(queen)
    task = waiting(queen)
    # The scripted worker serves whatever it is told to load, but one request at a time.
    other = waiting(queen, model="file:/models/other.gguf")
    place = next(event.json() for event in other.events if event.name == "queued")
    assert place == {"position": 1, "waiting": 1}
    for each in (task, other, held):
        each.close()


def test_the_line_is_bounded_and_says_when_to_come_back(queen, hive: Start) -> None:
    hive(models=[MODEL], slots=1, tokens=1000, token_interval_s=0.02)
    tasks = [holding(queen)]
    tasks += [OpenTask(queen.url, TASK) for _ in range(39)]
    wait_until(lambda: open_tasks(queen) == 40, 10, "40 open tasks")
    refused = requests.post(f"{queen.url}/v2/tasks", json=TASK, timeout=5)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "QUEUE_FULL"
    assert int(refused.headers["Retry-After"]) >= 1
    for task in tasks:
        task.close()


def test_a_queen_that_ends_tells_those_in_line(tmp_path, hive: Start, queen) -> None:
    hive(models=[MODEL], slots=1, tokens=1000, token_interval_s=0.02)
    ending = start_queen(tmp_path / "ending", hive_port=queen.hive_port)
    with ending.daemon:
        held, task = holding(ending), waiting(ending)
        ending.daemon.process.terminate()
        assert task.read_to_end().error["code"] == "SERVICE_UNAVAILABLE"
        held.close()
