"""Speed and peak memory of a conversion, and of reading a header, each in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.embedded import embedded_gguf
from bench.measuring import Goal, Table, median

COMPUTE_TYPES = ("float32", "int8")
ROUNDS = 3
HEADER_ROUNDS = 5
_BLOCK = 4 * 2**20
_CONVERT = r"""
import json, re, resource, sys, time
from pathlib import Path
from rbee.models.conversion import convert
begun = time.perf_counter()
folder = convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], on_progress=lambda done, total: None)
took = time.perf_counter() - begun
status = Path("/proc/self/status")
if status.exists():
    # Of this program alone: what getrusage tells begins with the size of the process that started it.
    peak = 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps([took, peak, (folder / "model.bin").stat().st_size]))
"""


def convert_once(source: Path, compute_type: str) -> tuple[float, int, int]:
    """Seconds (hashing included), peak resident bytes of the process, and bytes of the written model."""
    with tempfile.TemporaryDirectory() as models_dir:
        command = [sys.executable, "-c", _CONVERT, str(source), models_dir, compute_type]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    took, peak, size = json.loads(done.stdout)
    return took, peak, size


def bare_seconds(source: Path, size: int) -> float:
    """Seconds to read and hash the file and to write and sync so many bytes: what no conversion can beat."""
    block = os.urandom(_BLOCK)
    digest = hashlib.sha256()
    begun = time.perf_counter()
    with source.open("rb") as file:
        while piece := file.read(_BLOCK):
            digest.update(piece)
    with tempfile.TemporaryFile() as sink:
        for start in range(0, size, _BLOCK):
            sink.write(block[: size - start])
        sink.flush()
        os.fsync(sink.fileno())
    return time.perf_counter() - begun


def header_seconds(source: Path) -> tuple[float, float]:
    """Seconds to read the header: ours, and the gguf library's reader."""
    import gguf

    from rbee.models.gguf_file import read_gguf

    ours = []
    for _ in range(HEADER_ROUNDS):
        begun = time.perf_counter()
        read_gguf(source)
        ours.append(time.perf_counter() - begun)
    begun = time.perf_counter()
    gguf.GGUFReader(source)
    return median(ours), time.perf_counter() - begun


def measure() -> Table:
    """Conversions of the embedded model to the types that `auto` chooses on a CPU."""
    source = embedded_gguf()
    megabytes = source.stat().st_size / 2**20
    rows, goals = [], []
    for compute_type in COMPUTE_TYPES:
        runs, bare = [], []
        for _ in range(ROUNDS):
            runs.append(convert_once(source, compute_type))
            bare.append(bare_seconds(source, runs[-1][2]))
        took, peak, size = median([run[0] for run in runs]), max(run[1] for run in runs), runs[0][2]
        bound = 1.5 * size + 300 * 2**20
        goals.append(Goal(f"peak memory, {compute_type}", peak / 2**20, bound / 2**20, "MB"))
        rows.append(
            [
                compute_type,
                f"{took:.2f} s",
                f"{median(bare):.2f} s",
                f"{took / median(bare):.1f}",
                f"{megabytes / took:.0f} MB/s",
                f"{size / 2**20:.0f} MB",
                f"{peak / 2**20:.0f} MB",
                f"{peak / bound:.2f}",
            ]
        )
    ours, theirs = header_seconds(source)
    note = (
        f"{source.name}, {megabytes:.0f} MB; medians of {ROUNDS} runs. "
        f"Header: {ours * 1000:.0f} ms, the gguf library's reader takes {theirs / ours:.0f} times as long."
    )
    columns = ["compute type", "time", "read, hash, write alone", "ratio", "input", "model", "peak memory"]
    columns.append("of 1.5 x model + 300 MB")
    return Table("Conversion", columns, rows, note, goals)


if __name__ == "__main__":
    print(measure().text())
