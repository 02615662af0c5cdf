"""Looking after the models of this node: what is known of one, whether files are intact, what may go."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rbee.core.errors import ModelNotFound
from rbee.core.logs import get_logger
from rbee.core.references import ModelRef, parse_model_ref
from rbee.hive.models import ModelStore
from rbee.hive.shared_work import OnEvent
from rbee.hive.threads import in_thread
from rbee.hive.workers import WorkerRegistry

log = get_logger("rbee-hive")

_DAY_S = 86_400.0


class ModelUpkeep:
    """What an operator does with models besides fetching and removing them."""

    def __init__(
        self,
        store: ModelStore,
        models_dir: Path,
        workers: WorkerRegistry,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._models_dir = models_dir
        self._workers = workers
        self._clock = clock

    def describe(self, ref: ModelRef) -> dict[str, Any]:
        """All that is known of a model: its record, its files, its conversions, the workers that have it.

        Raises:
            ModelNotFound: the catalog does not have it.
        """
        row = self._store.catalog().find(ref)
        if row is None:
            raise _unknown(ref)

        def described() -> dict[str, Any]:
            from rbee.models.catalog import catalog_record
            from rbee.models.converted_folders import conversions
            from rbee.models.gguf_summaries import summary_of
            from rbee.models.split_files import parts_of

            found = conversions(self._models_dir, row.digest) if row.digest else []
            return {
                **catalog_record(row, summary_of(row.local_path)),
                "files": [str(part) for part in parts_of(row.local_path)],
                "part_digests": list(row.part_digests),
                "conversions": [
                    {
                        "compute_type": conversion.compute_type,
                        "size_bytes": conversion.size_bytes,
                        "path": str(conversion.path),
                        "usable": conversion.is_usable,
                    }
                    for conversion in found
                ],
            }

        return {**in_thread(described), "workers": self._workers.using(str(ref))}

    def require(self, ref: ModelRef) -> None:
        """Check that the catalog has a model.

        Raises:
            ModelNotFound: it has not.
        """
        if self._store.catalog().find(ref) is None:
            raise _unknown(ref)

    def verify(self, ref: ModelRef | None, on_event: OnEvent) -> None:
        """Block until one model, or every model, has been read and compared with what is known of it.

        Raises:
            ModelDamaged: one at least is not as it should be; ``on_event`` was told of each.
        """
        log.info("verification_started", message=f"verifying {ref or 'all models'}")
        self._store.verify(ref, on_event)

    def prune(self, unused_for_days: float | None, *, dry_run: bool) -> dict[str, Any]:
        """Remove what nobody needs, and models not used for so many days where a number is given."""
        catalog = self._store.catalog()
        since = None if unused_for_days is None else self._clock() - unused_for_days * _DAY_S

        def pruned() -> list[dict[str, Any]]:
            from rbee.models.pruning import InUse, Pruning

            def in_use() -> InUse:
                served = {parse_model_ref(text) for text in self._workers.models()}
                return InUse(self._store.busy() | served, self._workers.model_folders())

            found = Pruning(self._models_dir, catalog, in_use, dry_run=dry_run).run(since)
            return [
                {
                    "kind": str(item.kind),
                    "path": str(item.path),
                    "size_bytes": item.size_bytes,
                    "reason": item.reason,
                    "model_ref": item.model_ref,
                }
                for item in found
            ]

        removed = in_thread(pruned)
        freed = sum(item["size_bytes"] for item in removed)
        if removed and not dry_run:
            log.info("models_pruned", message=f"removed {len(removed)} items", bytes_freed=freed)
        return {"removed": removed, "bytes_freed": freed, "dry_run": dry_run}


def _unknown(ref: ModelRef) -> ModelNotFound:
    return ModelNotFound(str(ref), "it is not in the catalog of this node")
