"""How many threads the engine gets."""

from pathlib import Path

import pytest

from rbee.core.cores import cpu_quota, usable_cores


def cgroups(root: Path, **limits: str) -> tuple[Path, Path]:
    """A tree ``/outer/inner`` with these limits, and the file that says the process is in ``inner``."""
    tree = root / "cgroup"
    for name, folder in {"top": tree, "outer": tree / "outer", "inner": tree / "outer" / "inner"}.items():
        folder.mkdir(parents=True, exist_ok=True)
        if name in limits:
            (folder / "cpu.max").write_text(limits[name] + "\n")
    own = root / "own"
    own.write_text("0::/outer/inner\n")
    return tree, own


@pytest.mark.parametrize(
    ("limits", "quota"),
    [
        ({}, None),
        ({"inner": "max 100000"}, None),
        ({"inner": "150000 100000"}, 1.5),
        ({"outer": "100000 100000", "inner": "300000 100000"}, 1.0),
        ({"top": "50000 100000", "inner": "max 100000"}, 0.5),
        ({"inner": "nonsense"}, None),
    ],
)
def test_the_tightest_quota_of_the_cgroups_above_counts(
    tmp_path: Path, limits: dict[str, str], quota: float | None
) -> None:
    assert cpu_quota(*cgroups(tmp_path, **limits)) == quota


def test_no_cgroups_are_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path / "missing") is None


@pytest.mark.parametrize(("stated", "cores"), [("3", 3), ("4,2", 4), ("0", 1)])
def test_stated_threads_are_honoured(stated: str, cores: int) -> None:
    assert usable_cores(stated) == cores


def test_some_core_is_always_usable() -> None:
    assert usable_cores(None) >= 1
    assert usable_cores("nonsense") == usable_cores(None)
