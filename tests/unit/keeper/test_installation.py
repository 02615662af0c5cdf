"""Where `install` puts things, and what it leaves alone."""

import subprocess
import tomllib
from pathlib import Path

import pytest

from rbee.core.settings import load_settings
from rbee_keeper.failures import KeeperFailure
from rbee_keeper.installation import PROGRAMS, install_programs, system_targets, user_targets


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A Python environment with all programs; each prints its name and arguments."""
    folder = tmp_path / "it's an env" / "bin"
    folder.mkdir(parents=True)
    for name in PROGRAMS:
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


def test_user_programs_configuration_and_models_are_installed(tmp_path: Path, programs: Path) -> None:
    environ = {"HOME": str(tmp_path), "PATH": "/usr/bin"}
    lines = install_programs(user_targets(environ), environ, programs)
    for name in PROGRAMS:
        launcher = tmp_path / ".local" / "bin" / name
        assert launcher.stat().st_mode & 0o777 == 0o755
        ran = subprocess.run([launcher, "--flag", "a b"], capture_output=True, text=True, check=True)
        assert ran.stdout == f"{name} --flag a b\n"
    settings = load_settings(environ)
    assert settings.source == tmp_path / ".config" / "rbee" / "config.toml"
    assert settings.models_dir == tmp_path / ".local" / "share" / "rbee" / "models"
    assert settings.catalog_db == tmp_path / ".rbee" / "models.db"
    assert settings.models_dir.is_dir()
    assert "Next steps:" in lines
    assert f'  export PATH="{tmp_path}/.local/bin:$PATH"' in lines


def test_no_hint_where_the_programs_are_in_the_path(tmp_path: Path, programs: Path) -> None:
    environ = {"HOME": str(tmp_path), "PATH": f"/usr/bin:{tmp_path}/.local/bin"}
    assert not any("PATH" in line for line in install_programs(user_targets(environ), environ, programs))


def test_a_second_run_keeps_an_edited_configuration(tmp_path: Path, programs: Path) -> None:
    environ = {"HOME": str(tmp_path), "PATH": ""}
    install_programs(user_targets(environ), environ, programs)
    config = tmp_path / ".config" / "rbee" / "config.toml"
    config.write_text("# mine\n")
    lines = install_programs(user_targets(environ), environ, programs)
    assert config.read_text() == "# mine\n"
    assert f"Configuration kept: {config}" in lines
    assert sorted(p.name for p in (tmp_path / ".local" / "bin").iterdir()) == sorted(PROGRAMS)


def test_installing_into_the_environments_own_folder_keeps_its_programs(tmp_path: Path) -> None:
    folder = tmp_path / ".local" / "bin"
    folder.mkdir(parents=True)
    for name in PROGRAMS:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    environ = {"HOME": str(tmp_path), "PATH": ""}
    install_programs(user_targets(environ), environ, folder)
    assert all((folder / name).read_text() == "#!/bin/sh\n" for name in PROGRAMS)


def test_system_paths_lie_below_destdir(tmp_path: Path, programs: Path) -> None:
    environ = {"HOME": "/nowhere", "PATH": "/usr/local/bin", "DESTDIR": str(tmp_path / "root")}
    lines = install_programs(system_targets(environ, is_root=False), environ, programs)
    root = tmp_path / "root"
    assert all((root / "usr/local/bin" / name).exists() for name in PROGRAMS)
    config = tomllib.loads((root / "etc/rbee/config.toml").read_text())
    assert config["paths"] == {"models_dir": "/var/lib/rbee/models", "catalog_db": "/var/lib/rbee/models.db"}
    assert (root / "var/lib/rbee/models").is_dir()
    assert not any("export PATH" in line for line in lines)


def test_system_needs_root_or_destdir() -> None:
    with pytest.raises(KeeperFailure) as caught:
        system_targets({"HOME": "/nowhere"}, is_root=False)
    assert "sudo" in (caught.value.suggestion or "")


def test_a_missing_program_fails_before_anything_is_written(tmp_path: Path, programs: Path) -> None:
    (programs / "rbee-hive").unlink()
    environ = {"HOME": str(tmp_path / "home"), "PATH": ""}
    with pytest.raises(KeeperFailure, match="rbee-hive not found"):
        install_programs(user_targets(environ), environ, programs)
    assert not (tmp_path / "home").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, programs: Path) -> None:
    (tmp_path / ".local").write_text("a file")
    environ = {"HOME": str(tmp_path), "PATH": ""}
    with pytest.raises(KeeperFailure, match=r"Cannot write .*\.local"):
        install_programs(user_targets(environ), environ, programs)
