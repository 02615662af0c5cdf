"""What a queen has a node's shell do to its hive: start it, tell why it ended, signal it, wait for its end.

Plain POSIX sh, so that it runs on every node; values come as arguments only.

Where the node has the systemd unit ``rbee-hive.service``, of the login's own user manager or of the system,
systemd starts and ends the hive, so that its view of the unit stays true. The unit takes the queen's options
from the variable ``RBEE_HIVE_OPTIONS`` (``ExecStart=… rbee-hive daemon $RBEE_HIVE_OPTIONS``), which is empty
when anybody else starts it: that hive is the operator's.
"""

from __future__ import annotations

# A system unit is asked by anyone but changed by root. A login without a session of its own has no
# XDG_RUNTIME_DIR, by which its user manager is found.
_UNIT = """
unit=rbee-hive.service
: "${XDG_RUNTIME_DIR:=/run/user/$(id -u)}"; export XDG_RUNTIME_DIR
as_owner() {
  if [ "$scope" = --user ] || [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}
state() { systemctl $scope show -p "$1" --value $unit 2>/dev/null; }
"""

# Succeeds while the pid is a live process, whoever it belongs to.
_ALIVE = """
alive() {
  if [ -d /proc/self ]; then
    case "$(cat "/proc/$1/stat" 2>/dev/null)" in ''|*') Z '*) return 1;; esac
  else
    case "$(ps -o stat= -p "$1" 2>/dev/null)" in ''|Z*) return 1;; esac
  fi
}
"""

START = f"""{_UNIT}
program=$1 search=$2; shift 2
for scope in --user --system; do
  systemctl $scope cat $unit >/dev/null 2>&1 || continue
  case "$(state ActiveState)" in active|activating|reloading) echo "unit $scope"; exit 0;; esac
  as_owner systemctl $scope set-environment "RBEE_HIVE_OPTIONS=$*" && as_owner systemctl $scope start $unit
  code=$?
  as_owner systemctl $scope unset-environment RBEE_HIVE_OPTIONS
  [ $code = 0 ] || exit 1
  echo "unit $scope $(state MainPID)"
  exit 0
done
if [ ! -x "$program" ]; then
  [ "$search" = yes ] && program=$(command -v rbee-hive) || exit 127
fi
logs="${{RBEE_LOG_DIR:-${{RBEE_HOME:-$HOME/.rbee}}/logs}}"
umask 077; mkdir -p "$logs"
if command -v setsid >/dev/null; then set -- setsid "$program" daemon "$@"
else set -- nohup "$program" daemon "$@"
fi
"$@" </dev/null >"$logs/rbee-hive.start.log" 2>&1 &
echo "process $!"
"""
"""Arguments: the program, ``yes`` where PATH is searched when it is not there, the daemon's options.

Prints ``process PID``, ``unit SCOPE PID``, or only ``unit SCOPE`` where somebody else has started the unit.
"""

RUN = """
program=$1 search=$2; shift 2
if [ ! -x "$program" ]; then
  [ "$search" = yes ] && program=$(command -v rbee-hive) || exit 127
fi
exec "$program" "$@"
"""
"""Arguments: the program, whether PATH is searched, and what to run it with."""

FAILURE = f"""{_UNIT}{_ALIVE}
if [ "$1" = unit ]; then
  scope=$2
  now=$(state ActiveState)
  case "$now" in active|activating|reloading|deactivating) exit 0;; esac
  echo "$unit is $now"
  as_owner journalctl $scope -u $unit -n 5 -o cat --no-pager 2>/dev/null
  exit 1
fi
alive "$2" && exit 0
tail -n 5 "${{RBEE_LOG_DIR:-${{RBEE_HOME:-$HOME/.rbee}}/logs}}/rbee-hive.start.log"
exit 1
"""
"""Arguments: the first two words that ``START`` printed. Succeeds while the hive runs, else tells its end."""

SIGNAL = f"""{_UNIT}{_ALIVE}
alive "$1" || exit 0
for scope in --user --system; do
  [ "$(state MainPID)" = "$1" ] || continue
  if [ "$2" = TERM ]; then set -- stop --no-block; else set -- kill -s "$2"; fi
  as_owner systemctl $scope "$@" $unit
  exit
done
words=$(ps -o args= -p "$1" 2>/dev/null || tr '\\0' ' ' <"/proc/$1/cmdline")
case "$words" in *rbee-hive*|*rbee.hive*) kill -s "$2" "$1";; esac
"""
"""Arguments: the pid, the signal's name. A process that is not a hive any more is left alone."""

WAIT_GONE = f"""{_ALIVE}
left=$2
while alive "$1"; do [ "$left" -gt 0 ] || exit 1; left=$((left-1)); sleep 0.2; done
"""
"""Arguments: the pid, how many fifths of a second to wait. Succeeds when the process is gone."""
