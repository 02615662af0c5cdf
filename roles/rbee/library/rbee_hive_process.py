#!/usr/bin/python
"""An Ansible module: ends or starts a hive that no service manager looks after."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: rbee_hive_process
short_description: A hive as a plain, detached process
description:
  - Ends the hives that run from an installation, or starts one where none runs.
options:
  state:
    description: Whether a hive shall run.
    type: str
    choices: [present, absent]
    required: true
  install_path:
    description: The installation; only hives that run from it are touched.
    type: str
    required: true
  user:
    description: Who the hive runs as; the login itself when empty.
    type: str
    default: ""
  environment:
    description: Variables of a started hive, beside PATH and HOME.
    type: dict
    default: {}
  log_dir:
    description: Where a started hive writes what it says before its own log is open.
    type: str
    default: ""
  patience:
    description: Seconds a hive may take for its own end before it is killed.
    type: int
    default: 45
author: rbee
"""
EXAMPLES = r"""
- name: End the hive
  rbee_hive_process:
    state: absent
    install_path: /opt/rbee
"""
RETURN = r"""
pids:
  description: The hives that were ended, or the one that was started.
  returned: always
  type: list
  elements: int
"""

POLL_S = 0.1
SETTLE_S = 1.0
"""A hive that cannot start at all has ended by then."""


def processes():
    """Pid, parent and command line of every live process."""
    listing = subprocess.run(
        ["ps", "-eww", "-o", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True
    )
    for line in listing.stdout.splitlines():
        pid, parent, state, args = (line.split(None, 3) + [""] * 4)[:4]
        if not state.startswith("Z"):
            yield int(pid), int(parent), args


def hives(install_path):
    """Pids of the hives of this installation, each daemon once."""
    prefix = install_path.rstrip("/") + "/"
    found = {
        pid: parent
        for pid, parent, args in processes()
        if pid != os.getpid() and any(w.startswith(prefix) and w.endswith("/rbee-hive") for w in args.split())
    }
    return [pid for pid, parent in found.items() if parent not in found]


def family(pids):
    """The processes and all their descendants."""
    rows = list(processes())
    known = set(pids)
    while True:
        more = {pid for pid, parent, _ in rows if parent in known} - known
        if not more:
            return known
        known |= more


def send(pids, number):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def stop(install_path, patience):
    """End every hive by its own cascade, and by force what is left of it after ``patience`` seconds."""
    pids = hives(install_path)
    everybody = family(pids)
    send(pids, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while everybody & {pid for pid, _, _ in processes()} and time.monotonic() < deadline:
        time.sleep(POLL_S)
    send(everybody & {pid for pid, _, _ in processes()}, signal.SIGKILL)
    return pids


def start(params):
    """Start a hive in a session of its own; its pid.

    Raises:
        RuntimeError: it ended at once; the text is what it said.
    """
    program = os.path.join(params["install_path"], "current", "bin", "rbee-hive")
    account = pwd.getpwnam(params["user"]) if params["user"] else pwd.getpwuid(os.getuid())
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": account.pw_dir, "LANG": "C.UTF-8"}
    environment.update({name: str(value) for name, value in params["environment"].items()})
    identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if params["user"] else {}
    said = os.path.join(params["log_dir"], "rbee-hive.start.log")
    with open(said, "wb") as sink:
        hive = subprocess.Popen(
            [program, "daemon"],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            umask=0o077,
            **identity,
        )
    try:
        code = hive.wait(SETTLE_S)
    except subprocess.TimeoutExpired:
        return hive.pid
    with open(said, encoding="utf-8", errors="replace") as text:
        raise RuntimeError(f"the hive ended with exit code {code}: {text.read().strip()[-1000:]}")


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "required": True},
            "install_path": {"type": "str", "required": True},
            "user": {"type": "str", "default": ""},
            "environment": {"type": "dict", "default": {}},
            "log_dir": {"type": "str", "default": ""},
            "patience": {"type": "int", "default": 45},
        },
        supports_check_mode=True,
    )
    params = module.params
    running = hives(params["install_path"])
    must_change = bool(running) == (params["state"] == "absent")
    if module.check_mode or not must_change:
        module.exit_json(changed=must_change, pids=running)
    if params["state"] == "absent":
        module.exit_json(changed=True, pids=stop(params["install_path"], params["patience"]))
    try:
        module.exit_json(changed=True, pids=[start(params)])
    except (OSError, RuntimeError) as error:
        module.fail_json(msg="The hive could not be started", stderr=str(error))


if __name__ == "__main__":
    main()
