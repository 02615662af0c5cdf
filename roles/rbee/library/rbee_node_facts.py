#!/usr/bin/python
"""An Ansible module: everything the roles must know about a node, gathered in one round trip."""

from __future__ import annotations

import json
import os
import platform
import pwd
import shutil
import socket
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: rbee_node_facts
short_description: Facts about a machine that is to run rbee
description:
  - Reads what the roles of rbee decide by. Changes nothing.
options:
  install_path:
    description: Where rbee is or will be installed.
    type: str
    required: true
  port:
    description: The port of the hive.
    type: int
    required: true
author: rbee
"""
EXAMPLES = r"""
- name: Look at the node
  rbee_node_facts:
    install_path: /opt/rbee
    port: 9200
"""
RETURN = r"""
ansible_facts:
  description: The facts, under C(rbee_node).
  returned: always
  type: dict
"""

PYTHONS = ("python3.13", "python3.12", "python3.11", "python3")
DESCRIBE = (
    "import json, platform, sys\n"
    "try:\n"
    "    import venv\n"
    "    has_venv = True\n"
    "except ImportError:\n"
    "    has_venv = False\n"
    "print(json.dumps({'path': sys.executable, 'version': list(sys.version_info[:2]), 'venv': has_venv,\n"
    "    'implementation': platform.python_implementation(), 'libc': list(platform.libc_ver())}))\n"
)
COMMAND_TIMEOUT_S = 10


def run(argv):
    """Exit code and standard output of a command; 127 when there is no such program."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return 127, ""
    return done.returncode, done.stdout.strip()


def pythons():
    """The Pythons in PATH under the names a node may have, the newest first, up to one rbee can run on."""
    found = []
    for name in PYTHONS:
        path = shutil.which(name)
        code, text = run([path, "-c", DESCRIBE]) if path else (127, "")
        if code == 0:
            found.append({"name": name, **json.loads(text)})
            if usable(found):
                break
    return found


def usable(candidates):
    """The Python rbee will run on: at least 3.11, with the venv module."""
    fitting = [one for one in candidates if one["version"] >= [3, 11] and one["venv"]]
    return fitting[0] if fitting else None


def existing_parent(path):
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def disk_free_mb(path):
    return shutil.disk_usage(existing_parent(path)).free // (1024 * 1024)


def is_port_taken(port):
    """Whether somebody listens on the port, at any address of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104 (bound for an instant, never listened on)
        except OSError:
            return True
    return False


def hives(install_path):
    """Pids of the hives that run from this installation."""
    _, listing = run(["ps", "-eww", "-o", "pid=,args="])
    rows = (line.strip().partition(" ") for line in listing.splitlines())
    return [int(pid) for pid, _, args in rows if install_path + "/" in args and "/rbee-hive" in args]


def link_target(path):
    """The name of the release a link points to, or None."""
    return os.path.basename(os.readlink(path)) if os.path.islink(path) else None


def release_folders(install_path):
    """The names of all releases, also of those whose installation did not end."""
    folder = os.path.join(install_path, "releases")
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def releases(install_path):
    """Complete releases: name to the content of its stamp."""
    folder, found = os.path.join(install_path, "releases"), {}
    for name in release_folders(install_path):
        try:
            with open(os.path.join(folder, name, ".rbee-release"), encoding="utf-8") as stamp:
                found[name] = json.load(stamp)
        except (OSError, ValueError):
            continue
    return found


def systemd(user):
    """Which service managers can be used here."""
    is_booted = os.path.isdir("/run/systemd/system") and shutil.which("systemctl") is not None
    has_user_manager = is_booted and run(["systemctl", "--user", "show", "--property=Version"])[0] == 0
    return {
        "system": is_booted,
        "user": has_user_manager,
        "linger": os.path.exists("/var/lib/systemd/linger/" + user),
    }


def ssh_addresses():
    """The node's and the control machine's address of this very login; empty without SSH."""
    words = os.environ.get("SSH_CONNECTION", "").split()
    return (words[2], words[0]) if len(words) == 4 else ("", "")


def gather(install_path, port):
    account = pwd.getpwuid(os.getuid())
    home = os.environ.get("HOME") or account.pw_dir
    candidates = pythons()
    own_address, control_address = ssh_addresses()
    path = install_path if not install_path.startswith("~") else home + install_path[1:]
    return {
        "login": account.pw_name,
        "is_root": os.getuid() == 0,
        "home": home,
        "config_home": os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config"),
        "state_home": os.environ.get("RBEE_HOME") or os.path.join(home, ".rbee"),
        "install_path": path,
        "system": platform.system(),
        "machine": platform.machine(),
        "pythons": candidates,
        "python": usable(candidates),
        "has_git": shutil.which("git") is not None,
        "disk_free_mb": disk_free_mb(path),
        "port_taken": is_port_taken(port),
        "hives": hives(path),
        "current": link_target(os.path.join(path, "current")),
        "previous": link_target(os.path.join(path, "previous")),
        "release_folders": release_folders(path),
        "releases": releases(path),
        "systemd": systemd(account.pw_name),
        "address": own_address,
        "control_address": control_address,
        "gpu_driver": os.path.exists("/proc/driver/nvidia/version") or shutil.which("nvidia-smi") is not None,
        "time_unix": time.time(),
    }


def main():
    arguments = {"install_path": {"type": "str", "required": True}, "port": {"type": "int", "required": True}}
    module = AnsibleModule(argument_spec=arguments, supports_check_mode=True)
    facts = gather(module.params["install_path"], module.params["port"])
    module.exit_json(changed=False, ansible_facts={"rbee_node": facts})


if __name__ == "__main__":
    main()
