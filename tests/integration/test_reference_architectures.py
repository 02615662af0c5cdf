"""Every architecture of the table and every scaling of rotary embeddings, held to llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path

import ctranslate2
import numpy as np
import pytest

from rbee.models.architectures import ARCHITECTURES
from rbee.models.conversion import convert
from rbee.models.rope_scaling import Llama3Scaling
from support.gguf_factory import Array, TinyModel
from support.llama_cpp import Logprobs, reference

pytestmark = pytest.mark.reference

POSITIONS = 40
# llama.cpp takes GELU from a table of float16 values; all else is float32 on both sides.
TOLERANCE = {"gemma": 0.02, "gemma3": 0.02}
EXACT = 5e-4

GRANITE_SCALES = {
    "attention.scale": 0.3,
    "embedding_scale": 6.0,
    "residual_scale": 0.4,
    "logit_scale": 4.0,
}
# llama.cpp does not know "mistral"; the next test covers it.
KNOWN_TO_LLAMA_CPP = [name for name in ARCHITECTURES if name != "mistral"]


def rising(first: float, last: float, count: int = 8) -> Array:
    return np.linspace(first, last, count, dtype=np.float32)


def biases(model: TinyModel) -> dict[str, Array]:
    """A bias for every linear layer that can have one in a Llama file."""
    rng = np.random.default_rng(7)
    lengths = {"attn_output": model.width, "ffn_gate": model.inner, "ffn_up": model.inner}
    lengths |= {"ffn_down": model.width, "attn_k": model.heads_kv * model.head_dim}
    return {
        f"blk.{layer}.{name}.bias": rng.standard_normal(length).astype(np.float32)
        for layer in range(model.layers)
        for name, length in lengths.items()
    }


def longrope(original: int, dimensions: int, factor: float) -> TinyModel:
    half = dimensions // 2
    return TinyModel(
        "phi3",
        context=131_072,
        metadata={
            "rope.dimension_count": dimensions,
            "rope.scaling.type": "longrope",
            "rope.scaling.original_context_length": original,
            "rope.scaling.attn_factor": factor,
        },
        tensors={
            "rope_factors_short.weight": rising(1, 3, half),
            "rope_factors_long.weight": rising(2, 9, half),
        },
    )


def yarn(architecture: str, **more: float) -> TinyModel:
    scaling = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 128,
    }
    return TinyModel(architecture, head_dim=32, metadata={**scaling, **more})


VARIANTS = {
    "tied": TinyModel(tied=True),
    "one head of keys and values": TinyModel(heads_kv=1),
    "as many heads of keys as of queries": TinyModel(heads_kv=4),
    "heads wider than the embedding": TinyModel(head_dim=32),
    "biases": TinyModel(tensors=biases(TinyModel())),
    "linear": TinyModel(metadata={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "linear by its old name": TinyModel(metadata={"rope.scale_linear": 4.0}),
    "no scaling despite a factor": TinyModel(
        metadata={"rope.scaling.type": "none", "rope.scaling.factor": 4.0}
    ),
    "another base": TinyModel("qwen2", metadata={"rope.freq_base": 1e6}),
    "magnitude": TinyModel("qwen2", metadata={"rope.scaling.attn_factor": 1.3}),
    "yarn": yarn("qwen3"),
    "yarn, interleaved": yarn("llama"),
    "yarn with magnitude": yarn("qwen3", **{"rope.scaling.attn_factor": 1.2}),
    "yarn with its own limits": yarn(
        "mistral3", **{"rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 2.0}
    ),
    "llama 3 frequencies": TinyModel(
        metadata={"rope.freq_base": 5e5},
        tensors={"rope_freqs.weight": Llama3Scaling(32.0).divisors(5e5, 16).astype(np.float32)},
    ),
    "any frequencies": TinyModel(tensors={"rope_freqs.weight": rising(1, 3)}),
    "frequencies and linear": TinyModel(
        metadata={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        tensors={"rope_freqs.weight": rising(1, 3)},
    ),
    "longrope": longrope(256, 16, 1.19),
    "longrope on a part of each head": longrope(4096, 12, float(np.sqrt(1 + np.log(32) / np.log(4096)))),
    "rotation of a part of each head": TinyModel("phi3", metadata={"rope.dimension_count": 8}),
    "gemma3 with linear and its own local base": TinyModel(
        "gemma3",
        layers=7,
        metadata={
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 5000.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
            "attention.sliding_window": 256,
        },
    ),
    "granite with its scales": TinyModel("granite", metadata=GRANITE_SCALES),
    "window not reached": TinyModel("qwen3", metadata={"attention.sliding_window": 64}),
}


def ids_for(model: TinyModel, count: int = POSITIONS) -> list[int]:
    vocab = len(model.all_metadata()["tokenizer.ggml.tokens"])
    return [int(token) for token in np.random.default_rng(1).integers(2, vocab, count)]


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
    layers = 7 if name == "gemma3" else 5 if name == "smollm3" else 2
    metadata = GRANITE_SCALES if name == "granite" else {}
    model = TinyModel(name, layers=layers, metadata=metadata)
    assert largest_difference(tmp_path, model) < TOLERANCE.get(name, EXACT)


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
