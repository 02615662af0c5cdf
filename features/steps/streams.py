"""Steps on event streams that a step reads beside the command: of downloads, of loading, of an inference."""

from __future__ import annotations

from typing import Any

from behave import then, when
from features.steps.traffic import asked_hive, last_stream
from features.support import observing
from features.support.commands import wait_until
from features.support.machines import SLACK_S
from features.support.made_models import header_of
from features.support.observing import unix_of
from features.support.streams import LoadingPoll, StreamReader, TimedEvent
from features.support.tables import check_fields, values
from features.support.workers import START_S
from features.support.world import World


def read_events(world: World) -> list[TimedEvent]:
    """The events of the stream that was read, once it is over."""
    assert world.reader is not None, "no stream was read in this scenario"
    world.reader.finish()
    return world.reader.events


@when('somebody else reads the progress of the download on "{machine:Text}"')
def read_download(context: Any, machine: str) -> None:
    world = context.world

    def download_id() -> str:
        answered = [e for e in asked_hive(world, machine, "POST /v1/models/download") if e.body]
        return answered[0].json()["download_id"] if answered else ""

    found = world.command.wait_for(download_id, START_S, "a download")
    hive_url = world.fleet.machine(machine).hive_url
    world.reader = StreamReader("GET", f"{hive_url}/v1/models/download/progress?id={found}")


@then("the reader has seen the download of {size:d} bytes grow to its end, and then [DONE]")
def download_seen(context: Any, size: int) -> None:
    *events, complete, marker = [event.data for event in read_events(context.world)]
    downloading = [data for data in events if data.get("stage") == "downloading"]
    done = [data["bytes_downloaded"] for data in downloading]
    assert len(set(done)) >= 3, downloading
    assert done == sorted(done), downloading
    assert done[-1] == size, downloading
    assert {data["bytes_total"] for data in downloading} == {size}, downloading
    assert all(data["speed_mbps"] > 0 for data in downloading if data["bytes_downloaded"]), downloading
    assert (complete["stage"], marker) == ("complete", "[DONE]"), complete
    assert complete["local_path"].endswith(".gguf"), complete


@when('worker "{worker:Text}" is asked for a stream of')
def ask_for_stream(context: Any, worker: str) -> None:
    """Asks, and goes on as soon as the first token has come."""
    subject = context.world.workers[worker]
    body = values(context.world, context.table)
    context.world.reader = StreamReader("POST", f"{subject.url}/v1/inference", body, subject.key)
    context.world.reader.await_event("token")


@then('worker "{worker:Text}" says at "GET /v1/ready"')
def worker_says(context: Any, worker: str) -> None:
    check_fields(context.world.workers[worker].ready(), values(context.world, context.table))


@then("the stream has come with the headers of one, token by token, its end told by done and [DONE]")
def stream_has_come(context: Any) -> None:
    events = read_events(context.world)
    reader = context.world.reader
    assert reader.head.status == 200, reader.head
    assert reader.head.headers["content-type"].startswith("text/event-stream"), reader.head
    assert reader.head.headers["x-request-id"], reader.head
    tokens = [event for event in events if isinstance(event.data, dict) and "token" in event.data]
    assert [event.data["index"] for event in tokens] == list(range(len(tokens))), events
    done, marker = (event.data for event in events[-2:])
    assert (done["done"], done["total_tokens"], marker) == (True, len(tokens), "[DONE]"), events[-2:]
    assert done["duration_ms"] > 0, done
    assert done["stop_reason"] in ("MAX_TOKENS", "EOS"), done
    assert len(reader.data("done")) == 1, events
    # All at once would be within some milliseconds.
    assert tokens[-1].unix - tokens[0].unix > 0.02, [event.unix for event in tokens]
    assert len({event.unix for event in tokens}) > len(tokens) / 2, [event.unix for event in tokens]


@then("the stream has come with the headers of one, its end told by done and [DONE]")
def short_stream_has_come(context: Any) -> None:
    events = read_events(context.world)
    assert context.world.reader.head.status == 200, context.world.reader.head
    assert events[-2].data["done"] is True, events
    assert events[-1].data == "[DONE]", events


@then('worker "{worker:Text}" comes to say "{state:w}" at "GET /v1/ready"')
def worker_comes_to_say(context: Any, worker: str, state: str) -> None:
    subject = context.world.workers[worker]
    slots = {"idle": 1}.get(state, 0)
    wait_until(lambda: subject.ready()["state"] == state, 5, f"worker {worker} {state}")
    assert subject.ready()["slots_available"] == slots, subject.ready()


@then('that error came {least:d} s to {most:d} s after the worker on "{machine:Text}" had called back')
def error_came(context: Any, least: int, most: int, machine: str) -> None:
    log = context.world.fleet.machine(machine).hive_log
    (called,) = observing.log_lines(log, "worker_ready_callback")
    (ended,) = observing.requests_logged(context.world.fleet.queen_log, "POST /v2/tasks")
    took_s = unix_of(ended["timestamp"]) - unix_of(called["timestamp"])
    assert least <= took_s < most + SLACK_S, (called, ended)


@when('somebody reads the loading progress of the next worker on "{machine:Text}" as "{worker:Text}"')
def read_loading(context: Any, machine: str, worker: str) -> None:
    world = context.world
    world.workers[worker] = subject = world.fleet.machine(machine).adopt()
    world.reader = StreamReader("GET", f"{subject.url}/v1/loading/progress", key=subject.key)


@when('the loading progress of worker "{worker:Text}" is read')
def read_loading_of(context: Any, worker: str) -> None:
    subject = context.world.workers[worker]
    context.world.reader = StreamReader("GET", f"{subject.url}/v1/loading/progress", key=subject.key)


@when('worker "{worker:Text}" is polled every 10 ms until it is ready')
def poll_worker(context: Any, worker: str) -> None:
    context.world.poll = LoadingPoll(context.world.workers[worker])
    context.world.poll.finish()


@then('the reader has seen each layer of the embedded model on "{machine:Text}", then ready, then [DONE]')
def loading_seen(context: Any, machine: str) -> None:
    *layers, ready, marker = [event.data for event in read_events(context.world)]
    total = header_of(context.world.fleet.machine(machine).model_file)["block_count"]
    loaded = [data["layers_loaded"] for data in layers]
    assert (loaded[0], loaded[-1]) == (0, total), loaded
    assert loaded == sorted(set(loaded)), loaded
    assert {(data["stage"], data["layers_total"]) for data in layers} == {("loading_to_vram", total)}, layers
    memory = [data["vram_mb"] for data in layers]
    assert memory == sorted(memory), memory
    assert memory[-1] > memory[0], memory
    assert (ready, marker) == ({"stage": "ready"}, "[DONE]")


@then("the reader has seen nothing but ready and [DONE]")
def only_ready(context: Any) -> None:
    assert [event.data for event in read_events(context.world)] == [{"stage": "ready"}, "[DONE]"]


@then('each time worker "{worker:Text}" was loading it has answered "GET /v1/ready" with 200 and')
def polls_answered(context: Any, worker: str) -> None:
    looks = context.world.poll.looks
    assert looks, f"worker {worker} was never seen loading"
    for look in looks:
        assert look.ready_status == 200, look
        check_fields(look.ready, values(context.world, context.table))


@then("meanwhile it has refused inference with 503 WORKER_NOT_READY, and its health came within 1 s")
def polls_refused(context: Any) -> None:
    looks = context.world.poll.looks
    refusals = {(look.inference.status, look.inference.json()["error"]["code"]) for look in looks}
    assert refusals == {(503, "WORKER_NOT_READY")}, refusals
    assert {look.health.status for look in looks} == {200}, looks[0].health
    waits_s = sorted(look.health_s for look in looks)
    assert waits_s[len(looks) // 2] < 0.5, waits_s
    assert waits_s[-1] < 1 + SLACK_S, waits_s


@then("a reader of that progress_url has seen layers")
def progress_url_leads(context: Any) -> None:
    events = read_events(context.world)
    assert [
        data for data in (e.data for e in events) if isinstance(data, dict) and "layers_loaded" in data
    ], events


@then("the stream of the last task has {count:d} tokens, fewer only at the end of the text")
def tokens_of_task(context: Any, count: int) -> None:
    events = [data for _, data in last_stream(context.world).events]
    tokens = [data for data in events if isinstance(data, dict) and "token" in data]
    (done,) = [data for data in events if isinstance(data, dict) and "done" in data]
    assert done["total_tokens"] == len(tokens), done
    assert len(tokens) == count or (len(tokens) < count and done["stop_reason"] == "EOS"), done


@then(
    "the stream of the last task ended with stop_reason {reason:w} before {count:d} tokens, "
    'without "{token:Text}"'
)
def task_ended(context: Any, reason: str, count: int, token: str) -> None:
    events = [data for _, data in last_stream(context.world).events]
    tokens = [data["token"] for data in events if isinstance(data, dict) and "token" in data]
    (done,) = [data for data in events if isinstance(data, dict) and "done" in data]
    assert (done["stop_reason"], done["total_tokens"]) == (reason, len(tokens)), done
    assert 0 < len(tokens) < count, done
    assert not any(token in piece for piece in tokens), tokens
    assert token not in "".join(tokens), tokens


@when("the command has printed {count:d} tokens")
def command_printed_tokens(context: Any, count: int) -> None:
    world = context.world

    def printed() -> bool:
        exchanges = [e for e in world.fleet.recorder.exchanges if e.name == "POST /v2/tasks"]
        tokens = [data["token"] for _, data in exchanges[-1].events if "token" in data] if exchanges else []
        return len(tokens) >= count and world.command.stdout.startswith("".join(tokens[:count]))

    world.command.wait_for(printed, START_S, f"{count} tokens on stdout")


@then('the token counter of worker "{worker:Text}" stands still')
def counter_stands_still(context: Any, worker: str) -> None:
    subject = context.world.workers[worker]
    wait_until(lambda: subject.ready()["state"] == "idle", 5, "the end of the generation")
    first = subject.metric("rbee_worker_tokens_generated_total")
    seen = [first]

    def several() -> bool:
        seen.append(subject.metric("rbee_worker_tokens_generated_total"))
        return len(seen) > 5

    wait_until(several, 10, "some looks at the counter")
    assert set(seen) == {first}, seen
    assert first > 0, seen
