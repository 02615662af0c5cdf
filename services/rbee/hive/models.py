"""The models of this node: found in the catalog, fetched and converted once however many ask, removed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
from gevent.lock import RLock

from rbee.core.errors import ModelIncompatible, ModelInUse, ModelNotFound, RbeeError, ServiceUnavailable
from rbee.core.logs import get_logger
from rbee.core.references import ModelRef, Provider
from rbee.hive.downloads import Download, Downloads, download_of_present
from rbee.hive.local_models import LocalModel, ModelFormat
from rbee.hive.model_fits import FitMb
from rbee.hive.model_ports import ModelObserver, Provisioner
from rbee.hive.shared_work import OnEvent, SharedWork, WireEvent
from rbee.hive.threads import in_thread

if TYPE_CHECKING:
    from rbee.models.catalog import Catalog, CatalogRow

log = get_logger("rbee-hive")

ChooseType = Callable[[LocalModel], str]
"""Gives the compute type in which this node would run a model."""


class ModelStore:
    """All models of this node.

    Args:
        provisioner: does what takes long.
        models_dir: where fetched and converted models lie.
        catalog_db: the catalog's database; opened when it is first needed, since its library loads slowly.
        fit_of: the memory a worker of a model file or folder takes; may read headers.
    """

    def __init__(
        self,
        provisioner: Provisioner,
        models_dir: Path,
        catalog_db: Path,
        observer: ModelObserver,
        fit_of: Callable[[Path], FitMb | None] = lambda _path: None,
    ) -> None:
        self._provisioner = provisioner
        self._models_dir = models_dir
        self._catalog_db = catalog_db
        self._observer = observer
        self._fit_of = fit_of
        self._opening = RLock()
        self._opened: Catalog | None = None
        self._downloads = Downloads()
        self._conversions: dict[tuple[Path, str], SharedWork[Path]] = {}
        self._measurements: dict[tuple[Path, str], SharedWork[None]] = {}
        self._is_closed = False

    def warm_up(self) -> None:
        """Begin to load what the first request will need; returns at once."""
        gevent.spawn(self._load)

    def find(self, ref: ModelRef) -> LocalModel | None:
        """The model, when it is on this node and known."""
        row = self.catalog().find(ref)
        return None if row is None else _local(row)

    def start_download(self, ref: ModelRef) -> Download:
        """The transfer of a model: one that runs already, a new one, or one with the id ``cached``.

        A ``file:`` model is registered where it lies; when that fails the download has failed.

        Raises:
            ServiceUnavailable: the hive is shutting down, or its catalog cannot be read.
        """
        local = self.find(ref)
        if local is not None:
            return download_of_present(ref, local)
        self._refuse_when_closed()
        download = self._downloads.share(ref, lambda on_event: self._obtain(ref, on_event))
        if ref.provider is Provider.FILE and download.settle():
            return download_of_present(ref, download.wait())
        return download

    def download(self, download_id: str) -> Download:
        """A transfer that runs or ended within the last ten minutes.

        Raises:
            DownloadNotFound: there is none of that id.
        """
        return self._downloads.get(download_id)

    def provide(self, ref: ModelRef, on_event: OnEvent) -> LocalModel:
        """Block until the model is on this node, telling ``on_event`` how it comes.

        Raises:
            RbeeError: it cannot be had.
        """
        return self.start_download(ref).follow(on_event)

    def converted(self, local: LocalModel, ref: ModelRef, compute_type: str) -> Path | None:
        """The folder a worker can load; None when the model has yet to be converted to that type."""
        if local.format is ModelFormat.CTRANSLATE2:
            return local.path
        current = self.find(ref)
        digest = local.digest if current is None else current.digest
        if digest is None:
            return None

        from rbee.models.converted_folders import converted_folder

        return converted_folder(self._models_dir, digest, compute_type)

    def convert(self, local: LocalModel, ref: ModelRef, compute_type: str, on_event: OnEvent) -> Path:
        """Block until the model is converted; requests for the same conversion share one.

        Raises:
            RbeeError: it cannot be converted.
        """
        if local.format is ModelFormat.CTRANSLATE2:
            return local.path
        self._refuse_when_closed()
        key = (local.path, compute_type)
        work = self._conversions.get(key)
        if work is None:
            work = self._conversions[key] = SharedWork()

            def over() -> None:
                del self._conversions[key]

            work.start(lambda tell: self._convert(local, ref, compute_type, tell), over)
        return work.follow(on_event)

    def measure_quality(self, ref: ModelRef, compute_type: ChooseType, on_event: OnEvent) -> None:
        """Block until a conversion has been compared with float32, converting first if need be; requests for
        the same comparison share one. The figures are the progress event of the stage ``measured``.

        Raises:
            ModelNotFound: the catalog does not have it.
            ModelIncompatible: it is no GGUF, so that there is no float32 to compare with.
            RbeeError: the comparison failed.
        """
        local = self.find(ref)
        if local is None:
            raise ModelNotFound(str(ref), "it is not in the catalog of this node")
        if local.format is ModelFormat.CTRANSLATE2:
            raise ModelIncompatible(
                "The model was converted elsewhere; there is no GGUF to compare it with",
                details={"format": str(local.format)},
                suggestion="Measure a model that was fetched as GGUF",
            )
        self._refuse_when_closed()
        key = (local.path, compute_type(local))
        work = self._measurements.get(key)
        if work is None:
            work = self._measurements[key] = SharedWork()

            def over() -> None:
                del self._measurements[key]

            work.start(lambda tell: self._provisioner.measure_quality(local, ref, key[1], tell), over)
        work.follow(on_event)

    def touch(self, ref: ModelRef) -> None:
        """Note that the model is being used now."""
        self.catalog().touch(ref)

    def remove(self, ref: ModelRef, in_use: Callable[[ModelRef], list[str]]) -> None:
        """Remove file, conversions and catalog row; for ``file:`` models the row and conversions.

        Raises:
            ModelNotFound: the catalog does not have it.
            ModelInUse: ``in_use`` names workers, or it is being converted.
        """
        from rbee.models.removal import remove_model

        catalog = self.catalog()
        row = catalog.find(ref)
        if row is None:
            raise ModelNotFound(str(ref), "it is not in the catalog of this node")
        workers = in_use(ref)
        if workers or any(path == row.local_path for path, _ in [*self._conversions, *self._measurements]):
            raise ModelInUse(str(ref), workers)
        in_thread(lambda: remove_model(self._models_dir, catalog, ref))
        log.info("model_removed", message=f"removed {ref}", model_ref=str(ref))

    def records(self) -> list[dict[str, Any]]:
        """The catalog as the API shows it, with what each GGUF's header says and ``fit_mb``."""
        rows = self.catalog().list()

        def described() -> list[dict[str, Any]]:
            from rbee.models.catalog import catalog_record
            from rbee.models.gguf_summaries import summary_of

            return [
                catalog_record(row, summary_of(row.local_path)) | {"fit_mb": self._fit_of(row.local_path)}
                for row in rows
            ]

        return in_thread(described)

    def verify(self, ref: ModelRef | None, on_event: OnEvent) -> None:
        """Block until one model of the catalog, or every one, has been checked.

        Raises:
            ModelDamaged: one at least is not as it should be; ``on_event`` was told of each.
        """
        self._refuse_when_closed()
        self._provisioner.verify(ref, on_event)

    def busy(self) -> frozenset[ModelRef]:
        """Models that are being fetched or converted."""
        converting = {path for path, _ in list(self._conversions)}
        rows = self.catalog().list() if converting else ()
        fetching = {download.ref for download in self._downloads.running}
        return frozenset(fetching | {row.ref for row in rows if row.local_path in converting})

    def close(self) -> None:
        """End transfers and conversions; what has arrived stays and is continued by a later request."""
        self._is_closed = True
        self._provisioner.close()

    def _obtain(self, ref: ModelRef, on_event: OnEvent) -> LocalModel:
        """Carry a download out; it has at least one progress event, however it ends."""
        log.info("download_started", message=f"fetching {ref}", model_ref=str(ref))
        self._observer.download_began()
        told = False

        def observed(event: WireEvent) -> None:
            nonlocal told
            if event["event"] == "progress":
                told = True
                self._observer.download_progressed(_percent(event["data"]))
            on_event(event)

        try:
            local = self._fetch(ref, observed)
        except RbeeError as error:
            if not told:
                on_event(_downloading(0, None))
            self._ended("download", ref, error)
            raise
        if not told:
            on_event(_downloading(local.size_bytes, local.size_bytes))
        self._ended("download", ref, None)
        return local

    def _fetch(self, ref: ModelRef, on_event: OnEvent) -> LocalModel:
        if ref.provider is Provider.FILE:
            return self._register(ref)
        self._provisioner.fetch(ref, on_event)
        local = self.find(ref)
        if local is None:
            raise ModelNotFound(str(ref), "its file was removed while it was fetched")
        return local

    def _register(self, ref: ModelRef) -> LocalModel:
        def inspect() -> tuple[Path, int]:
            from rbee.models.gguf_file import read_gguf
            from rbee.models.providers.local_file import LocalFileProvider

            path = Path(ref.reference)
            found = LocalFileProvider().resolve(ref)
            if path.is_file():
                read_gguf(path)
            return path, found.size_bytes or 0

        path, size = in_thread(inspect)
        return _local(self.catalog().add(ref, path, size))

    def _convert(self, local: LocalModel, ref: ModelRef, compute_type: str, on_event: OnEvent) -> Path:
        folder = self.converted(local, ref, compute_type)
        if folder is not None:
            return folder
        log.info(
            "conversion_started",
            message=f"converting to {compute_type}",
            model_ref=str(ref),
            compute_type=compute_type,
        )
        try:
            folder = self._provisioner.convert(local, ref, compute_type, on_event)
        except RbeeError as error:
            self._ended("conversion", ref, error)
            raise
        self._ended("conversion", ref, None)
        return folder

    def _ended(self, what: str, ref: ModelRef, error: RbeeError | None) -> None:
        outcome = "ok" if error is None else error.code
        if error is None:
            log.info(f"{what}_complete", message=f"{what} of {ref} complete", model_ref=str(ref))
        else:
            log.warning(f"{what}_failed", message=error.message, model_ref=str(ref), error_code=outcome)
        if what == "download":
            self._observer.download_ended(outcome)
        else:
            self._observer.conversion_ended(outcome)

    def catalog(self) -> Catalog:
        """The catalog, opened when it is first needed.

        Raises:
            ServiceUnavailable: it cannot be read.
        """
        if self._opened is None:
            with self._opening:
                if self._opened is None:
                    in_thread(_import_catalog)
                    from rbee.models.catalog import Catalog

                    self._opened = in_thread(lambda: Catalog(self._catalog_db, self._models_dir))
        return self._opened

    def _load(self) -> None:
        try:
            self.catalog()
        except RbeeError as error:
            log.warning("catalog_unavailable", message=error.message)

    def _refuse_when_closed(self) -> None:
        if self._is_closed:
            raise ServiceUnavailable("rbee-hive is shutting down")


def _local(row: CatalogRow) -> LocalModel:
    kind = ModelFormat.CTRANSLATE2 if row.local_path.is_dir() else ModelFormat.GGUF
    return LocalModel(row.local_path, kind, row.size_bytes, row.digest)


def _downloading(done: int, total: int | None) -> WireEvent:
    data = {"stage": "downloading", "bytes_downloaded": done, "bytes_total": total, "speed_mbps": 0.0}
    return {"event": "progress", "data": data}


def _percent(data: dict[str, Any]) -> float:
    total = data.get("bytes_total")
    return 100.0 * data.get("bytes_downloaded", 0) / total if total else 0.0


def _import_catalog() -> None:
    import rbee.models.catalog  # noqa: F401
