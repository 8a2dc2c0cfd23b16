"""Scoring: scores of images that are known to be right or wrong, protocols, and refusals."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from builders.commands import command_line
from builders.scored_runs import SIDE, embedded, save_dual, save_run, values  # noqa: F401  # pytest finds fixtures by name
from t2i import checkpoint, seeding
from t2i.data import View, open_dataset
from t2i.data.shapes.captions import parse
from t2i.data.shapes.oracle import ATTRIBUTES
from t2i.data.shapes.scenes import has_heldout_pair, has_heldout_relation
from t2i.data.tools.export import export
from t2i.extractors import aligned as scorer_module
from t2i.extractors import open_image_text
from t2i.metrics.faithfulness import ASPECTS
from t2i.metrics.score import read_scores
from t2i.pipeline import TextToImagePipeline
from t2i.scoring.computation import unseen
from t2i.scoring.images.extraction import Pass, extract
from t2i.scoring.images.sources import folder_images
from t2i.scoring.options import ScoreOptions
from t2i.scoring.runs import score_images, score_run

Command = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.filterwarnings("ignore:FID of .* is biased upward")


# ---------------------------------------------------------------- what is scored: a scorer, folders, a run


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 held-out scenes with captions."""
    folder = tmp_path_factory.mktemp("folders") / "real"
    export(open_dataset("shapes-2", "heldout", View(32, limit=120)), folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedded: str):
    """Runs `t2i eval score` in an empty folder; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    return command_line(capsys, "eval", "score")


# ---------------------------------------------------------------- folders


def test_right_pictures_score_1_and_shuffled_captions_nothing(real: Path, embedded: str) -> None:
    found = values(score_images(ScoreOptions(target=str(real), against=str(real))))
    strict = found["faithfulness-strict"]
    assert strict.value == strict.bounds["real"] == 1.0
    assert strict.bounds["shuffled"] <= 0.02
    assert strict.interval_method == "wilson" and strict.interval is not None and 0.96 < strict.interval[0] < 1
    # What is left to chance: one of three backgrounds, and captions that name none are satisfied by any.
    assert 1 / 3 < found["faithfulness-background"].bounds["shuffled"] < 0.9
    assert {name.split("-")[1] for name in found if name.startswith("faithfulness")} == set(ASPECTS)
    assert abs(found["fid-shapes"].value) < 1e-9 and found["fid-shapes"].interval is not None
    assert abs(found["kid-shapes"].value) < 0.01
    clip = found["clip-aligned"]
    assert clip.value == clip.bounds["real"] > 0
    groups = {name: score.protocol.n_fake for name, score in found.items() if name.startswith("faithfulness-strict-")}
    scenes = open_dataset("shapes-2", "heldout", View(32, limit=120)).scenes  # type: ignore[attr-defined]
    assert groups == {
        "faithfulness-strict-unseen-pair": has_heldout_pair(scenes.shape_NM, scenes.color_NM).sum(),
        "faithfulness-strict-unseen-relation": has_heldout_relation(scenes.layout_N, scenes.shape_NM).sum(),
    }


def test_the_real_score_is_that_of_the_same_captions(real: Path, tmp_path: Path, embedded: str) -> None:
    some = values(score_images(ScoreOptions(target=str(real), against=str(real), n=60)))
    assert some["faithfulness-strict"].bounds["real"] == 1.0 and some["fid-shapes"].protocol.n_real == 120
    other = tmp_path / "other"
    export(open_dataset("shapes-2", "val", View(32, limit=60)), other)
    with pytest.warns(UserWarning, match="no real-image scores: not all captions"):
        alone = values(score_images(ScoreOptions(target=str(other), against=str(real))))
    assert set(alone["faithfulness-strict"].bounds) == set(alone["clip-aligned"].bounds) == {"shuffled"}
    assert alone["faithfulness-strict"].value == 1.0 and alone["faithfulness-strict"].protocol.n_real is None


def test_wrong_pictures_are_told_from_right_ones(real: Path, tmp_path: Path, embedded: str) -> None:
    wrong = Path(shutil.copytree(real, tmp_path / "wrong"))
    for path in sorted(wrong.glob("*.png"))[:60]:
        red_to_blue = np.asarray(Image.open(path))[:, :, ::-1]
        Image.fromarray(np.ascontiguousarray(red_to_blue)).save(path)
    found = values(score_images(ScoreOptions(target=str(wrong), against=str(real))))
    assert found["faithfulness-shape"].value == 1.0
    assert 0.5 <= found["faithfulness-colour"].value < 0.75
    assert found["faithfulness-strict"].bounds["real"] == 1.0
    assert found["fid-shapes"].value > 1e-6
    assert found["clip-aligned"].value != found["clip-aligned"].bounds["real"]


def test_unseen_combinations_are_those_of_the_scenes() -> None:
    data = open_dataset("shapes-3", "heldout", View(SIDE, limit=400))
    scenes = data.scenes  # type: ignore[attr-defined]
    found = unseen([spec for options in data.captions if (spec := parse(options[0]))])
    assert np.array_equal(found["unseen-pair"], has_heldout_pair(scenes.shape_NM, scenes.color_NM))
    assert np.array_equal(found["unseen-relation"], has_heldout_relation(scenes.layout_N, scenes.shape_NM))
    seen = open_dataset("shapes-3", "val", View(SIDE, limit=200))
    assert unseen([spec for options in seen.captions if (spec := parse(options[0]))]) == {}
    assert ASPECTS == ATTRIBUTES


def test_pictures_without_captions_of_any_size_have_a_fid(command: Command, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for name in ("ours", "theirs"):
        (tmp_path / name / "below").mkdir(parents=True)
        for k in range(20):
            size = (30 + k % 3, 40) if k % 2 else (24, 24)
            picture = Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8))
            picture.save(tmp_path / name / ("below" if k % 4 else ".") / f"{k}.png")
    status, out, err = command("ours", "--against", "theirs")
    assert status == 0
    assert [line.split("@")[0] for line in out.splitlines()[1:3]] == ["fid-shapes", "kid-shapes"]
    assert "skipped faithfulness: none of 20 images in folder:ours have captions" in err
    assert "rendered shapes" in err and "--out" in out
    status, _, err = command("ours", "--against", "theirs", "--metrics", "clip-aligned")
    assert status == 2 and err == (
        "error: metric clip-aligned is not available here: none of 20 images in folder:ours have captions; "
        "choose from: fid-shapes, kid-shapes\n"
    )


def test_features_of_a_folder_stay_in_the_order_of_its_pictures(real: Path, tmp_path: Path, embedded: str) -> None:
    """Images are read in groups of one size, captions in order: each image must be matched with its own."""
    mixed = Path(shutil.copytree(real, tmp_path / "mixed"))
    for path in sorted(mixed.glob("*.png"))[::3]:
        Image.open(path).resize((64, 64), Image.Resampling.NEAREST).save(path)
    found = values(score_images(ScoreOptions(target=str(mixed), against=str(real))))
    assert found["faithfulness-strict"].value > 0.98
    assert found["faithfulness-strict"].protocol.resolution is None
    scorer = open_image_text(None)
    seen = extract(folder_images(str(mixed), 20), "mixed", [scorer], Pass())
    paths = [sorted(mixed.glob("*.png"))[row] for row in sorted(seeding.permutation(0, 0, 120)[:20])]
    alone = [scorer.features(np.asarray(Image.open(path))[None])[0] for path in paths]
    assert np.array_equal(seen.features[scorer.digest()], np.stack(alone))


# ---------------------------------------------------------------- runs


def test_a_run_is_scored_with_its_protocol(command: Command, trained: Path, embedded: str) -> None:
    status, out, err = command(trained, "--data", "shapes-2", "--split", "heldout", "-n", "40", "--seed", "3")
    assert status == 0, err
    scores = read_scores(trained / "scores-shapes-2-heldout-40.json")
    found = values(scores)
    everything = {"fid-shapes", "kid-shapes", "clip-aligned", "diversity-pixels"}
    assert everything | {f"faithfulness-{aspect}" for aspect in ASPECTS} <= set(found)
    for name in (*everything, "faithfulness-strict"):
        assert f"{found[name].name} " in out
    newest = checkpoint.latest(trained / "checkpoints")
    assert newest is not None
    manifest = json.loads((newest / "manifest.json").read_text())
    for name in ("fid-shapes", "clip-aligned"):
        protocol = found[name].protocol
        assert (protocol.n_real, protocol.n_fake, protocol.seed, protocol.resolution) == (40, 40, 3, SIDE)
        assert (protocol.data, protocol.split, protocol.captions) == ("shapes-2", "heldout", "first, 1 picture each")
        assert protocol.data_digest == open_dataset("shapes-2", "heldout", View(SIDE)).fingerprint()
        assert protocol.extractor_digest == embedded and protocol.quantisation == "uint8, half up"
        assert protocol.resize == "antialiased bilinear to 16x16"
        assert (protocol.truncation, protocol.guidance) == (1.0, 1.0)
        assert protocol.run == "ab" * 32
        assert protocol.checkpoint == manifest["sha256"]
        assert set(protocol.libraries) >= {"torch", "numpy", "pillow", "t2i"}
    assert set(found["clip-aligned"].bounds) == set(found["faithfulness-strict"].bounds) == {"real", "shuffled"}
    assert found["faithfulness-strict"].bounds["real"] > 0.5 > found["faithfulness-strict"].value
    several = found["diversity-pixels"]
    assert several.protocol.n_fake == 96 and several.protocol.captions == "first 24, 4 pictures each"
    assert several.value > 0 and several.bounds["different prompts"] > 0
    with Image.open(trained / "scores-shapes-2-heldout-40.png") as sheet:
        assert sheet.size[0] == 6 * 134 + 6


def test_scores_follow_seed_truncation_and_nothing_else(trained: Path, embedded: str) -> None:
    def scored(**changes: Any) -> dict[str, float]:
        asked = {"data": "shapes-2", "n": 30, "metrics": ("kid-shapes", "diversity-pixels")}
        options = ScoreOptions(target=str(trained), **asked, **changes)
        return {score.name: score.value for score in score_run(options)}

    first = scored()
    assert scored() == first
    assert scored(seed=1) != first
    collapsed = scored(truncation=0.0)
    assert collapsed["diversity-pixels@96"] == 0 < first["diversity-pixels@96"]


def test_a_saved_pipeline_scores_as_its_run(trained: Path, embedded: str, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"n": 12, "metrics": ("fid-shapes", "faithfulness"), "force": True}
    TextToImagePipeline.from_pretrained(trained).save_pretrained(tmp_path / "saved", prompts=[])
    found = score_run(ScoreOptions(target=str(tmp_path / "saved"), **asked))
    assert found == score_run(ScoreOptions(target=str(trained), **asked))
    assert {score.protocol.n_fake for score in found} == {12}


def test_real_pictures_come_first_and_a_sheet_of_generated_ones_last(trained: Path, embedded: str) -> None:
    told: list[tuple[str, int]] = []
    shown: list[tuple[Any, Any]] = []
    score_run(
        ScoreOptions(target=str(trained), n=30, metrics=("faithfulness",)),
        tick=lambda what, done, total: told.append((what, done)),
        show=lambda pictures, captions: shown.append((pictures, captions)),
    )  # fmt: skip
    assert told == [("real images", 0), ("real images", 30), ("generated images", 0), ("generated images", 30)]
    ((pictures, captions),) = shown
    data = open_dataset("shapes-2", "val", View(SIDE))
    rows = sorted(seeding.permutation(0, 0, len(data))[:30])
    assert captions == [data.captions[row][0] for row in rows[:24]] and len(pictures) == 24
    # Each has a noise of its own, which follows from its picture's id.
    seeds = [seeding.derive(0, "score", data.ids[row]) for row in rows[:24]]
    pipe = TextToImagePipeline.from_pretrained(trained)
    assert np.array_equal(np.stack(pictures), pipe(captions, seed=seeds, output_type="uint8").images)


def test_the_scorer_may_not_have_taken_part_in_the_training(command: Command, embedded: str, tmp_path: Path) -> None:
    aligned = {"text": {"encoder": "aligned", "path": str(scorer_module.scorer_dir())}}
    for role, (changes, guide) in {"guide": ({}, embedded), "text encoder": (aligned, None)}.items():
        run = save_run(tmp_path / role.replace(" ", "-"), changes, guide)
        status, out, err = command(run, "-n", "20", "--split", "heldout")
        assert (status, out) == (2, "") and len(err.splitlines()) == 1
        assert f"fid-shapes cannot score this run: it was its {role}" in err
        assert not list(run.glob("scores*"))
        assert command(run, "-n", "20", "--metrics", "faithfulness,diversity-pixels")[0] == 0
        assert command(run, "-n", "20", "--split", "heldout", "--force")[0] == 0
        names = [score.name for score in read_scores(run / "scores-shapes-2-heldout-20.json")]
        word = role.replace(" ", "-")
        assert {f"{name}-its-own-{word}@20" for name in ("fid-shapes", "kid-shapes", "clip-aligned")} <= set(names)
    other = tmp_path / "other"
    digest = save_dual(other, seed=1)
    assert command(run, "-n", "20", "--split", "heldout", "--scorer", other, "--out", "o.json")[0] == 0
    found = values(read_scores(Path("o.json")))
    assert {f"fid-align-{digest[:8]}", f"clip-align-{digest[:8]}"} <= set(found) and "fid-shapes" not in found
    # another length limit makes another text encoder, and not another dual encoder
    run = save_run(tmp_path / "shorter", {"text": {"encoder": "aligned", "path": str(other), "max_tokens": 9}})
    status, _, err = command(run, "-n", "20", "--split", "heldout", "--scorer", other)
    assert status == 2 and f"fid-align-{digest[:8]} cannot score this run: it was its text encoder" in err
    assert open_image_text(scorer_module.scorer_dir()).name == "shapes"


def test_captions_outside_the_grammar_leave_faithfulness_out(command: Command, real: Path, tmp_path: Path) -> None:
    photos = Path(shutil.copytree(real, tmp_path / "photos"))
    rows = [json.loads(line) for line in (photos / "metadata.jsonl").read_text().splitlines()]
    lines = (json.dumps({"file_name": row["file_name"], "text": f"a photo of {row['text']}"}) for row in rows)
    (photos / "metadata.jsonl").write_text("\n".join(lines))
    run = save_run(tmp_path / "run", {"data": {"address": str(photos), "resolution": SIDE, "split_seed": 5}})
    status, out, err = command(run, "--split", "train", "-n", "30")
    assert status == 0 and "faithfulness-" not in out
    assert "warning: skipped faithfulness: the oracle reads rendered shapes, but caption 'a photo of" in err
    assert "warning: the run was trained on these captions; they are not held out" in err
    # The run's own draw of the split: with another one its training images would be scored.
    found = values(read_scores(run / "scores-photos-train-30.json"))
    own = open_dataset(str(photos), "train", View(SIDE, seed=5))
    assert own.ids != open_dataset(str(photos), "train", View(SIDE, seed=0)).ids
    assert found["fid-shapes"].protocol.data_digest == own.fingerprint()


# ---------------------------------------------------------------- extractors by path


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPImageProcessor

    from builders.tiny_text_models import save_clip

    folder = save_clip(tmp_path_factory.mktemp("clip"), "whole")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_clip_folder_scores_unless_its_text_tower_was_trained_with(
    command: Command, real: Path, clip_folder: Path, tmp_path: Path
) -> None:
    assert command(real, "--against", real, "-n", "60", "--clip", clip_folder, "--out", "o.json")[0] == 0
    found = values(read_scores(Path("o.json")))
    (name,) = [name for name in found if name.startswith("clip-vit-32-8-")]
    assert set(found[name].bounds) == {"real", "shuffled"} and f"fid-{name}" in found
    text = {"encoder": "clip", "path": str(clip_folder)}
    run = save_run(tmp_path / "run", {"text": text})
    status, _, err = command(run, "-n", "60", "--clip", clip_folder)
    assert status == 2 and f"fid-{name} cannot score this run: it was its text encoder" in err


def test_the_name_fid_is_for_the_inception_of_2015(command: Command, real: Path, tmp_path: Path) -> None:
    from t2i.extractors.inception_network import Inception

    torch.manual_seed(0)
    weights = tmp_path / "inception.safetensors"
    safetensors.torch.save_file(Inception().state_dict(), weights)
    both = (real, "--against", real, "--inception", weights)
    status, _, err = command(*both, "--metrics", "fid")
    assert (
        status == 2
        and "does not hold the FID Inception of 2015-12-05" in err
        and "only its scores are called fid" in err
    )
    (name,) = re.findall(r"fid-inception-[0-9a-f]{8}", err)
    status, _, err = command(*both, "-n", "8", "--metrics", name)
    assert status == 2 and "FID of 8 generated and 120 real images with 2048 features is meaningless" in err


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("nowhere", "nowhere"),
        ("empty", "empty"),
        ("RUN --data nowhere", "data 'nowhere' not found"),
        ("RUN --split vall", "no split 'vall'"),
        ("RUN -n 15 --metrics fid-shapes", "score at least 16 on each side"),
        ("RUN -n 1", "gave 1 image; a score needs at least 2"),
        ("RUN --data REAL --split val -n 100000", "set -n to at most"),
        ("RUN --metrics fid-shape", "did you mean fid-shapes?"),
        ("RUN --metrics fid-clip", "needs a CLIP folder; name it with --clip DIR"),
        ("RUN --metrics ,", "--metrics ,: names nothing; list names with commas"),
        ("RUN --guidance -1", "guidance must be a number from 0 on"),
        ("RUN --inception notes.txt", "notes.txt"),
        ("RUN --inception none.pth", "none.pth not found"),
        ("RUN --clip empty", "no config.json"),
        ("RUN --scorer empty", "empty is not a dual encoder"),
        ("RUN --scorer damaged", "damaged"),
        ("RUN --out nowhere/o.json", "there is no folder nowhere"),
        ("RUN --out empty", "is a folder"),
        ("empty --against REAL", "no images"),
        ("REAL --against empty", "no images"),
        ("REAL --against nowhere", "'nowhere' not found"),
        ("REAL --against REAL -n 121", "set -n to at most 120"),
        ("REAL --against REAL --data shapes-2", "--data shapes-2 has no effect with --against"),
        ("REAL --against REAL --metrics diversity-pixels", "metric 'diversity-pixels' is unknown here"),
        ("broken --against REAL", "broken 00007.png: "),
        ("REAL --against point", "1x1 pixels"),
    ],
)
def test_bad_input_is_one_line(
    argv: str, words: str, command: Command, trained: Path, real: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no weights")
    shutil.copytree(real, tmp_path / "broken")
    (tmp_path / "broken" / "00007.png").write_bytes((real / "00007.png").read_bytes()[:60])
    (tmp_path / "point").mkdir()
    for k in range(2):
        Image.new("RGB", (1, 1)).save(tmp_path / "point" / f"{k}.png")
    shutil.copytree(scorer_module.scorer_dir(), tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"x" * 100)
    before = sorted(tmp_path.rglob("*"))
    places = {"RUN": str(trained), "REAL": str(real)}
    status, out, err = command(*(places.get(word, word) for word in argv.split()))
    assert status == 2 and out == ""
    assert words in err and err.startswith("error: ") and len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
