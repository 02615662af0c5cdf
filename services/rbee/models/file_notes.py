"""What is known of a fetched model, noted beside its file: a lost catalog is made again from that."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rbee.core.errors import InvalidModelRef
from rbee.core.references import GGUF_SUFFIX, ModelRef, Provider, parse_model_ref
from rbee.models.split_files import split_name
from rbee.models.storage import NOTE_SUFFIX, is_inside, size_on_disk

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileNote:
    """The facts of one model file (of all parts, for a split model) that the file itself does not tell.

    ``references`` are the texts it was fetched by; ``digest`` and ``part_digests`` are as in the catalog.
    """

    references: tuple[str, ...]
    size_bytes: int
    digest: str | None
    part_digests: tuple[str, ...] = ()
    revision: str | None = None
    fetched_at_unix: int = 0


@dataclass(frozen=True)
class FoundModel:
    """A model that lies in the models directory, under one of its references."""

    ref: ModelRef
    path: Path
    note: FileNote


def write_note(path: Path, note: FileNote) -> None:
    """Note what is known of the model at ``path``; earlier references to the same content stay."""
    known = read_note(path)
    if known is not None and known.digest == note.digest:
        earlier = tuple(ref for ref in known.references if ref not in note.references)
        note = replace(note, references=earlier + note.references)
    _write(path, note)


def forget_reference(path: Path, ref: ModelRef) -> None:
    """Take a reference out of the note of a file that others still use."""
    note = read_note(path)
    if note is not None and str(ref) in note.references:
        _write(path, replace(note, references=tuple(text for text in note.references if text != str(ref))))


def read_note(path: Path) -> FileNote | None:
    """The note beside the model at ``path``; None without a readable one."""
    try:
        values = json.loads(_note_path(path).read_text(encoding="utf-8"))
        note = FileNote(
            references=tuple(str(text) for text in values["references"]),
            size_bytes=int(values["size_bytes"]),
            digest=_text(values.get("digest")),
            part_digests=tuple(str(text) for text in values.get("part_digests") or ()),
            revision=_text(values.get("revision")),
            fetched_at_unix=int(values.get("fetched_at_unix") or 0),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return note


def models_on_disk(models_dir: Path) -> Iterator[FoundModel]:
    """Every complete fetched model below the models directory, once for each of its references.

    A file without a note, or with one of another size, gets the reference that its path tells: files of
    ``pypi:`` and those at the top of a hub's repository have one.
    """
    for provider in (Provider.HF, Provider.PYPI):
        for path in sorted((models_dir / provider).rglob(f"*{GGUF_SUFFIX}")):
            split = split_name(path.name)
            if (split is not None and split.number != 1) or not is_inside(models_dir, path):
                continue
            try:
                size, changed_at = size_on_disk(path), int(path.stat().st_mtime)
            except OSError:  # a part is missing
                logger.warning("incomplete model left out path=%s", path)
                continue
            note = read_note(path)
            if note is None or note.size_bytes != size:
                note = FileNote(_reference_of(models_dir, path), size, None, fetched_at_unix=changed_at)
            for ref in _parsed(note.references):
                yield FoundModel(ref, path, note)


def _reference_of(models_dir: Path, path: Path) -> tuple[str, ...]:
    provider, *reference, name = path.relative_to(models_dir).parts
    is_plain = len(reference) == (2 if provider == Provider.HF else 1)
    if not is_plain:
        logger.warning("model of unknown reference left out path=%s", path)
        return ()
    return (f"{provider}:{'/'.join(reference)}/{name}",)


def _parsed(references: tuple[str, ...]) -> Iterator[ModelRef]:
    for text in references:
        try:
            yield parse_model_ref(text)
        except InvalidModelRef:
            logger.warning("reference of a model on disk left out model_ref=%s", text)


def _write(path: Path, note: FileNote) -> None:
    target = _note_path(path)
    partial = target.with_name(f"{target.name}.new")
    partial.write_text(json.dumps(asdict(note), indent=2) + "\n", encoding="utf-8")
    os.replace(partial, target)


def _note_path(path: Path) -> Path:
    return path.with_name(path.name + NOTE_SUFFIX)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
