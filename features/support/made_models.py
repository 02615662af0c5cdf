"""The models that scenarios name, written where they ask for them: real GGUF files, most of them small."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from features.support.hub import place_file
from features.support.models import cached_file, cached_folder
from gguf import GGMLQuantizationType as Quantization

from support.gguf_factory import TinyModel

FIVE_MB = 5_242_880
FIVE_THOUSAND_MB = 5_242_880_000
VOCABULARY = 32_000
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
SMALL = TinyModel(width=256, heads=4, heads_kv=4, head_dim=64, inner=512, layers=2, tied=True, spread=0.05)
FILE_TYPES = {Quantization.Q4_K: 15, Quantization.Q5_K: 17, Quantization.Q8_0: 7}
"""``general.file_type`` of files that are mostly of a type: Q4_K_M, Q5_K_M, Q8_0."""


def write_five_mb(path: Path) -> None:
    """A llama model of exactly 5 242 880 bytes, nearly all of them weights."""
    metadata = {"tokenizer.chat_template": CHAT_TEMPLATE, "general.description": "-"}
    model = SMALL.with_(layers=1, inner=1200, metadata=metadata)
    missing = FIVE_MB - model.write(path).stat().st_size
    model.with_(metadata={**metadata, "general.description": "-" * (1 + missing)}).write(path)
    assert path.stat().st_size == FIVE_MB, path.stat().st_size


def write_five_thousand_mb(path: Path) -> None:
    """A sparse file of 5 242 880 000 bytes that begins as a valid model."""
    SMALL.write(path)
    with path.open("r+b") as file:
        file.truncate(FIVE_THOUSAND_MB)


def write_small(path: Path, quantization: Quantization) -> None:
    """The same weights for every quantisation."""
    metadata = {"general.file_type": FILE_TYPES[quantization]}
    SMALL.with_(quantization=quantization, metadata=metadata).write(path)


def write_large_vocabulary(path: Path) -> None:
    """A model in Q4_K_M with a SentencePiece vocabulary of 32 000 entries, as TinyLlama has one."""
    special = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{number:02X}>" for number in range(256)]
    words = [f"▁{number:x}" for number in range(VOCABULARY - len(special) - len(byte_tokens))]
    types = [2, 3, 3, *[6] * len(byte_tokens), *[1] * len(words)]
    metadata = {
        "general.file_type": FILE_TYPES[Quantization.Q4_K],
        "vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": None,
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.tokens": [*special, *byte_tokens, *words],
        "tokenizer.ggml.scores": [-float(number) for number in range(VOCABULARY)],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    SMALL.with_(quantization=Quantization.Q4_K, metadata=metadata).write(path)


def write_text(path: Path) -> None:
    """What is no model at all."""
    path.write_text("This is no model.\n" * 100)


def link_embedded_folder(path: Path) -> None:
    """The embedded model as the engine loads it."""
    for file in cached_folder("int8").iterdir():
        place_file(file, path / file.name)


WRITERS: dict[str, Callable[[Path], None]] = {
    "the embedded model": lambda path: place_file(cached_file(), path),
    "the embedded model, converted": link_embedded_folder,
    "the 5 MB model": write_five_mb,
    "the 5000 MB model": write_five_thousand_mb,
    "a model of 32000 tokens": write_large_vocabulary,
    "a small model in Q4_K_M": lambda path: write_small(path, Quantization.Q4_K),
    "a small model in Q5_K_M": lambda path: write_small(path, Quantization.Q5_K),
    "a small model in Q8_0": lambda path: write_small(path, Quantization.Q8_0),
    "a text": write_text,
}


def write_model(name: str, path: Path) -> None:
    """Write the model a scenario names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[name](path)


def header_of(path: Path) -> dict[str, Any]:
    """What the gguf library reads from a file's header, under the names of the catalog's records."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    keys = {
        "vocab_size": f"{architecture}.vocab_size",
        "context_length": f"{architecture}.context_length",
        "block_count": f"{architecture}.block_count",
        "eos_token_id": "tokenizer.ggml.eos_token_id",
    }
    return {"architecture": architecture, **{name: _number(reader, key) for name, key in keys.items()}}


def _number(reader: gguf.GGUFReader, key: str) -> int:
    return int(np.asarray(reader.fields[key].contents()).item())


def vocabulary_of(folder: Path) -> list[str]:
    """The tokens of a converted folder."""
    found: list[str] = json.loads((folder / "vocabulary.json").read_text())
    return found
