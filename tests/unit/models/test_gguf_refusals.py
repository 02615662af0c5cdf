"""What a model's metadata and tensors ask for is laid out exactly or refused by name, and never ignored."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rbee.core.errors import ModelIncompatible
from rbee.models.architectures import ARCHITECTURES
from rbee.models.ct2_layout import Layout, lay_out
from rbee.models.gguf_file import read_gguf
from rbee.models.rope_scaling import Llama3Scaling
from support.gguf_factory import TinyModel

ONES = np.ones(64, np.float32)


def laid_out(tmp_path: Path, model: TinyModel) -> Layout:
    return lay_out(read_gguf(model.write(tmp_path / "model.gguf")))


def refusal(tmp_path: Path, model: TinyModel) -> ModelIncompatible:
    with pytest.raises(ModelIncompatible) as caught:
        laid_out(tmp_path, model)
    return caught.value


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_of_the_table_is_laid_out_completely(tmp_path: Path, name: str) -> None:
    model = TinyModel(name, layers=5)
    layout = laid_out(tmp_path, model)
    assert layout.settings.layers == 5
    assert set(layout.uses) >= set(model.all_tensors())


def test_an_unknown_architecture_is_refused_with_the_supported_ones(tmp_path: Path) -> None:
    error = refusal(tmp_path, TinyModel("mamba"))
    assert "'mamba'" in error.message
    assert error.details == {"architecture": "mamba", "supported": sorted(ARCHITECTURES)}
    assert {"llama", "mistral", "qwen2", "qwen3", "phi3", "gemma"} <= set(error.details["supported"])


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"expert_count": 8}, "llama.expert_count = 8"),
        ({"attn_logit_softcapping": 50.0}, "llama.attn_logit_softcapping = 50.0"),
        ({"final_logit_softcapping": 30.0}, "llama.final_logit_softcapping = 30.0"),
        ({"attention.causal": False}, "llama.attention.causal = False"),
        ({"attention.clamp_kqv": 8.0}, "llama.attention.clamp_kqv = 8.0"),
        ({"attention.max_alibi_bias": 8.0}, "llama.attention.max_alibi_bias = 8.0"),
        ({"attention.scale": 0.5}, "llama.attention.scale = 0.5"),
        ({"residual_scale": 0.5}, "llama.residual_scale = 0.5"),
        ({"use_parallel_residual": True}, "llama.use_parallel_residual = True"),
        ({"attention.value_length": 8}, "llama.attention.value_length = 8"),
        ({"attention.head_count": [4, 2]}, "llama.attention.head_count = [4, 2]"),
        ({"attention.head_count_kv": 3}, "llama.attention.head_count_kv = 3"),
        ({"attention.head_count": 2**31}, "llama.attention.head_count"),
        ({"block_count": 2**31 - 1}, "llama.block_count = 2147483647"),
        ({"block_count": 0}, "llama.block_count = 0"),
        ({"block_count": "two"}, "llama.block_count = two"),
        ({"context_length": None}, "llama.context_length = None"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, "llama.attention.layer_norm_rms_epsilon"),
        ({"rope.scaling.type": "dynamic"}, "llama.rope.scaling.type = dynamic"),
        ({"rope.scaling.factor": -2.0}, "llama.rope.scaling.factor = -2.0"),
        ({"rope.dimension_count": 17}, "llama.rope.dimension_count = 17"),
        ({"rope.dimension_sections": [8, 8, 0, 0]}, "llama.rope.dimension_sections = [8, 8, 0, 0]"),
        ({"rope.scaling.yarn_ext_factor": 0.5}, "llama.rope.scaling.yarn_ext_factor = 0.5"),
        ({"rope.scaling.yarn_log_multiplier": 0.1}, "llama.rope.scaling.yarn_log_multiplier"),
        ({"rope.dimension_count": 8, "rope.scaling.attn_factor": 1.3}, "llama.rope.scaling.attn_factor"),
        ({"rope.scaling.type": "longrope"}, "llama.rope.scaling.type = longrope"),
        ({"attention.invented": 1}, "llama.attention.invented = 1"),
        ({"general.type": "adapter"}, "adapter"),
        ({"split.count": 3}, "3 parts"),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_refused_by_key_and_value(
    tmp_path: Path, metadata: dict[str, Any], named: str
) -> None:
    assert named in refusal(tmp_path, TinyModel(metadata=metadata)).message


@pytest.mark.parametrize(
    "metadata",
    [
        {"expert_count": 0},
        {"attn_logit_softcapping": 0.0},
        {"attention.causal": True},
        {"attention.head_count_kv": [2, 2]},
        {"rope.scaling.type": "none", "rope.scaling.factor": 8.0},
        {"tensor_data_layout": "Meta AI original pth"},
    ],
)
def test_a_setting_at_the_value_that_means_unused_is_accepted(
    tmp_path: Path, metadata: dict[str, Any]
) -> None:
    plain = laid_out(tmp_path, TinyModel())
    assert laid_out(tmp_path, TinyModel(metadata=metadata)).settings == plain.settings


def test_granite_without_rotation_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, TinyModel("granite", metadata={"rope.scaling.finetuned": False}))
    assert error.details["key"] == "granite.rope.scaling.finetuned"


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"blk.0.attn_sinks.weight": ONES}, "blk.0.attn_sinks.weight"),
        ({"blk.9.attn_norm.weight": ONES}, "blk.9.attn_norm.weight"),
        ({"blk.0.ffn_gate_inp.weight": np.ones((4, 64), np.float32)}, "blk.0.ffn_gate_inp.weight"),
        ({"blk.1.ffn_down.weight": None}, "blk.1.ffn_down.weight"),
        ({"output_norm.weight": None}, "output_norm.weight"),
        ({"token_embd.weight": None, "output.weight": None}, "token_embd.weight"),
        ({"output_norm.weight": np.ones(63, np.float32)}, "output_norm.weight"),
        ({"blk.0.attn_k.weight": np.ones((16, 64), np.float32)}, "blk.0.attn_k.weight"),
        ({"blk.0.attn_q.weight": np.ones((128, 64), np.float32)}, "blk.0.attn_q.weight"),
        ({"blk.0.ffn_down.weight": np.ones((64, 32), np.float32)}, "blk.0.ffn_down.weight"),
        ({"output.weight": np.ones((100, 64), np.float32)}, "output.weight"),
        ({"rope_freqs.weight": np.ones(4, np.float32)}, "rope_freqs.weight"),
        ({"rope_freqs.weight": np.zeros(8, np.float32)}, "rope_freqs.weight"),
        ({"rope_factors_short.weight": np.ones(8, np.float32)}, "rope_factors_short.weight"),
    ],
)
def test_a_missing_unknown_or_misshapen_tensor_is_refused_by_name(
    tmp_path: Path, tensors: dict[str, Any], named: str
) -> None:
    assert named in refusal(tmp_path, TinyModel(tensors=tensors)).message


def test_a_sliding_window_ends_the_context_where_the_engine_stops_being_exact(tmp_path: Path) -> None:
    windowed = laid_out(tmp_path, TinyModel(metadata={"attention.sliding_window": 128})).settings
    assert (windowed.context_length, windowed.context_limited_by) == (128, "attention.sliding_window")
    wide = laid_out(tmp_path, TinyModel(metadata={"attention.sliding_window": 4096})).settings
    assert (wide.context_length, wide.context_limited_by) == (512, None)


def test_longrope_uses_the_short_table_and_ends_the_context_with_it(tmp_path: Path) -> None:
    short, long = np.linspace(1, 2, 8, dtype=np.float32), np.linspace(2, 9, 8, dtype=np.float32)
    model = TinyModel(
        "phi3",
        metadata={"rope.scaling.type": "longrope", "rope.scaling.original_context_length": 256},
        tensors={"rope_factors_short.weight": short, "rope_factors_long.weight": long},
    )
    settings = laid_out(tmp_path, model).settings
    assert settings.context_length == 256
    assert settings.context_limited_by == "rope.scaling.original_context_length"
    assert settings.ropes[0] is not None
    assert settings.ropes[0].divisors is not None
    assert settings.ropes[0].divisors.tolist() == short.tolist()


def test_llama3_frequencies_become_the_parameters_they_were_made_of(tmp_path: Path) -> None:
    table = Llama3Scaling(32.0).divisors(500_000.0, 16).astype(np.float32)
    model = TinyModel(metadata={"rope.freq_base": 500_000.0}, tensors={"rope_freqs.weight": table})
    rope = laid_out(tmp_path, model).settings.ropes[0]
    assert rope is not None
    assert rope.llama3 == Llama3Scaling(32.0)


def test_other_frequencies_are_kept_as_a_table(tmp_path: Path) -> None:
    table = np.linspace(1, 3, 8, dtype=np.float32)
    layout = laid_out(tmp_path, TinyModel(tensors={"rope_freqs.weight": table}))
    stored = layout.variables["decoder/layer_0/self_attention/rotary_scaling_long_factor"]
    assert isinstance(stored, np.ndarray)
    assert np.array_equal(stored, table)


def test_every_fourth_layer_of_smollm3_has_no_rotation(tmp_path: Path) -> None:
    ropes = laid_out(tmp_path, TinyModel("smollm3", layers=8)).settings.ropes
    assert [rope is None for rope in ropes] == [False, False, False, True] * 2


def test_every_sixth_layer_of_gemma3_has_the_models_own_rotary_base(tmp_path: Path) -> None:
    ropes = laid_out(tmp_path, TinyModel("gemma3", layers=6, metadata={"rope.freq_base": 1e6})).settings.ropes
    assert [rope.base for rope in ropes if rope] == [10_000.0] * 5 + [1e6]


def test_granite_scales_are_folded_into_weights_and_attributes(tmp_path: Path) -> None:
    scales = {"attention.scale": 0.5, "embedding_scale": 12.0, "residual_scale": 0.25, "logit_scale": 8.0}
    settings = laid_out(tmp_path, TinyModel("granite", metadata=scales)).settings
    assert (settings.attention_scale, settings.embedding_scale) == (0.5, 12.0)
    assert (settings.residual_scale, settings.output_scale) == (0.25, 1 / 8)
    plain = laid_out(tmp_path, TinyModel()).settings
    assert math.isclose(plain.attention_scale, 1 / 4)
