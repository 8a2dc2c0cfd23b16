"""Names and captions of a large folder as Arrow columns: the layouts of folder_index.py, for hundreds of thousands of pictures.

The plain reader makes Python objects of every name and caption; here a million rows take seconds. Whatever the fast reader of a
captions file does not take, the plain one of metadata.py reads, and says what is wrong.
"""

import json
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import reduce
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.data.captions import MAX_CHARACTERS, clean_caption
from t2i.data.folders.index import nfc
from t2i.data.folders.metadata import METADATA_NAMES, TEXT_COLUMNS, read_metadata
from t2i.data.verify import stat_of
from t2i.errors import InputError
from t2i.images import SUFFIXES
from t2i.names import shown

if TYPE_CHECKING:
    import pyarrow as pa

_AT_ONCE = 16_384  # rows that are Python objects at one time
# captions that cleaning leaves as they are: printing ASCII with single spaces
_CLEAN = r"^[!-~](?: ?[!-~])*$"


class Names(NamedTuple):
    """What lies in a folder and all below it."""

    paths: "pa.Array"  # of the pictures, sorted
    metadata: list[str]
    sources: list[tuple[str, tuple[int, int]]]  # folders, each as it was before it was listed
    unread: list[str]  # pictures whose names are no text


def list_pictures(root: Path) -> Names:
    """Lists a folder as `folder_index.walk` does; links to folders are followed, each folder once.

    Raises:
        InputError: it cannot be listed.
    """
    import pyarrow as pa
    import pyarrow.compute

    pc: Any = pyarrow.compute  # its functions are made when it is imported
    chunks: list[pa.Array] = []
    found = Names(_strings([]), [], [], [])
    pending, visited = [""], set()
    while pending:
        folder = pending.pop()
        try:
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            found.sources.append((folder, (status.st_size, status.st_mtime_ns)))
            with os.scandir(root / folder) as entries:
                while part := list(islice(entries, _AT_ONCE)):
                    pending += [f"{folder}{entry.name}/" for entry in part if entry.is_dir() and _counts(entry.name)]
                    _sort_out(folder, [entry.name for entry in part], found, chunks)
        except OSError as error:
            why = f"{error.strerror or error}; check its permissions"
            raise InputError(f"cannot list folder {shown(root / folder)}: {why}") from error
    paths = pa.chunked_array(chunks, pa.string())
    del chunks
    ordered = pa.concat_arrays(paths.take(pc.sort_indices(paths)).chunks) if len(paths) else found.paths
    del paths
    _release()
    return found._replace(paths=ordered)


def _counts(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _sort_out(folder: str, names: list[str], found: Names, chunks: list["pa.Array"]) -> None:
    import pyarrow.compute

    pc: Any = pyarrow.compute
    try:
        here = _strings(names)
    except UnicodeEncodeError:
        found.unread.extend(
            f"{folder}{name}" for name in names if not _is_text(name) and name.lower().endswith(SUFFIXES)
        )
        here = _strings([name for name in names if _is_text(name)])
    lower = pc.ascii_lower(here)
    found.metadata.extend(folder + name for name in here.filter(pc.is_in(lower, _strings(METADATA_NAMES))).to_pylist())
    endings = [pc.ends_with(lower, suffix) for suffix in SUFFIXES]
    pictures = here.filter(pc.and_not(reduce(pc.or_, endings), pc.starts_with(lower, ".")))
    chunks.append(pc.binary_join_element_wise(_text(folder), pictures, _text("")))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class Rows(NamedTuple):
    """Captions in one table of a captions file: those of row r are the `values` where `parents` is r."""

    names: "pa.Array"  # file_name as written
    values: "pa.Array"  # cleaned, none empty
    parents: NDArray[np.int64]


def read_rows(path: Path) -> Iterator[Rows]:
    """A captions file in parts.

    Raises:
        InputError: as `metadata.read_metadata`.
    """
    import pyarrow as pa

    if path.suffix.lower() == ".jsonl":
        try:
            yield from list(_rows_jsonl(path))  # all or nothing: the plain reader begins at the first row again
            return
        except (pa.ArrowException, StopIteration, ValueError, UnicodeError):
            pass
    rows = iter(read_metadata(path))
    while part := list(islice(rows, _AT_ONCE)):
        values = [(caption, r) for r, (_, captions) in enumerate(part) for caption in captions]
        parents = np.array([r for _, r in values], dtype=np.int64)
        yield Rows(_strings([name for name, _ in part]), _strings([caption for caption, _ in values]), parents)


def _rows_jsonl(path: Path) -> Iterator[Rows]:
    """Raises ValueError or ArrowException on whatever is not the plainest of such files."""
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.json as pj

    compute: Any = pyarrow.compute

    with open(path, encoding="utf-8") as file:
        first = json.loads(next(line for line in file if line.strip()))
    main = next((name for name in TEXT_COLUMNS if first.get(name) is not None), "")
    listed = isinstance(first.get(main), list)
    before = TEXT_COLUMNS[: TEXT_COLUMNS.index(main)]  # raises ValueError where there is none
    fields = [("file_name", pa.string()), *((name, pa.string()) for name in before)]
    schema = pa.schema([*fields, (main, pa.list_(pa.string()) if listed else pa.string())])
    options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    with pj.open_json(path, pj.ReadOptions(use_threads=False, block_size=1 << 22), options) as batches:
        for batch in batches:
            names, text = batch["file_name"], batch[main]
            names.validate(full=True)
            text.validate(full=True)
            values, parents = (
                (text.flatten(), numpy_of(compute.list_parent_indices(text)))
                if listed
                else (text, np.arange(len(text)))
            )
            unclear = names.null_count or text.null_count or values.null_count
            if (
                unclear
                or any(batch[name].null_count < len(batch) for name in before)
                or compute.any(compute.equal(names, _text(""))).as_py()
            ):
                raise ValueError("rows that the plain reader has to look at")
            yield Rows(names, *_cleaned(values, parents))


def _cleaned(values: "pa.Array", parents: NDArray[np.int64]) -> tuple["pa.Array", NDArray[np.int64]]:
    import pyarrow.compute

    pc: Any = pyarrow.compute  # its functions are made when it is imported
    fine = pc.match_substring_regex(values, _CLEAN)
    fine = pc.and_(fine, pc.less_equal(pc.binary_length(values), _number(MAX_CHARACTERS)))
    if pc.all(fine).as_py():
        return values, parents
    mended = [clean_caption(caption) for caption in values.filter(pc.invert(fine)).to_pylist()]
    values = pc.replace_with_mask(values, pc.invert(fine), _strings(mended))
    full = pc.not_equal(values, _text(""))
    return values.filter(full), parents[numpy_of(pc.indices_nonzero(full))]


class Columns(NamedTuple):
    """The pictures of a folder with their captions, and what is left out: how many, and the first few by name."""

    paths: "pa.Array"  # of the captioned pictures, sorted
    values: "pa.ChunkedArray"  # all captions
    order: NDArray[np.int64]  # of the captions, those of a picture together
    offsets: NDArray[np.int64]  # where in this order those of each picture begin, and the end
    missing: tuple[int, list[str]]  # captions without a picture
    bare: tuple[int, list[str]]  # pictures without a caption
    unread: tuple[int, list[str]]  # pictures whose names are no text
    sources: list[
        tuple[str, tuple[int, int]]
    ]  # folders and captions files with size and time: while all stay, this holds

    def batches(self) -> Iterator["pa.RecordBatch"]:
        """`path`, `captions`: a list each, and `key`, the id as a number for random draws."""
        import pyarrow as pa

        for start in range(0, len(self.paths), _AT_ONCE):
            paths = self.paths.slice(start, _AT_ONCE)
            offsets = self.offsets[start : start + len(paths) + 1]
            own = self.values.take(_numbers(self.order[offsets[0] : offsets[-1]])).combine_chunks()
            captions = pa.ListArray.from_arrays(_numbers((offsets - offsets[0]).astype(np.int32)), own)
            yield pa.record_batch([paths, captions, _numbers(_keys(paths))], ["path", "captions", "key"])


def read_columns(root: Path) -> Columns:
    """All of a folder.

    Raises:
        InputError: no pictures, or a captions file that cannot be read.
    """
    import pyarrow as pa

    names = list_pictures(root)
    if not len(names.paths):
        raise InputError(
            f"no pictures ({' '.join(SUFFIXES)}) in {shown(root)} and below; name the folder that holds them"
        )
    values: list[pa.Array] = []
    owners: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
    missing: dict[str, None] = {}
    for name in sorted(names.metadata):
        names.sources.append((name, stat_of(root / name)))
        parts = list(read_rows(root / name))
        written = pa.chunked_array([part.names for part in parts], pa.string())
        places = _places(names.paths, name.rpartition("/")[0], written, missing)
        starts = np.cumsum([0, *(len(part.names) for part in parts)])
        for part, start in zip(parts, starts[:-1].tolist(), strict=True):
            owner = places[part.parents + start]
            values.append(part.values.filter(_flags(owner >= 0)))
            owners.append(owner[owner >= 0])
        del parts, written, places
        _release()
    owner = np.concatenate(owners)
    counts = np.bincount(owner, minlength=len(names.paths))
    paths, bare = names.paths, names.paths.slice(0, 0)
    if not counts.all():
        paths, bare = paths.filter(_flags(counts > 0)), paths.filter(_flags(counts == 0))
    return Columns(
        paths,
        pa.chunked_array(values, pa.string()),
        np.argsort(owner, kind="stable"),
        np.concatenate([[0], np.cumsum(counts[counts > 0])]),
        (len(missing), list(missing)[:3]),
        (len(bare), bare.slice(0, 3).to_pylist()),
        (len(names.unread), [shown(name) for name in names.unread[:3]]),
        names.sources,
    )


def _places(paths: "pa.Array", folder: str, names: "pa.ChunkedArray", missing: dict[str, None]) -> NDArray[np.int32]:
    """Where among the sorted paths each name is that a captions file in `folder` speaks of; -1: nowhere."""
    import pyarrow.compute

    pc: Any = pyarrow.compute
    full = pc.binary_join_element_wise(_text(folder), names, _text("/")) if folder else names
    places = _joins(full, paths)
    lost = np.flatnonzero(places < 0)
    if len(lost):
        odd = {nfc(path): path for path in paths.filter(pc.invert(pc.string_is_ascii(paths))).to_pylist()}
        tried = (_normal(folder, name) for name in names.take(_numbers(lost)).to_pylist())
        spelled = [odd.get(nfc(name), name) for name in tried]
        again = _joins(_strings(spelled), paths)
        places[lost] = again
        missing |= dict.fromkeys(name for name, place in zip(spelled, again.tolist(), strict=True) if place < 0)
    return places


def _joins(names: "pa.Array | pa.ChunkedArray", paths: "pa.Array") -> NDArray[np.int32]:
    """Where each name stands among the sorted paths, -1: nowhere. In parts, as a table of hashes of all takes much memory."""
    import pyarrow as pa
    import pyarrow.compute

    pc: Any = pyarrow.compute
    order = pc.sort_indices(names)
    places = np.empty(len(names), np.int32)
    for start in range(0, len(names), _AT_ONCE):
        rows = order.slice(start, _AT_ONCE)
        part = names.take(rows)
        part = pa.concat_arrays(part.chunks) if isinstance(part, pa.ChunkedArray) else part
        first, last = (
            side(range(len(paths)), part[at].as_py(), key=lambda i: paths[i].as_py())
            for side, at in ((bisect_left, 0), (bisect_right, -1))
        )
        found = pc.index_in(part, paths.slice(first, last - first))
        places[numpy_of(rows)] = numpy_of(pc.fill_null(found, _number(-1 - first))) + np.int32(first)
    return places


def _normal(folder: str, name: str) -> str:
    name = name.replace("\\", "/")  # written on Windows
    return os.path.normpath(os.path.join(folder, name)).replace(os.sep, "/")


def _keys(paths: "pa.Array") -> NDArray[np.int64]:
    """`seeding.ids_of` of the ids of these paths."""
    keys = []
    for start in range(0, len(paths), _AT_ONCE):
        part = paths.slice(start, _AT_ONCE)
        spelled = (nfc(path).encode() for path in part.to_pylist())
        digests = b"".join([blake2b(name, digest_size=8).digest() for name in spelled])
        keys.append((np.frombuffer(digests, "<u8") >> 1).astype(np.int64))
    return np.concatenate(keys) if keys else np.empty(0, np.int64)


# ---- Arrow arrays without `pa.array`, which imports pandas where it is installed: a second and 60 MB ------------------


def _strings(texts: Sequence[str]) -> "pa.Array":
    """Raises UnicodeEncodeError for lone surrogates."""
    import pyarrow as pa

    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def _text(text: str) -> "pa.Scalar":
    return _strings([text])[0]


def _number(number: int) -> "pa.Scalar":
    return _numbers(np.array([number], np.int32))[0]


def _numbers(numbers: NDArray[Any]) -> "pa.Array":
    import pyarrow as pa

    kind = pa.from_numpy_dtype(numbers.dtype)
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(np.ascontiguousarray(numbers))])


def _flags(flags: NDArray[np.bool_]) -> "pa.Array":
    import pyarrow as pa

    packed = np.packbits(flags, bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(flags), [None, pa.py_buffer(packed)])


def numpy_of(array: Any) -> NDArray[Any]:
    """The numbers of an array without nulls; `to_numpy` imports pandas too."""
    return np.from_dlpack(array)


def _release() -> None:
    """Gives freed memory back to the system."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
