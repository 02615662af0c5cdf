"""Every error keeps code, status, details and suggestion through a hop."""

import pytest

from rbee.core import errors


@pytest.mark.parametrize("code", sorted(errors.error_table()))
def test_an_error_survives_its_envelope(code: str) -> None:
    cls = errors.error_table()[code]
    fields = {"code": code, "message": "m", "details": {"a": 1}, "suggestion": "s"}
    rebuilt = errors.error_from_fields(fields)
    assert type(rebuilt) is cls
    assert rebuilt.fields() | fields == rebuilt.fields()
    assert 400 <= rebuilt.http_status <= 599


def test_an_unknown_code_is_relayed_as_it_is() -> None:
    error = errors.error_from_fields({"code": "NEW", "message": "m", "details": {}}, 418)
    assert error.fields() == {"code": "NEW", "message": "m", "details": {}}
    assert error.http_status == 418


def test_the_busy_envelope_repeats_its_counts() -> None:
    assert errors.AllSlotsBusy(1, 1).envelope() == {
        "error": {
            "code": "ALL_SLOTS_BUSY",
            "message": "Worker is busy, try again later",
            "slots_total": 1,
            "slots_busy": 1,
            "details": {"slots_total": 1, "slots_busy": 1},
            "suggestion": "Wait for current request to complete or use a different node",
        }
    }


def test_the_memory_envelope_names_the_resource() -> None:
    assert errors.MemoryExhausted(6000, 4000, "vram").envelope() == {
        "error": {
            "code": "VRAM_EXHAUSTED",
            "message": "Insufficient VRAM: need 6000 MB, have 4000 MB",
            "details": {"required": 6000, "available": 4000, "resource": "vram"},
            "suggestion": "Try a smaller quantized model (Q4 instead of Q8)",
        }
    }
    assert "RAM" in errors.MemoryExhausted(2, 1, "ram").message


@pytest.mark.parametrize("details", [None, [], "text", 7])
def test_details_of_a_foreign_envelope_are_never_trusted_to_be_an_object(details: object) -> None:
    error = errors.error_from_fields({"code": "NOT_FOUND", "message": "m", "details": details})
    assert error.details == {}
