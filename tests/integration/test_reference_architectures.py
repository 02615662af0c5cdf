"""Every architecture of the table and every scaling of rotary embeddings, held to llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path

import ctranslate2
import numpy as np
import pytest

from rbee.models.architectures import ARCHITECTURES
from rbee.models.conversion import convert
from support.gguf_factory import TinyModel
from support.llama_cpp import Logprobs, reference
from support.tiny_variants import OF_ARCHITECTURES, VARIANTS, ids_for

pytestmark = pytest.mark.reference

# llama.cpp takes GELU from a table of float16 values; all else is float32 on both sides.
TOLERANCE = {"gemma": 0.02, "gemma3": 0.02}
EXACT = 5e-4

# llama.cpp does not know "mistral"; the next test covers it.
KNOWN_TO_LLAMA_CPP = [name for name in ARCHITECTURES if name != "mistral"]


def our_logprobs(folder: Path, ids: list[int]) -> Logprobs:
    tokens = json.loads((folder / "vocabulary.json").read_text())
    generator = ctranslate2.Generator(str(folder), intra_threads=1)
    rows = generator.forward_batch([[tokens[i] for i in ids]], return_log_probs=True)
    return np.array(rows)[0]


def largest_difference(tmp_path: Path, model: TinyModel) -> float:
    source = model.write(tmp_path / "model.gguf")
    folder = convert(source, tmp_path / "models", "float32", on_progress=lambda _done, _total: None)
    ids = ids_for(model)
    with reference(source, context=256) as llama_cpp:
        expected = llama_cpp.logprobs(ids, len(model.all_metadata()["tokenizer.ggml.tokens"]))
    assert expected.std() > 0.4  # the comparison would mean nothing if all tokens were alike
    return float(np.abs(our_logprobs(folder, ids) - expected).max())


@pytest.mark.parametrize("name", KNOWN_TO_LLAMA_CPP)
def test_an_architecture_of_the_table_gives_the_logits_of_llama_cpp(tmp_path: Path, name: str) -> None:
    assert largest_difference(tmp_path, OF_ARCHITECTURES[name]) < TOLERANCE.get(name, EXACT)


def test_the_name_mistral_gives_the_same_model_as_llama(tmp_path: Path) -> None:
    models = []
    for name in ("llama", "mistral"):
        source = TinyModel(name).write(tmp_path / f"{name}.gguf")
        folder = convert(source, tmp_path / "models", "float32", on_progress=lambda _done, _total: None)
        models.append((folder / "model.bin").read_bytes())
    assert models[0] == models[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_gives_the_logits_of_llama_cpp(tmp_path: Path, variant: str) -> None:
    model = VARIANTS[variant]
    assert largest_difference(tmp_path, model) < TOLERANCE.get(model.architecture, EXACT)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_generating_step_by_step_takes_the_tokens_of_one_pass(tmp_path: Path, name: str) -> None:
    source = TinyModel(name, layers=7).write(tmp_path / "model.gguf")
    folder = convert(source, tmp_path / "models", "float32", on_progress=lambda _done, _total: None)
    tokens = json.loads((folder / "vocabulary.json").read_text())
    prompt = ids_for(TinyModel(name), count=12)
    generator = ctranslate2.Generator(str(folder), intra_threads=1)
    (result,) = generator.generate_batch(
        [[tokens[i] for i in prompt]], max_length=20, end_token=[], include_prompt_in_result=False
    )
    generated = result.sequences_ids[0]
    assert len(generated) == 20
    best = our_logprobs(folder, [*prompt, *generated]).argmax(axis=1)
    assert generated == best[len(prompt) - 1 : -1].tolist()
