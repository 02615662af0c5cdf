"""Keys: what passes, what does not, and where no header is needed."""

import pytest

from rbee.core.errors import InvalidApiKey, MissingApiKey
from rbee.web.auth import KeyRing

KEY = "0123456789abcdef"


def test_the_right_key_passes_and_no_key_means_open() -> None:
    KeyRing(KEY).check(f"Bearer {KEY}")
    KeyRing(None).check(None)
    KeyRing(None).check("Bearer anything")


def test_a_missing_header_is_told_apart_from_a_wrong_key() -> None:
    with pytest.raises(MissingApiKey):
        KeyRing(KEY).check(None)
    with pytest.raises(InvalidApiKey):
        KeyRing(KEY).check("Bearer 0123456789abcdeF")


@pytest.mark.parametrize(
    "header",
    [
        "",
        KEY,
        "Bearer",
        "Bearer ",
        f"bearer {KEY}",
        f"Basic {KEY}",
        f"Bearer  {KEY}",
        f"Bearer {KEY} ",
        f"Bearer {KEY}\x00",
        f"Bearer {KEY}" + "x" * 9000,
        "Bearer ü" + KEY,
    ],
)
def test_a_malformed_header_is_refused(header: str) -> None:
    with pytest.raises(InvalidApiKey):
        KeyRing(KEY).check(header)


def test_public_paths_answer_without_a_header_but_refuse_a_wrong_one() -> None:
    KeyRing(KEY).check(None, public=True)
    with pytest.raises(InvalidApiKey):
        KeyRing(KEY).check("Bearer wrong-wrong-wrong", public=True)


def test_a_replaced_key_holds_at_once() -> None:
    ring = KeyRing(KEY)
    ring.replace("f" * 16)
    with pytest.raises(InvalidApiKey):
        ring.check(f"Bearer {KEY}")
    ring.check("Bearer " + "f" * 16)
