"""What a compute type costs in quality: its token probabilities against those of float32, teacher-forced.

`python -m bench.quality [GGUF]` prints the table for a model of your own.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from bench.embedded import embedded_gguf
from bench.measuring import Table
from rbee.models.quality import Logprobs, divergence, token_logprobs

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


def passage(name: str) -> str:
    return PASSAGES[name] or LICENCE.read_text(encoding="utf-8")[:LICENCE_CHARACTERS]


def measure(source: Path | None = None) -> Table:
    """KL, agreement and perplexity of every compute type on two passages, and of int8 without smoothing."""
    from rbee.models.compute_types import ComputeType
    from rbee.models.conversion import convert
    from rbee.models.text import load_text_model

    source = source or embedded_gguf()
    names = list(PASSAGES)
    rows = []
    with tempfile.TemporaryDirectory() as models_dir:
        folders = {
            kind.value: convert(source, Path(models_dir), kind.value, on_progress=lambda _d, _t: None)
            for kind in ComputeType
        }
        folders["int8, not smoothed"] = unsmoothed(source, folders["int8"], Path(models_dir) / "plain")
        reference: dict[str, Logprobs] = {}
        for label, folder in folders.items():
            text = load_text_model(folder)
            size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
            found = []
            for name in names:
                ids = text.encode_prompt(passage(name), raw=True)
                logprobs = token_logprobs(folder, ids)
                found.append(divergence(reference.setdefault(name, logprobs), logprobs, ids))
            cells = ["{0.kl_nats:.4f}", "{0.same_top:.3f}", "{0.perplexity:.2f}"]
            figures = [" / ".join(cell.format(entry) for entry in found) for cell in cells]
            rows.append([label, f"{size:.0f} MB", *figures])
    columns = ["compute type", "size", "KL to float32, nats a token", "same first choice", "perplexity"]
    counts = ", ".join(f"{name} {reference[name].shape[0]} tokens" for name in names)
    note = (
        f"{source.name}; {counts}. Types a CPU cannot compute are stored so and computed in float32. "
        "ONEDNN_MAX_CPU_ISA=AVX2 in the environment shows int8 on a processor without int8 dot products."
    )
    return Table("Quality of the compute types", columns, rows, note)


def unsmoothed(source: Path, smoothed: Path, target: Path) -> Path:
    """The int8 conversion in ``smoothed`` again, from the weights as they are."""
    from rbee.models.compute_types import ComputeType
    from rbee.models.ct2_layout import lay_out
    from rbee.models.ct2_writer import write_model
    from rbee.models.gguf_file import read_gguf

    shutil.copytree(smoothed, target)
    gguf = read_gguf(source)
    write_model(target / "model.bin", gguf, lay_out(gguf), ComputeType.INT8, lambda _d, _t: None)
    return target


if __name__ == "__main__":
    print(measure(Path(sys.argv[1]) if len(sys.argv) > 1 else None).text())
