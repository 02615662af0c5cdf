"""Whether models on disk are still what was fetched: files by digest, conversions by completeness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbee.core.errors import RbeeError
from rbee.core.references import Provider
from rbee.models.converted_folders import conversions
from rbee.models.file_digests import digests_of
from rbee.models.split_files import parts_of
from rbee.models.storage import size_on_disk

if TYPE_CHECKING:
    from rbee.models.catalog import Catalog, CatalogRow

OnBytes = Callable[[str, int, int], None]
"""Told the model's reference and how many bytes of how many, over all models, have been read."""


@dataclass(frozen=True)
class Problem:
    """One file or folder that is not as it should be, and what to do about it."""

    path: str
    problem: str
    suggestion: str


@dataclass(frozen=True)
class Verdict:
    """What was found out about one model; without problems it is as it was fetched."""

    model_ref: str
    digest: str | None
    problems: tuple[Problem, ...] = ()

    @property
    def is_ok(self) -> bool:
        return not self.problems

    def record(self) -> dict[str, Any]:
        """The verdict as the API shows it."""
        problems = [asdict(problem) for problem in self.problems]
        return {"model_ref": self.model_ref, "digest": self.digest, "ok": self.is_ok, "problems": problems}


class Verification:
    """Reads every byte of models; several references to one file cost one reading."""

    def __init__(self, catalog: Catalog, models_dir: Path, on_bytes: OnBytes) -> None:
        self._catalog = catalog
        self._models_dir = models_dir
        self._on_bytes = on_bytes

    def run(self, rows: Sequence[CatalogRow], on_verdict: Callable[[Verdict], None]) -> list[Verdict]:
        """The verdict on each model, told as soon as there is one.

        A model without a known digest gets the one that is computed now.
        """
        sizes = {row.local_path: _size(row.local_path) for row in rows}
        done, total = 0, sum(sizes.values())
        files: dict[Path, tuple[str | None, tuple[Problem, ...]]] = {}
        verdicts = []
        for row in rows:
            if row.local_path not in files:
                self._on_bytes(str(row.ref), done, total)
                files[row.local_path] = self._file(row, done, total)
                done += sizes[row.local_path]
            digest, problems = files[row.local_path]
            verdict = Verdict(str(row.ref), digest, problems + self._conversions(digest))
            verdicts.append(verdict)
            on_verdict(verdict)
        return verdicts

    def _file(self, row: CatalogRow, before: int, total: int) -> tuple[str | None, tuple[Problem, ...]]:
        """The digest that the model ought to have, and what is wrong with its files."""
        if row.local_path.is_dir():
            return None, self._folder(row)
        done = before

        def count(read: int) -> None:
            nonlocal done
            done = min(done + read, total)
            self._on_bytes(str(row.ref), done, total)

        try:
            digest, part_digests = digests_of(row.local_path, count)
        except RbeeError as error:
            return row.digest, (Problem(str(row.local_path), error.message, _remedy(row)),)
        if row.digest is None:
            return self._first_digest(row, digest, part_digests)
        if digest == row.digest:
            return digest, ()
        damaged = parts_of(row.local_path)
        if len(part_digests) == len(row.part_digests) > 0:
            known = zip(damaged, part_digests, row.part_digests, strict=True)
            damaged = tuple(part for part, now, then in known if now != then)
        text = "its content is not what was fetched (the SHA-256 digest differs)"
        return row.digest, tuple(Problem(str(path), text, _remedy(row)) for path in damaged)

    def _first_digest(
        self, row: CatalogRow, digest: str, part_digests: tuple[str, ...]
    ) -> tuple[str | None, tuple[Problem, ...]]:
        """Nothing to compare with: the header is checked, and the digest noted for the next time."""
        from rbee.models.gguf_file import read_gguf

        try:
            read_gguf(row.local_path)
        except RbeeError as error:
            return None, (Problem(str(row.local_path), error.message, _remedy(row)),)
        self._catalog.set_digests(row.ref, digest, part_digests)
        return digest, ()

    def _folder(self, row: CatalogRow) -> tuple[Problem, ...]:
        from rbee.models.providers.local_file import LocalFileProvider

        try:
            LocalFileProvider().resolve(row.ref)
        except RbeeError as error:
            return (Problem(str(row.local_path), error.message, _remedy(row)),)
        return ()

    def _conversions(self, digest: str | None) -> tuple[Problem, ...]:
        found = conversions(self._models_dir, digest) if digest else []
        return tuple(
            Problem(
                str(conversion.path),
                f"the conversion to {conversion.compute_type} is incomplete",
                "It is made anew at the next use; to free its space run: rbee-keeper models prune",
            )
            for conversion in found
            if not conversion.is_complete
        )


def _remedy(row: CatalogRow) -> str:
    if row.ref.provider is Provider.FILE:
        return f"Put a good copy in the place of {row.local_path}"
    return f"Fetch it again: rbee-keeper models remove {row.ref} && rbee-keeper models pull {row.ref}"


def _size(path: Path) -> int:
    try:
        return 0 if path.is_dir() else size_on_disk(path)
    except OSError:
        return 0
