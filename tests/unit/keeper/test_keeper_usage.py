"""What the command line takes and refuses, before any process is started or asked."""

import io
from typing import Any

import click
import pytest

from rbee_keeper.cli import _COMMANDS, program
from rbee_keeper.commands.infer import task_body
from rbee_keeper.parameters import KeeperCommand
from rbee_keeper.session import Session
from rbee_keeper.terminal import Terminal


def session() -> Session:
    return Session({"HOME": "/nowhere"}, Terminal(io.StringIO(), io.StringIO()))


@pytest.mark.parametrize(
    "args",
    [
        ["infer"],
        ["infer", "--prompt", ""],
        ["infer", "--prompt", "x" * 32769],
        ["infer", "--prompt", "\udcff"],
        ["infer", "--prompt", "x", "--unknown"],
        ["infer", "--prompt", "x", "--model", "nonsense"],
        ["infer", "--prompt", "x", "--node", "Not_A_Node"],
        ["infer", "--prompt", "x", "--backend", "tpu"],
        ["infer", "--prompt", "x", "--device", "0"],
        ["infer", "--prompt", "x", "--max-tokens", "0"],
        ["infer", "--prompt", "x", "--max-tokens", "2049"],
        ["infer", "--prompt", "x", "--temperature", "nan"],
        ["infer", "--prompt", "x", "--temperature", "2.1"],
        ["infer", "--prompt", "x", "--top-p", "0"],
        ["infer", "--prompt", "x", "--repetition-penalty", "inf"],
        ["infer", "--prompt", "x", "--seed", "-1"],
        ["infer", "--prompt", "x", "--raw", "--system", "y"],
        ["infer", "--prompt", "x", *["--stop", "y"] * 5],
        ["infer", "--prompt", "x", "--stop", "y" * 101],
        ["infer", "--prompt", "x", "--retry", "11"],
        ["--queen-url", "ftp://x", "queen", "status"],
        ["queen", "status", "--queen-url", "http://host:0"],
        ["queen", "status", "--queen-url", "http://user:secret@host:8080"],
        ["queen", "status", "--queen-url", "http://host:8080/path?x=1"],
        ["queen", "start", "--port", "80"],
        ["workers", "shutdown"],
        ["workers", "shutdown", "--id", "a/b"],
        ["models", "remove"],
        ["plan", "--model", "no reference"],
        ["plan", "--device", "0"],
        ["logs"],
        ["logs", "--node", "n", "--lines", "10001"],
        ["logs", "--node", "n", "--since", "yesterday"],
        ["setup", "add-node", "--name", "n"],
        ["setup", "update-node", "--name", "n"],
        ["setup", "update-node", "--name", "n", "--devices", "[1]"],
        ["setup", "update-node", "--name", "n", "--backends", "cpu"],
        ["completion", "tcsh"],
        ["nonsense"],
    ],
    ids=lambda args: " ".join(args)[:50],
)
def test_wrong_usage_has_exit_code_2(args: list[str]) -> None:
    with pytest.raises(click.UsageError) as caught:
        program.main(args, prog_name="rbee-keeper", obj=session(), standalone_mode=False)
    assert caught.value.exit_code == 2


def test_a_mistyped_command_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(click.UsageError, match="Did you mean 'infer'"):
        program.main(["infr"], prog_name="rbee-keeper", obj=session(), standalone_mode=False)


def test_zero_is_a_value_and_is_sent() -> None:
    unset: dict[str, Any] = {"raw": False, "system": None, "device": None, "backend": None, "stop": ()}
    body = task_body({**unset, "prompt": "x", "temperature": 0.0, "top_k": 0, "seed": 0, "retry": 0})
    assert body == {"prompt": "x", "temperature": 0.0, "top_k": 0, "seed": 0, "busy_retries": 0}


def all_commands() -> list[click.Command]:
    found: list[click.Command] = []
    for name in _COMMANDS:
        command = program.get_command(click.Context(program), name)
        assert command is not None
        found += command.commands.values() if isinstance(command, click.Group) else [command]
    return found


def test_every_command_takes_the_global_flags_behind_its_name() -> None:
    for command in all_commands():
        assert isinstance(command, KeeperCommand), command.name
        assert {"config", "queen_url", "no_color"} <= {p.name for p in command.params}, command.name


def test_every_command_and_flag_says_what_it_is_for() -> None:
    for command in all_commands():
        assert command.help, command.name
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                explained = parameter.help or parameter.show_default or parameter.required
                assert explained or command.name == "update-node", (command.name, parameter.name)
