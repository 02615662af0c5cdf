"""Steps on installed programs and configuration files."""

from __future__ import annotations

import subprocess
import tomllib
from typing import Any

from behave import given, then, when
from features.support import system
from features.support.tables import cells


@given("blep's system folders are copies")
def system_is_copied(context: Any) -> None:
    system.copy_system_folders(context.world)


@given("blep's user is not root")
def not_root(context: Any) -> None:
    context.world.noted["installed"] = system.installed_files()
    system.leave_root(context.world)


@given('the file "{name:Text}"')
def write_file(context: Any, name: str) -> None:
    system.path(context.world, name).write_text(context.text + "\n")


@given("the queen URLs in the configuration files of blep")
def queen_urls(context: Any) -> None:
    fleet = context.world.fleet
    for name, url in cells(context.table):
        if name == "RBEE_CONFIG":
            fleet.blep.configure("queen", url=url)
            fleet.variables.pop("RBEE_CONFIG")
        else:
            file = system.path(context.world, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f'[queen]\nurl = "{url}"\n')


@when('"{name:Text}" is removed')
def remove_file(context: Any, name: str) -> None:
    system.path(context.world, name).unlink()


@when('"{name:Text}" is edited')
def edit_file(context: Any, name: str) -> None:
    file = system.path(context.world, name)
    file.write_text(file.read_text() + '\n[queen]\nurl = "http://127.0.0.1:1234"\n')
    context.world.noted[name] = file.read_bytes()


@then('"{name:Text}" is as it was edited')
def is_as_edited(context: Any, name: str) -> None:
    assert system.path(context.world, name).read_bytes() == context.world.noted[name]


@then('each program in "{folder:Text}" has mode 0755 and prints its version')
def programs_work(context: Any, folder: str) -> None:
    world = context.world
    environment = {**world.fleet.blep.environment, "PATH": "/usr/bin:/bin"}
    programs = [(system.path(world, folder) / name, version) for name, version in cells(context.table)]
    assert [program.name for program, _ in programs if program.stat().st_mode & 0o7777 != 0o755] == []
    told = [
        subprocess.run([program, "--version"], env=environment, capture_output=True, text=True, check=False)
        for program, _ in programs
    ]
    assert [(ran.returncode, ran.stdout) for ran in told] == [(0, f"{v}\n") for _, v in programs], told


@then('"{name:Text}" is TOML that "{program:Text}" loads')
def config_loads(context: Any, name: str, program: str) -> None:
    world = context.world
    file = system.path(world, name)
    models = tomllib.loads(file.read_text())["paths"]["models_dir"]
    assert models == system.with_home(world, "~/.local/share/rbee/models"), models
    # A configuration that cannot be used would end it with an error before it looks for a queen.
    environment = {n: v for n, v in world.fleet.blep.environment.items() if n != "RBEE_CONFIG"}
    ran = subprocess.run(
        [system.path(world, program), "--config", file, "queen", "status"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.stdout.startswith("queen-rbee is"), ran.stderr) == (True, ""), ran


@then('"{name:Text}" is TOML with the models in "{models:Text}"')
def config_names_models(context: Any, name: str, models: str) -> None:
    content = tomllib.loads(system.path(context.world, name).read_text())
    assert content["paths"]["models_dir"] == models, content


@then('"{name:Text}" is a folder')
def is_folder(context: Any, name: str) -> None:
    assert system.path(context.world, name).is_dir()


@then("nothing was installed below /usr/local/bin, /etc/rbee and /var/lib/rbee")
def nothing_installed(context: Any) -> None:
    assert system.installed_files() == context.world.noted["installed"]
