"""Where a task goes when several nodes could take it."""

from __future__ import annotations

import pytest

from rbee.core.errors import BackendUnavailable, MemoryExhausted, ServiceUnavailable
from rbee.core.lifecycle import WorkerState
from rbee.queen.placement import (
    NodeView,
    Verdict,
    Wanted,
    choose_node,
    judge,
    known_fit,
    known_size,
    why_chosen,
)
from rbee.queen.ports import Capabilities, WorkerRecord

MODEL = "hf:ORG/REPO"
MIB = 1024 * 1024
WANTED = Wanted(MODEL, size_bytes=5000 * MIB)


def has(state: str) -> list[WorkerRecord]:
    return [WorkerRecord("w-1", "http://n:8001", MODEL, "cpu", 0, WorkerState(state), 1, 0)]


def cpu(ram_mb: int, disk_mb: int = 100_000) -> Capabilities:
    return Capabilities(["cpu"], {"cpu": 1}, ram_mb, {}, disk_mb)


def cuda(*vram_mb: int, ram_mb: int = 64_000) -> Capabilities:
    devices = {"cuda": len(vram_mb), "cpu": 1}
    return Capabilities(["cuda", "cpu"], devices, ram_mb, dict(enumerate(vram_mb)), 100_000)


def place(*views: NodeView, wanted: Wanted = WANTED) -> str:
    return choose_node([judge(view, wanted) for view in views]).node_name


def test_an_idle_worker_beats_everything() -> None:
    idle = NodeView("idle", workers=has("idle"))
    assert (
        place(NodeView("big", capabilities=cuda(80_000)), idle, NodeView("l", workers=has("loading")))
        == "idle"
    )


def test_a_loading_worker_beats_a_new_one() -> None:
    assert place(NodeView("big", capabilities=cuda(80_000)), NodeView("l", workers=has("loading"))) == "l"


def test_a_node_that_has_the_model_beats_one_that_must_download_it() -> None:
    stocked = NodeView("stocked", capabilities=cpu(8000), model_sizes={MODEL: 5000 * MIB})
    assert place(NodeView("bigger", capabilities=cpu(64_000)), stocked) == "stocked"


def test_a_gpu_beats_a_cpu_and_more_memory_beats_less() -> None:
    views = [NodeView("cpu", capabilities=cpu(128_000)), NodeView("small", capabilities=cuda(8000))]
    assert place(*views) == "small"
    assert place(*views, NodeView("large", capabilities=cuda(6000, 24_000))) == "large"


def test_among_equals_the_first_of_the_registry_is_taken() -> None:
    assert (
        place(NodeView("localhost", capabilities=cpu(9000)), NodeView("b", capabilities=cpu(9000)))
        == "localhost"
    )


def test_a_busy_worker_is_the_last_resort() -> None:
    busy = NodeView("busy", workers=has("busy"), capabilities=cpu(9000))
    assert place(busy, NodeView("free", capabilities=cpu(9000))) == "free"
    assert place(busy, NodeView("small", capabilities=cpu(100))) == "busy"


def test_the_verdict_names_device_and_numbers() -> None:
    verdict = judge(NodeView("n", capabilities=cuda(4000, 8000)), WANTED)
    assert verdict.listed() == {
        "node": "n",
        "fits": True,
        "reason": "fits on cuda:1, 6000 MB of 8000 MB free",
        "device": "cuda:1",
        "required_mb": 6000,
        "available_mb": 8000,
    }


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (NodeView("n", problem="Cannot connect to n:9200"), "Cannot connect to n:9200"),
        (NodeView("n"), "its devices are not known"),
        (NodeView("n", capabilities=cpu(4000)), "RAM 6000 MB required, 4000 MB available"),
        (NodeView("n", capabilities=cuda(4000)), "VRAM 6000 MB required, 4000 MB available"),
        (NodeView("n", capabilities=cuda(80_000, ram_mb=500)), "RAM 6000 MB required, 500 MB available"),
        (NodeView("n", capabilities=cpu(8000, 100)), "disk 5000 MB required, 100 MB available"),
    ],
)
def test_the_first_reason_against_a_node_is_told_in_numbers(view: NodeView, reason: str) -> None:
    verdict = judge(view, WANTED)
    assert (verdict.fits, verdict.reason) == (False, reason)


def test_backend_and_device_are_never_exchanged_for_others() -> None:
    view = NodeView("n", capabilities=cpu(64_000))
    assert judge(view, Wanted(MODEL, "cuda")).reason == "no backend cuda, only cpu"
    two = NodeView("n", capabilities=cuda(8000, 8000))
    assert judge(two, Wanted(MODEL, "cuda", 2)).reason == "no device cuda:2, it has 2 of cuda"
    assert judge(two, Wanted(MODEL, "cpu")).device == "cpu:0"


def test_an_unknown_size_does_not_keep_a_node_out() -> None:
    verdict = judge(NodeView("n", capabilities=cpu(10)), Wanted(MODEL))
    assert (verdict.fits, verdict.reason) == (True, "fits on cpu:0, 10 MB free, model size unknown")


def test_the_size_is_learned_from_any_node_that_has_the_model() -> None:
    views = [NodeView("a"), NodeView("b", model_sizes={MODEL: 7})]
    assert known_size(views, MODEL) == 7
    assert known_size(views, "hf:OTHER/REPO") is None


def test_when_memory_keeps_every_node_out_the_largest_one_is_named() -> None:
    views = [NodeView(n, capabilities=cpu(mb)) for n, mb in (("a", 100), ("b", 4000))]
    with pytest.raises(MemoryExhausted) as caught:
        place(*views, NodeView("c", problem="down"))
    assert caught.value.details == {"required": 6000, "available": 4000, "resource": "ram"}


def test_when_no_node_has_the_backend_the_offered_ones_are_named() -> None:
    with pytest.raises(BackendUnavailable) as caught:
        place(NodeView("a", capabilities=cpu(1)), wanted=Wanted(MODEL, "metal"))
    assert caught.value.details == {"requested": "metal", "available": ["cpu"]}


def test_when_no_node_answers_each_is_named_with_its_reason() -> None:
    with pytest.raises(ServiceUnavailable, match="a: down; b: its devices are not known"):
        place(NodeView("a", problem="down"), NodeView("b"))


BIG = 64_000


@pytest.mark.parametrize(
    ("views", "why"),
    [
        ([NodeView("a", capabilities=cpu(BIG))], "the only node"),
        ([NodeView("a", capabilities=cpu(BIG)), NodeView("b", problem="down")], "the only node that fits"),
        (
            [NodeView("a", capabilities=cuda(BIG)), NodeView("b", workers=has("idle"))],
            "its worker can start at once",
        ),
        (
            [NodeView("a", capabilities=cuda(BIG)), NodeView("b", workers=has("loading"))],
            "its worker is being loaded already",
        ),
        (
            [
                NodeView("a", capabilities=cuda(BIG)),
                NodeView("b", capabilities=cpu(BIG), model_sizes={MODEL: 5000 * MIB}),
            ],
            "nothing needs to be downloaded",
        ),
        (
            [NodeView("a", workers=has("busy")), NodeView("b", capabilities=cpu(BIG))],
            "a new worker there waits for no other request",
        ),
        (
            [NodeView("a", capabilities=cpu(2 * BIG)), NodeView("b", capabilities=cuda(BIG))],
            "its device is no CPU",
        ),
        (
            [NodeView("a", capabilities=cpu(9000)), NodeView("b", capabilities=cpu(9001))],
            "most free memory, 9001 MB",
        ),
        (
            [NodeView("b", capabilities=cpu(9000)), NodeView("c", capabilities=cpu(9000))],
            "the first of equals in the registry",
        ),
        (
            [NodeView("b", workers=has("idle")), NodeView("c", workers=has("idle"))],
            "the first of equals in the registry",
        ),
    ],
)
def test_the_choice_is_explained_by_what_sets_it_apart(views: list[NodeView], why: str) -> None:
    verdicts = [judge(view, WANTED) for view in views]
    assert why_chosen(choose_node(verdicts), verdicts) == why


def with_fit(ram_mb: int, fit: dict[str, dict[str, int]], *vram_mb: int) -> NodeView:
    """A node that has the model and tells what a worker of it takes."""
    found = cuda(*vram_mb, ram_mb=ram_mb) if vram_mb else cpu(ram_mb)
    sizes, fits = {MODEL: 5000 * MIB}, {MODEL: fit}
    return NodeView("n", capabilities=found, model_sizes=sizes, model_fits=fits)


def test_what_a_worker_really_takes_counts_where_a_hive_can_tell() -> None:
    fit = {"cpu": {"ram": 9000}, "cuda": {"ram": 5500, "vram": 7000}}
    refused = judge(with_fit(8999, fit), WANTED)
    assert (refused.fits, refused.required_mb, refused.available_mb) == (False, 9000, 8999)
    assert refused.reason == "RAM 9000 MB required, 8999 MB available"
    assert judge(with_fit(9000, fit), WANTED).fits
    assert judge(with_fit(6000, fit, 6999), WANTED).reason == "VRAM 7000 MB required, 6999 MB available"
    assert judge(with_fit(6000, fit, 7000), WANTED).required_mb == 7000


def test_the_first_check_of_the_hive_still_counts() -> None:
    fit = {"cpu": {"ram": 10}}
    assert judge(with_fit(5999, fit), WANTED).required_mb == 6000


def test_a_nodes_own_fit_goes_before_that_of_another() -> None:
    stocked = with_fit(100_000, {"cpu": {"ram": 9000}})
    views = [NodeView("other", capabilities=cpu(8000)), stocked]
    wanted = Wanted(MODEL, size_bytes=5000 * MIB, fit=known_fit(views, MODEL))
    assert [judge(view, wanted).required_mb for view in views] == [9000, 9000]
    small = with_fit(8000, {"cpu": {"ram": 7000}})
    assert judge(small, wanted).required_mb == 7000
    assert known_fit([NodeView("other")], MODEL) is None


def test_what_speaks_against_a_thousand_nodes_is_told_in_one_line() -> None:
    verdicts = [Verdict(f"n{i}", False, "Connection refused") for i in range(1000)]
    verdicts += [Verdict(f"m{i}", False, f"strange answer {i}") for i in range(1000)]
    verdicts.append(Verdict("n1000", False, "Connection refused"))
    with pytest.raises(ServiceUnavailable) as failure:
        choose_node(verdicts)
    assert failure.value.message == (
        "No node can take this task: n0, n1, n2, n3, n4 and 996 more: Connection refused; "
        "m0: strange answer 0; m1: strange answer 1; m2: strange answer 2; m3: strange answer 3; "
        "and 996 other reasons"
    )
