"""Results as text and as JSON."""

import io
import json

from rbee_keeper.exit_codes import ExitCode
from rbee_keeper.rendering import show, text_lines
from rbee_keeper.results import (
    Message,
    ModelList,
    ModelQuality,
    NodeDetails,
    NodeList,
    Plan,
    PulledModel,
    QueenStatus,
    Result,
    Streamed,
    WorkerHealth,
    WorkerList,
)
from rbee_keeper.terminal import Terminal

LOCALHOST = {"node_name": "localhost", "ssh_host": "127.0.0.1", "status": "unknown", "builtin": True}
WORKSTATION = {
    "node_name": "workstation",
    "ssh_host": "workstation.home.arpa",
    "status": "reachable",
    "last_connected_unix": 1769846400,
    "install_path": "/home/u/rbee",
    "ssh_key_path": None,
    "devices": {"cuda": 2},
    "builtin": False,
}
WORKER = {
    "worker_id": "worker-1",
    "node": "localhost",
    "state": "idle",
    "model_ref": "file:/m.gguf",
    "url": "http://x",
}

VERDICT = {"node": "mac", "fits": False, "reason": "RAM 6000 MB required, 4000 MB available"}


def shown(result: Result, *, as_json: bool = False) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    show(result, Terminal(out, err), as_json=as_json)
    return out.getvalue(), err.getvalue()


def test_nodes_are_listed_with_status_time_and_path() -> None:
    assert text_lines(NodeList([LOCALHOST, WORKSTATION])) == [
        "Registered rbee-hive Nodes:",
        "localhost (127.0.0.1)",
        "  Status: unknown",
        "  Last connected: never",
        "  Install path: built in",
        "workstation (workstation.home.arpa)",
        "  Status: reachable",
        "  Last connected: 2026-01-31 08:00:00",
        "  Install path: /home/u/rbee",
    ]
    assert text_lines(NodeList([LOCALHOST]))[-1] == "No remote nodes registered"


def test_json_is_the_body_of_the_queens_answer() -> None:
    for result, body in (
        (NodeList([LOCALHOST]), {"nodes": [LOCALHOST]}),
        (NodeDetails(WORKSTATION), WORKSTATION),
        (WorkerList([WORKER], ["mac"]), {"workers": [WORKER], "unreachable": ["mac"]}),
        (WorkerHealth("ok", [WORKER]), {"status": "ok", "workers": [WORKER]}),
        (ModelList([]), {"models": []}),
        (
            Plan("file:/m.gguf", None, "because", [VERDICT]),
            {"model": "file:/m.gguf", "node": None, "why": "because", "nodes": [VERDICT]},
        ),
    ):
        assert json.loads(shown(result, as_json=True)[0]) == body


def test_a_plan_is_a_table_with_the_choice_below() -> None:
    assert text_lines(Plan("file:/m.gguf", None, "Insufficient RAM", [VERDICT])) == [
        "Model file:/m.gguf",
        "NODE  FITS  REASON",
        "mac   no    RAM 6000 MB required, 4000 MB available",
        "No node fits: Insufficient RAM",
    ]


def test_a_node_is_shown_with_every_field() -> None:
    lines = text_lines(NodeDetails(WORKSTATION))
    assert lines[0] == "workstation (workstation.home.arpa)"
    assert "  Last connected: 2026-01-31 08:00:00" in lines
    assert "  SSH key path: -" in lines
    assert '  Devices: {"cuda": 2}' in lines
    assert "  Builtin: false" in lines


def test_workers_stand_in_columns_and_lost_nodes_on_standard_error() -> None:
    out, err = shown(WorkerList([WORKER], ["mac"]))
    assert out.splitlines() == [
        "WORKER    NODE       STATE  MODEL         URL",
        "worker-1  localhost  idle   file:/m.gguf  http://x",
    ]
    assert err == "Warning: node 'mac' could not be reached; its workers are not listed\n"


def test_empty_lists_say_so() -> None:
    assert shown(WorkerList([], []))[0] == "No workers registered\n"
    assert shown(WorkerHealth("ok", []))[0] == "No workers on this node\n"
    assert shown(ModelList([]))[0] == "No models in catalog\n"


def test_quality_is_a_table_of_texts_with_the_whole_below() -> None:
    figures = {"positions": 100, "kl_nats": 0.01234, "same_top": 0.945, "perplexity": 20.4}
    figures["reference_perplexity"] = 20.0
    quality = {
        "compute_type": "int8",
        "reference": "float32",
        **figures,
        "texts": [{"text": "prose", **figures}],
    }
    result = ModelQuality("hf:a/b", quality)
    assert text_lines(result) == [
        "hf:a/b as int8 against float32",
        "TEXT   TOKENS  PERPLEXITY     REFERENCE  KL (NATS)  SAME FIRST CHOICE",
        "prose  100     20.40 (+2.0%)  20.00      0.0123     94.5%",
        "all    100     20.40 (+2.0%)  20.00      0.0123     94.5%",
    ]
    assert json.loads(shown(result, as_json=True)[0]) == {"model": "hf:a/b", "quality": quality}


def test_models_are_listed_with_size_and_path() -> None:
    model = {
        "model_ref": "hf:a/b",
        "format": "gguf",
        "quantization": None,
        "size_bytes": 5242880,
        "local_path": "/m/b.gguf",
    }
    assert text_lines(ModelList([model])) == [
        "MODEL   FORMAT  QUANTIZATION  SIZE    PATH",
        "hf:a/b  gguf    -             5.0 MB  /m/b.gguf",
    ]


def test_health_says_which_worker_is_ready() -> None:
    lines = text_lines(WorkerHealth("ok", [{"worker_id": "w", "state": "loading", "ready": False}]))
    assert lines[1].split() == ["w", "loading", "false"]


def test_the_status_of_a_queen_names_its_url_in_any_case() -> None:
    running = QueenStatus("http://q", True, "0.1.0", 42)
    stopped = QueenStatus("http://q", False, None, None, "Connection refused", exit_code=ExitCode.FAILED)
    assert text_lines(running) == ["queen-rbee is running at http://q", "  Version: 0.1.0", "  Pid: 42"]
    assert text_lines(stopped) == ["queen-rbee is not running at http://q (Connection refused)"]
    assert json.loads(shown(stopped, as_json=True)[0]) == {
        "url": "http://q",
        "running": False,
        "version": None,
        "pid": None,
        "reason": "Connection refused",
    }


def test_messages_and_paths_are_printed_as_they_are() -> None:
    assert shown(Message(["one", "two"]))[0] == "one\ntwo\n"
    assert shown(PulledModel("hf:a/b", "/m/b.gguf"))[0] == "/m/b.gguf\n"
    assert shown(Streamed(), as_json=True)[0] == ""


def test_a_name_from_outside_moves_no_cursor() -> None:
    worker = {**WORKER, "model_ref": "a\x1b[2J"}
    assert "\x1b" not in shown(WorkerList([worker], []))[0]
