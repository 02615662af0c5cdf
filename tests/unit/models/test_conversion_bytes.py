"""The written model is byte for byte what the engine's own converter makes of the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from ctranslate2.specs import TransformerDecoderModelSpec
from ctranslate2.specs.common_spec import Activation
from gguf import GGMLQuantizationType as Q

from rbee.core.errors import ModelIncompatible
from rbee.models import ct2_writer
from rbee.models.compute_types import ComputeType, StoredType
from rbee.models.conversion import convert
from rbee.models.ct2_layout import lay_out
from rbee.models.ct2_writer import write_model
from rbee.models.gguf_file import GgufFile, read_gguf
from rbee.models.quantisation import cast, quantise_int8
from support.gguf_factory import TinyModel

SMALL = TinyModel(layers=2, width=64, heads=4, heads_kv=2, head_dim=16, inner=96)
K_QUANTS = TinyModel(layers=1, width=256, heads=4, heads_kv=4, head_dim=64, inner=512, quantization=Q.Q8_0)
WITHOUT_BFLOAT16 = [
    kind for kind in ComputeType if "bfloat16" not in kind
]  # the converter needs torch for it


def written(path: Path, file: GgufFile, compute_type: ComputeType) -> bytes:
    write_model(path, file, lay_out(file), compute_type, lambda _done, _total: None)
    return path.read_bytes()


def reference_spec(model: TinyModel, file: GgufFile) -> TransformerDecoderModelSpec:
    """The specification filled by hand from whole tensors, as the engine's own Llama and Qwen2 loaders do."""
    spec = TransformerDecoderModelSpec.from_config(
        model.layers,
        model.heads,
        activation=Activation.SWISH,
        pre_norm=True,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=model.architecture == "llama",
        rotary_base=10_000.0,
        num_heads_kv=None if model.heads == model.heads_kv else model.heads_kv,
        head_dim=model.head_dim,
    )
    decoder, weights = spec.decoder, file.tensor_float32
    decoder.scale_embeddings = False
    decoder.embeddings.weight = weights("token_embd.weight")
    decoder.projection.weight = weights("token_embd.weight" if model.is_tied else "output.weight")
    decoder.layer_norm.gamma = weights("output_norm.weight")
    for index, layer in enumerate(decoder.layer):
        block, attention = f"blk.{index}.", layer.self_attention
        qkv = [f"{block}attn_{letter}" for letter in "qkv"]
        attention.layer_norm.gamma = weights(f"{block}attn_norm.weight")
        attention.linear[0].weight = np.concatenate([weights(f"{name}.weight") for name in qkv])
        if model.architecture == "qwen2":
            attention.linear[0].bias = np.concatenate([weights(f"{name}.bias") for name in qkv])
        attention.linear[1].weight = weights(f"{block}attn_output.weight")
        layer.ffn.layer_norm.gamma = weights(f"{block}ffn_norm.weight")
        layer.ffn.linear_0.weight = weights(f"{block}ffn_gate.weight")
        layer.ffn.linear_0_noact.weight = weights(f"{block}ffn_up.weight")
        layer.ffn.linear_1.weight = weights(f"{block}ffn_down.weight")
    tokens = model.all_metadata()["tokenizer.ggml.tokens"]
    spec.register_vocabulary(tokens)
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = tokens[0], tokens[1], tokens[1]
    spec.config.layer_norm_epsilon = float(np.float32(1e-5))
    spec.validate()
    return spec


@pytest.mark.parametrize("compute_type", WITHOUT_BFLOAT16)
@pytest.mark.parametrize(
    "model",
    [SMALL, SMALL.with_(tied=True), SMALL.with_(architecture="qwen2"), K_QUANTS],
    ids=["llama", "tied", "qwen2 with biases", "Q8_0"],
)
def test_model_bin_equals_that_of_the_engines_converter(
    tmp_path: Path, model: TinyModel, compute_type: ComputeType
) -> None:
    file = read_gguf(model.write(tmp_path / "m.gguf"))
    spec = reference_spec(model, file)
    spec.optimize(compute_type.value)
    spec.save(str(tmp_path))
    ours = written(tmp_path / "ours.bin", file, compute_type)
    assert ours == (tmp_path / "model.bin").read_bytes()


def test_config_and_vocabulary_equal_those_of_the_engines_converter(tmp_path: Path) -> None:
    source = SMALL.write(tmp_path / "m.gguf")
    folder = convert(source, tmp_path / "models", "float32", on_progress=lambda _done, _total: None)
    reference_spec(SMALL, read_gguf(source)).save(str(tmp_path))
    for name in ("config.json", "vocabulary.json"):
        assert (folder / name).read_text().strip() == (tmp_path / name).read_text().strip()


def test_the_size_of_blocks_does_not_change_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = read_gguf(SMALL.with_(quantization=Q.Q4_0).write(tmp_path / "m.gguf"))
    for compute_type in (ComputeType.INT8, ComputeType.INT16, ComputeType.FLOAT16):
        at_once = written(tmp_path / "a.bin", file, compute_type)
        with monkeypatch.context() as patched:
            patched.setattr(ct2_writer, "BLOCK_BYTES", 1024)
            assert written(tmp_path / "b.bin", file, compute_type) == at_once


def test_bfloat16_rounds_to_nearest_with_ties_to_even() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [rng.standard_normal(5000), [1.0, 1.00390625, 1.01171875, -1.00390625, 0.0, -0.0, 3e38]]
    ).astype(np.float32)
    bits: npt.NDArray[np.uint16] = cast(values, StoredType.BFLOAT16).astype(np.uint16)
    back = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    for neighbour in (-1, 1):
        other = ((bits.astype(np.int64) + neighbour).astype(np.uint32) << 16).view(np.float32)
        distance, to_other = np.abs(back - values), np.abs(other.astype(np.float64) - values)
        assert not (to_other < distance).any()  # next to zero there are patterns that are no numbers
        assert (bits[distance == to_other] % 2 == 0).all()


def test_a_row_of_zeros_and_a_tiny_row_have_finite_scales() -> None:
    block = np.zeros((3, 8), np.float32)
    block[1] = 1e-42
    block[2] = 2.0
    quantised, scale = quantise_int8(block)
    assert np.isfinite(scale).all()
    assert quantised[0].tolist() == [0] * 8
    assert quantised[2].tolist() == [127] * 8


@pytest.mark.parametrize("compute_type", ["float32", "int8", "int16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused_with_the_tensors_name(
    tmp_path: Path, compute_type: str, value: float
) -> None:
    broken = SMALL.all_tensors()["blk.1.ffn_up.weight"]
    broken[5, 7] = value
    file = read_gguf(SMALL.with_(tensors={"blk.1.ffn_up.weight": broken}).write(tmp_path / "m.gguf"))
    with pytest.raises(ModelIncompatible, match=r"blk\.1\.ffn_up\.weight"):
        written(tmp_path / "out.bin", file, ComputeType(compute_type))


def test_weights_beyond_float16_are_refused_for_it_and_kept_in_float32(tmp_path: Path) -> None:
    large = np.full(64, 1e5, np.float32)
    file = read_gguf(SMALL.with_(tensors={"output_norm.weight": large}).write(tmp_path / "m.gguf"))
    with pytest.raises(ModelIncompatible, match="range of float16"):
        written(tmp_path / "out.bin", file, ComputeType.FLOAT16)
    assert written(tmp_path / "out.bin", file, ComputeType.FLOAT32)


def test_progress_counts_the_files_tensors_from_none_to_all(tmp_path: Path) -> None:
    file = read_gguf(TinyModel("phi3", layers=3, tied=True).write(tmp_path / "m.gguf"))
    seen: list[tuple[int, int]] = []
    write_model(
        tmp_path / "out.bin",
        file,
        lay_out(file),
        ComputeType.INT8,
        lambda done, total: seen.append((done, total)),
    )
    total = len(file.tensors)
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
