"""Which file of a hub repository a reference means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.models.providers.gguf_choice import PREFERENCE, NoSuchGguf, choose_gguf, named_parts

REPOSITORY = [
    "README.md",
    "config.json",
    "tinyllama-1.1b-chat-v1.0.Q2_K.gguf",
    "tinyllama-1.1b-chat-v1.0.Q4_0.gguf",
    "tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf",
    "tinyllama-1.1b-chat-v1.0.Q4_K_S.gguf",
    "tinyllama-1.1b-chat-v1.0.Q8_0.gguf",
    "tinyllama-1.1b-chat-v1.0.bf16.gguf",
]


def test_the_order_is_the_contracts() -> None:
    assert " ".join(PREFERENCE) == (
        "Q4_K_M Q5_K_M Q4_K_S Q5_K_S Q6_K Q8_0 Q4_1 Q4_0 Q5_1 Q5_0 IQ4_NL IQ4_XS "
        "Q3_K_L Q3_K_M Q3_K_S Q2_K F16 BF16 F32"
    )


@given(st.sets(st.sampled_from(PREFERENCE), min_size=1))
def test_without_a_quantisation_the_first_of_the_order_is_taken(present: set[str]) -> None:
    names = [f"model-{quantisation.lower()}.gguf" for quantisation in present]
    expected = next(quantisation for quantisation in PREFERENCE if quantisation in present)
    assert choose_gguf(names, "") == f"model-{expected.lower()}.gguf"


@pytest.mark.parametrize(
    ("variant", "suffix"),
    [("Q4_K_M", "Q4_K_M"), ("q4_k_m", "Q4_K_M"), ("Q4_0", "Q4_0"), ("BF16", "bf16"), ("q8_0", "Q8_0")],
)
def test_a_quantisation_is_found_in_any_letter_case(variant: str, suffix: str) -> None:
    assert choose_gguf(REPOSITORY, variant) == f"tinyllama-1.1b-chat-v1.0.{suffix}.gguf"


@pytest.mark.parametrize("variant", ["F16", "Q4_K", "Q4", "Q6_K", "tinyllama", "chat", "1"])
def test_a_part_of_a_name_is_no_quantisation(variant: str) -> None:
    with pytest.raises(NoSuchGguf, match=r"Q4_K_M\.gguf"):
        choose_gguf(REPOSITORY, variant)


def test_a_quantisation_outside_the_order_can_be_named() -> None:
    names = ["m-UD-Q4_K_XL.gguf", "m-IQ2_XXS.gguf", "m-Q8_0.gguf"]
    assert choose_gguf(names, "UD-Q4_K_XL") == "m-UD-Q4_K_XL.gguf"
    assert choose_gguf(names, "iq2_xxs") == "m-IQ2_XXS.gguf"


def test_half_precision_is_also_written_fp16() -> None:
    assert choose_gguf(["m.fp16.gguf", "m.bf16.gguf"], "F16") == "m.fp16.gguf"


def test_the_folder_of_a_file_may_carry_the_quantisation() -> None:
    assert choose_gguf(["Q8_0/model.gguf", "Q4_0/model.gguf"], "Q4_0") == "Q4_0/model.gguf"


SPLIT = ["m-Q4_K_M-00001-of-00002.gguf", "m-Q4_K_M-00002-of-00002.gguf"]


def test_a_split_model_is_named_by_its_first_part_and_fetched_as_all() -> None:
    assert choose_gguf([*SPLIT, "m-Q2_K.gguf"], "") == SPLIT[0]
    assert choose_gguf(SPLIT, "q4_k_m") == SPLIT[0]
    assert named_parts(SPLIT, SPLIT[0]) == SPLIT
    assert named_parts([*SPLIT, "m-Q2_K.gguf"], "m-Q2_K.gguf") == ["m-Q2_K.gguf"]


def test_a_whole_file_is_preferred_to_a_split_one_of_the_same_quantisation() -> None:
    whole = "a-much-longer-name-of-the-model-Q4_K_M.gguf"
    assert choose_gguf([*SPLIT, whole], "") == whole
    assert choose_gguf([*SPLIT, "m-Q8_0.gguf"], "") == SPLIT[0]


def test_a_split_model_without_all_its_parts_is_no_candidate() -> None:
    assert choose_gguf([SPLIT[1], "m-Q2_K.gguf"], "") == "m-Q2_K.gguf"
    with pytest.raises(NoSuchGguf, match="incomplete split files"):
        choose_gguf(SPLIT[:1], "")
    with pytest.raises(NoSuchGguf, match=f"lacks 1 of its parts, first {SPLIT[1]}"):
        named_parts(SPLIT[:1], SPLIT[0])


def test_another_part_than_the_first_is_refused_and_the_first_named() -> None:
    with pytest.raises(NoSuchGguf, match=f"part 2 of 2; name the first part: {SPLIT[0]}"):
        named_parts(SPLIT, SPLIT[1])


def test_one_part_of_one_is_a_whole_file() -> None:
    name = "m-Q4_0-00001-of-00001.gguf"
    assert choose_gguf([name], "") == name
    assert named_parts([name], name) == [name]


def test_projectors_and_importance_matrices_are_no_models() -> None:
    names = ["mmproj-model-f16.gguf", "imatrix_unsloth.gguf", "model-Q2_K.gguf"]
    assert choose_gguf(names, "") == "model-Q2_K.gguf"
    with pytest.raises(NoSuchGguf):
        choose_gguf(names, "F16")


def test_of_several_files_of_one_quantisation_the_shortest_name_is_taken_whatever_the_order() -> None:
    names = ["b-long-Q4_0.gguf", "b-Q4_0.gguf", "a-Q4_0.gguf"]
    assert choose_gguf(names, "") == choose_gguf(reversed(names), "") == "a-Q4_0.gguf"


def test_a_single_file_of_unknown_name_is_the_model_but_two_are_not_guessed_between() -> None:
    assert choose_gguf(["ggml-model.gguf", "README.md"], "") == "ggml-model.gguf"
    with pytest.raises(NoSuchGguf, match=r"a\.gguf, b\.gguf"):
        choose_gguf(["a.gguf", "b.gguf"], "")


def test_a_repository_without_gguf_says_so() -> None:
    with pytest.raises(NoSuchGguf, match="no GGUF"):
        choose_gguf(["model.safetensors"], "")
