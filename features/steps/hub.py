"""Steps on the local hub: what it offers, what goes wrong with it, what it was asked."""

from __future__ import annotations

from typing import Any

from behave import given, then, when
from features.support.made_models import write_model
from features.support.tables import cells

from support.file_sending import Fault

EARLY_S, LATE_S = 0.02, 1.5
"""How much earlier and later than due a request may come, on a machine that is busy with other things."""


@given('a hub that offers "{repo:Text}" with')
def hub_offers(context: Any, repo: str) -> None:
    hub = context.world.fleet.start_hub()
    for name, model in cells(context.table):
        write_model(model, hub.offer(repo, name))


@given("a hub that has no models")
def empty_hub(context: Any) -> None:
    context.world.fleet.start_hub()


@given("the hub resets connections for good once {share:d} % of a file have been sent")
def hub_resets(context: Any, share: int) -> None:
    context.world.fleet.hub.spoil(Fault("reset", at=share / 100))


@given("the hub resets the first connection once {share:d} % of a file have been sent")
def hub_resets_once(context: Any, share: int) -> None:
    # The rest comes slowly enough to be watched.
    slow = Fault("throttle", bytes_per_s=4_000_000)
    context.world.fleet.hub.spoil(Fault("reset", at=share / 100, times=1), slow)


@given("the hub sends {speed:d} MB a second")
def hub_is_slow(context: Any, speed: int) -> None:
    context.world.fleet.hub.spoil(Fault("throttle", bytes_per_s=speed * 1_000_000))


@given("the hub stalls for good once {share:d} % of a file have been sent")
def hub_stalls(context: Any, share: int) -> None:
    context.world.fleet.hub.spoil(Fault("stall", at=share / 100))


@given("the hub sends files with a flipped bit")
def hub_flips(context: Any) -> None:
    context.world.fleet.hub.spoil(Fault("flip", at=0.5))


@given('"{repo:Text}" is gated at the hub for all but the token "{token:Text}"')
def hub_gates(context: Any, repo: str, token: str) -> None:
    hub = context.world.fleet.hub
    hub.gated = frozenset({repo})
    hub.tokens = {token: frozenset({repo}), "hf_other": frozenset()}


@given('the token of all machines is "{token:Text}"')
def token_is(context: Any, token: str) -> None:
    context.world.fleet.variables_of_all["HF_TOKEN"] = token


@then("the hub has sent the file in two parts, the second from where the first had been written")
def hub_sent_two_parts(context: Any) -> None:
    hub = context.world.fleet.hub
    first, second = hub.transfers
    (place,) = hub.root.rglob("*.gguf")
    size = place.stat().st_size
    assert first.range is None, first
    assert second.range is not None, second
    start = int(second.range.removeprefix("bytes=").removesuffix("-"))
    # What had been sent and not yet written when the hive was killed is lost.
    assert 1_000_000 <= start <= first.sent < size, (first, second)
    assert (second.status, second.sent) == (206, size - start), second


@then('the hub has sent one file, "{name:Text}"')
def hub_sent_one(context: Any, name: str) -> None:
    paths = [request.path.partition("?")[0] for request in context.world.fleet.hub.transfers]
    assert [path.rsplit("/", 1)[1] for path in paths] == [name], paths


@then("the hub was asked nothing")
def hub_was_asked_nothing(context: Any) -> None:
    assert context.world.fleet.hub.requests == []


@then("the hub was asked for the model with the ranges")
def hub_ranges(context: Any) -> None:
    wanted = [row[0] or None for row in cells(context.table)]
    seen = [request.range for request in context.world.fleet.hub.transfers]
    assert seen == wanted, seen


@then("the hub was asked again after")
def hub_pauses(context: Any) -> None:
    wanted = [int(row[0].removesuffix(" ms")) / 1000 for row in cells(context.table)]
    seen = context.world.fleet.hub.pauses_s
    assert len(seen) == len(wanted), seen
    for pause, due in zip(seen, wanted, strict=True):
        assert due - EARLY_S <= pause < due + LATE_S, (seen, wanted)


@when("the hub forgets what it was asked")
def hub_forgets(context: Any) -> None:
    context.world.fleet.hub.recorder.clear()
