"""Odd files and folders are scored correctly, or one line names the fault."""

import json
import unicodedata
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from t2i.errors import InputError
from t2i.extractors import open_extractor
from t2i.images import is_lossless_webp, jpeg_settings
from t2i.metrics.frechet import check_for_infinity
from t2i.scoring import runs as runs_module
from t2i.scoring.images import collection
from t2i.scoring.images.reference import make_reference
from t2i.scoring.images.sources import open_images
from t2i.scoring.options import ScoreOptions
from t2i.scoring.plan import formats_that_differ
from t2i.scoring.runs import score_images, score_run
from t2i.scoring.sweep import without_other_options

NOISE = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)


def save(folder: Path, names: list[str], start: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names, start):
        Image.fromarray(NOISE[k % 40]).save(folder / name)
    return folder


def sampled(folder: Path, prompts: list[str], start: int = 0, **more: object) -> Path:
    """Writes a folder like `t2i sample`."""
    names = [f"{k:03}.png" for k in range(len(prompts))]
    save(folder, [*names, "grid.png"], start)
    entries = [{"file": name, "prompt": prompt, "seed": 1} for name, prompt in zip(names, prompts, strict=True)]
    manifest = {"checkpoint": "c" * 64, "seed": 0, "pictures": entries} | more
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder


def geneval(folder: Path, prompts: list[str]) -> Path:
    """Writes a folder like GenEval's generators."""
    for k, prompt in enumerate(prompts):
        save(folder / f"{k:05}" / "samples", ["0000.png", "0001.png"], 2 * k)
        save(folder / f"{k:05}", ["grid.png"])
        (folder / f"{k:05}" / "metadata.jsonl").write_text(json.dumps({"tag": "single_object", "prompt": prompt}))
    return folder


# ---------------------------------------------------------------- folders of a generator


def test_folders_of_sample_keep_their_prompts_and_lose_their_grids(tmp_path: Path) -> None:
    for name, prompts in (("2026-01-01", ["a", "b"]), ("2026-01-02", ["c"]), ("deep/er", ["é", "e"])):
        sampled(tmp_path / "samples" / name, prompts)
    found = open_images(str(tmp_path / "samples"))
    assert sorted(found.captions or []) == ["a", "b", "c", "e", "é"]
    assert not [name for name in found.ids if "grid" in name]
    assert open_images(str(tmp_path / "samples" / "2026-01-01")).captions == ["a", "b"]


def test_a_folder_of_sample_among_other_images(tmp_path: Path) -> None:
    sampled(tmp_path / "all" / "s", ["a", "b"])
    save(tmp_path / "all" / "mine", ["x.png", "grid.png"])
    found = open_images(str(tmp_path / "all"))
    assert found.ids == ["mine/grid.png", "mine/x.png", "s/000.png", "s/001.png"], "a grid.png of another folder stays"
    assert found.captions is None and found.captioned == 2


@pytest.mark.parametrize(
    "text", ["", "[1", "[]", "3", '{"pictures": 3}', '{"checkpoint": 1, "seed": 1, "pictures": [1]}']
)
def test_another_manifest_is_none_of_ours(tmp_path: Path, text: str) -> None:
    save(tmp_path / "f", ["a.png", "grid.png"])
    (tmp_path / "f" / "manifest.json").write_text(text)
    assert len(open_images(str(tmp_path / "f"))) == 2


def test_folders_that_different_encoders_chose_are_refused_together(tmp_path: Path) -> None:
    chosen = {"best_of": 4, "scorer": "aligned", "digest": "d" * 64}
    sampled(tmp_path / "s" / "a", ["a", "b"], reranking=chosen)
    assert open_images(str(tmp_path / "s")).chosen == chosen
    sampled(tmp_path / "s" / "b", ["c"])
    with pytest.raises(InputError, match="sampled with different --best-of; score one at a time"):
        open_images(str(tmp_path / "s"))


def test_a_folder_of_geneval_has_prompts_and_a_kid(tmp_path: Path) -> None:
    found = open_images(str(geneval(tmp_path / "g", ["a photo of a bench", "a photo of a cow"])))
    assert found.captions == ["a photo of a bench"] * 2 + ["a photo of a cow"] * 2
    assert not [name for name in found.ids if "grid" in name]
    real = save(tmp_path / "real", [f"{k}.png" for k in range(8)], 20)
    with warnings.catch_warnings(action="ignore"):
        scores = score_images(ScoreOptions(target=str(tmp_path / "g"), against=str(real), metrics=("kid-shapes",)))
    assert scores[0].name == "kid-shapes@4"


@pytest.mark.parametrize(
    ("images", "grid", "metadata"),
    [
        ("samples", "grid.png", '{"prompt": "a cow"}'),
        ("samples", "grid.jpeg", '{"tag": "x", "caption": "a cow"}'),
        ("samples", "0000.png", '{"text": "a cow", "include": []}'),
        (".", "grid.png", '{"prompt": "a cow"}'),
        (".", "Grid.JPG", '{"prompt": "a cow", "tag": "single_object"}'),
    ],
)
@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.json"])
def test_other_folders_of_one_prompt(tmp_path: Path, images: str, grid: str, metadata: str, name: str) -> None:
    save(tmp_path / "f" / "00000" / images, ["00001.png", "00002.png"])
    save(tmp_path / "f" / "00000", [grid])
    (tmp_path / "f" / "00000" / name).write_text(metadata)
    found = open_images(str(tmp_path / "f"))
    assert len(found) == 2 and found.captions == ["a cow"] * 2


@pytest.mark.parametrize(
    "metadata",
    ['{"prompt": "a cow", "image": "00001.png"}', '{"text": "notes on the data"}', '{"prompt": ["a"]}', "[]", "{"],
)
def test_a_file_that_is_no_prompt_of_all_images(tmp_path: Path, metadata: str) -> None:
    save(tmp_path / "f", ["00001.png", "00002.png", "grid.png"])
    (tmp_path / "f" / "metadata.json").write_text(metadata)
    found = open_images(str(tmp_path / "f"))
    assert len(found) == 3 and found.captions is None


# ---------------------------------------------------------------- names and formats


def test_a_name_in_two_normal_forms_is_two_images(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")]
    folder = save(tmp_path / "f", [*names, "a.png"])
    if len(list(folder.iterdir())) < 3:
        pytest.skip("this file system normalises names")
    found = open_images(str(folder))
    assert len(found) == 3 and len(set(found.ids)) == 3
    shown = [image for chunk in found.chunks(range(3)) for image in chunk]
    assert len({image.tobytes() for image in shown}) == 3


@pytest.mark.parametrize(
    "name", ["c.tif", "c.TIFF", "c.ppm", "c.tga", "c.avif", "c.jp2", "c.ico", "c.pgm", "below/c.tiff"]
)
def test_formats_that_are_not_read_are_told(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path / "f", ["a.png", "b.png"])
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    with pytest.warns(
        UserWarning, match=f"skipped images of an unsupported format in .*{Path(name).name}; convert them to PNG"
    ):
        assert len(open_images(str(folder))) == 2


def test_jpeg_against_png_is_in_the_protocol(tmp_path: Path) -> None:
    sides = {}
    for name, suffix in (("png", "png"), ("jpeg", "jpg"), ("jpeg2", "jpeg"), ("webp", "webp"), ("bmp", "bmp")):
        sides[name] = save(tmp_path / name, [f"{k}.{suffix}" for k in range(20)])
    mixed = save(save(tmp_path / "mixed", [f"{k}.png" for k in range(10)]), [f"{k}x.jpg" for k in range(10)], 10)

    def formats(first: Path, second: Path) -> str | None:
        options = ScoreOptions(target=str(first), against=str(second), metrics=("kid-shapes",))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            (score,) = score_images(options)
        told = [str(one.message) for one in caught if "file formats differ" in str(one.message)]
        assert bool(told) == (score.protocol.formats is not None)
        return score.protocol.formats

    assert formats(sides["png"], sides["jpeg"]) == "generated lossless, real JPEG of quality 75 (4:2:0)"
    assert formats(sides["webp"], sides["jpeg"]) == "generated WebP, real JPEG of quality 75 (4:2:0)"
    assert formats(mixed, sides["png"]) == "generated JPEG of quality 75 (4:2:0) and lossless, real lossless"
    assert formats(sides["jpeg"], sides["jpeg2"]) is None and formats(sides["bmp"], sides["png"]) is None
    fine, named = tmp_path / "fine", tmp_path / "named"
    for folder in (fine, named):
        folder.mkdir()
    for k in range(20):
        with Image.open(sides["png"] / f"{k}.png") as image:
            image.save(fine / f"{k}.jpg", quality=95)
            image.save(named / f"{k}.png", format="JPEG")
    assert formats(sides["jpeg"], fine) == "generated JPEG of quality 75 (4:2:0), real JPEG of quality 95 (4:2:0)"
    assert formats(named, sides["png"]) == "generated JPEG of quality 75 (4:2:0), real lossless"
    make_reference(open_images(str(sides["png"])), [open_extractor("embedded")], tmp_path / "real.safetensors", True)
    assert formats(fine, tmp_path / "real.safetensors") == "generated JPEG of quality 95 (4:2:0), real lossless"


@pytest.mark.parametrize("quality", [25, 50, 60, 75, 90, 95, 100])
@pytest.mark.parametrize("chroma", ["4:4:4", "4:2:2", "4:2:0", "grey"])
def test_the_settings_of_a_jpeg_are_read_from_its_header(tmp_path: Path, quality: int, chroma: str) -> None:
    path = tmp_path / "a.jpg"
    grey: dict[str, Any] = {} if chroma == "grey" else {"subsampling": chroma}
    Image.new("L" if chroma == "grey" else "RGB", (16, 16), "red").save(path, quality=quality, **grey)
    found = jpeg_settings(path)
    assert found is not None and abs(found.quality - quality) <= 1
    assert found.chroma == ("" if chroma == "grey" else chroma)
    assert jpeg_settings(path.read_bytes()) == found and jpeg_settings(b"no image") is None


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("lossless", [False, True])
def test_webp_without_loss_is_told_from_the_other(tmp_path: Path, lossless: bool, mode: str, frames: int) -> None:
    rng = np.random.default_rng(0)
    every = [Image.fromarray(rng.integers(0, 256, (16, 16, len(mode)), dtype=np.uint8), mode) for _ in range(frames)]
    more: dict[str, Any] = {"save_all": True, "append_images": every[1:]} if frames > 1 else {"exif": b"Exif\0\0"}
    every[0].save(tmp_path / "a.webp", lossless=lossless, **more)
    assert is_lossless_webp(tmp_path / "a.webp") is is_lossless_webp((tmp_path / "a.webp").read_bytes()) is lossless
    assert not is_lossless_webp(b"") and not is_lossless_webp(b"RIFF")


def test_chroma_subsampling_and_lossy_webp_are_formats_that_differ(tmp_path: Path) -> None:
    found = {}
    for name, suffix, more in (
        ("coarse", "jpg", {"quality": 90, "subsampling": "4:2:0"}),
        ("fine", "jpg", {"quality": 90, "subsampling": "4:4:4"}),
        ("exact", "webp", {"lossless": True}),
        ("lossy", "webp", {"quality": 90}),
    ):
        (tmp_path / name).mkdir()
        for k in range(3):
            Image.new("RGB", (32, 32), (80 * k, 0, 0)).save(tmp_path / name / f"{k}.{suffix}", **more)
        found[name] = open_images(str(tmp_path / name))
    assert [images.formats for images in found.values()] == [
        "JPEG of quality 90 (4:2:0)", "JPEG of quality 90 (4:4:4)", "lossless", "WebP",
    ]  # fmt: skip
    told = formats_that_differ(found["fine"], found["coarse"])
    assert told == "generated JPEG of quality 90 (4:2:0), real JPEG of quality 90 (4:4:4)"
    earlier = replace(found["coarse"], formats="JPEG of quality 90")  # as statistics of earlier versions say
    assert formats_that_differ(earlier, found["fine"]) is None


# ---------------------------------------------------------------- files of another kind


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.zip", "unpack it and name the folder"),
        ("a.npy", "numpy.savez('images.npz', arr_0=array)"),
        ("a.tar.gz", "unpack it"),
        ("a.tgz", "unpack it"),
        ("a.png", "name the folder that holds it"),
        ("a.parquet", "--data parquet:FILE"),
        ("a.pt", "name a folder, a .tar or an .npz of images"),
        ("a", "name a folder, a .tar or an .npz of images"),
    ],
)
def test_a_file_that_holds_no_images_says_what_to_do(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError) as error:
        open_images(str(tmp_path / name))
    assert words in str(error.value) and "\n" not in str(error.value) and name in str(error.value)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (NOISE.transpose(0, 3, 1, 2), "the channels come first"),
        (NOISE / 255.0, "convert it, floats in"),
        ((NOISE / 255.0).astype(np.float32), "convert it"),
        (NOISE.astype(np.int64), "convert it"),
        (np.asfortranarray(NOISE), "numpy.ascontiguousarray"),
        (NOISE[..., :1], "1 channel; save RGB"),
        (np.concatenate([NOISE, NOISE[..., :1]], axis=3), "4 channels; save RGB"),
        (NOISE[0], "another shape"),
        (NOISE[..., 0], "it has no channels; save numpy.stack"),
        (NOISE[:0], "another shape"),
        (np.zeros(3), "another shape"),
    ],
)
def test_an_npz_says_how_to_mend_it(tmp_path: Path, array: np.ndarray, words: str) -> None:
    np.savez(tmp_path / "a.npz", arr_0=array)
    with pytest.raises(InputError) as error:
        open_images(str(tmp_path / "a.npz"))
    assert words in str(error.value) and "uint8 [N, H, W, 3]" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("place", "hint"), [("folder:x", True), ("shapes-2", True), ("coco:/x", True), ("x", False), ("x/y", False)]
)
def test_what_is_not_there(place: str, hint: bool) -> None:
    with pytest.raises(InputError, match="not found; name a folder, a .tar or an .npz of images") as error:
        open_images(place)
    assert str(error.value).endswith("; a data set is named with --data") == hint


def test_all_reasons_are_told_if_nothing_can_be_scored(tmp_path: Path) -> None:
    np.savez(tmp_path / "mu.npz", mu=np.zeros(64), sigma=np.eye(64))
    options = ScoreOptions(
        target=str(save(tmp_path / "f", ["a.png", "b.png"])), against=str(tmp_path / "mu.npz"), out=tmp_path / "s.json"
    )
    with pytest.raises(
        InputError, match="none of 2 images .* have captions; .*mu.npz holds .* 64 features of an Inception"
    ):
        score_images(options)


def test_an_npz_of_one_array_has_it_under_any_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=NOISE)
    np.savez_compressed(tmp_path / "b.npz", NOISE)
    found = [
        np.stack([x for c in open_images(str(tmp_path / n)).chunks(range(40)) for x in c]) for n in ("a.npz", "b.npz")
    ]
    assert np.array_equal(found[0], NOISE) and np.array_equal(found[1], NOISE)
    np.savez(tmp_path / "c.npz", images=NOISE, labels=np.arange(40))
    with pytest.raises(InputError, match="holds no arr_0, but images.npy, labels.npy"):
        open_images(str(tmp_path / "c.npz"))


# ---------------------------------------------------------------- captions that are few, or the same


@pytest.mark.parametrize(
    "prompts", [["a red circle"] * 4, ["a red circle"] * 3 + ["a blue star"], ["a red circle"] * 2]
)
def test_a_shared_caption_costs_the_floor_and_not_the_score(tmp_path: Path, prompts: list[str]) -> None:
    folder = sampled(tmp_path / "s", prompts)
    with pytest.warns(UserWarning, match="no scores of shuffled captions: more than half of the images share one"):
        scores = {score.protocol.metric: score for score in score_images(ScoreOptions(target=str(folder)))}
    assert set(scores["clip"].bounds) == set() and 0 < scores["clip"].value < 100
    assert "shuffled" not in scores["faithfulness-strict"].bounds
    assert (scores["clip"].interval is None) == (len(set(prompts)) == 1)


def test_what_is_recommended_is_not_refused(tmp_path: Path) -> None:
    folder = sampled(tmp_path / "s", ["a red circle", "a blue star", "a green ring"])
    ask = {"target": str(folder), "against": str(folder)}
    with pytest.raises(InputError) as error:
        score_images(ScoreOptions(**ask, metrics=("r-precision",)))
    assert "it needs 100 captions of different meanings, got 3" in str(error.value)
    names = str(error.value).partition("choose from: ")[2].split(", and by name ")[0].split(", ")
    assert names and "fid-shapes" not in names
    with warnings.catch_warnings(action="ignore"):
        assert score_images(ScoreOptions(**ask, metrics=tuple(names)))


def test_metrics_of_too_few_images_are_left_out_with_a_line(tmp_path: Path) -> None:
    folder = sampled(tmp_path / "s", ["a red circle", "a blue star", "a green ring"])
    with pytest.warns(UserWarning, match="skipped fid-shapes: FID of 3 generated and 3 real images"):
        scores = score_images(ScoreOptions(target=str(folder), against=str(folder)))
    assert {score.protocol.metric.partition("-")[0] for score in scores} == {"faithfulness", "kid", "clip"}


def test_captions_of_some_images_alone_are_counted(tmp_path: Path) -> None:
    folder = save(tmp_path / "f", [f"{k}.png" for k in range(10)])
    for k in range(7):
        (folder / f"{k}.txt").write_text("a red circle")
    with pytest.raises(
        InputError, match="metric clip-aligned is not available here: only 7 of 10 images in .* captions"
    ):
        score_images(ScoreOptions(target=str(folder), against=str(folder), metrics=("clip-aligned",)))
    with pytest.raises(InputError, match="only 7 of 10 images"):
        score_images(ScoreOptions(target=str(folder), against=str(folder), metrics=("clip",)))


# ---------------------------------------------------------------- the rest


@pytest.mark.parametrize(
    ("n", "dim", "fits"), [(128, 64, False), (511, 64, False), (512, 64, True), (8192, 2048, False)]
)
def test_an_extrapolation_of_small_subsets_is_refused(n: int, dim: int, fits: bool) -> None:
    with warnings.catch_warnings(action="ignore"):
        if fits:
            check_for_infinity(n, n, dim)
        else:
            with pytest.raises(InputError, match=f"score at least {8 * dim:,}"):
                check_for_infinity(n, n, dim)
        check_for_infinity(n, n, dim, force=True)


def test_errors_of_a_sweep_suggest_only_its_own_options() -> None:
    message = "a is wrong (x); name another with --scorer, or say --force; or name images with --against, or score b"
    expected = "a is wrong (x); name another with --scorer, or say --force, or score b"
    assert without_other_options(message) == expected


def test_one_scoring_opens_its_data_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from builders.tiny_run import make_run

    opened: list[str] = []
    plain = collection.open_dataset

    def counting(address: str, split: str, *args: object) -> object:
        opened.append(split)
        return plain(address, split, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(collection, "open_dataset", counting)
    assert not hasattr(runs_module, "open_dataset")
    run = make_run(tmp_path / "run", data={"address": "shapes-1", "limit": 40})
    with warnings.catch_warnings(action="ignore"):
        score_run(ScoreOptions(target=str(run), n=8))
        assert opened == ["val"]
        score_run(ScoreOptions(target=str(run), n=8, metrics=("memorisation-shapes", "kid-shapes")))
    assert opened == ["val", "val", "train"]


@pytest.mark.parametrize("place", ["no/a.json", "folder", "/proc/a.json", "/proc/1/none/a.json", "file/a.json"])
@pytest.mark.parametrize(
    "words", ["score F --against F", "captions C", "sweep R --guidance 1", "tokenizer R", "report R"]
)
def test_a_place_that_cannot_be_written_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, place: str
) -> None:
    from t2i.cli import app

    monkeypatch.chdir(tmp_path)
    save(tmp_path / "F", ["a.png", "b.png"])
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "C").write_text("not read\n")
    (tmp_path / "R" / "checkpoints").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert app.main(["eval", *words.split(), "--out", place]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and place in err and "--out" in err
    assert any(why in err for why in ("cannot be written", "is a folder", "exists; delete it"))
    assert sorted(tmp_path.rglob("*")) == before
