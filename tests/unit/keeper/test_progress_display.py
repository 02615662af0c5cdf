"""Bars: their literal text, how often they are printed, and how they share a terminal with text."""

import io

import pytest

from rbee_keeper.narration import Narrator, narration_lines
from rbee_keeper.progress import ProgressDisplay, bar, progress_line, time_left
from rbee_keeper.terminal import Terminal, printable

MIB = 1048576


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def loading(done: int) -> dict[str, object]:
    return {"stage": "loading_to_vram", "layers_loaded": done, "layers_total": 32, "vram_mb": 1}


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            {"stage": "downloading", "bytes_downloaded": 2 * MIB, "bytes_total": 5 * MIB, "speed_mbps": 45.2},
            "Downloading model... [████████------------] 40% (2.0 MB / 5.0 MB) @ 45.2 MB/s",
        ),
        (
            {"stage": "downloading", "bytes_downloaded": 2 * MIB, "bytes_total": None, "speed_mbps": 1},
            "Downloading model... 2.0 MB @ 1.0 MB/s",
        ),
        (
            {"stage": "converting", "tensors_done": 136, "tensors_total": 272},
            "Converting model... [██████████----------] 50% (136/272 tensors)",
        ),
        (
            {"stage": "calibrating", "layers_done": 15, "layers_total": 30},
            "Calibrating model... [██████████----------] 50% (15/30 layers)",
        ),
        (
            {"stage": "measuring", "layers_done": 3, "layers_total": 30},
            "Measuring quality... [██------------------] 10% (3/30 layers)",
        ),
        (
            {"stage": "verifying", "model_ref": "hf:a/b", "bytes_verified": MIB, "bytes_total": 4 * MIB},
            "Verifying models... [█████---------------] 25% (1.0 MB / 4.0 MB)",
        ),
        (loading(24), "Loading model to VRAM... [███████████████-----] 75% (24/32 layers)"),
        ({"stage": "polishing"}, None),
    ],
)
def test_the_bars_read_as_specified(event: dict[str, object], line: str | None) -> None:
    assert progress_line(event) == line


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [(0, 0, "0%"), (999, 1000, "99%"), (1000, 1000, "100%"), (12, 10, "100%"), (-1, 10, "0%")],
)
def test_a_bar_is_full_only_at_the_end_and_never_leaves_its_frame(done: int, total: int, text: str) -> None:
    drawn = bar(done, total)
    assert drawn.endswith(f"] {text}")
    assert len(drawn) == 22 + 1 + len(text)


def test_a_file_gets_ten_lines_a_second_and_always_the_first_and_the_last() -> None:
    clock, err = Clock(), io.StringIO()
    display = ProgressDisplay(Terminal(io.StringIO(), err), clock=clock)
    for done in range(33):
        display.show(loading(done))
        clock.now += 0.03
    display.model_is_ready()
    lines = err.getvalue().splitlines()
    assert "(0/32 layers)" in lines[0]
    assert "(32/32 layers)" in lines[-2]
    assert lines[-1] == "Model ready!"
    assert len(lines) <= 0.99 * 10 + 3


def test_a_stage_ends_with_its_last_event_before_the_next_begins() -> None:
    err = io.StringIO()
    display = ProgressDisplay(Terminal(io.StringIO(), err), clock=Clock())
    for done in (0, 1, 272):
        display.show({"stage": "converting", "tensors_done": done, "tensors_total": 272})
    display.show(loading(0))
    lines = err.getvalue().splitlines()
    assert [line.split("(")[1] for line in lines] == ["0/272 tensors)", "272/272 tensors)", "0/32 layers)"]


def test_a_warm_model_is_not_announced_as_ready() -> None:
    err = io.StringIO()
    ProgressDisplay(Terminal(io.StringIO(), err)).model_is_ready()
    assert err.getvalue() == ""


def test_quiet_shows_no_bar() -> None:
    err = io.StringIO()
    display = ProgressDisplay(Terminal(io.StringIO(), err), quiet=True)
    display.show(loading(1))
    display.model_is_ready()
    assert err.getvalue() == ""


def test_a_terminal_gets_one_line_redrawn_in_place_with_the_time_left() -> None:
    clock, err = Clock(), Tty()
    display = ProgressDisplay(Terminal(io.StringIO(), err), clock=clock)
    for done in (1, 2, 5):
        display.show(
            {
                "stage": "downloading",
                "bytes_downloaded": done * MIB,
                "bytes_total": 5 * MIB,
                "speed_mbps": 0.5,
            }
        )
        clock.now += 1
    display.settle()
    drawn = err.getvalue()
    assert drawn.count("\n") == 1
    assert drawn.count("\r\x1b[K") == 3
    assert " ETA 0:06" in drawn


def test_a_stage_without_a_speed_is_timed_by_how_it_went_so_far() -> None:
    clock, err = Clock(), Tty()
    display = ProgressDisplay(Terminal(io.StringIO(), err), clock=clock)
    for done in (0, 68, 204, 272):
        display.show({"stage": "converting", "tensors_done": done, "tensors_total": 272})
        clock.now += 10
    display.show({"stage": "verifying", "bytes_verified": 0, "bytes_total": 100 * MIB})
    clock.now += 5
    display.show({"stage": "verifying", "bytes_verified": 25 * MIB, "bytes_total": 100 * MIB})
    drawn = err.getvalue().split("\r\x1b[K")
    assert "ETA" not in drawn[1]
    assert drawn[2].endswith("25% (68/272 tensors) ETA 0:30")
    assert drawn[3].endswith("75% (204/272 tensors) ETA 0:07")
    assert "ETA" not in drawn[4]
    assert drawn[6].endswith("25% (25.0 MB / 100.0 MB) ETA 0:15")


def test_no_time_is_promised_that_cannot_be_told() -> None:
    assert time_left({"stage": "downloading", "bytes_downloaded": 1, "bytes_total": 9, "speed_mbps": 0}) == ""
    assert time_left({"stage": "converting", "tensors_done": 1, "tensors_total": 9}) == ""


def test_retries_have_no_prefix_and_all_else_names_its_actor() -> None:
    assert narration_lines({"actor": "rbee-hive", "action": "startup", "human": "up"}) == ["[rbee-hive] up"]
    assert narration_lines({"actor": "x", "action": "retry", "human": "Error: a\nRetrying"}) == [
        "Error: a",
        "Retrying",
    ]


def shared() -> tuple[Tty, Tty, Terminal, Narrator]:
    out, err = Tty(), Tty()
    terminal = Terminal(out, err, color=False)
    return out, err, terminal, Narrator(terminal, ProgressDisplay(terminal))


def test_on_a_shared_terminal_narration_does_not_tear_the_text_apart() -> None:
    out, err, terminal, narrator = shared()
    terminal.text("Once")
    narrator.text_begins()
    narrator.show({"actor": "w", "action": "token_generate", "human": "10 tokens"})
    narrator.show({"actor": "w", "action": "inference_complete", "human": "done"})
    assert err.getvalue() == ""
    terminal.line()
    narrator.text_ended()
    assert (out.getvalue(), err.getvalue()) == ("Once\n", "[w] done\n")


def test_an_error_on_a_shared_terminal_begins_on_its_own_line() -> None:
    _, err, terminal, _ = shared()
    terminal.text("Once")
    terminal.error(["Error: gone"])
    assert err.getvalue() == "\nError: gone\n"


def test_with_separate_streams_narration_comes_at_once() -> None:
    err = io.StringIO()
    terminal = Terminal(io.StringIO(), err)
    narrator = Narrator(terminal, ProgressDisplay(terminal))
    terminal.text("Once")
    narrator.text_begins()
    narrator.show({"actor": "w", "action": "token_generate", "human": "10 tokens"})
    assert err.getvalue() == "[w] 10 tokens\n"


def test_control_characters_reach_files_but_no_terminal() -> None:
    piece = "a\x1b[2Jb\tc\n"
    for stream, shown in ((io.StringIO(), piece), (Tty(), "a\\x1b[2Jb\tc\n")):
        Terminal(stream, io.StringIO()).text(piece)
        assert stream.getvalue() == shown
    assert printable("a\x1b]0;x\x07\nb") == "a\\x1b]0;x\\x07\\x0ab"


def test_colour_is_for_terminals_and_can_be_switched_off() -> None:
    for color, expected in ((True, "\x1b[31mError: x\x1b[0m\n"), (False, "Error: x\n")):
        err = Tty()
        Terminal(io.StringIO(), err, color=color).error(["Error: x"])
        assert err.getvalue() == expected
