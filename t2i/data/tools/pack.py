"""Writes captioned pictures as WebDataset shards: `t2i data pack ADDRESS --shards OUT --size 256`.

Layout: OUT/train-00000.tar with KEY.jpg, KEY.txt (a caption a line) and KEY.json (id, captions, size) for each picture, and
train-00000.parquet beside it with the same; OUT/pack.json says what was packed. The same data gives the same bytes. Each shard
appears whole or not at all, and the same command again goes on where it was stopped.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from t2i import images, seeding
from t2i.data.pictures import Pictures
from t2i.data.verify import workers
from t2i.errors import InputError
from t2i.files import new_file, write_text

FORMAT = 1
PICTURES = 1000  # a shard
QUALITY = 95  # of JPEG
_AT_ONCE = 64


class Packed(NamedTuple):
    shards: int
    pictures: int
    before: int  # pictures of shards that were there already
    broken: list[tuple[str, str]]  # id, reason


class _Sample(NamedTuple):
    picture: bytes
    suffix: str
    facts: dict[str, Any]


def pack(
    splits: Mapping[str, Pictures],
    out: Path,
    size: int | None = 256,
    suffix: Literal["jpg", "png"] = "jpg",
    pictures: int = PICTURES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Packed:
    """Packs all splits; pictures come in an order drawn with a fixed seed.

    Args:
        size: pixels of the shorter side, to which larger pictures are brought; None: the files as they are.
        suffix: how pictures that are brought to size are written.
        pictures: of a shard.

    Raises:
        InputError: `out` holds other shards or cannot be written.
    """
    settings = {"format": FORMAT, "size": size, "suffix": suffix, "pictures": pictures}
    settings |= {"data": {split: dataset.fingerprint() for split, dataset in splits.items()}}
    _claim(out, settings)
    done, total = 0, sum(map(len, splits.values()))
    made = before = shards = 0
    broken: list[tuple[str, str]] = []
    for split, dataset in splits.items():
        order = seeding.permutation(0, 0, len(dataset)).tolist()
        for number, start in enumerate(range(0, len(order), pictures)):
            rows = {start + k: row for k, row in enumerate(order[start : start + pictures])}
            stem = out / f"{split}-{number:05d}"
            shards += 1
            if stem.with_suffix(".parquet").exists() and stem.with_suffix(".tar").exists():
                before += len(rows)
            else:
                try:
                    broken += _write_shard(stem, dataset, rows, size, suffix)
                except OSError as error:
                    why = error.strerror or error
                    raise InputError(f"cannot write {out}: {why}; free some space and start again") from error
                made += len(rows)
            done += len(rows)
            on_progress(done, total)
    for leftover in out.glob(".*.tmp"):  # of a killed process
        leftover.unlink(missing_ok=True)
    return Packed(shards, made - len(broken), before, broken)


def _claim(out: Path, settings: dict[str, Any]) -> None:
    note = out / "pack.json"
    if note.exists():
        try:
            same = json.loads(note.read_text("utf-8")) == settings
        except (OSError, ValueError):
            same = False
        if not same:
            raise InputError(f"{out} holds shards of other data or settings; name a new folder, or remove it")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "holds files" if out.is_dir() else "is a file"
        raise InputError(f"output folder {out} {what}; name a new or an empty folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; name another folder") from error
    write_text(note, json.dumps(settings, indent=1) + "\n")


def _write_shard(
    stem: Path, dataset: Pictures, rows: Mapping[int, int], size: int | None, suffix: str
) -> list[tuple[str, str]]:
    """Writes a tar, then the table that says it is whole; the pictures that cannot be decoded."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    broken: list[tuple[str, str]] = []
    facts: list[dict[str, Any]] = []
    with (
        new_file(stem.with_suffix(".tar"), durable=True) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for number, row, sample in _samples(dataset, rows, size, suffix):
            if isinstance(sample, str):
                broken.append((dataset.ids[row], sample))
                continue
            key = f"{number:09d}"
            captions = sample.facts["captions"]
            _add(tar, f"{key}.{sample.suffix}", sample.picture)
            _add(tar, f"{key}.txt", "\n".join(captions).encode("utf-8", "replace"))
            _add(tar, f"{key}.json", json.dumps(sample.facts).encode())
            facts.append({"key": key, "caption": captions, **sample.facts})
    schema = [("key", pa.string()), ("caption", pa.list_(pa.string())), ("id", pa.string())]
    schema += [("width", pa.int32()), ("height", pa.int32())]
    with new_file(stem.with_suffix(".parquet"), durable=True) as temporary:
        pq.write_table(pa.Table.from_pylist(facts, pa.schema(schema)), temporary)
    return broken


def _samples(
    dataset: Pictures, rows: Mapping[int, int], size: int | None, suffix: str
) -> Iterator[tuple[int, int, "_Sample | str"]]:
    pairs = list(rows.items())
    with ThreadPoolExecutor(workers()) as pool:
        for start in range(0, len(pairs), _AT_ONCE):
            part = pairs[start : start + _AT_ONCE]
            made = pool.map(lambda pair: _sample(dataset, pair[1], size, suffix), part)
            yield from ((number, row, sample) for (number, row), sample in zip(part, made, strict=True))


def _sample(dataset: Pictures, row: int, size: int | None, suffix: str) -> "_Sample | str":
    """A picture with its facts, or why it is left out."""
    try:
        source = dataset.source(row)
        data = source if isinstance(source, bytes) else images.read_limited(source)
        picture = images.decode(data)
    except (images.BrokenImage, OSError) as error:
        return str(error)
    kind = (picture.format or "").lower().replace("jpeg", "jpg")
    if size is not None and min(picture.size) > size:
        scale = size / min(picture.size)
        new = max(size, round(picture.width * scale)), max(size, round(picture.height * scale))
        picture = picture.resize(new, Image.Resampling.BICUBIC)
        kind = ""
    if kind not in ("jpg", "png", "webp", "gif", "bmp") or (size is not None and kind != suffix):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG" if suffix == "jpg" else "PNG", **({"quality": QUALITY} if suffix == "jpg" else {}))
        data, kind = buffer.getvalue(), suffix
    captions = [caption.encode("utf-8", "replace").decode() for caption in dataset.captions[row]]
    name = dataset.ids[row].encode("utf-8", "replace").decode()
    facts = {"id": name, "captions": captions, "width": picture.width, "height": picture.height}
    return _Sample(data, kind, facts)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # time, owner and rights are the same for all
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
