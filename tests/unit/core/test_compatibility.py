"""Which versions may work together, with and without a roll-out."""

import pytest

from rbee.core.compatibility import is_compatible


@pytest.mark.parametrize("other", ["0.1.0", "0.1.1", "0.1.12", "0.1.1.dev3"])
def test_a_patch_never_separates_programs(other: str) -> None:
    assert is_compatible("0.1.0", other)
    assert is_compatible(other, "0.1.0")


@pytest.mark.parametrize("other", ["0.2.0", "0.0.9"])
def test_neighbouring_minor_versions_work_together_during_a_roll_out_only(other: str) -> None:
    assert not is_compatible("0.1.0", other)
    assert is_compatible("0.1.0", other, is_rolling=True)
    assert is_compatible(other, "0.1.0", is_rolling=True)


@pytest.mark.parametrize("other", ["0.3.0", "1.1.0", "1.0.0", "", "unknown", "0.1", "v0.1.0"])
def test_anything_further_apart_or_unreadable_never_does(other: str) -> None:
    assert not is_compatible("0.1.0", other, is_rolling=True)


def test_an_unreadable_version_fits_itself() -> None:
    assert is_compatible("local", "local")
