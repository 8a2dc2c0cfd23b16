"""Indexes tar shards, and lists the images of a tar."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from t2i.data.cached import Keep
from t2i.data.packed.dataset import indexed, schema
from t2i.data.packed.remote import Place, beside, opened
from t2i.data.packed.tables import read_beside
from t2i.data.packed.tar_samples import CLASS, TarSamples
from t2i.data.tools.classes import LABELS
from t2i.errors import InputError, os_errors
from t2i.files import open_regular
from t2i.images import LostConnection

if TYPE_CHECKING:
    import pyarrow as pa


class TarImage(NamedTuple):
    """An image in a tar."""

    captions: list[str]  # may be empty
    offset: int
    size: int


def index_tar(path: Place, image: str = "", text: str = "") -> "pa.Table":
    """Returns the index of the samples of one shard that have an image and a caption.

    Args:
        image: suffix of the members that are images, e.g. `input.jpg`; "": any image.
        text: suffix of the members with captions, e.g. `txt`, or the key of captions in the .json; "": .txt, else .json, else
            the parquet beside the shard.

    Raises:
        InputError: the file is not a plain tar or has no such sample, or two images have one key.
    """
    import pyarrow as pa

    table = beside(path, ".parquet")
    files = [path] if table is None else [path, table]

    def rows(counts: dict[str, Any], _: Keep) -> Iterator[dict[str, Any]]:
        try:
            with opened(path) as file:
                yield from _rows(TarSamples(path, file, image, text), table, counts)
        except OSError as error:
            raise InputError(f"cannot read shard {path}: {error.strerror or error}; check its permissions") from error
        except LostConnection as error:
            raise InputError(f"{error}; start again when it can be reached") from error

    return indexed("shards", files, [image, text], schema({"offset": pa.int64(), "size": pa.int64()}), rows)


def _rows(tar: TarSamples, table: Place | None, counts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    samples = tar.samples()
    captions_beside = read_beside(table) if table else {}
    count = 0
    for key, (image, texts) in samples.items():
        if image is None:
            tar.skipped["captions without an image"] += set(texts) != {CLASS}
            continue
        captions = tar.captions(texts) or captions_beside.get(key, [])
        if not captions:
            tar.skipped["images without a caption"] += 1
            continue
        count += 1
        row = {
            "key": key,
            "captions": captions,
            "sha256": tar.sha256(image),
            LABELS: list(tar.labels(texts).items()) or None,
        }
        yield row | {"split": tar.split(texts), "offset": image.offset, "size": image.size}
    if not count:
        raise tar.no_samples()
    counts |= tar.skipped


def list_tar(path: Path) -> tuple[dict[str, TarImage], Counter[str]]:
    """Returns the images of one tar by key, with or without captions, and the counts of skipped members.

    Raises:
        InputError: the file cannot be read or is not a plain tar, or two images have one key.
    """
    with os_errors(f"cannot read {path}", "name a .tar of images"):
        with open_regular(path) as file:
            tar = TarSamples(path, file)
            images = {
                key: TarImage(tar.captions(texts), image.offset, image.size)
                for key, (image, texts) in tar.samples().items()
                if image is not None
            }
    return images, tar.skipped
