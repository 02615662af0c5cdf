"""The headers of all parts of a GGUF, checked to belong together; a whole file is its only part.

llama.cpp numbers the parts in their metadata (``split.no`` from 0, ``split.count``), gives all other metadata
to the first, and says in ``split.tensors.count`` how many tensors all parts have together.
"""

from __future__ import annotations

from pathlib import Path

from rbee.core.errors import ModelIncompatible, ModelNotFound
from rbee.models.gguf_header import MAX_TENSORS, Header, malformed, read_header
from rbee.models.split_files import not_the_first, part_missing, parts_of, split_name


def read_headers(path: Path) -> list[tuple[Path, Header]]:
    """Every part with its header, by the path of the first.

    Raises ModelNotFound when ``path`` does not exist, and ModelIncompatible for a file that is no complete
    GGUF, for another part than the first, and for parts that are missing or do not belong together.
    """
    first = read_header(path)
    _refuse_other_part(path, first)
    headers, names = [(path, first)], set(first.tensors)
    for number, part in enumerate(parts_of(path)[1:], start=1):
        header = _read_part(part, number, first)
        if twice := names & header.tensors.keys():
            raise malformed(f"the tensor {min(twice)[:80]!r} is in two parts of the model")
        names |= header.tensors.keys()
        if len(names) > MAX_TENSORS:
            raise malformed(f"its parts have more than {MAX_TENSORS} tensors")
        headers.append((part, header))
    announced = first.metadata.get("split.tensors.count")
    if len(headers) > 1 and announced is not None and announced != len(names):
        raise malformed(f"it announces {str(announced)[:40]} tensors, and its parts have {len(names)}")
    return headers


def _refuse_other_part(path: Path, header: Header) -> None:
    """Refuse a file that is not the first part, or whose name and metadata disagree about parts."""
    named = split_name(path.name)
    count, number = _whole(header, "split.count") or 1, _whole(header, "split.no") + 1
    if named is not None and named.number != 1:
        raise not_the_first(named.number, named.count, named.part(1))
    if count == 1 and named is None:
        return
    if number != 1:
        raise not_the_first(number, count, f"NAME-00001-of-{count:05}.gguf")
    if named is None:
        raise malformed(f"it is one of {count} parts, but is not named NAME-00001-of-{count:05}.gguf")
    if named.count != count:
        raise malformed(f"its name says that it is one of {named.count} parts, its metadata of {count}")


def _read_part(path: Path, index: int, first: Header) -> Header:
    """The header of a further part; ``index`` counts from 0, as ``split.no`` does."""
    try:
        header = read_header(path)
    except ModelNotFound:
        raise part_missing(path.name) from None
    except ModelIncompatible as error:
        raise ModelIncompatible(
            f"{error.message} (the part {path.name})", details=error.details, suggestion=error.suggestion
        ) from None
    for key, expected in (("split.no", index), ("split.count", _whole(first, "split.count"))):
        if _whole(header, key) != expected:
            raise malformed(f"{path.name} is no part of it: its {key} is {_whole(header, key)}")
    return header


def _whole(header: Header, key: str) -> int:
    """An integer of the metadata; 0 where there is none."""
    value = header.metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
