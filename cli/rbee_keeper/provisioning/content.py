"""Where the playbooks, roles and inventory are: inside the installed package, or in the checkout."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import rbee_keeper
from rbee_keeper.failures import KeeperFailure


def content_folder() -> Path:
    """The folder that holds ``playbooks``, ``roles`` and ``inventory``.

    Raises:
        KeeperFailure: this installation has none.
    """
    package = Path(rbee_keeper.__file__).resolve().parent
    for folder in (package / "content", package.parents[1]):
        if (folder / "playbooks" / "ansible.cfg").is_file():
            return folder
    raise KeeperFailure(
        "This installation of rbee has no playbooks",
        suggestion="Install the package again: pip install --force-reinstall rbee",
        code="INTERNAL_ERROR",
    )


def registry_inventory() -> ModuleType:
    """``inventory/registry.py``, which knows the variables of a node; Ansible runs the same file."""
    file = content_folder() / "inventory" / "registry.py"
    spec = importlib.util.spec_from_file_location("rbee_registry_inventory", file)
    if spec is None or spec.loader is None:
        raise KeeperFailure(f"{file} cannot be loaded", code="INTERNAL_ERROR")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
