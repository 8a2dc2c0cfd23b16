"""The samples of one tar shard and their places: headers are walked, nothing is ever extracted.

The rule is webdataset's: a member's key is its path up to the first dot of the base name, its kind is what follows, and the
members of one key are one sample (img2dataset: key.jpg, key.txt, key.json; key.cls is its class). Where that kind is unknown,
the last dot counts: photo.1.jpg and photo.1.txt are the sample photo.1. Only plain members are looked at; links, devices, sparse
members and names that leave the folder are counted and passed over, whatever they hold.
"""

import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from t2i.data.cached import Keep
from t2i.data.captions import captions_of
from t2i.data.packed.captions import captions_in, read_beside
from t2i.data.packed.dataset import indexed, schema
from t2i.data.packed.remote import Place, beside, opened
from t2i.data.tools.classes import LABEL, classes_in
from t2i.errors import InputError
from t2i.files import open_regular
from t2i.images import MAX_BYTES, OTHER_SUFFIXES, SUFFIXES, LostConnection
from t2i.names import numbered, shown

if TYPE_CHECKING:
    import pyarrow as pa

MAX_HEADER = 1 << 20  # bytes of one extended header: names are far shorter
MAX_TEXT = 1 << 20  # of a caption or a JSON member
CLASS = "cls"  # the kind of member that names the class of an image
_IMAGES = tuple(suffix[1:] for suffix in SUFFIXES)
_SAID = 4  # kinds of members, or keys of JSON, that a message names
_Member = tuple[str, int, int]  # kind, offset, bytes


def index_tar(path: Place, image: str = "", text: str = "") -> "pa.Table":
    """Returns the samples of one shard that have an image and a caption, from the cache or made now.

    Args:
        image: the kind of member that is the image, as `input.jpg`; "": any image.
        text: the kind that holds the captions, as `txt`, or their name in the .json; "": .txt, else .json, else the parquet
            beside the shard.

    Raises:
        InputError: it is not a plain tar, holds no such sample, or two images have one key.
    """
    import pyarrow as pa

    table = beside(path, ".parquet")
    files = [path] if table is None else [path, table]

    def rows(counts: dict[str, Any], _: Keep) -> Iterator[dict[str, Any]]:
        try:
            yield from _samples(path, table, image, text, counts)
        except OSError as error:
            raise InputError(f"cannot read shard {path}: {error.strerror or error}; check its permissions") from error
        except LostConnection as error:
            raise InputError(f"{error}; start again when it can be reached") from error

    columns = {"offset": pa.int64(), "size": pa.int64()}
    return indexed("shards", files, [image, text], lambda: schema(columns), rows)


def _samples(
    path: Place, beside: Place | None, image: str, text: str, counts: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    with opened(path) as file:
        _refuse_packed(path, file.read(6))
        passed: Counter[str] = Counter()
        others: Counter[str] = Counter()
        samples = _group(path, _members(path, file, passed), image, text, passed, others)
        captions_beside = read_beside(beside) if beside else {}
        whole = 0
        for key, (member, words) in samples.items():
            if member is None:
                passed["captions without an image"] += bool(words.keys() - {CLASS})
                continue
            captions = _captions(file, words, passed, text, others) or captions_beside.get(key, [])
            if not captions:
                passed["images without a caption"] += 1
                continue
            whole += 1
            digest = _sha256(file, *member[1:])
            place = {"offset": member[1], "size": member[2]}
            yield {"key": key, "captions": captions, "sha256": digest, LABEL: _classes(file, words), **place}
    if not whole:
        raise InputError(_empty(path, image, text, passed, others))
    counts |= passed


def _empty(path: Place, image: str, text: str, passed: Counter[str], others: Counter[str]) -> str:
    found = ", ".join(numbered(count, what) for what, count in passed.items() if what != "other members")
    kinds = " and ".join([image or ".jpg or another image", text or ".txt or .json"])
    named = ", ".join(f"{what} ({count:,})" for what, count in others.most_common(_SAID))
    there = "; ".join(part for part in (found, f"other members: {named}" if named else "") if part) or "no members"
    unread = [what for what in others if what in OTHER_SUFFIXES]
    fix = f"images in {unread[0]} are not read, convert them to PNG or JPEG" if unread else "remove it or pack it again"
    say = "; name what holds the images or captions, as in ?image=input.jpg&text=edit.txt, or a key of the JSON as ?text=KEY"
    return f"shard {path} is empty: no sample with {kinds}, but {there}; {fix}{say if others else ''}"


class TarImage(NamedTuple):
    """An image in a tar."""

    captions: list[str]  # empty: it has none
    offset: int
    size: int


def list_tar(path: Path) -> tuple[dict[str, TarImage], Counter[str]]:
    """Returns the images of one tar by key, with captions or without, and what was passed over, counted.

    Raises:
        InputError: it cannot be read, is not a plain tar, or two images have one key.
    """
    passed: Counter[str] = Counter()
    try:
        with open_regular(path) as file:
            _refuse_packed(path, file.read(6))
            samples = _group(path, _members(path, file, passed), "", "", passed, Counter())
            found = {
                key: TarImage(_captions(file, words, passed, "", Counter()), *member[1:])
                for key, (member, words) in samples.items()
                if member is not None
            }
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; name a .tar of images") from error
    return found, passed


def _refuse_packed(path: Place, start: bytes) -> None:
    for magic, tool in (
        (b"\x1f\x8b", "gunzip"),
        (b"BZh", "bunzip2"),
        (b"\xfd7zXZ", "unxz"),
        (b"\x28\xb5\x2f\xfd", "unzstd"),
    ):
        if start.startswith(magic):
            raise InputError(f"shard {path} is packed, and cannot be read at any place; unpack it first: {tool} FILE")


class _Bounded:
    """A file that no header makes read more than `MAX_HEADER` at once."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int) -> bytes:
        if not 0 <= count <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {count:,} bytes")
        return self._file.read(count)


def _members(path: Place, file: BinaryIO, passed: Counter[str]) -> Iterator[tuple[str, int, int]]:
    """Yields (name, offset, bytes) of the plain members, in order; ends where the tar is cut off or damaged."""
    end = os.fstat(file.fileno()).st_size
    file.seek(0)
    last = -1
    try:
        with tarfile.open(fileobj=_Bounded(file), mode="r:") as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
            while (member := tar.next()) is not None:
                tar.members = []  # it keeps every header otherwise
                if member.offset <= last or member.size < 0:
                    raise tarfile.ReadError("its headers run backwards")
                last = member.offset
                why = _unfit(member, end)
                if why:
                    passed[why] += why != "folders"
                else:
                    yield member.name, member.offset_data, member.size
            # tarfile takes a header that is none for the end
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"no header at {tar.offset:,}")
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError, RecursionError, MemoryError) as error:
        if last < 0:
            raise InputError(f"shard {path} is not a tar file ({error}); pack it again as plain .tar") from error
        passed[f"damaged places, after which nothing is read ({error})"] += 1


def _unfit(member: tarfile.TarInfo, end: int) -> str:
    """Returns why a member is passed over, or an empty string."""
    name = member.name
    if member.isdir():
        return "folders"
    if member.issym() or member.islnk():
        return "links"
    if not member.isreg() or member.issparse():
        return "sparse members" if member.issparse() else "members of a special kind"
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or "\0" in name:
        return "names outside the folder"
    if member.offset_data + member.size > end:
        return "members cut off at the end"
    return ""


def _group(
    path: Place,
    members: Iterator[tuple[str, int, int]],
    image: str,
    text: str,
    passed: Counter[str],
    others: Counter[str],
) -> dict[str, tuple[_Member | None, dict[str, _Member]]]:
    """Returns key -> (its image, its captions by kind), in the order of the shard; counts the kinds of `others`."""
    samples: dict[str, tuple[_Member | None, dict[str, _Member]]] = {}
    kinds = (image,) if image else _IMAGES
    texts = (text.lower(), "json", CLASS) if text else ("txt", "json", CLASS)
    for name, offset, size in members:
        folder, slash, base = name.removeprefix("./").rpartition("/")
        stem, dot, kind = base.partition(".")
        known = (*kinds, *texts)
        if kind.lower() not in known and kind.rpartition(".")[2].lower() in known:
            others[f".{kind.lower()}"] += 1
            stem, dot, kind = base.rpartition(".")
        kind = kind.lower()
        if not dot or not stem or kind not in known:
            passed["other members"] += 1
            others[f".{kind}" if dot else "names without a dot"] += 1
            continue
        key = f"{folder}{slash}{stem}"
        try:
            key.encode()
        except UnicodeEncodeError:
            passed["names of bytes that are no text"] += 1
            continue
        member, words = samples.get(key, (None, {}))
        if kind in texts:
            words[kind] = (kind, offset, size)
            if kind == CLASS:
                others[f".{CLASS}"] += 1
        elif member is None:
            member = (kind, offset, size)
        else:
            fix = "remove one of them, or rename it"
            if member[0] != kind:
                fix = f"rename one, or say which kind is meant, as in shards:{path}?image={kind}"
            raise InputError(f"shard {path}: two images with the key '{shown(key)}', .{member[0]} and .{kind}; {fix}")
        samples[key] = member, words
    return samples


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _sha256(file: BinaryIO, offset: int, size: int) -> bytes:
    digest = hashlib.sha256()
    size = min(size, MAX_BYTES + 1)  # more is refused when it is to be decoded
    file.seek(offset)
    for start in range(0, size, 1 << 20):
        digest.update(file.read(min(1 << 20, size - start)))
    return digest.digest()


def _captions(
    file: BinaryIO, words: Mapping[str, _Member], passed: Counter[str], text: str, others: Counter[str]
) -> list[str]:
    """Returns the cleaned captions of a sample: lines of its text member, or those its JSON names."""
    own = [member for kind, member in words.items() if kind != CLASS or text == CLASS]
    for kind, offset, size in sorted(own, key=lambda member: member[0].endswith("json")):
        if size > MAX_TEXT and kind.endswith("json"):
            passed["JSON members over 1 MiB"] += 1
            continue
        try:
            content = _read(file, offset, min(size, MAX_TEXT)).decode(
                "utf-8-sig", "strict" if size <= MAX_TEXT else "ignore"
            )
            if kind.endswith("json"):
                row = json.loads(content)
                found = captions_in(row, text)
                if not found and isinstance(row, dict):
                    others.update(f"JSON key {shown(key)[:30]!r}" for key in row)
            else:
                found = captions_of([line for line in content.splitlines() if line.strip()])
        except UnicodeDecodeError:
            passed["captions in another encoding than UTF-8"] += 1
            continue
        except (ValueError, RecursionError):
            passed["caption members without text or JSON"] += 1
            continue
        if found:
            return found
    return []


def _classes(file: BinaryIO, words: Mapping[str, _Member]) -> tuple[str, ...] | None:
    """Returns the class in a sample's .cls, or the classes that its JSON names under `label`; None if there are none."""
    for kind in (CLASS, "json"):
        if kind not in words or words[kind][2] > MAX_TEXT:
            continue
        try:
            content = _read(file, *words[kind][1:]).decode("utf-8-sig")
            if kind == CLASS:
                found = classes_in(content.strip())
            else:
                row = json.loads(content) if f'"{LABEL}"' in content else {}
                found = classes_in(row.get(LABEL)) if isinstance(row, dict) else None
        except (ValueError, RecursionError):  # neither text nor JSON, or no label
            continue
        if found is not None:
            return found
    return None
