"""Images of a prior: settings, kept parts, the best of several candidates; in Python and by `t2i sample`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from builders.commands import command_lines
from builders.tiny_prior_run import CODES, SIDE, make_prior_run, save_random_tokenizer
from builders.tiny_run import CAPTIONS, make_run
from t2i import checkpoint, images
from t2i.errors import InputError
from t2i.extractors import open_extractor
from t2i.pipeline import TextToImagePipeline
from t2i.sampling.inpainting import _box, below, touched
from t2i.sampling.reranking import BestOf, candidate_seed
from t2i.scoring.options import ScoreOptions
from t2i.scoring.runs import score_run

PROMPT = CAPTIONS[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    found = {order: make_prior_run(folder / order, order) for order in ("random", "raster")}
    return found | {"residual": make_prior_run(folder / "residual", kind="residual"), "cgan": make_run(folder / "cgan")}


@pytest.fixture(scope="module")
def pipes(runs) -> dict[str, TextToImagePipeline]:
    return {name: TextToImagePipeline.from_pretrained(run) for name, run in runs.items()}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Returns a wide image of many colours."""
    levels = np.random.default_rng(0).integers(0, 256, (5, 9, 3), np.uint8)
    return Image.fromarray(levels).resize((90, 50), Image.Resampling.BICUBIC)


@pytest.fixture
def t2i(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    return command_lines(capsys)


class Brightness:
    """An encoder for which brighter images fit any caption better."""

    name, dim, resize = "bright", 2, "none"

    def features(self, images_BHWC):
        level = images_BHWC.mean(axis=(1, 2, 3)) / 255
        return np.stack([level, 1 - level], axis=1).astype(np.float32)

    def text_features(self, captions):
        return np.tile(np.array([[3.0, 0.0]], np.float32), (len(captions), 1))

    def digest(self):
        return "b" * 64


def draw(pipe: TextToImagePipeline, *arguments, **options) -> np.ndarray:
    return pipe(*arguments, output_type="uint8", **options).images


# ---- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "raster", "residual"])
def test_a_picture_has_the_same_bits_at_every_batch_size_and_in_any_company(pipes, name):
    pipe = pipes[name]
    every = draw(pipe, CAPTIONS, 2, seed=5)
    assert every.shape == (10, 16, 16, 3) and len(np.unique(every.reshape(10, -1), axis=0)) == 10
    assert np.array_equal(draw(pipe, CAPTIONS, 2, seed=5, batch_size=3), every)
    assert np.array_equal(draw(pipe, CAPTIONS[3], seed=5), every[6:7])


def test_each_setting_changes_pictures(pipes):
    pipe = pipes["random"]
    plain = draw(pipe, PROMPT, 4, seed=0)
    values = {
        "guidance_scale": 6.0, "temperature": 0.3, "top_k": 3, "top_p": 0.4, "steps": 2, "decoding_order": "raster",
        "guidance_until": 0.0, "guidance_schedule": "power_cosine",
    }  # fmt: skip
    for key, value in values.items():
        assert (draw(pipe, PROMPT, 4, seed=0, **{key: value}) != plain).any(), key
    assert np.array_equal(draw(pipe, PROMPT, 4, seed=0, compile=True), plain)  # no effect on a CPU
    assert np.array_equal(draw(pipe, PROMPT, 4, seed=0, guidance_scale=2.0), plain)  # the config's own
    cold = draw(pipe, PROMPT, 4, seed=0, temperature=0.0, decoding_order="raster", steps=None)
    assert len(np.unique(cold.reshape(4, -1), axis=0)) == 1


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("random", {"colour": 1}, "a prior has no setting 'colour'; it has compile, decoding_order, group_schedule"),
        ("cgan", {"top_k": 1}, "a GAN has no setting 'top_k'"),
        ("random", {"temperature": -1.0}, "temperature -1.0: must be greater than or equal to 0"),
        ("random", {"top_k": CODES + 1}, "top_k 33 is more than the 32 codes"),
        ("random", {"guidance_scale": -1.0}, "guidance must be a number from 0 on, got -1.0"),
        ("raster", {"steps": 3}, "steps 3: this prior was trained with order=raster"),
        ("random", {"truncation": 0.7}, "truncation 0.7 is a setting of a GAN"),
        ("random", {"best_of": 0}, "best_of must be 1 or more, got 0"),
    ],
)
def test_wrong_settings(pipes, name, options, says):
    with pytest.raises(InputError, match=says):
        pipes[name](PROMPT, **options)


def test_captions_can_be_mixed_and_noises_not(pipes):
    row = (
        pipes["random"]
        .interpolate_captions(*CAPTIONS[:2], frames=3, seed=9, temperature=0.5, output_type="uint8")
        .images
    )
    ends = draw(pipes["random"], CAPTIONS[:2], seed=[9, 9], temperature=0.5)
    assert np.array_equal(row[[0, 2]], ends)
    with pytest.raises(InputError, match="a prior has no path between two noises"):
        pipes["random"].interpolate_noise(PROMPT, (1, 2))
    with pytest.raises(InputError, match="a GAN has no setting 'steps'"):
        pipes["cgan"].interpolate_captions(*CAPTIONS[:2], steps=3)


def test_the_callback_hears_every_step(pipes):
    heard: list[float] = []
    pipes["random"](PROMPT, 2, seed=0, steps=5, callback_on_step_end=lambda _, __, done, ___: heard.append(done))
    assert len(heard) >= 6 and heard == sorted(heard) and heard[-1] == 1


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "residual"])
def test_a_saved_pipeline_draws_what_its_run_drew(pipes, tmp_path, name):
    pipe = pipes[name]
    tuned = TextToImagePipeline.from_pretrained(pipe.run)
    tuned.sampler, tuned.guidance_scale = tuned.sampler.tuned({"temperature": 0.6, "steps": 3}), 3.0
    tuned.save_pretrained(tmp_path / "saved", prompts=[PROMPT])
    again = TextToImagePipeline.from_pretrained(tmp_path / "saved")
    assert {"prior", "tokenizer", "text_encoder"} <= {path.name for path in (tmp_path / "saved").iterdir()}
    wanted = draw(pipe, PROMPT, 3, seed=1, temperature=0.6, steps=3, guidance_scale=3)
    assert np.array_equal(draw(again, PROMPT, 3, seed=1), wanted)
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "`guidance_scale` (here 3.0)" in card and "`temperature` (here 0.6)" in card and "truncation" not in card


def test_another_tokenizer_is_refused(runs, tmp_path):
    run = Path(shutil.copytree(runs["random"], tmp_path / "run"))
    shutil.rmtree(run / "tokenizer")
    with pytest.raises(InputError, match="tokenizer is missing"):
        TextToImagePipeline.from_pretrained(run)
    save_random_tokenizer(run / "tokenizer", seed=1)
    with pytest.raises(InputError, match="holds another tokenizer than the prior was trained with"):
        TextToImagePipeline.from_pretrained(run)


def test_defaults_of_a_run(runs, pipes, tmp_path):
    run = Path(shutil.copytree(runs["random"], tmp_path / "run"))
    (run / "sampling.json").write_text('{"guidance_scale": 4, "settings": {"top_k": 5}}')
    assert np.array_equal(
        draw(TextToImagePipeline.from_pretrained(run), PROMPT, 2, seed=0),
        draw(pipes["random"], PROMPT, 2, seed=0, guidance_scale=4, top_k=5),
    )
    for text, says in {
        "[": "does not hold valid defaults for sampling",
        '{"guidance_scale": -1}': "guidance_scale: must be greater than or equal to",
        '{"settings": {"colour": 1}}': "a prior has no setting 'colour'",
    }.items():
        (run / "sampling.json").write_text(text)
        with pytest.raises(InputError, match=says) as error:
            TextToImagePipeline.from_pretrained(run)
        assert "sampling.json" in str(error.value) and "\n" not in str(error.value)


# ---- parts that are kept -------------------------------------------------------------------------------------------


def codes_drawn(pipe: TextToImagePipeline, sampler, count: int = 3, guidance: float = 2.0) -> torch.Tensor:
    return sampler.sample_codes(pipe.text_encoder.encode([PROMPT] * count), range(count), guidance)


@pytest.mark.parametrize(("name", "redraw"), [("random", "mask"), ("residual", "mask"), ("raster", "rows")])
def test_given_codes_stay_exactly_and_the_rest_is_drawn(pipes, picture, name, redraw):
    pipe = pipes[name]
    sampler = pipe.sampler
    redraw_hw = below(2, (SIDE, SIDE))
    if redraw == "mask":
        redraw_hw = np.zeros((SIDE, SIDE), bool)
        redraw_hw[1:3, 2:] = True
    image = images.fit(picture, 16)
    codes = codes_drawn(pipe, sampler.keeping(image, redraw_hw))
    own = sampler.tokenizer.encode(image[None]).flatten(1)
    keep = np.repeat(~redraw_hw.ravel(), own.shape[1] // SIDE**2)
    assert (codes[:, keep] == own[:, keep]).all() and (codes[:, ~keep] != own[:, ~keep]).any()
    assert len(codes.unique(dim=0)) == 3
    assert not (codes_drawn(pipe, sampler)[:, keep] == own[:, keep]).all()  # the sampler itself is as it was


def test_the_picture_is_cut_as_training_pictures_are(pipes, picture):
    pipe = pipes["random"]
    mask = Image.new("L", picture.size)
    mask.paste(255, (30, 30, 60, 50))
    given = draw(pipe, PROMPT, 2, seed=0, init_image=picture, mask_image=mask)
    square = Image.fromarray(images.fit(picture, 16))
    half = np.zeros((16, 16), np.uint8)
    box = _box(*picture.size, 16, "center")
    cells = touched(np.asarray(mask) > 127, box, (SIDE, SIDE))
    half[np.kron(cells, np.ones((4, 4), bool))] = 255
    same = draw(pipe, PROMPT, 2, seed=0, init_image=square, mask_image=Image.fromarray(half))
    assert np.array_equal(given, same) and (given != draw(pipe, PROMPT, 2, seed=0)).any()
    assert 0 < cells.sum() < cells.size


@pytest.mark.parametrize("how", ["center", "squash", "pad"])
@pytest.mark.parametrize("size", [(90, 50), (50, 90), (37, 64), (7, 5)])
def test_a_cell_is_redrawn_where_a_masked_pixel_shows(how, size):
    """A bright pixel changes, if anything, the cells that a mask of that pixel marks."""
    rng = np.random.default_rng(0)
    for _ in range(12):
        x, y = (int(rng.integers(0, end)) for end in size)
        flags = np.zeros(size[::-1], bool)
        flags[y, x] = True
        levels = np.zeros((*size[::-1], 3), np.uint8)
        levels[y, x] = 255
        shown = images.fit(Image.fromarray(levels), 64, how)[:, :, 0].astype(int)
        if how == "pad":
            shown[(images.fit(Image.new("RGB", size), 64, how) == 255)[:, :, 0]] = 0
        try:
            found = touched(flags, _box(*size, 64, how), (8, 8))
        except InputError as error:
            assert how == "center" and "in the square that is cropped" in str(error)
            continue
        assert found.sum() >= 1
        if shown.max() > 0:
            i, j = np.unravel_index(shown.argmax(), shown.shape)
            assert found[i // 8, j // 8], (x, y)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("cgan", {"init": (90, 50), "keep_rows": 1}, "this family cannot keep parts of an image"),
        ("random", {"init": (90, 50)}, "pass either a mask or a number of rows"),
        ("random", {"init": (90, 50), "mask": (90, 50), "keep_rows": 1}, "pass either a mask or a number of rows"),
        ("random", {"mask": (90, 50)}, "need an image; pass that too"),
        (
            "random",
            {"init": (90, 50), "mask": (16, 16)},
            "the mask has 16x16 pixels and its image 90x50; resize the mask",
        ),
        (
            "random",
            {"init": (90, 50), "mask": (90, 50), "level": 0},
            "the mask is all black; paint the part to resample white",
        ),
        ("random", {"init": (90, 50), "keep_rows": 4}, "images of this run have 4 rows of tokens; keep 1 to 3"),
        ("random", {"init": (90, 50), "keep_rows": 0}, "keep 1 to 3"),
        ("raster", {"init": (90, 50), "mask": (90, 50), "box": (0, 0, 60, 25)}, "trained with order=raster"),
    ],
)
def test_parts_that_cannot_be_kept(pipes, name, options, says):
    init = Image.new("RGB", options["init"], "red") if "init" in options else None
    mask = Image.new("L", options["mask"]) if "mask" in options else None
    if mask is not None and options.get("level", 255):
        mask.paste(255, options.get("box", (0, 0, *mask.size)))
    with pytest.raises(InputError, match=says):
        pipes[name](PROMPT, init_image=init, mask_image=mask, keep_rows=options.get("keep_rows"))


# ---- the best of several -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "cgan"])
def test_the_best_candidate_is_kept(pipes, name):
    pipe = pipes[name]
    seeds = [3, 8]
    every = draw(pipe, [text for text in CAPTIONS[:2] for _ in range(4)],
                 seed=[candidate_seed(seed, k) for seed in seeds for k in range(4)])  # fmt: skip
    assert candidate_seed(3, 0) == 3
    levels = Brightness().features(every)
    scores = (levels[:, 0] / np.linalg.norm(levels, axis=1)).reshape(2, 4)
    for batch_size in (3, 32):
        output = pipe(
            CAPTIONS[:2], seed=seeds, best_of=4, scorer=Brightness(), batch_size=batch_size, output_type="uint8"
        )
        assert np.allclose(output.scores, scores)
        chosen = [i * 4 + int(k) for i, k in enumerate(scores.argmax(axis=1))]
        assert np.array_equal(output.images, every[chosen])
        assert np.array_equal(draw(pipe, CAPTIONS[:2], seed=output.seeds), output.images)
    assert len(set(scores.argmax(axis=1))) > 0 and np.ptp(scores) > 1e-4
    assert pipe(PROMPT, seed=1).scores is None


def test_the_first_of_equal_candidates_is_kept():
    best = BestOf(Brightness(), ["a", "a"], 2)
    best.add(np.stack([np.full((2, 2, 3), level, np.uint8) for level in (9, 9, 5)]))
    best.add(np.full((1, 2, 2, 3), 7, np.uint8))
    assert best.chosen() == [0, 1] and best.images()[:, 0, 0, 0].tolist() == [9, 7]
    with pytest.raises(InputError, match="cannot choose the best of 1"):
        BestOf(Brightness(), ["a"], 1)


# ---- the command ---------------------------------------------------------------------------------------------------


def test_the_command_draws_with_all_settings(t2i, runs, pipes):
    words = "--guidance 2.5 --temperature .7 --top-k 20 --top-p .9 --steps 5 --best-of 3 -n 2 --out drawn".split()
    status, out, err = t2i("sample", runs["random"], *CAPTIONS[:2], *words)
    assert status == 0 and out == ["wrote 4 images, grid.png and manifest.json to drawn"] and err == []
    manifest = json.loads(Path("drawn/manifest.json").read_text())
    assert manifest["guidance"] == 2.5
    wanted = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "steps": 5, "decoding_order": "random"}
    assert wanted.items() <= manifest["settings"].items()
    assert manifest["reranking"]["best_of"] == 3 and manifest["reranking"]["scorer"] == "aligned"
    drawn = np.stack([np.asarray(Image.open(f"drawn/{entry['file']}")) for entry in manifest["pictures"]])
    settings = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "steps": 5, "guidance_scale": 2.5}
    seeds = [entry["seed"] for entry in manifest["pictures"]]
    assert np.array_equal(draw(pipes["random"], CAPTIONS[:2], 2, seed=seeds, **settings), drawn)
    assert all(entry["scores"][entry["candidate"]] == max(entry["scores"]) for entry in manifest["pictures"])
    assert all(len(entry["scores"]) == 3 for entry in manifest["pictures"])
    # what chose the pictures is no judge of them
    status, out, err = t2i("eval", "score", "drawn", "--against", "drawn", "--metrics", "clip-aligned")
    assert status == 2 and "its encoder selected these images (best of 3 by aligned" in err[0] and len(err) == 1
    assert t2i("eval", "score", "drawn", "--against", "drawn", "--out", "s.json")[0] == 0
    found = json.loads(Path("s.json").read_text())["scores"]
    assert found and not [score for score in found if score["protocol"]["extractor"]]
    assert {score["protocol"]["reranking"][:20] for score in found} == {"best of 3 by aligned"}
    assert max(score["protocol"]["n_fake"] for score in found) == 4  # not the grid


def test_a_run_is_scored_by_another_encoder_than_the_one_that_chooses(runs):
    def scored(*metrics: str, **changes):
        return score_run(ScoreOptions(target=str(runs["random"]), n=8, metrics=metrics or None, **changes))

    with pytest.warns(UserWarning) as warned:
        scores = scored(best_of=2)
    told = [str(one.message).partition(" (best of")[0] for one in warned]
    for name in ("fid-shapes", "kid-shapes", "clip-aligned"):
        assert f"skipped {name}: its encoder selected these images" in told
    assert {score.protocol.metric.partition("-")[0] for score in scores} == {"faithfulness", "diversity"}
    assert all(score.protocol.reranking.startswith("best of 2 by aligned ") for score in scores)
    with pytest.raises(InputError, match="metric clip-aligned is not available here: its encoder selected"):
        scored("clip-aligned", best_of=2)
    (forced,) = scored("clip-aligned", best_of=2, force=True)
    (plain,) = scored("clip-aligned")
    assert forced.name == "clip-aligned-its-own-choice@8" and forced.value > plain.value


def test_who_chooses_after_having_taught_is_named(t2i, runs):
    taught = make_run(Path("taught"))
    path = next((taught / "checkpoints").iterdir())
    state, manifest = checkpoint.load(path)
    shutil.rmtree(path)
    plain = {key: value for key, value in manifest.items() if key not in ("schema", "step", "files", "sha256")}
    plain["guide_digest"] = open_extractor("embedded").digest()
    plain["config"]["data"]["address"] = "folder:photos"
    checkpoint.save(taught / "checkpoints", manifest["step"], state, plain)
    status, _, err = t2i("sample", taught, PROMPT, "--best-of", 2, "--out", "a")
    assert status == 0 and len(err) == 2
    assert "warning: the scorer was this run's guide in training" in err[0]
    assert "knows rendered shapes, but this run was trained on folder:photos; name another with --scorer" in err[1]


def test_the_command_fills_in_and_completes(t2i, runs, pipes, picture):
    picture.save("picture.jpg", exif=_turned())
    upright = images.decode(Path("picture.jpg"))
    assert upright.size == (50, 90)
    mask = Image.new("RGBA", upright.size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 20, 50))  # transparent
    mask.save("mask.png")
    given = ["--init", "picture.jpg"]
    assert t2i("sample", runs["random"], PROMPT, *given, "--mask", "mask.png", "--out", "a", "-n", 2)[0] == 0
    assert t2i("sample", runs["raster"], PROMPT, *given, "--keep-rows", 3, "--out", "b")[0] == 0
    manifest = json.loads(Path("a/manifest.json").read_text())
    assert manifest["given"]["init"]["file"] == "picture.jpg" and len(manifest["given"]["mask"]["sha256"]) == 64
    assert json.loads(Path("b/manifest.json").read_text())["given"]["keep_rows"] == 3
    seeds = [entry["seed"] for entry in manifest["pictures"]]
    light = Image.new("L", upright.size)
    light.paste(255, (0, 0, 20, 50))
    expected = draw(pipes["random"], PROMPT, 2, seed=seeds, init_image=upright, mask_image=light)
    files = [f"a/{entry['file']}" for entry in manifest["pictures"]]
    assert np.array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), expected)


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("random --mask ok.png", "--mask ok.png needs an image; name it with --init"),
        ("random --keep-rows 2", "--keep-rows 2 needs an image; name it"),
        ("random --init ok.png", "choose them with one of --mask FILE, --keep-rows N and --edit"),
        ("random --init gone.png --keep-rows 2", "gone.png cannot be read as an image"),
        ("random --init bad.png --keep-rows 2", "bad.png cannot be read as an image"),
        ("random --init ok.png --mask black.png", "the mask is all black; paint the part to resample white"),
        ("random --init ok.png --mask small.png", "the mask has 3x3 pixels and its image 20x20"),
        ("random --init ok.png --keep-rows 9", "cannot keep 9 rows: images of this run have 4 rows of tokens"),
        ("cgan --init ok.png --keep-rows 2", "this family cannot keep parts of an image"),
        ("cgan --temperature 1", "a GAN has no setting 'temperature'"),
        ("random --scorer x", "--scorer x chooses among candidates, and there is only one; set --best-of"),
        ("random --best-of 2 --scorer x", "x"),
        ("cgan --interpolate noise --best-of 2", "--best-of 2 has no effect with --interpolate"),
        ("random --interpolate caption --init ok.png --keep-rows 1 again", "--init has no effect with --interpolate"),
        ("random --top-k 33", "top_k 33 is more than the 32 codes"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(t2i, runs, argv, says):
    Image.new("RGB", (20, 20), "white").save("ok.png")
    Image.new("RGB", (20, 20)).save("black.png")
    Image.new("RGB", (3, 3), "white").save("small.png")
    Path("bad.png").write_bytes(b"x" * 99)
    name, *words = argv.split()
    before = sorted(Path().rglob("*")) + sorted(runs[name].rglob("*"))
    status, out, err = t2i("sample", runs[name], PROMPT, *words)
    assert status == 2 and out == [] and len(err) == 1, err
    assert err[0].startswith("error: ") and says in err[0]
    assert sorted(Path().rglob("*")) + sorted(runs[name].rglob("*")) == before
