"""Reading GGUF: what a good file says, and that nothing else gets through or costs much."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rbee.core.errors import ModelIncompatible, ModelNotFound
from rbee.models import gguf_header
from rbee.models.gguf_file import dequantize, read_gguf
from support.gguf_factory import TinyModel
from support.k_quants import quantize_k

F32, F16 = int(GGMLQuantizationType.F32), int(GGMLQuantizationType.F16)
U32, STRING, ARRAY, U64 = 4, 8, 9, 10
Q = GGMLQuantizationType


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str | bytes, dims: list[int], kind: int = F32, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


ARCHITECTURE = pair("general.architecture", STRING, text("llama"))


def raw_gguf(
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    *,
    data: bytes = b"",
    magic: bytes = b"GGUF",
    version: int = 3,
    pair_count: int | None = None,
    tensor_count: int | None = None,
) -> bytes:
    """A GGUF from its parts; counts can lie."""
    pairs = [ARCHITECTURE] if pairs is None else pairs
    tensors = tensors or []
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(pairs) if pair_count is None else pair_count,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(ModelIncompatible) as caught:
        read_gguf(path)
    return caught.value.message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyModel(layers=1, width=32, inner=32, head_dim=8).write(
        tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    )


def test_metadata_and_tensors_are_those_of_the_gguf_library(tmp_path: Path) -> None:
    extra = {
        "general.name": "Bee 🐝",
        "general.languages": ["en", "nl"],
        "rope.freq_base": 5e5,
        "general.quantized": True,
    }
    file = TinyModel(quantization=Q.Q8_0, metadata=extra).write(tmp_path / "m.gguf")
    ours, theirs = read_gguf(file), gguf.GGUFReader(file)
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            assert ours.get(key) == field.contents(), key
    assert [t.name for t in theirs.tensors] == list(ours.tensors)
    for reference in theirs.tensors:
        found = ours.tensors[reference.name]
        assert found.shape == tuple(reversed(reference.shape.tolist()))
        assert (found.quantization, found.nbytes) == (reference.tensor_type.name, reference.n_bytes)
        assert found.parameters == reference.n_elements
        expected = gguf.dequantize(reference.data, reference.tensor_type)
        assert np.array_equal(ours.tensor_float32(reference.name), expected)


@pytest.mark.parametrize(
    "kind",
    [
        *(Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K, Q.BF16, Q.F16),
        *(Q.IQ1_S, Q.IQ1_M, Q.IQ2_XXS, Q.IQ2_XS, Q.IQ2_S, Q.IQ3_XXS, Q.IQ3_S, Q.IQ4_NL, Q.IQ4_XS),
        *(Q.TQ1_0, Q.TQ2_0, Q.MXFP4),
    ],
    ids=lambda kind: kind.name,
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # random scales reach infinity, as real ones do not
def test_every_quantisation_is_dequantised_as_by_the_gguf_library(kind: GGMLQuantizationType) -> None:
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(3).integers(0, 256, (77, 3 * block_bytes), np.uint8)
    expected = gguf.dequantize(raw, kind).reshape(-1)
    np.testing.assert_array_equal(dequantize(raw.reshape(-1), kind, "x"), expected)


def test_a_range_of_rows_is_the_same_as_these_rows_of_the_whole(tmp_path: Path) -> None:
    file = read_gguf(TinyModel(quantization=Q.Q4_0).write(tmp_path / "m.gguf"))
    whole = file.tensor_float32("token_embd.weight")
    part = file.tensor_float32("token_embd.weight", 7, 90)
    assert np.array_equal(part, whole[7:90])
    part[:] = 0  # a fresh array, not a view of anything


def test_a_summary_holds_what_a_catalog_shows(tmp_path: Path) -> None:
    changes = {"general.file_type": 15, "context_length": 4096, "vocab_size": 200}
    summary = read_gguf(TinyModel(metadata=changes).write(tmp_path / "m.gguf")).summary()
    assert (summary.architecture, summary.quantization, summary.context_length) == ("llama", "Q4_K_M", 4096)
    assert (summary.vocab_size, summary.eos_token_id, summary.block_count) == (200, 1, 2)


def test_a_summary_falls_back_to_tokens_tensor_types_and_token_two(tmp_path: Path) -> None:
    gone = {"general.file_type": None, "tokenizer.ggml.eos_token_id": None}
    summary = read_gguf(TinyModel(metadata=gone, quantization=Q.Q5_0).write(tmp_path / "m.gguf")).summary()
    assert (summary.quantization, summary.vocab_size, summary.eos_token_id) == ("Q5_0", 200, 2)


def test_a_header_longer_than_the_first_read_is_read_on(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_gguf(tiny)
    monkeypatch.setattr(gguf_header, "FIRST_READ_BYTES", 64)
    again = read_gguf(tiny)
    assert again.metadata == expected.metadata
    assert list(again.tensors) == list(expected.tensors)


def test_a_file_that_is_not_there_is_not_found(path: Path) -> None:
    with pytest.raises(ModelNotFound):
        read_gguf(path)


def test_another_extension_is_refused_even_with_the_right_content(tiny: Path, tmp_path: Path) -> None:
    assert "name does not end in .gguf" in refusal(tmp_path / "model.bin", tiny.read_bytes())


def test_a_file_cut_anywhere_is_refused(tiny: Path, path: Path) -> None:
    whole = tiny.read_bytes()
    header_ends = min(t.entry.offset for t in read_gguf(tiny).tensors.values())
    cuts = [*range(0, header_ends, 7), *range(header_ends, len(whole), 4999), len(whole) - 32]
    for cut in cuts:
        assert refusal(path, whole[:cut]), "it says why"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "magic"),
        (b"not a model", "magic"),
        (raw_gguf(magic=b"GGML"), "magic"),
        (raw_gguf(version=1), "version is 1"),
        (raw_gguf(version=4), "version is 4"),
        (raw_gguf(version=3 << 24), "big-endian"),
        (raw_gguf([]), "no architecture"),
        (raw_gguf(pair_count=2**63), "claims"),
        (raw_gguf(tensor_count=2**63), "claims"),
        (raw_gguf(pair_count=5).rstrip(b"\0"), "truncated"),
        (raw_gguf([ARCHITECTURE, ARCHITECTURE]), "twice"),
        (raw_gguf([pair(b"\xff\xfe", STRING, text("x"))]), "UTF-8"),
        (raw_gguf([pair("general.name", STRING, text(b"\xc3("))]), "UTF-8"),
        (raw_gguf([pair("t", ARRAY, struct.pack("<IQ", STRING, 1) + text(b"\xff"))]), "UTF-8"),
        (raw_gguf([pair("t", 77, b"")]), "unknown type 77"),
        (raw_gguf([pair("t", ARRAY, struct.pack("<IQ", 77, 1))]), "unknown type 77"),
        (raw_gguf([pair("t", ARRAY, struct.pack("<IQ", ARRAY, 1) + struct.pack("<IQ", U32, 0))]), "nested"),
        (raw_gguf([pair("t", ARRAY, struct.pack("<IQ", U32, 2**61))]), "items"),
        (raw_gguf([pair("t", ARRAY, struct.pack("<IQ", STRING, 2**22))]), "truncated"),
        (raw_gguf([pair("t", STRING, struct.pack("<Q", 2**64 - 1))]), "truncated"),
        (raw_gguf([ARCHITECTURE, pair("general.alignment", U32, struct.pack("<I", 0))]), "power of two"),
        (raw_gguf([ARCHITECTURE, pair("general.alignment", U32, struct.pack("<I", 48))]), "power of two"),
        (raw_gguf([ARCHITECTURE, pair("general.alignment", STRING, text("32"))]), "power of two"),
        (raw_gguf(tensors=[tensor("a", [])], data=bytes(64)), "0 dimensions"),
        (raw_gguf(tensors=[tensor("a", [1] * 9)], data=bytes(64)), "9 dimensions"),
        (raw_gguf(tensors=[tensor("a", [0])], data=bytes(64)), "empty"),
        (raw_gguf(tensors=[tensor("a", [2**63, 2**63])], data=bytes(64)), "truncated"),
        (raw_gguf(tensors=[tensor("a", [4], 99)], data=bytes(64)), "unknown type 99"),
        (raw_gguf(tensors=[tensor("a", [4], int(Q.Q4_0))], data=bytes(64)), "multiple"),
        (raw_gguf(tensors=[tensor("a", [4], offset=2**40)], data=bytes(64)), "truncated"),
        (raw_gguf(tensors=[tensor("a", [4], offset=8)], data=bytes(64)), "aligned"),
        (raw_gguf(tensors=[tensor("a", [4]), tensor("a", [4], offset=32)], data=bytes(64)), "twice"),
        (raw_gguf(tensors=[tensor("a", [12]), tensor("b", [4], offset=32)], data=bytes(64)), "overlap"),
        (raw_gguf(tensors=[tensor("a", [4]), tensor("b", [4])], data=bytes(64)), "overlap"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_malformed_file_is_refused_with_its_fault(path: Path, content: bytes, reason: str) -> None:
    def whole_reading() -> None:
        read_gguf(path).summary()

    path.write_bytes(content)
    with pytest.raises(ModelIncompatible, match=reason):
        whole_reading()


def test_impossible_counts_cost_neither_time_nor_memory(path: Path) -> None:
    claims = [
        raw_gguf([pair("t", ARRAY, struct.pack("<IQ", STRING, 2**22)), bytes(2**16)]),
        raw_gguf([pair("t", ARRAY, struct.pack("<IQ", U64, 2**22)), bytes(2**16)]),
        raw_gguf(tensor_count=65_536, data=bytes(2**16)),
        raw_gguf(pair_count=8192, data=bytes(2**16)),
    ]
    tracemalloc.start()
    begun = time.monotonic()
    for claim in claims:
        refusal(path, claim)
    took, (_, peak) = time.monotonic() - begun, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 5
    assert peak < 64 * 2**20


def test_a_larger_alignment_is_honoured(tmp_path: Path) -> None:
    header = raw_gguf(
        [ARCHITECTURE, pair("general.alignment", U32, struct.pack("<I", 256))], [tensor("a", [3])]
    )
    file = tmp_path / "m.gguf"
    file.write_bytes(header + bytes(-len(header) % 256) + np.array([1, 2, 3], np.float32).tobytes())
    assert read_gguf(file).tensor_float32("a").tolist() == [1, 2, 3]


def test_a_file_that_shrinks_after_its_header_was_read_is_refused(tiny: Path, path: Path) -> None:
    path.write_bytes(tiny.read_bytes())
    file = read_gguf(path)
    path.write_bytes(path.read_bytes()[: max(t.entry.offset for t in file.tensors.values())])
    with pytest.raises(ModelIncompatible, match="changed"):
        file.tensor_float32(max(file.tensors.values(), key=lambda t: t.entry.offset).name)


def test_a_type_that_cannot_be_dequantised_is_refused_by_name(path: Path) -> None:
    path.write_bytes(raw_gguf(tensors=[tensor("a", [4], int(Q.I32))], data=bytes(64)))
    with pytest.raises(ModelIncompatible, match="I32"):
        read_gguf(path).tensor_float32("a")


NUMBERS = st.sampled_from([0, 1, 7, 255, 2**16, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1])


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_to_the_header_is_refused_or_harmless(
    tiny: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(tiny.read_bytes())
    header_ends = min(t.entry.offset for t in read_gguf(tiny).tensors.values())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(4, header_ends - 8))
        if data.draw(st.booleans()):
            content[position] = data.draw(st.integers(0, 255))
        else:
            content[position : position + 8] = struct.pack("<Q", data.draw(NUMBERS))
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(bytes(content[: data.draw(st.sampled_from([len(content), header_ends, 4096]))]))
    outcome = "harmless"
    try:
        file = read_gguf(damaged)
        file.summary()
        for name in file.tensors:
            file.tensor_float32(name)
    except ModelIncompatible as refused:
        outcome = refused.message
    assert outcome, "a refusal says why"


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_behind_the_magic_are_refused_or_harmless(tmp_path: Path, tail: bytes) -> None:
    file = tmp_path / "random.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<I", 3) + tail)
    outcome = "harmless"
    try:
        read_gguf(file)
    except ModelIncompatible as refused:
        outcome = refused.message
    assert outcome, "a refusal says why"


@pytest.mark.parametrize(("kind", "levels"), [(Q.Q4_K, 15), (Q.Q5_K, 31)], ids=lambda value: str(value))
def test_the_k_quants_of_test_models_are_read_within_half_a_step(
    kind: GGMLQuantizationType, levels: int
) -> None:
    weights = np.random.default_rng(5).uniform(-1, 1, (6, 512)).astype(np.float32)
    read = gguf.dequantize(quantize_k(weights, kind), kind)
    assert np.abs(read - weights).max() < 0.6 * 2 / levels
