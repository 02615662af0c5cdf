"""What every way to a node's shell does: OpenSSH against a real server, and the one of MOCK_SSH."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rbee.core.errors import SshConnectionFailed
from rbee.core.settings import Timing
from rbee.queen.adapters.mock_ssh import MockSsh
from rbee.queen.adapters.openssh import OpenSsh
from rbee.queen.ports import NodeTransport
from rbee.queen.registry import Node
from support.sshd import SshdMissing, SshNode, find_sshd, make_key

HOST = "127.0.0.12"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SshNode, Path]]:
    try:
        find_sshd()
    except SshdMissing as missing:
        pytest.fail(str(missing))
    folder = tmp_path_factory.mktemp("node")
    key = make_key(folder / "id_ed25519")
    with SshNode(folder / "sshd", [key], host=HOST) as running:
        yield running, key


@pytest.fixture
def node(server: tuple[SshNode, Path]) -> Node:
    sshd, key = server
    return Node("n", HOST, sshd.user, "/srv/none", ssh_port=sshd.port, ssh_key_path=str(key))


@pytest.fixture(params=["openssh", "mock"])
def transport(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NodeTransport]:
    (tmp_path / "run").mkdir()
    opened: NodeTransport
    if request.param == "mock":
        opened = MockSsh(dict(os.environ))
    else:
        opened = OpenSsh("ssh", tmp_path, Timing(ssh_connect_timeout_s=5), dict(os.environ))
    yield opened
    opened.close()


def test_arguments_arrive_as_they_are(transport: NodeTransport, node: Node) -> None:
    hostile = ["a b", "", "$(id)", "`id`", "'; echo pwned; '", '"', "\\", "*", "~", "ümlaut", "-n"]
    done = transport.run(node, ["printf", "%s\\n", *hostile], 20)
    assert done.exit_code == 0
    assert done.stdout.split("\n")[:-1] == hostile


def test_exit_code_and_both_streams_are_told(transport: NodeTransport, node: Node) -> None:
    done = transport.run(node, ["sh", "-c", "echo out; echo err >&2; exit 3"], 20)
    assert (done.exit_code, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_a_program_that_is_missing_is_127(transport: NodeTransport, node: Node) -> None:
    assert transport.run(node, ["no-such-program-anywhere"], 20).exit_code == 127


def test_a_command_that_hangs_is_given_up(tmp_path: Path, node: Node) -> None:
    (tmp_path / "run").mkdir()
    timing = Timing(ssh_connect_timeout_s=1, ssh_attempts=1)
    transport = OpenSsh("ssh", tmp_path, timing, dict(os.environ))
    began = time.monotonic()
    with pytest.raises(SshConnectionFailed) as caught:
        transport.run(node, ["sleep", "60"], 0.5)
    transport.close()
    assert caught.value.details["reason"] == "Connection timeout"
    assert time.monotonic() - began < 15


def test_background_work_does_not_hold_the_command(transport: NodeTransport, node: Node) -> None:
    began = time.monotonic()
    done = transport.run(node, ["sh", "-c", "sleep 30 </dev/null >/dev/null 2>&1 & echo $!"], 20)
    pid = int(done.stdout)
    assert psutil.pid_exists(pid)
    psutil.Process(pid).kill()
    assert time.monotonic() - began < 15


def test_openssh_serves_many_commands_with_one_login_and_leaves_nothing(
    tmp_path: Path, server: tuple[SshNode, Path], node: Node
) -> None:
    (tmp_path / "run").mkdir()
    transport = OpenSsh("ssh", tmp_path, Timing(ssh_connect_timeout_s=5), dict(os.environ))
    before = len(server[0].logins)
    for _ in range(3):
        assert transport.run(node, ["true"], 20).exit_code == 0
    assert len(server[0].logins) == before + 1
    transport.close()
    assert list((tmp_path / "run").iterdir()) == []
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])
    ]


def test_a_forgotten_node_is_logged_in_to_anew(
    tmp_path: Path, server: tuple[SshNode, Path], node: Node
) -> None:
    (tmp_path / "run").mkdir()
    transport = OpenSsh("ssh", tmp_path, Timing(ssh_connect_timeout_s=5), dict(os.environ))
    before = len(server[0].logins)
    for _ in range(2):
        transport.forget(node)
        assert transport.run(node, ["true"], 20).exit_code == 0
    assert len(server[0].logins) == before + 2
    transport.close()


def test_a_home_whose_path_is_long_or_has_blanks_is_no_obstacle(tmp_path: Path, node: Node) -> None:
    home = tmp_path / ("long name " * 9) / "state"
    (home / "run").mkdir(parents=True)
    transport = OpenSsh("ssh", home, Timing(ssh_connect_timeout_s=5), dict(os.environ))
    assert transport.run(node, ["true"], 20).exit_code == 0
    transport.close()
    assert f"[{HOST}]:{node.ssh_port} " in (home / "known_hosts").read_text()


def test_a_client_that_is_not_installed_is_told(tmp_path: Path, node: Node) -> None:
    (tmp_path / "run").mkdir()
    transport = OpenSsh("no-such-ssh", tmp_path, Timing(), dict(os.environ))
    with pytest.raises(SshConnectionFailed) as caught:
        transport.run(node, ["true"], 5)
    transport.close()
    assert caught.value.details["reason"] == "SSH client not found"
