"""What a compute type costs in quality: its token probabilities against those of float32, teacher-forced.

`python -m bench.quality [GGUF]` prints the table for a model of your own.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.embedded import embedded_gguf
from bench.measuring import Table

Logprobs = npt.NDArray[np.float32]

LICENCE = Path(__file__).resolve().parents[1] / "LICENSE"
LICENCE_CHARACTERS = 2200
STORY = """Once upon a time there was a small bee who lived at the edge of a wide meadow. Every morning she
flew out with her sisters to look for flowers, and every evening she came home with nectar and a story. One
day the wind was strong and carried her over the hills, far beyond the river, to a garden she had never seen.
"Who are you?" asked an old bumblebee who sat on a sunflower. "I am lost," said the little bee, "but your
garden is beautiful." The bumblebee laughed. "Nobody is lost who can see the sun. Fly with it on your left
wing until you hear the water, then follow the water until you smell the clover." She thanked him, drank a
drop of dew, and flew. When she came home the moon was up, and all her sisters wanted to hear the story."""
PASSAGES = {"licence": "", "story": STORY}


@dataclass(frozen=True)
class Divergence:
    """How far one model's predictions are from another's over the positions of a text."""

    positions: int
    kl_nats: float
    same_top: float
    perplexity: float


def token_logprobs(folder: Path, ids: list[int], threads: int = 0) -> Logprobs:
    """Log probabilities of the whole vocabulary after each token of ``ids``: (positions, vocabulary).

    The folder is loaded as it is stored; what the device cannot compute the engine converts on loading.
    ``threads`` 0 leaves their number to the engine.
    """
    import ctranslate2

    from rbee.models.text import load_text_model

    tokens = load_text_model(folder).tokens
    generator = ctranslate2.Generator(str(folder), device="cpu", intra_threads=threads)
    rows = generator.forward_batch([[tokens[i] for i in ids]], return_log_probs=True)
    return np.array(rows)[0]


def divergence(reference: Logprobs, other: Logprobs, ids: list[int]) -> Divergence:
    """Mean KL(reference || other) per position, share of equal first choices, and perplexity of ``other``."""
    # Row by row: a float64 copy of all rows would take a gigabyte for a large vocabulary.
    kl = [float(np.sum(np.exp(p) * (p - q))) for p, q in zip(reference, other, strict=True)]
    taken = other[np.arange(len(ids) - 1), ids[1:]]
    return Divergence(
        positions=len(ids),
        kl_nats=float(np.mean(kl)),
        same_top=float(np.mean(reference.argmax(axis=1) == other.argmax(axis=1))),
        perplexity=float(np.exp(-taken.mean())),
    )


def passage(name: str) -> str:
    return PASSAGES[name] or LICENCE.read_text(encoding="utf-8")[:LICENCE_CHARACTERS]


def measure(source: Path | None = None) -> Table:
    """KL, agreement and perplexity of every compute type on two passages."""
    from rbee.models.compute_types import ComputeType
    from rbee.models.conversion import convert
    from rbee.models.text import load_text_model

    source = source or embedded_gguf()
    names = list(PASSAGES)
    rows = []
    with tempfile.TemporaryDirectory() as models_dir:
        reference: dict[str, Logprobs] = {}
        for compute_type in ComputeType:
            folder = convert(source, Path(models_dir), compute_type.value, on_progress=lambda _d, _t: None)
            text = load_text_model(folder)
            size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
            found = []
            for name in names:
                ids = text.encode_prompt(passage(name), raw=True)
                logprobs = token_logprobs(folder, ids)
                found.append(divergence(reference.setdefault(name, logprobs), logprobs, ids))
            cells = ["{0.kl_nats:.4f}", "{0.same_top:.3f}", "{0.perplexity:.2f}"]
            figures = [" / ".join(cell.format(entry) for entry in found) for cell in cells]
            rows.append([compute_type.value, f"{size:.0f} MB", *figures])
    columns = ["compute type", "size", "KL to float32, nats a token", "same first choice", "perplexity"]
    counts = ", ".join(f"{name} {reference[name].shape[0]} tokens" for name in names)
    note = f"{source.name}; {counts}. Types a CPU cannot compute are stored so and computed in float32."
    return Table("Quality of the compute types", columns, rows, note)


if __name__ == "__main__":
    print(measure(Path(sys.argv[1]) if len(sys.argv) > 1 else None).text())
