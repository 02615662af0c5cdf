"""GGUF files with a real tokenizer and random weights, small enough to make in a test and complete enough for
llama.cpp to load; and llama.cpp's own tokenizer as the reference.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np

WIDTH, HEADS, FEED_FORWARD = 32, 2, 64


def write_tokenizer_gguf(
    path: Path, metadata: Mapping[str, Any], *, pieces: int, architecture: str = "llama"
) -> Path:
    """A one-layer model of ``pieces`` vocabulary entries; ``metadata`` has full keys (``tokenizer.…``)."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(512)
    writer.add_block_count(1)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(pieces)
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, shape in _shapes(pieces).items():
        writer.add_tensor(name, _weights(name, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))


def _shapes(pieces: int) -> dict[str, tuple[int, ...]]:
    block = "blk.0."
    return {
        "token_embd.weight": (pieces, WIDTH),
        "output_norm.weight": (WIDTH,),
        block + "attn_norm.weight": (WIDTH,),
        block + "ffn_norm.weight": (WIDTH,),
        block + "attn_q.weight": (WIDTH, WIDTH),
        block + "attn_k.weight": (WIDTH, WIDTH),
        block + "attn_v.weight": (WIDTH, WIDTH),
        block + "attn_output.weight": (WIDTH, WIDTH),
        block + "ffn_gate.weight": (FEED_FORWARD, WIDTH),
        block + "ffn_up.weight": (FEED_FORWARD, WIDTH),
        block + "ffn_down.weight": (WIDTH, FEED_FORWARD),
    }


def _weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith("norm.weight"):
        return np.ones(shape, dtype=np.float32)
    return np.random.default_rng(len(name)).normal(0, 0.05, shape).astype(np.float32)


class LlamaCpp:
    """llama.cpp's server in this process, asked for token ids over its HTTP API."""

    def __init__(self, address: str) -> None:
        self._address = address

    def tokenize(self, text: str, *, special: bool = False, add_special: bool = False) -> list[int]:
        return self._post("/tokenize", content=text, parse_special=special, add_special=add_special)["tokens"]

    def detokenize(self, ids: Sequence[int]) -> str:
        return self._post("/detokenize", tokens=list(ids))["content"]

    def apply_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        return self._post("/apply-template", messages=list(messages))["prompt"]

    def _post(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(  # noqa: S310 - the address is the server's own, on loopback
            self._address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return json.load(answer)


@contextmanager
def llama_cpp(path: Path) -> Iterator[LlamaCpp]:
    """Serves the file with llama.cpp until the block ends. Raises RuntimeError when llama.cpp refuses it."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.port = 256, 1, 0
    params.warmup = False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    try:
        yield LlamaCpp(server.listening_address)
    finally:
        del server
