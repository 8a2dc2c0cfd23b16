"""Training data of a run is found among the data that it is scored on, and nothing else is."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders.tiny_run import make_run
from t2i.cli import app
from t2i.data import DataConfig, View, open_dataset
from t2i.data.phash import near_duplicates, signatures
from t2i.data.record import Record, caption_hashes, normal_caption, note, read_record, write_record
from t2i.errors import InputError
from t2i.images import ImageArray
from t2i.metrics.score import read_scores
from t2i.scoring.images.collection import Images, dataset_images
from t2i.scoring.leaks import Overlap, find, refuse_leaks
from t2i.trained import RECORD
from t2i.training.trained_on import _remember

SIDE = 32
Change = Callable[[Image.Image], bytes]


def textures(count: int, seed: int, side: int = 64) -> ImageArray:
    """Returns images with the spectrum of photographs: [N, side, side, 3]."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = 1
    noise_NCHW = np.fft.ifft2(np.fft.fft2(rng.normal(size=(count, 3, side, side))) / frequency).real
    levels = 128 + 40 * noise_NCHW / noise_NCHW.std(axis=(1, 2, 3), keepdims=True)
    return levels.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def resized(picture: Image.Image) -> bytes:
    return encoded(picture.resize((96, 96), Image.Resampling.LANCZOS), "JPEG", quality=80)


def write_split(folder: Path, files: dict[str, bytes], captions: list[str]) -> None:
    folder.mkdir(parents=True)
    rows = []
    for (name, data), caption in zip(files.items(), captions, strict=True):
        (folder / name).write_bytes(data)
        rows.append(json.dumps({"file_name": name, "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes 60 training images, 30 others of val, and 30 of test, 10 of which are copies in three ways."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    for split, count, seed in (("train", 60, 1), ("val", 30, 2), ("test", 30, 3)):
        files = {f"{split}{k:03}.png": encoded(Image.fromarray(x), "PNG") for k, x in enumerate(textures(count, seed))}
        if split == "test":
            changes: list[Change] = [
                lambda x: encoded(x, "BMP"),
                lambda x: encoded(x, "JPEG", quality=75),
                resized,
            ]
            for k, x in enumerate(textures(60, 1)[10:20]):
                files[f"test{k:03}.png"] = changes[k % 3](Image.fromarray(x))
        write_split(folder / split, files, [f"The {split} photo, number {k}." for k in range(count)])
    return folder


@pytest.fixture(scope="module")
def record(photos: Path) -> Record:
    train = open_dataset(str(photos), "train", View(SIDE))
    return note(train, train.fingerprint())


def held_out(photos: Path, split: str) -> Images:
    return dataset_images(str(photos), split, None, View(SIDE))


def test_captions_are_the_same_whatever_their_case_spaces_and_ends() -> None:
    same = [
        "A dog, on a  hill.",
        "a DOG, on a hill",
        "“A dog, on a\thill!”",
        "Ａ dog, on a hill …",
        " a dog, on a hill?! ",
    ]
    assert len({normal_caption(caption) for caption in same}) == 1
    assert len(set(caption_hashes(same).tolist())) == 1
    assert normal_caption("a dog on a hill") != normal_caption(same[0])  # what stands inside counts
    assert normal_caption("Straße") == normal_caption("STRASSE")
    assert normal_caption("🙂") != normal_caption("🙁") and normal_caption("") == ""


def test_hashes_do_not_depend_on_size_or_encoding_and_tell_pictures_apart() -> None:
    pictures = textures(200, 0)
    halves = pictures.reshape(200, 32, 2, 32, 2, 3).mean(axis=(2, 4)).astype(np.uint8)
    again = np.stack([
        np.asarray(Image.open(io.BytesIO(encoded(Image.fromarray(x), "JPEG", quality=60)))) for x in pictures
    ])  # fmt: skip
    for copies in (pictures, halves, again):
        pairs = near_duplicates(signatures(copies), signatures(pictures))
        assert pairs.tolist() == [[k, k] for k in range(200)]
    assert near_duplicates(signatures(pictures)).shape == (0, 2)
    twice = signatures(np.concatenate([pictures[:3], again[1:2]]))
    assert near_duplicates(twice).tolist() == [[3, 1]]  # only the later one, with the first
    apart = np.bitwise_count(signatures(pictures).hashes_N[:100] ^ signatures(pictures).hashes_N[100:])
    assert 28 < apart.mean() < 36


def test_the_same_grey_in_other_colours_is_another_picture() -> None:
    picture = textures(1, 5)
    channels_swapped = picture[..., [2, 1, 0]]
    grey = np.repeat(picture.mean(axis=3, keepdims=True).astype(np.uint8), 3, axis=3)
    grey[..., 0] //= 2
    assert len(near_duplicates(signatures(picture), signatures(picture))) == 1
    assert len(near_duplicates(signatures(channels_swapped), signatures(picture), most_bits=64, most_levels=1.0)) == 0
    assert len(near_duplicates(signatures(grey), signatures(picture), most_bits=64)) == 0


def test_flat_and_tiny_pictures_have_hashes() -> None:
    flat = np.full((2, 5, 7, 3), 90, np.uint8)
    flat[1] += 100
    some = signatures(flat)
    assert near_duplicates(some).tolist() == []  # of other colours
    assert near_duplicates(signatures(flat[:1].repeat(3, axis=0))).tolist() == [[1, 0], [2, 0]]
    assert signatures(np.zeros((1, 2, 3, 3), np.uint8)).hashes_N.shape == (1,)
    assert (
        len(near_duplicates(signatures(flat[:0]), some)) == 0 and len(near_duplicates(some, signatures(flat[:0]))) == 0
    )


def test_copies_are_found_exactly_or_by_their_looks_and_others_are_not(photos: Path, record: Record) -> None:
    val = held_out(photos, "val")
    clean = find(record, val.captions or [], val)
    assert clean == Overlap([], [], [], False) and not clean.leaks
    test = find(record, [], held_out(photos, "test"))
    assert test.images == [f"test/test{k:03}.png" for k in (0, 3, 6, 9)]  # lossless copies
    assert test.similar == [f"test/test{k:03}.png" for k in (1, 2, 4, 5, 7, 8)] and test.leaks


def test_a_caption_of_the_training_is_a_leak(photos: Path, record: Record) -> None:
    val = held_out(photos, "val")
    words = list(val.captions or [])
    words[4] = "the TRAIN photo,  number 17"
    found = find(record, words, val)
    assert found.captions == [words[4]] and not found.by_chance and found.leaks and not found.images


def test_captions_that_pictures_share_anyway_are_no_leak(photos: Path, record: Record, tmp_path: Path) -> None:
    shared = Record(record.captions, record.pixels, record.looks, 0.9, record.data)
    words = [f"the train photo, number {k}" for k in range(27)] + ["x", "y", "z"]
    found = find(shared, words, None)
    assert len(found.captions) == 27 and found.by_chance and not found.leaks
    rare = Record(record.captions, record.pixels, record.looks, 0.5, record.data)
    assert find(rare, words, None).leaks  # 27 of 30 where half are to be expected
    # the rate is that of the data: three of these five stand with another picture
    files = {f"{k}.png": encoded(Image.fromarray(x), "PNG") for k, x in enumerate(textures(5, 9))}
    write_split(tmp_path / "d" / "train", files, ["a cat", "A CAT.", "a dog", "a cat", "a bird"])
    train = open_dataset(str(tmp_path / "d"), "train", View(SIDE))
    assert note(train, "f").shared == pytest.approx(0.6)


def test_drawn_scenes_are_known_by_their_ids_and_not_drawn() -> None:
    train = open_dataset("shapes-2", "train", View(SIDE, limit=400))
    record = note(train, train.fingerprint())
    assert len(record.looks.hashes_N) == 0 and len(record.pixels) == 400

    def never(rows: Sequence[int]) -> Iterator[list[ImageArray]]:
        raise AssertionError("drawn")

    for split in ("val", "heldout"):
        other = replace(dataset_images("shapes-2", split, 300, View(SIDE)), chunks=never)
        assert find(record, other.captions or [], other) == Overlap([], [], [], False)
    same = replace(dataset_images("shapes-2", "train", 400, View(SIDE, limit=400)), chunks=never)
    found = find(record, same.captions or [], same)
    assert found.images == train.ids and len(found.captions) == 400 and found.leaks


# ---------------------------------------------------------------- the record of a run


def test_a_record_is_written_once_grows_with_the_data_and_takes_in_what_the_run_is_built_on(
    photos: Path, record: Record, tmp_path: Path
) -> None:
    path, other = tmp_path / RECORD, tmp_path / "other"
    other.mkdir()
    val = open_dataset(str(photos), "val", View(SIDE))
    write_record(other / RECORD, note(val, val.fingerprint()))
    train = open_dataset(str(photos), "train", View(SIDE))
    data = DataConfig(address=str(photos), resolution=SIDE)
    told: list[int] = []
    _remember(path, train, data, [other / RECORD, tmp_path / "nowhere"], lambda done, total: told.append(done))
    kept = read_record(path)
    assert kept is not None and len(kept.pixels) == 90 and [entry["pictures"] for entry in kept.data] == [60, 30]
    assert path.stat().st_mode & 0o044 and path.stat().st_size < 90 * 72 + 2000
    assert np.isin(record.pixels, kept.pixels).all() and kept.shared == 0
    before = path.stat().st_mtime_ns
    _remember(path, train, data, [], lambda done, total: told.append(done))
    assert path.stat().st_mtime_ns == before
    test = open_dataset(str(photos), "test", View(SIDE))
    _remember(path, test, data, [], lambda done, total: None)  # as if the folder had changed
    grown = read_record(path)
    assert grown is not None and len(grown.captions) == 120 and len(grown.data) == 3


def test_random_crops_are_noted_as_centre_crops(photos: Path, record: Record, tmp_path: Path) -> None:
    data = DataConfig(address=str(photos), resolution=SIDE, fit="random")
    _remember(tmp_path / RECORD, open_dataset(str(photos), "train", data.view()), data, [], lambda done, total: None)
    kept = read_record(tmp_path / RECORD)
    assert kept is not None and kept.pixels.tolist() == record.pixels.tolist()


def test_random_crops_of_data_with_options_are_noted(tmp_path: Path) -> None:
    for k in range(8):
        place = tmp_path / "photos/train" / ("cats", "dogs")[k % 2] / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 32), (20 * k, 0, 0)).save(place)
    data = DataConfig(address=f"{tmp_path / 'photos'}?caption=a {{class}}", resolution=SIDE, fit="random")
    train = open_dataset(data.address, "train", data.view())
    _remember(tmp_path / RECORD, train, data, [], lambda done, total: None)
    kept = read_record(tmp_path / RECORD)
    assert kept is not None and len(kept.pixels) == 8 and len(kept.captions) == 2


def test_equal_records_are_equal_files(tmp_path: Path, record: Record) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for file in files:
        write_record(file, record)
    assert len({file.read_bytes() for file in files}) == 1
    back = read_record(files[0])
    assert back is not None and back.data == record.data and np.array_equal(back.captions, record.captions)


def test_a_damaged_record_is_named(tmp_path: Path, record: Record) -> None:
    path = tmp_path / RECORD
    assert read_record(path) is None
    write_record(path, record)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{RECORD} is damaged .*delete it and resume the run"):
        read_record(path)


# ---------------------------------------------------------------- scoring


def test_a_leak_is_refused_by_number_and_name_unless_it_is_allowed(
    photos: Path, record: Record, tmp_path: Path
) -> None:
    write_record(tmp_path / RECORD, record)
    val, test = held_out(photos, "val"), held_out(photos, "test")
    assert refuse_leaks(tmp_path, val, val, False) is None
    with pytest.warns(UserWarning, match="6 of 30 images resemble training images: 'test/test001.png'"):
        with pytest.raises(
            InputError, match=r"trained on 4 of 30 images \('test/test000.png', .*, and 1 more\)"
        ) as told:
            refuse_leaks(tmp_path, test, test, False)
    assert "--allow-leak" in str(told.value) and "\n" not in str(told.value)
    with pytest.warns(UserWarning, match="these scores are marked"):
        marked = refuse_leaks(tmp_path, test, test, True)
    assert marked == "trained on 4 of 30 images"
    (tmp_path / RECORD).unlink()
    with pytest.warns(UserWarning, match="has no record of its training data"):
        assert refuse_leaks(tmp_path, test, test, False) is None


def test_the_command_refuses_and_marks(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", data={"address": str(photos), "resolution": 16})
    train = open_dataset(str(photos), "train", View(16))
    write_record(run / RECORD, note(train, train.fingerprint()))
    out = tmp_path / "scores.json"
    words = ["eval", "score", str(run), "-n", "40", "--metrics", "kid-shapes", "--split", "train", "--out", str(out)]
    assert app.main(words) == 2
    said = capsys.readouterr().err
    assert "was trained on 40 of 40 images ('train/train0" in said and not out.exists()
    assert app.main([*words, "--allow-leak"]) == 0
    (score,) = read_scores(out)
    assert score.protocol.leak == "trained on 40 of 40 images and 40 of 40 captions"
