"""The work behind the page: the models it offers, and jobs from untrusted values."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders.tiny_cvae_run import make_cvae_run
from builders.tiny_prior_run import make_prior_run
from builders.tiny_run import CAPTIONS, STEP, make_run
from t2i.cli import app
from t2i.errors import InputError
from t2i.explain.maps import maps_of
from t2i.explain.page import overlay
from t2i.explain.words import words_of
from t2i.pipeline import TextToImagePipeline
from t2i.web.models import Models
from t2i.web.work import MOST_FILES, Stop, Work
from t2i.weights import shipped

GIVEN = {"model": "runs/gan", "prompt": CAPTIONS[0], "number": 2, "seed": "5"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    make_run(folder / "runs" / "gan")
    make_prior_run(folder / "runs" / "any" / "order")
    make_prior_run(folder / "runs" / "raster", order="raster")
    make_cvae_run(folder / "runs" / "cvae")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def work(here: Path) -> Work:
    return Work(Models([], Path("runs"), 1e9), here / "made")


def hear(share: float) -> None:
    assert 0 <= share <= 1


def pixels(images: list[tuple[str, str]]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path, _ in images])


# ---- which models there are ----------------------------------------------------------------------------------------


def test_shipped_models_come_first_and_every_run_below_is_found(here):
    models = Models([], Path("runs"), 1e9)
    runs = ["runs/any/order", "runs/cvae", "runs/gan", "runs/raster"]
    assert list(models.places()) == ["prior", "cgan", "cvae", "emoji", *runs]
    (here / "runs" / "young").mkdir()
    (here / "runs" / "young" / "config.yaml").write_text("family: cgan\n")  # no checkpoint yet
    (here / "runs" / "odd").mkdir()
    (here / "runs" / "odd" / "config.yaml").write_bytes(b"\xff: [")
    TextToImagePipeline.from_pretrained("runs/gan").save_pretrained("runs/saved", prompts=[])
    assert list(models.places()) == ["prior", "cgan", "cvae", "emoji", *runs, "runs/saved"]
    assert list(Models(["runs/gan", "cgan"], Path("runs"), 1).places())[:3] == ["runs/gan", "cgan", "prior"]
    assert list(Models(["runs/gan"], None, 1).places()) == ["runs/gan"]
    assert Models([], Path("nowhere"), 1).places().keys() == {*shipped()}


@pytest.mark.parametrize("name", [None, 3, [], "runs", "runs/gan/", "/etc/passwd", "../" * 9, "runs/../runs/gan", ""])
def test_only_listed_names_are_opened(here, name):
    with pytest.raises(InputError, match="there is no model .* on this page"):
        Models([], Path("runs"), 1e9).open(name)


def test_each_family_has_its_own_settings_and_says_what_it_cannot_do(here):
    models = Models([], Path("runs"), 1e9)
    cards = {name: models.open(name).card for name in models.places()}
    assert {name: list(card.knobs) for name, card in cards.items() if name.startswith("runs/")} == {
        "runs/gan": ["guidance", "truncation"],
        "runs/cvae": ["truncation"],
        "runs/raster": ["guidance", "temperature", "top_k", "top_p"],
        "runs/any/order": ["guidance", "temperature", "top_k", "top_p", "steps"],
    }
    assert cards["runs/any/order"].no_inpainting is None
    assert "order=raster" in str(cards["runs/raster"].no_inpainting)
    assert "conditional GAN cannot keep parts" in str(cards["runs/gan"].no_inpainting)
    assert [name for name, card in cards.items() if card.between_noises] == ["cgan", "cvae", "runs/cvae", "runs/gan"]
    assert cards["runs/gan"].words == f"Conditional GAN, 32 x 32 pixels, trained on shapes-1 for {STEP} steps"
    assert len(cards["runs/gan"].examples) == 5 and all(cards["runs/gan"].examples)


def test_a_model_is_loaded_once_until_its_run_goes_on_and_the_oldest_leaves_first(here):
    models = Models([], Path("runs"), 1e9)
    first = models.open("runs/gan")
    assert models.open("runs/gan") is first
    make_run(here / "runs" / "gan", step=STEP + 1, seed=1)
    newer = models.open("runs/gan")
    assert newer.pipe.manifest["step"] == STEP + 1

    size = sum(models.open(name).size for name in ("runs/gan", "runs/cvae"))
    small = Models([], Path("runs"), size)
    gan, cvae = small.open("runs/gan"), small.open("runs/cvae")
    assert small.open("runs/gan") is gan and small.open("runs/cvae") is cvae
    small.open("runs/gan")
    small.open("runs/raster")  # does not fit beside both: the cvae was used longest ago
    assert small.open("runs/cvae") is not cvae


# ---- jobs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("runs/gan", {}),
        ("runs/gan", {"guidance": 1.5, "truncation": 0.7, "temperature": 9}),  # a GAN has no temperature
        ("runs/cvae", {"truncation": 0.5, "guidance": 3}),
        ("runs/any/order", {"temperature": 0.8, "top_k": "5", "top_p": 0.9, "steps": "4", "guidance": 3}),
        ("runs/raster", {"top_k": "", "steps": None, "temperature": 1}),
    ],
)
def test_images_are_those_of_the_command_and_say_what_made_them(work, model, more):
    found = work.sample(GIVEN | {"model": model} | more, Stop(), hear)
    words = shlex.split(found.command)
    assert words[0] == "t2i" and found.warnings == []
    assert app.main([*words[1:], "--out", "by-command"]) == 0
    manifest = json.loads(Path("by-command/manifest.json").read_text())
    assert np.array_equal(pixels(found.images), pixels([(f"by-command/{e['file']}", "") for e in manifest["pictures"]]))
    text = Image.open(found.images[1][0]).text  # type: ignore[attr-defined]
    assert found.images[1][1] == f"seed {manifest['pictures'][1]['seed']}" == f"seed {text['seed']}"
    assert text["prompt"] == CAPTIONS[0] and text["run"] == model
    assert json.loads(text["settings"]) == manifest["settings"]
    assert json.loads(text["checkpoint"]) == manifest["checkpoint"]


def test_a_seed_that_is_shown_makes_that_image_again(work):
    two = work.sample(GIVEN, Stop(), hear)
    again = work.sample(GIVEN | {"number": 1, "seed": two.images[1][1].removeprefix("seed ")}, Stop(), hear)
    assert np.array_equal(pixels(again.images)[0], pixels(two.images)[1])


def test_a_prompt_that_looks_like_a_shell_line_is_quoted(work):
    found = work.sample(GIVEN | {"prompt": "--seed 9 'red' $(circle); `star`"}, Stop(), hear)
    words = shlex.split(found.command)
    assert words[-2:] == ["runs/gan", "--seed 9 'red' $(circle); `star`"] and words[-3] == "--"


def test_interpolations_are_those_of_the_command(work):
    given = GIVEN | {"second": CAPTIONS[1], "frames": 3}
    for model, between in [("runs/gan", "caption"), ("runs/gan", "noise"), ("runs/raster", "caption")]:
        found = work.interpolate(given | {"model": model, "between": between}, Stop(), hear)
        assert [label for _, label in found.images] == ["0.00", "0.50", "1.00"]
        out = f"{between}-{Path(model).name}"
        assert app.main([*shlex.split(found.command)[1:], "--out", out]) == 0
        files = json.loads(Path(out, "manifest.json").read_text())["pictures"]
        assert np.array_equal(pixels(found.images), pixels([(f"{out}/{entry['file']}", "") for entry in files]))
    with pytest.raises(InputError, match="a prior has no path between two noises"):
        work.interpolate(given | {"model": "runs/raster", "between": "noise"}, Stop(), hear)


def test_compared_images_have_the_same_seeds(work):
    first, second = work.compare(GIVEN | {"other": "runs/cvae", "guidance": 2.0}, Stop(), hear)
    assert [label for _, label in first.images] == [label for _, label in second.images]
    assert "--guidance 2.0" in first.command and "--guidance" not in second.command
    assert "runs/cvae" in second.command and not np.array_equal(pixels(first.images).shape, pixels(second.images).shape)


def test_words_are_explained_as_by_the_command(work):
    for model in ("runs/gan", "runs/any/order"):
        found = work.explain(GIVEN | {"model": model, "guidance": 3.0}, Stop(), hear)
        pipe = work.models.open(model).pipe
        maps = maps_of(pipe, CAPTIONS[0], words_of(CAPTIONS[0]), 5)
        labels = [label.partition(":")[0] for _, label in found.images]
        assert labels == ["the image", "small", "red", "circle"]
        assert found.command == f"t2i explain --seed 5 {model} '{CAPTIONS[0]}'"
        assert np.array_equal(pixels(found.images)[0], pipe(CAPTIONS[0], seed=5, output_type="uint8").images[0])
        assert np.array_equal(pixels(found.images)[2], overlay(maps.image_HWC, maps.words[1]))
    with pytest.raises(InputError, match="at most 20 words, got 21"):
        work.explain(GIVEN | {"prompt": "red " * 21}, Stop(), hear)
    with pytest.raises(InputError, match="no word for anything visible"):
        work.explain(GIVEN | {"prompt": "a"}, Stop(), hear)


def canvas(side: int = 64, painted: bool = True) -> dict[str, object]:
    """Returns the output of the editor: an enlarged image of 16 pixels, and a stroke over its last cell."""
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    image = Image.fromarray(noise).resize((side, side), Image.Resampling.NEAREST).convert("RGBA")
    layer = np.zeros((side, side, 4), np.uint8)
    layer[-4:, -4:] = (255, 0, 0, 255) if painted else 0
    return {"background": image, "layers": [Image.fromarray(layer)], "composite": None}


def test_inpainting_samples_what_the_brush_touched_and_keeps_the_rest(work):
    given = GIVEN | {"model": "runs/any/order"}
    found = work.inpaint(given, canvas(), Stop(), hear)
    loaded = work.models.open("runs/any/order")
    background = canvas()["background"]
    assert isinstance(background, Image.Image)
    mask = np.zeros((64, 64), bool)
    mask[-4:, -4:] = True
    expected = loaded.pipe(
        CAPTIONS[0], 2, seed=5, output_type="uint8",
        init_image=background.convert("RGB"), mask_image=Image.fromarray(mask),
    ).images  # fmt: skip
    assert np.array_equal(pixels(found.images), expected)
    assert found.command == ""
    whole = work.sample(given, Stop(), hear)
    assert not np.array_equal(pixels(found.images), pixels(whole.images))
    for odd, says in [
        (None, "there is no image"),
        ({"background": None, "layers": []}, "there is no image"),
        (canvas(painted=False), "nothing is painted"),
        (canvas() | {"layers": canvas(32)["layers"]}, "another size than the image"),
    ]:
        with pytest.raises(InputError, match=says):
            work.inpaint(given, odd, Stop(), hear)
    with pytest.raises(InputError, match="cannot keep parts"):
        work.inpaint(GIVEN, canvas(), Stop(), hear)


def test_words_the_model_does_not_know_are_named_each_time(work):
    for _ in range(2):
        found = work.sample(GIVEN | {"prompt": "a small red giraffe"}, Stop(), hear)
        assert found.warnings == ["this model knows rendered shapes; 'giraffe' is not among its words"]
    (said,) = work.sample(GIVEN | {"prompt": "red circle " * 60}, Stop(), hear).warnings
    assert "longer than the 16 tokens" in said


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": None}, "the prompt is empty"),
        ({"prompt": ["a"]}, "the prompt is empty"),
        ({"prompt": "\u200b"}, "is empty"),
        ({"prompt": "red \ud800"}, "half a character"),
        ({"prompt": "x" * 5000}, "shorten it to at most 4,096"),
        ({"number": 0}, "a whole number from 1 to 16, got 0"),
        ({"number": 10**12}, "from 1 to 16"),
        ({"number": 1.5}, "from 1 to 16"),
        ({"number": float("nan")}, "from 1 to 16, got nan"),
        ({"number": True}, "from 1 to 16"),
        ({"seed": "nan"}, "a seed must be a whole number"),
        ({"seed": "-1"}, "a seed must be a whole number"),
        ({"seed": "²"}, "a seed must be a whole number"),
        ({"seed": "9" * 20}, "from 0 to 2**63 - 1"),
        ({"seed": str(2**63)}, "from 0 to 2**63 - 1"),
        ({"seed": "9" * 5000}, "from 0 to 2**63 - 1"),
        ({"seed": None}, "a seed must be a whole number"),
        ({"guidance": float("nan")}, "guidance nan: must be a finite number"),
        ({"guidance": {"a": 1}}, "guidance {'a': 1}: must be a number"),
        ({"truncation": -1}, "truncation must be a number from 0 on"),
        ({"model": "runs/any/order", "top_k": "many"}, "top-k many: must be"),
        ({"model": "runs/any/order", "top_k": "0"}, "top_k 0: "),
        ({"model": "runs/any/order", "top_k": "9" * 5000}, "top-k 999"),
        ({"model": "../.."}, "there is no model"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(work, here, odd, says):
    with pytest.raises(InputError) as caught:
        work.sample(GIVEN | odd, Stop(), hear)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (here / "made").exists()


def test_a_job_can_be_stopped_between_steps(work, here):
    stop, heard = Stop(), []

    def hear_and_stop(share: float) -> None:
        heard.append(share)
        stop.requested = len(heard) == 2

    with pytest.raises(InputError, match="stopped"):
        work.sample(GIVEN | {"model": "runs/raster"}, stop, hear_and_stop)
    assert heard[-1] < 1 and not (here / "made").exists()
    assert len(work.sample(GIVEN | {"model": "runs/raster"}, Stop(), hear).images) == 2


def test_files_on_the_disk_are_bounded(work, here, monkeypatch):
    assert MOST_FILES >= 1000
    monkeypatch.setattr("t2i.web.work.MOST_FILES", 3)
    for _ in range(4):
        found = work.sample(GIVEN, Stop(), hear)
    assert len(list((here / "made").rglob("*.png"))) == 3
    assert all(Path(path).is_file() for path, _ in found.images)
