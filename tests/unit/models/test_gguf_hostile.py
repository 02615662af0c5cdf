"""Hostile GGUF headers: refused as incompatible, whatever they claim, within a bound of time and memory."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rbee.core.errors import ModelIncompatible
from rbee.models.gguf_file import read_gguf
from rbee.models.memory_fit import Terms, calculate_fit
from rbee.models.model_shape import shape_of_gguf
from support.daemons import environment
from support.gguf_factory import TinyModel

MIB = 2**20
TYPES = [int(each) for each in GGMLQuantizationType]
NUMBERS = st.one_of(
    st.integers(0, 70),
    st.sampled_from([2**k + d for k in (8, 16, 20, 22, 31, 32, 40, 61, 62, 63) for d in (-1, 0, 1)]),
    st.just(2**64 - 1),
)
NAMES = st.one_of(
    st.sampled_from([b"", b"a", b"b", b"token_embd.weight", b"\xff", b"\xc3(", b"\0", b"n" * 300]),
    st.binary(max_size=12),
)
BOUNDED = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def counted(raw: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(raw) if length is None else length) + raw


@st.composite
def strings(draw: st.DrawFn) -> bytes:
    raw = draw(NAMES)
    return counted(raw, draw(NUMBERS) if draw(st.integers(0, 9)) == 0 else None)


@st.composite
def values(draw: st.DrawFn, depth: int = 0) -> bytes:
    """A type id and a value, which need not match."""
    kind = draw(st.sampled_from([*range(13), 13, 77, 2**32 - 1]))
    if kind == 8:
        return struct.pack("<I", kind) + draw(strings())
    if kind == 9 and depth < 4:
        inner = b"".join(draw(st.lists(values(depth + 1), max_size=3)))
        count = draw(NUMBERS)
        # An array begins with the type of its items, as a value does.
        return struct.pack("<I", kind) + inner[:4] + struct.pack("<Q", count) + inner[4:]
    return struct.pack("<I", kind) + draw(st.binary(max_size=8))


@st.composite
def pairs(draw: st.DrawFn) -> bytes:
    if draw(st.integers(0, 3)) == 0:
        alignment = draw(NUMBERS) & (2**32 - 1)
        return counted(b"general.alignment") + struct.pack("<II", 4, alignment)
    return draw(strings()) + draw(values())


@st.composite
def tensors(draw: st.DrawFn) -> bytes:
    dims = draw(st.lists(NUMBERS, max_size=6))
    stated = len(dims) if draw(st.integers(0, 9)) else draw(st.integers(0, 2**32 - 1))
    kind = draw(st.sampled_from([*TYPES, 99, 2**32 - 1]))
    # Few different offsets, so that many of them are the same, overlap, or lie in the header.
    offset = draw(st.one_of(st.sampled_from([0, 32, 64, 2**64 - 32]), NUMBERS))
    shape = struct.pack(f"<I{len(dims)}Q", stated, *(d % 2**64 for d in dims))
    return draw(strings()) + shape + struct.pack("<IQ", kind, offset)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A file of well-formed parts with lies in them, cut somewhere."""
    keys, rows = draw(st.lists(pairs(), max_size=4)), draw(st.lists(tensors(), max_size=4))
    counts = [len(parts) if draw(st.integers(0, 4)) else draw(NUMBERS) % 2**64 for parts in (rows, keys)]
    head = b"GGUF" + struct.pack("<IQQ", 3, *counts)
    whole = head + b"".join(keys) + b"".join(rows) + bytes(draw(st.sampled_from([0, 64, 4096])))
    return whole[: draw(st.integers(0, len(whole)))] if draw(st.integers(0, 3)) == 0 else whole


def read_whole(path: Path) -> None:
    """All that a hive does with a header."""
    file = read_gguf(path)
    file.summary()
    calculate_fit(shape_of_gguf(file), Terms("int8", 2048, 1, "cpu"))


def refusal(path: Path) -> str:
    """What the user is told; nothing when the file is read."""
    try:
        read_whole(path)
    except ModelIncompatible as error:
        return error.message
    return ""


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """Fail when Python's allocations, those of numpy among them, pass the limit at any moment."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak / MIB:.0f} MB"


@given(files())
@BOUNDED
def test_any_lies_in_a_header_are_refused_within_bounds_or_harmless(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    with memory_below(4 * MIB):
        told = refusal(path)
    assert len(told) < 1000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (
        TinyModel(layers=1, width=32, heads=2, heads_kv=1, inner=32)
        .write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
        .read_bytes()
    )


@given(data=st.data())
@BOUNDED
def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path, tiny: bytes, data: st.DataObject) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny[: data.draw(st.integers(0, len(tiny) - 32))])
    with memory_below(4 * MIB), pytest.raises(ModelIncompatible):
        read_whole(path)


KEYS = (
    "block_count",
    "embedding_length",
    "context_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "rope.dimension_count",
    "rope.freq_base",
)
ODD = st.one_of(
    st.sampled_from([0, 1, 2, 3, 4096, 2**31 - 1, 2**31, 2**32 - 1, -1]),
    st.sampled_from([0.0, -1.0, 1e-30, 1e38, "64", "", True, [1, 2], [2, 2], [0.5], ["a"]]),
)


@given(st.dictionaries(st.sampled_from(KEYS), ODD | st.none(), min_size=1, max_size=3))
@example({"attention.head_count": 0})
@example({"attention.head_count_kv": 2**31 - 1})
@example({"embedding_length": 2**31 - 1, "context_length": 2**31 - 1})
@example({"block_count": 2**31 - 1, "context_length": 2**32 - 1})
@settings(BOUNDED, max_examples=60)
def test_any_sizes_in_the_metadata_are_refused_or_give_a_fit(
    tmp_path: Path, metadata: dict[str, object]
) -> None:
    model = TinyModel(layers=1, width=32, heads=2, heads_kv=1, inner=32, metadata=metadata)
    path = model.write(tmp_path / "sized.gguf")
    with memory_below(8 * MIB):
        try:
            fit = calculate_fit(shape_of_gguf(read_gguf(path)), Terms("float32", 2**20, 256, "cpu"))
        except ModelIncompatible:
            return
    assert 0 < fit.ram.mb(with_overhead=False) <= fit.ram.mb() < 2**40


# -- the largest headers that get through -----------------------------------------------------------------

STRING, ARRAY = 8, 9


def header(pairs: bytes, key_count: int, tensors: bytes = b"", tensor_count: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensor_count, key_count) + pairs + tensors


def costly() -> Iterator[tuple[str, bytes]]:
    """Files of few megabytes that make as much of a reader's memory as its limits allow."""
    empty_strings = 2**22
    yield (
        "empty strings",
        header(
            counted(b"t") + struct.pack("<IIQ", ARRAY, STRING, empty_strings) + bytes(8 * empty_strings), 1
        ),
    )
    yield (
        "bytes",
        header(counted(b"t") + struct.pack("<IIQ", ARRAY, 0, 2**22) + bytes(2**22), 1),
    )
    many = 65_536
    row = struct.pack("<IQIQ", 1, 32, 0, 0)
    rows = b"".join(counted(b"%d" % number) + row for number in range(many))
    yield "tensors at one place", header(b"", 0, rows, many) + bytes(256)
    keys = b"".join(counted(b"%d" % number) + struct.pack("<IB", 7, 1) for number in range(8192))
    yield "keys", header(keys, 8192)
    yield "one long text", header(counted(b"t") + struct.pack("<I", STRING) + counted(b"x" * 2**24), 1)


CHILD = """
import json, resource, sys
from pathlib import Path
import psutil
from rbee.core.errors import ModelIncompatible
from rbee.models.gguf_file import read_gguf
from rbee.models.model_shape import shape_of_gguf
import rbee.models.decoder_settings
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
mapped = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (mapped + int(sys.argv[2]) * 2**20,) * 2)
try:
    shape_of_gguf(read_gguf(Path(sys.argv[1])))
    told = None
except ModelIncompatible as error:
    told = error.message[:80]
print(json.dumps(told))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is the kernel's")
@pytest.mark.parametrize(("name", "content"), [pytest.param(*each, id=each[0]) for each in costly()])
def test_the_costliest_headers_are_refused_by_a_process_of_little_memory(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / "costly.gguf"
    path.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), "400"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{name}: {done.stderr[-1500:]}"
    assert json.loads(done.stdout), name
