"""The catalog of models on this node: one SQLite table, safe for several processes at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Integer,
    MetaData,
    Row,
    Select,
    Table,
    Text,
    UniqueConstraint,
    select,
)

from rbee.core.references import GGUF_SUFFIX, ModelRef, Provider
from rbee.models.database import Database, Migrations
from rbee.models.file_notes import models_on_disk
from rbee.models.split_files import parts_of
from rbee.models.storage import size_on_disk

if TYPE_CHECKING:
    from rbee.models.gguf_file import GgufSummary

logger = logging.getLogger(__name__)

MIGRATIONS = Migrations(Path(__file__).parent / "migrations", head="0002")

_metadata = MetaData()
_models = Table(
    "models",
    _metadata,
    Column("id", Text, primary_key=True),
    Column("provider", Text, nullable=False),
    Column("reference", Text, nullable=False),
    Column("variant", Text, nullable=False),
    Column("local_path", Text, nullable=False),
    Column("size_bytes", Integer, nullable=False),
    Column("digest", Text),
    Column("downloaded_at_unix", Integer, nullable=False),
    Column("last_used_unix", Integer),
    Column("revision", Text),
    Column("part_digests", JSON(none_as_null=True)),
    UniqueConstraint("provider", "reference", "variant"),
)


@dataclass(frozen=True)
class CatalogRow:
    """One model on this node.

    ``digest`` is the file's SHA-256 in hex, None until somebody computed it; of a split model, whose
    ``local_path`` is the first part, it stands for all ``part_digests`` (``split_files.combined_digest``).
    ``revision`` is the commit of the hub that the file came from.
    """

    id: str
    ref: ModelRef
    local_path: Path
    size_bytes: int
    digest: str | None
    downloaded_at_unix: int
    last_used_unix: int | None
    revision: str | None = None
    part_digests: tuple[str, ...] = ()


class Catalog:
    """Rows by provider, reference and variant; usable from threads, greenlets and several processes at once.

    Args:
        models_dir: a catalog that is new, or replaces a damaged one, begins with the models that lie there.

    Raises (constructor and every method): ServiceUnavailable when the database cannot be read or written.
    """

    def __init__(
        self, db_path: Path, models_dir: Path | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._models_dir = models_dir
        self._database = Database(db_path, _metadata, MIGRATIONS, self._rebuild)

    def add(
        self,
        ref: ModelRef,
        local_path: Path,
        size_bytes: int,
        digest: str | None = None,
        *,
        revision: str | None = None,
        part_digests: Sequence[str] = (),
    ) -> CatalogRow:
        """Record a model, or renew the row of that reference; a renewed row keeps its id and last use.

        Two references may name one file (``hf:O/R`` and ``hf:O/R:Q4_0``): size, digests and revision are
        facts of the file, so the other rows of that file are renewed with it.
        """
        facts = {
            "size_bytes": size_bytes,
            "digest": digest,
            "revision": revision,
            "part_digests": list(part_digests) or None,
        }
        values = {"local_path": str(local_path), "downloaded_at_unix": int(self._clock()), **facts}
        key = {"provider": str(ref.provider), "reference": ref.reference, "variant": ref.variant}
        with self._database.writing() as connection:
            if connection.execute(_by(ref)).first() is None:
                row_id = _free_id(connection, local_path)
                connection.execute(_models.insert().values(id=row_id, **key, **values))
            else:
                connection.execute(_models.update().filter_by(**key).values(**values))
            connection.execute(_models.update().filter_by(local_path=str(local_path)).values(**facts))
            return _as_row(connection.execute(_by(ref)).one())

    def find(self, ref: ModelRef) -> CatalogRow | None:
        """The row of that reference; None when there is none or its file is gone (the row is then dropped).

        A ``file:`` model that was changed in place since it was recorded loses its digest, by which
        conversions are found. A change that keeps the size within the second of the record goes unnoticed.
        """
        with self._database.reading() as connection:
            found = connection.execute(_by(ref)).first()
        return None if found is None else self._checked(_as_row(found))

    def at_path(self, local_path: Path) -> CatalogRow | None:
        """A row of that file, whatever reference it was fetched by."""
        with self._database.reading() as connection:
            found = connection.execute(select(_models).filter_by(local_path=str(local_path))).first()
        return None if found is None else self._checked(_as_row(found))

    def touch(self, ref: ModelRef) -> None:
        """Note that the model is being used now."""
        self._update(ref, last_used_unix=int(self._clock()))

    def set_digests(self, ref: ModelRef, digest: str, part_digests: Sequence[str] = ()) -> None:
        """Note the digest of a model's file, and of the parts of a split one."""
        self._update(ref, digest=digest, part_digests=list(part_digests) or None)

    def remove(self, ref: ModelRef) -> CatalogRow | None:
        """Drop the row and return it; files are left alone (``rbee.models.storage`` removes those)."""
        with self._database.writing() as connection:
            found = connection.execute(_by(ref)).first()
            if found is not None:
                connection.execute(_models.delete().where(_models.c.id == found.id))
        return None if found is None else _as_row(found)

    def _rebuild(self, connection: Connection) -> None:
        """Enter the models that lie on disk into an empty table."""
        if self._models_dir is None:
            return
        # Where a reference came to mean another file of its repository, the later one counts.
        by_age = sorted(models_on_disk(self._models_dir), key=lambda found: found.note.fetched_at_unix)
        latest = {found.ref: found for found in by_age}
        for found in latest.values():
            connection.execute(
                _models.insert().values(
                    id=_free_id(connection, found.path),
                    provider=str(found.ref.provider),
                    reference=found.ref.reference,
                    variant=found.ref.variant,
                    local_path=str(found.path),
                    size_bytes=found.note.size_bytes,
                    digest=found.note.digest,
                    downloaded_at_unix=found.note.fetched_at_unix,
                    revision=found.note.revision,
                    part_digests=list(found.note.part_digests) or None,
                )
            )
        if latest:
            logger.warning("catalog rebuilt from disk models=%d models_dir=%s", len(latest), self._models_dir)

    def _checked(self, row: CatalogRow) -> CatalogRow | None:
        if any(_is_gone(part) for part in parts_of(row.local_path)):
            logger.warning("catalog row dropped model_ref=%s missing=%s", row.ref, row.local_path)
            with self._database.writing() as connection:
                gone = (_models.c.id == row.id) & (_models.c.local_path == str(row.local_path))
                connection.execute(_models.delete().where(gone))
            return None
        if row.ref.provider is Provider.FILE and _has_changed(row):
            return self.add(row.ref, row.local_path, size_on_disk(row.local_path))
        return row

    def _update(self, ref: ModelRef, **values: object) -> None:
        key = {"provider": str(ref.provider), "reference": ref.reference, "variant": ref.variant}
        with self._database.writing() as connection:
            connection.execute(_models.update().filter_by(**key).values(**values))

    def list(self) -> tuple[CatalogRow, ...]:
        """All models whose files exist, oldest first."""
        with self._database.reading() as connection:
            found = connection.execute(
                select(_models).order_by(_models.c.downloaded_at_unix, _models.c.id)
            ).all()
        checked = (self._checked(_as_row(row)) for row in found)
        return tuple(row for row in checked if row is not None)


def catalog_record(row: CatalogRow, summary: GgufSummary | None) -> dict[str, object]:
    """The row as the API shows it; what only a GGUF header tells is null without a summary."""
    return {
        "id": row.id,
        "model_ref": str(row.ref),
        "provider": str(row.ref.provider),
        "reference": row.ref.reference,
        "variant": row.ref.variant,
        "local_path": str(row.local_path),
        "size_bytes": row.size_bytes,
        "digest": row.digest,
        "revision": row.revision,
        "downloaded_at_unix": row.downloaded_at_unix,
        "last_used_unix": row.last_used_unix,
        "format": "ctranslate2" if row.local_path.is_dir() else "gguf",
        "architecture": summary.architecture if summary else None,
        "quantization": summary.quantization if summary else None,
        "vocab_size": summary.vocab_size if summary else None,
        "eos_token_id": summary.eos_token_id if summary else None,
        "context_length": summary.context_length if summary else None,
        "block_count": summary.block_count if summary else None,
    }


def _is_gone(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # there, but out of reach for now: whoever reads it reports why
        return False
    return False


def _has_changed(row: CatalogRow) -> bool:
    try:
        if size_on_disk(row.local_path) != row.size_bytes:
            return True
        if not row.local_path.is_file():
            return False
        changed_at = max(part.stat().st_mtime for part in parts_of(row.local_path))
        return int(changed_at) > row.downloaded_at_unix
    except OSError:
        return False


def _free_id(connection: Connection, local_path: Path) -> str:
    stem = local_path.stem if local_path.suffix == GGUF_SUFFIX else local_path.name
    taken = set(connection.execute(select(_models.c.id)).scalars())
    number = 1
    while (candidate := stem if number == 1 else f"{stem}-{number}") in taken:
        number += 1
    return candidate


def _by(ref: ModelRef) -> Select[tuple[object, ...]]:
    return select(_models).filter_by(provider=str(ref.provider), reference=ref.reference, variant=ref.variant)


def _as_row(row: Row[tuple[object, ...]]) -> CatalogRow:
    return CatalogRow(
        id=row.id,
        ref=ModelRef(Provider(row.provider), row.reference, row.variant),
        local_path=Path(row.local_path),
        size_bytes=row.size_bytes,
        digest=row.digest,
        downloaded_at_unix=row.downloaded_at_unix,
        last_used_unix=row.last_used_unix,
        revision=row.revision,
        part_digests=tuple(row.part_digests or ()),
    )
