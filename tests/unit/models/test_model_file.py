"""The layout of model.bin: layers, sizes, and files that are no such file."""

from pathlib import Path

import pytest

from rbee.core.errors import ModelIncompatible
from rbee.models.model_file import read_model_file
from rbee.worker.adapters.file_position import position_in
from support.tiny_ct2 import LAYERS, WIDTH, write_tiny_model


@pytest.fixture(scope="module")
def model_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny")) / "model.bin"


def test_layers_are_complete_at_rising_offsets_within_the_file(model_bin: Path) -> None:
    layout = read_model_file(model_bin)
    assert len(layout.layer_ends) == LAYERS
    assert list(layout.layer_ends) == sorted(set(layout.layer_ends))
    assert layout.layer_ends[-1] <= layout.size_bytes == model_bin.stat().st_size


def test_a_layer_counts_from_its_last_byte_on(model_bin: Path) -> None:
    layout = read_model_file(model_bin)
    first, last = layout.layer_ends[0], layout.layer_ends[-1]
    assert [layout.layers_read(at) for at in (0, first - 1, first, last - 1, last)] == [
        0,
        0,
        1,
        LAYERS - 1,
        LAYERS,
    ]


def test_memory_follows_the_compute_type(model_bin: Path) -> None:
    layout = read_model_file(model_bin)
    weights = sum(v.elements for v in layout.variables if v.type == "float32")
    assert layout.loaded_bytes("float32") >= weights * 4
    assert layout.loaded_bytes("float16") * 2 == pytest.approx(layout.loaded_bytes("float32"), rel=0.05)


def test_the_cache_has_a_key_and_a_value_per_layer_and_token(model_bin: Path) -> None:
    assert read_model_file(model_bin).cache_bytes_per_token() == LAYERS * 2 * WIDTH * 4


def test_a_file_cut_short_anywhere_is_refused(model_bin: Path, tmp_path: Path) -> None:
    content = model_bin.read_bytes()
    cut = tmp_path / "model.bin"
    header = content.index(b"decoder/layer_0")
    for length in [*range(200), header, header + 5, header + 40, len(content) // 2, len(content) - 2000]:
        cut.write_bytes(content[:length])
        with pytest.raises(ModelIncompatible, match=r"cut short|version"):
            read_model_file(cut)


def test_a_hostile_count_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"\x06\0\0\0" + b"\x02\0A\0" + b"\x01\0\0\0" + b"\xff\xff\xff\xff")
    with pytest.raises(ModelIncompatible):
        read_model_file(file)


def test_a_missing_file_is_named_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(ModelIncompatible) as refused:
        read_model_file(tmp_path / "model.bin")
    assert refused.value.message == (
        "The model folder cannot be loaded: model.bin: No such file or directory"
    )


@pytest.mark.skipif(not Path("/proc/self/fdinfo").exists(), reason="there is no procfs")
def test_the_position_of_an_open_file_is_known(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"x" * 1000)
    assert position_in(file) is None
    with file.open("rb", buffering=0) as opened:
        opened.read(300)
        assert position_in(file) == 300
