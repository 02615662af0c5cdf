"""The embedded model's predictions against llama.cpp on the same file, position by position.

On a quantised file llama.cpp rounds the activations of every layer to eight bits, so that its own predictions
waver: from those of its float32 arithmetic on the same weights they differ at 3 to 5 positions of 100, in
2,400 positions of licence text once with a margin of 0.46 nats. Hence two tests: the file as it is, on text
where that noise is small; and its weights in float32, on anything, where nothing but rounding may differ.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from bench.quality import passage

from rbee.models.gguf_file import read_gguf
from rbee.models.quality import Logprobs, divergence, token_logprobs
from rbee.models.text import load_text_model
from support.gguf_factory import add_metadata
from support.llama_cpp import reference

pytestmark = [pytest.mark.reference, pytest.mark.model]

POSITIONS = 320
EXACT_POSITIONS = 100
CODE = '''
def fibonacci(n: int) -> list[int]:
    """The first n Fibonacci numbers."""
    numbers = [0, 1]
    while len(numbers) < n:
        numbers.append(numbers[-1] + numbers[-2])
    return numbers[:n]
'''
VARIED = "In 1969, 3 men flew 384,400 km; 17 * 3 = 51. Die Biene sammelt Nektar für den Winter. 🐝 蜜蜂"


def our_logprobs(folder: Path, ids: list[int]) -> Logprobs:
    # One thread: more of them wait for each other at every operation, for seconds on a busy machine.
    return token_logprobs(folder, ids, threads=1)


def test_float32_agrees_with_llama_cpp_wherever_it_is_sure(
    embedded_gguf: Path, embedded_converted: Callable[[str], Path]
) -> None:
    folder = embedded_converted("float32")
    text = " ".join(passage("licence").split())
    ids = load_text_model(folder).encode_prompt(text, raw=True)[:POSITIONS]
    assert len(ids) == POSITIONS
    ours = our_logprobs(folder, ids).argmax(axis=1)
    misses = []
    with reference(embedded_gguf, context=512) as llama_cpp:
        for position in range(POSITIONS):
            (first, sure), (_, less) = llama_cpp.top(ids[: position + 1], 2)
            if ours[position] != first:
                misses.append(round(sure - less, 3))
    agreement = 1 - len(misses) / POSITIONS
    print(f"same first choice at {agreement:.1%} of {POSITIONS} positions; margins of the misses: {misses}")
    assert agreement >= 0.96
    assert max(misses, default=0.0) <= 0.3


def test_float32_equals_llama_cpp_on_the_same_weights_in_float32(
    embedded_gguf: Path, embedded_converted: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = embedded_converted("float32")
    ids = load_text_model(folder).encode_prompt(CODE + VARIED, raw=True)[:EXACT_POSITIONS]
    ours = our_logprobs(folder, ids)
    difference = 0.0
    with reference(dequantised(embedded_gguf, tmp_path / "float32.gguf"), context=256) as llama_cpp:
        for position, logprobs in enumerate(ours):
            top = llama_cpp.top(ids[: position + 1], 8)
            assert logprobs.argmax() == top[0][0]
            difference = max(difference, *(abs(float(logprobs[token]) - value) for token, value in top))
    print(f"largest difference of a log probability over {len(ids)} positions: {difference:.1e}")
    assert difference < 2e-3


def dequantised(source: Path, target: Path) -> Path:
    """The same model with all its tensors in float32."""
    file = read_gguf(source)
    writer = gguf.GGUFWriter(target, file.architecture)
    for key, value in file.metadata.items():
        if key not in ("general.architecture", "general.file_type"):
            add_metadata(writer, key, value)
    for name in file.tensors:
        writer.add_tensor(name, file.tensor_float32(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_float16_weights_cost_next_to_nothing(embedded_converted: Callable[[str], Path]) -> None:
    ids = load_text_model(embedded_converted("float32")).encode_prompt(passage("story"), raw=True)
    exact = our_logprobs(embedded_converted("float32"), ids)
    float16 = divergence(exact, our_logprobs(embedded_converted("float16"), ids), ids)
    print(float16)
    assert float16.kl_nats < 1e-4
