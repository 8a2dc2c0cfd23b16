"""Finds the samples of a tar shard and their offsets; only headers are read, and nothing is extracted.

As in webdataset, the key of a member is its path up to the first dot of its name, its suffix is the rest, and the members with
the same key are one sample (img2dataset: key.jpg, key.txt, key.json; key.cls has its class). If such a suffix is unknown, the
last dot counts: photo.1.jpg and photo.1.txt are the sample photo.1. Links, devices, sparse members and names outside the folder
are counted and skipped.
"""

import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple

from t2i.data.captions import captions_of
from t2i.data.packed.remote import Place
from t2i.data.packed.tables import captions_in
from t2i.data.splits import SPLIT_COLUMNS, split_column, split_in
from t2i.data.tools.classes import LABEL, labels_in
from t2i.errors import InputError
from t2i.images import MAX_BYTES, OTHER_SUFFIXES, SUFFIXES
from t2i.names import numbered, shown

MAX_HEADER = 1 << 20  # bytes of one extended header; names are far shorter
MAX_TEXT = 1 << 20  # bytes of a caption or a JSON member
CLASS = "cls"  # suffix of members with the class of an image
_IMAGES = tuple(suffix[1:] for suffix in SUFFIXES)
_SHOWN = 4  # number of suffixes or keys of JSON in a message
_PACKERS = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


class _Member(NamedTuple):
    suffix: str
    offset: int
    size: int


class _Sample(NamedTuple):
    image: _Member | None
    texts: dict[str, _Member]  # members with captions or the class, by suffix


class _Bounded:
    """A file that reads at most `MAX_HEADER` bytes at once, whatever size a header claims."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int) -> bytes:
        if not 0 <= count <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {count:,} bytes")
        return self._file.read(count)


class TarSamples:
    """An open tar.

    Attributes:
        skipped: counts of skipped members.
        unknown: counts of unknown suffixes and of keys of JSON without captions, for messages.

    Raises:
        InputError: the tar is compressed.
    """

    def __init__(self, path: Place, file: BinaryIO, image: str = "", text: str = "") -> None:
        self._path, self._file, self._image, self._text = path, file, image, text
        self._caption_suffixes = tuple(dict.fromkeys((text.lower() or "txt", "json")))
        self.skipped: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        start = file.read(6)
        for magic, tool in _PACKERS.items():
            if start.startswith(magic):
                raise InputError(
                    f"shard {path} is packed, and cannot be read at any place; unpack it first: {tool} FILE"
                )

    def samples(self) -> dict[str, _Sample]:
        """Returns the samples by key, in the order of the shard."""
        samples: dict[str, _Sample] = {}
        texts = (*self._caption_suffixes, CLASS)
        known = (*((self._image,) if self._image else _IMAGES), *texts)
        for name, offset, size in self._members():
            folder, slash, base = name.removeprefix("./").rpartition("/")
            stem, suffix = self._split(base, known)
            if not stem or suffix not in known or suffix == CLASS and suffix not in self._caption_suffixes:
                self.unknown[f".{suffix}" if suffix else "names without a suffix"] += 1
            if not stem or suffix not in known:
                self.skipped["other members"] += 1
                continue
            key, member = f"{folder}{slash}{stem}", _Member(suffix, offset, size)
            try:
                key.encode()
            except UnicodeEncodeError:
                self.skipped["names in another encoding than UTF-8"] += 1
                continue
            sample = samples.setdefault(key, _Sample(None, {}))
            if suffix in texts:
                sample.texts[suffix] = member
            elif sample.image is None:
                samples[key] = sample._replace(image=member)
            else:
                raise self._two_images(key, sample.image.suffix, suffix)
        return samples

    def _split(self, base: str, known: tuple[str, ...]) -> tuple[str, str]:
        """Returns the key and the suffix of a file name."""
        stem, _, suffix = base.partition(".")
        if suffix.lower() not in known and suffix.rpartition(".")[2].lower() in known:
            self.unknown[f".{suffix.lower()}"] += 1
            stem, _, suffix = base.rpartition(".")
        return stem, suffix.lower()

    def _two_images(self, key: str, first: str, second: str) -> InputError:
        fix = "remove one of them, or rename it"
        if first != second:
            fix = f"rename one, or say which suffix is meant, as in shards:{self._path}?image={second}"
        return InputError(f"shard {self._path}: two images with the key '{shown(key)}', .{first} and .{second}; {fix}")

    def _members(self) -> Iterator[tuple[str, int, int]]:
        """Yields (name, offset, bytes) of the plain members, in order, up to the first damage."""
        end = os.fstat(self._file.fileno()).st_size
        self._file.seek(0)
        last = -1
        try:
            with tarfile.open(fileobj=_Bounded(self._file), mode="r:") as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
                while (member := tar.next()) is not None:
                    tar.members = []  # otherwise it keeps every header
                    if member.offset <= last or member.size < 0:
                        raise tarfile.ReadError("its headers run backwards")
                    last = member.offset
                    if why := _unfit(member, end):
                        self.skipped[why] += 1
                    elif not member.isdir():
                        yield member.name, member.offset_data, member.size
                # tarfile takes an invalid header for the end
                self._file.seek(tar.offset)
                if self._file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    raise tarfile.ReadError(f"no header at {tar.offset:,}")
        except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError, RecursionError, MemoryError) as error:
            if last < 0:
                raise InputError(
                    f"shard {self._path} is not a tar file ({error}); pack it again as plain .tar"
                ) from error
            self.skipped[f"damaged places, after which nothing is read ({error})"] += 1

    def captions(self, texts: Mapping[str, _Member]) -> list[str]:
        """Returns the cleaned captions of a sample: the lines of its text member, or those in its JSON."""
        for member in (texts[suffix] for suffix in self._caption_suffixes if suffix in texts):
            is_json = member.suffix.endswith("json")
            if is_json and member.size > MAX_TEXT:
                self.skipped["JSON members over 1 MiB"] += 1
                continue
            try:
                content = self._content(member)
                captions = self._captions_in(json.loads(content)) if is_json else _captions_of_lines(content)
            except UnicodeDecodeError:
                self.skipped["captions in another encoding than UTF-8"] += 1
            except (ValueError, RecursionError):
                self.skipped["caption members without text or JSON"] += 1
            else:
                if captions:
                    return captions
        return []

    def _captions_in(self, row: Any) -> list[str]:
        captions = captions_in(row, self._text)
        if not captions and isinstance(row, dict):
            self.unknown.update(f"JSON key {shown(key)[:30]!r}" for key in row)
        return captions

    def _content(self, member: _Member) -> str:
        """Returns the text of a member, of which only the first `MAX_TEXT` bytes are read."""
        self._file.seek(member.offset)
        errors = "strict" if member.size <= MAX_TEXT else "ignore"
        return self._file.read(min(member.size, MAX_TEXT)).decode("utf-8-sig", errors)

    def labels(self, texts: Mapping[str, _Member]) -> dict[str, tuple[str, ...]]:
        """Returns the classes of a sample by the name of the label: `label` from its .cls, else these of its .json."""
        found: dict[str, tuple[str, ...]] = {}
        for suffix in ("json", CLASS):
            if suffix not in texts or texts[suffix].size > MAX_TEXT:
                continue
            with suppress(ValueError, RecursionError, AttributeError):  # no text, no JSON object, or no classes
                content = self._content(texts[suffix]).strip()
                if suffix == CLASS:
                    found |= labels_in({LABEL: content})
                elif f'"{LABEL}' in content:
                    found |= labels_in(json.loads(content))
        return found

    def split(self, texts: Mapping[str, _Member]) -> str:
        """Returns the split that the .json of a sample names under `split` or a like key, or ""."""
        member = texts.get("json")
        if member is None or member.size > MAX_TEXT:
            return ""
        with suppress(ValueError, RecursionError):  # it is not text or JSON
            content = self._content(member)
            row = json.loads(content) if any(f'"{name}' in content.lower() for name in SPLIT_COLUMNS) else None
            return split_in(row.get(split_column(row))) if isinstance(row, dict) else ""
        return ""

    def sha256(self, member: _Member) -> bytes:
        """Returns the hash of a member's first `MAX_BYTES` + 1 bytes; larger images are refused when they are decoded."""
        digest, size = hashlib.sha256(), min(member.size, MAX_BYTES + 1)
        self._file.seek(member.offset)
        for start in range(0, size, 1 << 20):
            digest.update(self._file.read(min(1 << 20, size - start)))
        return digest.digest()

    def no_samples(self) -> InputError:
        """Returns the error for a tar without a captioned image."""
        skipped = ", ".join(numbered(count, what) for what, count in self.skipped.items() if what != "other members")
        unknown = ", ".join(f"{what} ({count:,})" for what, count in self.unknown.most_common(_SHOWN))
        found = "; ".join(part for part in (skipped, f"other members: {unknown}" if unknown else "") if part)
        suffixes = " and ".join([self._image or ".jpg or another image", self._text or ".txt or .json"])
        unread = [what for what in self.unknown if what in OTHER_SUFFIXES]
        fix = (
            f"images in {unread[0]} are not read, convert them to PNG or JPEG"
            if unread
            else "remove it or pack it again"
        )
        if self.unknown:
            fix += "; name the images and captions, as in ?image=input.jpg&text=edit.txt, or a key of the JSON as ?text=KEY"
        return InputError(f"shard {self._path} is empty: no sample with {suffixes}, but {found or 'no members'}; {fix}")


def _captions_of_lines(text: str) -> list[str]:
    return captions_of([line for line in text.splitlines() if line.strip()])


def _unfit(member: tarfile.TarInfo, end: int) -> str:
    """Returns why a member is skipped, or an empty string."""
    name = member.name
    if member.isdir():
        return ""
    if member.issym() or member.islnk():
        return "links"
    if not member.isreg() or member.issparse():
        return "sparse members" if member.issparse() else "members of a special kind"
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or "\0" in name:
        return "names outside the folder"
    if member.offset_data + member.size > end:
        return "members cut off at the end"
    return ""
