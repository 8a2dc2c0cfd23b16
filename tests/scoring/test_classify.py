"""`t2i eval classify`: four directions in a shared space."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


def test_training_images_of_the_encoder_are_refused_or_marked(tmp_path, capsys):
    """The split `val` of one seed has training images of another."""
    rows = []
    for k in range(200):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"{k}.png")
        rows.append({"file_name": f"{k}.png", "text": f"animal {k}", "label": k % 2})
    (tmp_path / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    sets = ["aligner=cca", "image.encoder=classical", "data.resolution=16", "data.split_seed=1"]
    words = [word for one in sets for word in ("--set", one)]
    run = tmp_path / "run"
    assert app.main(["train", "align", "--data", str(tmp_path), *words, "--run-dir", str(run)]) == 0
    asked = ["eval", "classify", str(run), "--data", str(tmp_path), "--label", "label", "--split", "val"]
    capsys.readouterr()
    for more in ([], ["--resolution", "32"]):
        assert app.main([*asked, *more]) == 2
        assert re.search(
            r"was trained on \d+ of \d+ images \('.*split val; name held-out data", capsys.readouterr().err
        )
    out = tmp_path / "scores.json"
    assert app.main([*asked, "--allow-leak", "--out", str(out)]) == 0
    assert all(re.match(r"trained on \d+ of \d+ images", score.protocol.leak or "") for score in read_scores(out))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["--data", "shapes-1", "--label", "breed"], "no label 'breed'; it has shape, colour"),
        (["--data", "shapes-1", "--label", "shape", "--train-n", "2"], "only one image has the class"),
        (["--data", "CUB", "--label", "class", "--split", "test"], "split test shares no class with split train"),
        (["--data", "shapes-1", "--label", "shape", "--c", "0"], "--c 0.0: must be greater than 0"),
        (["--data", "shapes-1"], "--label"),
        (
            ["--data", "shapes-1", "--label", "shape", "--split", "val,train"],
            "--split train: the classifiers learn from",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(run, tmp_path, capsys, asked, says):
    asked = [f"cub:{layouts.cub(tmp_path / 'birds')}" if word == "CUB" else word for word in asked]
    assert app.main(["eval", "classify", str(run), *asked]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
