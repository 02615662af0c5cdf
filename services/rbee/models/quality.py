"""What a compute type costs in quality: a converted model's token probabilities against those of float32.

Both read texts that ship with the package and were not calibrated on, teacher-forced. The float32 side is
computed from the GGUF layer by layer, so that no float32 conversion has to fit on the disk or into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rbee.models.ct2_layout import lay_out
from rbee.models.decoder_pass import DecoderPass
from rbee.models.gguf_file import GgufFile, read_gguf
from rbee.models.numpy_threads import numpy_threads
from rbee.models.sample_texts import SampleSet, digest_of, sample_ids
from rbee.models.text import load_text_model

Logprobs = npt.NDArray[np.float32]

LONGEST_TEXT = 512
REFERENCE = "float32"


@dataclass(frozen=True)
class Divergence:
    """How far one model's predictions are from another's over the positions of a text.

    ``kl_nats`` is the mean KL(reference || other) per position, ``same_top`` the share of positions where
    both prefer the same token. Perplexities are over the tokens that follow each other.
    """

    positions: int
    kl_nats: float
    same_top: float
    perplexity: float
    reference_perplexity: float


def divergence(reference: Logprobs, other: Logprobs, ids: Sequence[int]) -> Divergence:
    """Compare log probabilities, (positions, vocabulary), of two models after each token of ``ids``."""
    return _summarise([_Tally.of(reference, other, ids)])


def token_logprobs(folder: Path, ids: list[int], threads: int = 0) -> Logprobs:
    """The engine's log probabilities of the whole vocabulary after each token: (positions, vocabulary).

    The folder is loaded as it is stored; what the device cannot compute the engine converts on loading.
    ``threads`` 0 leaves their number to the engine.
    """
    return next(_engine_logprobs(folder, [ids], threads))


def measure_quality(source: Path, folder: Path, on_progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Compare the conversion in ``folder`` with its GGUF ``source``; returns the figures in all and by text.

    ``on_progress`` gets (layers done, layers in all) of the float32 pass, which takes nearly all of the time.

    Raises:
        ModelIncompatible: the GGUF cannot be read or its tokenizer knows none of the texts.
    """
    gguf = read_gguf(source)
    model = load_text_model(folder)
    longest = min(LONGEST_TEXT, model.context_length)
    samples = sample_ids(SampleSet.HELD_OUT, model, longest)
    texts = [ids for kind in samples.values() for ids in kind]
    reference = _reference_logprobs(gguf, texts, on_progress)
    pairs = zip(reference, _engine_logprobs(folder, texts), texts, strict=True)
    tallies = [_Tally.of(expected, found, ids) for expected, found, ids in pairs]
    by_kind, first = [], 0
    for kind, kind_texts in samples.items():
        last = first + len(kind_texts)
        by_kind.append({"text": kind, **asdict(_summarise(tallies[first:last]))})
        first = last
    return {
        "reference": REFERENCE,
        **asdict(_summarise(tallies)),
        "texts": by_kind,
        "texts_sha256": digest_of(SampleSet.HELD_OUT),
    }


def _reference_logprobs(
    gguf: GgufFile, texts: Sequence[Sequence[int]], on_progress: Callable[[int, int], None]
) -> Iterator[Logprobs]:
    layout = lay_out(gguf)
    total = layout.settings.layers
    on_progress(0, total)
    with numpy_threads() as each:
        forward = DecoderPass(gguf, layout, texts, each=each)
        for layer in forward.layers():
            on_progress(layer + 1, total)
        normed, first = forward.finish(), 0
    for ids in texts:
        yield _log_softmax(forward.logits(normed[first : first + len(ids)]))
        first += len(ids)


def _engine_logprobs(folder: Path, texts: Sequence[Sequence[int]], threads: int = 0) -> Iterator[Logprobs]:
    # The engine's native library is loaded where it is used.
    import ctranslate2

    tokens = load_text_model(folder).tokens
    generator = ctranslate2.Generator(str(folder), device="cpu", intra_threads=threads)
    for ids in texts:
        rows = generator.forward_batch([[tokens[i] for i in ids]], return_log_probs=True)
        yield np.array(rows)[0]


def _log_softmax(logits: Logprobs) -> Logprobs:
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.sum(np.exp(logits), axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return logits


@dataclass(frozen=True)
class _Tally:
    """Sums over the positions of one text."""

    positions: int
    followed: int
    kl: float
    same_top: int
    loss: float
    reference_loss: float

    @classmethod
    def of(cls, reference: Logprobs, other: Logprobs, ids: Sequence[int]) -> _Tally:
        # Row by row: a float64 copy of all rows would take a gigabyte for a large vocabulary.
        kl = sum(float(np.sum(np.exp(p) * (p - q))) for p, q in zip(reference, other, strict=True))
        taken = np.arange(len(ids) - 1), np.asarray(ids[1:], np.int64)
        return cls(
            positions=len(ids),
            followed=len(ids) - 1,
            kl=kl,
            same_top=int(np.sum(reference.argmax(axis=1) == other.argmax(axis=1))),
            loss=-float(other[taken].sum(dtype=np.float64)),
            reference_loss=-float(reference[taken].sum(dtype=np.float64)),
        )


def _summarise(tallies: Sequence[_Tally]) -> Divergence:
    positions = sum(tally.positions for tally in tallies)
    followed = max(1, sum(tally.followed for tally in tallies))
    return Divergence(
        positions=positions,
        kl_nats=sum(tally.kl for tally in tallies) / max(1, positions),
        same_top=sum(tally.same_top for tally in tallies) / max(1, positions),
        perplexity=float(np.exp(sum(tally.loss for tally in tallies) / followed)),
        reference_perplexity=float(np.exp(sum(tally.reference_loss for tally in tallies) / followed)),
    )
