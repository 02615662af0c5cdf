"""Models that lie on the node already: a GGUF file or a CTranslate2 folder, registered in place."""

from __future__ import annotations

from pathlib import Path

from rbee.core.errors import ModelAccessDenied, ModelIncompatible, ModelNotFound
from rbee.core.references import GGUF_SUFFIX, ModelRef
from rbee.models.providers import FetchedFile, RemoteModel
from rbee.models.split_files import not_the_first, part_missing, parts_of, split_name
from rbee.models.storage import size_on_disk
from rbee.models.transfers import Transfer

GGUF_MAGIC = b"GGUF"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


class LocalFileProvider:
    """``file:/abs/path.gguf`` (the first part, of a split model) and ``file:/abs/folder``."""

    def resolve(self, ref: ModelRef) -> RemoteModel:
        """Check that the path is a model of a known format; nothing is read but its first bytes.

        Raises:
            ModelNotFound, ModelAccessDenied: the path does not exist or cannot be read.
            ModelIncompatible: it is neither a GGUF nor a CTranslate2 folder, or not all parts of a model.
        """
        path = Path(ref.reference)
        try:
            if path.is_dir():
                _check_folder(path)
            elif path.exists():
                _refuse_incomplete(path)
                check_gguf(path)
            else:
                raise ModelNotFound(str(ref), f"{path} does not exist")
            size = size_on_disk(path)
        except OSError as error:
            raise ModelAccessDenied(
                str(ref),
                reason=f"{path} cannot be read: {error.strerror}",
                suggestion=f"Make {path} readable for the user that runs the hive",
            ) from error
        return RemoteModel(filename=path.name, size_bytes=size, local_path=path)

    def fetch(  # the port's signature, of which a file that is never moved needs little
        self,
        ref: ModelRef,
        remote: RemoteModel,  # noqa: ARG002
        target: Path,  # noqa: ARG002
        transfer: Transfer,  # noqa: ARG002
    ) -> FetchedFile:
        raise ModelNotFound(str(ref), f"{ref.reference} is used in place and cannot be fetched")


def check_gguf(path: Path) -> None:
    """Check extension and magic of a GGUF file.

    Raises:
        ModelIncompatible: either one is missing.
        OSError: the file cannot be read.
    """
    if path.suffix != GGUF_SUFFIX:
        raise ModelIncompatible(
            f"{path.name} is not a GGUF model: its name does not end in {GGUF_SUFFIX}",
            details={"format": path.suffix.lstrip(".") or "unknown"},
        )
    with path.open("rb") as file:
        magic = file.read(len(GGUF_MAGIC))
    if magic != GGUF_MAGIC:
        raise ModelIncompatible(
            f"{path.name} is not a GGUF model: it does not start with the letters GGUF",
            details={"format": "unknown"},
        )


def _refuse_incomplete(path: Path) -> None:
    """Refuse another part than the first of a split model, and a first one without all the others."""
    split = split_name(path.name)
    if split is None:
        return
    if split.number != 1:
        raise not_the_first(split.number, split.count, str(path.with_name(split.part(1))))
    for part in parts_of(path):
        if not part.exists():
            raise part_missing(part.name)


def _check_folder(path: Path) -> None:
    missing = [name for name in ("model.bin", "config.json") if not (path / name).is_file()]
    if not any((path / name).is_file() for name in _TOKENIZERS):
        missing.append(" or ".join(_TOKENIZERS))
    if missing:
        raise ModelIncompatible(
            f"{path.name} is not a CTranslate2 model folder: it lacks {', '.join(missing)}",
            details={"format": "folder", "missing": missing},
        )
