"""Hives on other machines: started detached through the transport, signalled by pid."""

from __future__ import annotations

import json

import gevent

from rbee.core.errors import BadHiveResponse, HiveStartFailed, SshConnectionFailed
from rbee.queen.adapters.hive_answers import read_capabilities
from rbee.queen.adapters.ssh_failures import SshReason, login_failed
from rbee.queen.ports import Capabilities, Completed, HiveProcess, NodeTransport
from rbee.queen.registry import Node

_COMMAND_TIMEOUT_S = 30.0
_NOT_FOUND = 127

# Arguments: the program, whether PATH is searched when it is not there, and the hive's own arguments. A unit
# takes those from RBEE_HIVE_OPTIONS; where its ExecStart does not, the hive is the operator's and is left
# alone. Prints the pid.
_START = """
program=$1 search=$2; shift 2
for scope in --user --system; do
  systemctl $scope cat rbee-hive.service >/dev/null 2>&1 || continue
  ctl="systemctl $scope"
  [ $scope = --user ] || [ "$(id -u)" = 0 ] || ctl="sudo -n $ctl"
  $ctl set-environment "RBEE_HIVE_OPTIONS=$*" && $ctl start rbee-hive.service
  code=$?
  $ctl unset-environment RBEE_HIVE_OPTIONS
  [ $code = 0 ] && systemctl $scope show -p MainPID --value rbee-hive.service
  exit $code
done
if [ ! -x "$program" ]; then
  [ "$search" = yes ] && program=$(command -v rbee-hive) || exit 127
fi
logs="${RBEE_LOG_DIR:-${RBEE_HOME:-$HOME/.rbee}/logs}"
umask 077; mkdir -p "$logs"
if command -v setsid >/dev/null; then set -- setsid "$program" "$@"; else set -- nohup "$program" "$@"; fi
"$@" </dev/null >"$logs/rbee-hive.start.log" 2>&1 &
echo $!
"""

# Arguments: the program, whether PATH is searched, and what to run it with.
_RUN = """
program=$1 search=$2; shift 2
if [ ! -x "$program" ]; then
  [ "$search" = yes ] && program=$(command -v rbee-hive) || exit 127
fi
exec "$program" "$@"
"""

# Arguments: the pid. Succeeds while it is a live process.
_IS_ALIVE = """
alive() {
  kill -0 "$1" 2>/dev/null || return 1
  case "$(ps -o stat= -p "$1" 2>/dev/null)" in Z*) return 1;; esac
}
"""

_FAILURE = f"""{_IS_ALIVE}
alive "$1" && exit 0
tail -n 5 "${{RBEE_LOG_DIR:-${{RBEE_HOME:-$HOME/.rbee}}/logs}}/rbee-hive.start.log"
exit 1
"""

# Arguments: the pid, the signal. A process that is not a hive any more is left alone.
_SIGNAL = f"""{_IS_ALIVE}
alive "$1" || exit 0
args=$(ps -o args= -p "$1" 2>/dev/null) && case "$args" in *rbee-hive*|*rbee.hive*) ;; *) exit 0;; esac
kill -s "$2" "$1"
"""

# Arguments: the pid, how many fifths of a second to wait. Succeeds when the process is gone.
_WAIT_GONE = f"""{_IS_ALIVE}
left=$2
while alive "$1"; do [ "$left" -gt 0 ] || exit 1; left=$((left-1)); sleep 0.2; done
"""
_SIGNAL_NAMES = {15: "TERM", 9: "KILL"}


class RemoteHive:
    """Starts and signals hives through a transport.

    Args:
        identity: the queen's, the owner of the hives.
        program: the hive program on every node (``remote.binary_path``); None: the one under each node's
            install path, or else the one in the node's PATH.
    """

    def __init__(self, transport: NodeTransport, identity: str, program: str | None) -> None:
        self._transport = transport
        self._identity = identity
        self._program = program
        self._started: dict[str, int] = {}

    def start(self, node: Node, port: int) -> HiveProcess:
        program, search = self._program_of(node)
        address = self._transport.address(node)
        hive = ["daemon", "--port", str(port), "--owner", self._identity, "--worker-host", address]
        done = self._script(node, _START, program, search, *hive)
        _refuse_failed(node, program, done)
        told = done.stdout.split()
        pid = int(told[-1]) if told and told[-1].isdigit() else 0
        if pid > 1:
            self._started[node.node_name] = pid
        return HiveProcess(port, pid if pid > 1 else None)

    def pause(self, node: Node, timeout_s: float) -> None:  # noqa: ARG002 (no news comes from there)
        gevent.sleep(timeout_s)

    def failure(self, node: Node) -> str | None:
        pid = self._started.get(node.node_name)
        if pid is None:
            return None
        try:
            done = self._script(node, _FAILURE, str(pid))
        except SshConnectionFailed as error:
            return error.message
        if done.exit_code == 0:
            return None
        return f"it ended: {_last_line(done).removeprefix('Error:').strip() or 'no output'}"

    def detect(self, node: Node) -> Capabilities:
        program, search = self._program_of(node)
        done = self._script(node, _RUN, program, search, "detect")
        _refuse_failed(node, program, done)
        try:
            return read_capabilities(json.loads(done.stdout))
        except (KeyError, TypeError, ValueError) as error:
            raise BadHiveResponse(node.ssh_host) from error

    def _program_of(self, node: Node) -> tuple[str, str]:
        """The hive program, and whether another one in PATH will do."""
        if self._program is not None:
            return self._program, "no"
        return f"{node.install_path}/current/bin/rbee-hive", "yes"

    def signal(self, node: Node, pid: int, number: int) -> None:
        self._script(node, _SIGNAL, str(pid), _SIGNAL_NAMES.get(number, str(number)))

    def wait_gone(self, node: Node, pid: int, timeout_s: float) -> bool:
        steps = max(0, int(timeout_s * 5))
        done = self._script(node, _WAIT_GONE, str(pid), str(steps), timeout_s=timeout_s + _COMMAND_TIMEOUT_S)
        return done.exit_code == 0

    def _script(
        self, node: Node, script: str, *args: str, timeout_s: float = _COMMAND_TIMEOUT_S
    ) -> Completed:
        return self._transport.run(node, ["sh", "-c", script.strip(), "rbee", *args], timeout_s)


class TransportLogin:
    """Proves a login by a harmless command."""

    def __init__(self, transport: NodeTransport, timeout_s: float) -> None:
        self._transport = transport
        self._timeout_s = timeout_s

    def check(self, node: Node) -> None:
        # A connection that is still open from an earlier login proves nothing about this key now.
        self._transport.forget(node)
        done = self._transport.run(node, ["echo", "connection test"], self._timeout_s)
        if done.exit_code == _NOT_FOUND:
            raise login_failed(node, SshReason.NOT_FOUND)
        if done.exit_code != 0 or done.stdout.strip() != "connection test":
            raise login_failed(node, SshReason.FAILED)


def _refuse_failed(node: Node, program: str, done: Completed) -> None:
    if done.exit_code == _NOT_FOUND:
        raise HiveStartFailed(node.ssh_host, f"{program}: {SshReason.NOT_FOUND.lower()}")
    if done.exit_code != 0:
        raise HiveStartFailed(node.ssh_host, _last_line(done) or f"exit status {done.exit_code}")


def _last_line(done: Completed) -> str:
    lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("Error:")]
    return (errors or lines or [""])[-1][:300]
