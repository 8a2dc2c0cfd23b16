"""`t2i eval classify`: four directions in a shared space."""

import json
from pathlib import Path

import pytest

from builders import published_layouts as layouts
from t2i.cli import app
from t2i.metrics.score import read_scores


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("classified") / "run"
    sets = ["aligner=cca", "image.encoder=classical", "data.limit=400", "validation_n=50"]
    words = [word for one in sets for word in ("--set", one)]
    assert app.main(["train", "align", "--data", "shapes-1", *words, "--run-dir", str(place)]) == 0
    return place


def test_four_directions_are_scored_on_both_splits(run, tmp_path, capsys):
    out = tmp_path / "scores.json"
    asked = ["--data", "shapes-1", "--label", "background", "--train-n", "300", "-n", "60", "--out", str(out)]
    assert app.main(["eval", "classify", str(run), *asked]) == 0
    text = capsys.readouterr().out
    assert "background: 3 classes, 300 training images" in text and text.count("text -> image") == 2
    scores = {(score.name, score.protocol.split): score for score in read_scores(out)}
    assert len(scores) == 16
    one = next(
        score
        for (name, split), score in scores.items()
        if "accuracy-background-image-to-image" in name and split == "val"
    )
    assert one.value > 0.8 > one.bounds["commonest"] and one.interval is not None and one.protocol.n_real == 300
    assert json.loads(out.read_text())["schema"] == 1


def test_several_annotations_an_image_are_learned_each(run, tmp_path, capsys):
    root = layouts.mirflickr(tmp_path / "mir")
    asked = ["--data", f"mirflickr:{root}", "--label", "annotation", "--split", "val,test"]
    assert app.main(["eval", "classify", str(run), *asked]) == 0
    assert "annotation: 4 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["--data", "shapes-1", "--label", "breed"], "no label 'breed'; it has shape, colour"),
        (["--data", "shapes-1", "--label", "shape", "--train-n", "2"], "only one image has the class"),
        (["--data", "CUB", "--label", "class", "--split", "test"], "split test shares no class with split train"),
        (["--data", "shapes-1", "--label", "shape", "--c", "0"], "--c 0.0: must be greater than 0"),
        (["--data", "shapes-1"], "--label"),
    ],
)
def test_mistakes_are_told_in_one_line(run, tmp_path, capsys, asked, says):
    asked = [f"cub:{layouts.cub(tmp_path / 'birds')}" if word == "CUB" else word for word in asked]
    assert app.main(["eval", "classify", str(run), *asked]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
