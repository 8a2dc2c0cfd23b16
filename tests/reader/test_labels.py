"""Labels as answers to one question: the loss, data that has no labels, and a run from training to scores."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from builders.tiny_reader_run import SMALL, make_reader_run, tiny_config, tiny_reader
from t2i.cli.app import main
from t2i.config.load import load
from t2i.data import View, open_dataset
from t2i.data.questions import label_question, questions_about_label
from t2i.errors import InputError
from t2i.images import to_model
from t2i.reader.config import Config
from t2i.reader.network import ReaderNetwork
from t2i.reader.scores import known_questions
from t2i.reader.step import Losses, QuestionBatch, ReaderMicro

COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain red and blue images with the label `paint`, one image without it, and captions that do not tell the colour."""
    root = tmp_path_factory.mktemp("labelled")
    for split, count in (("train", 24), ("val", 8)):
        (root / split).mkdir()
        rows = []
        for k in range(count):
            colour = list(COLOURS)[k % 2]
            shade = tuple(max(0, min(255, value + 4 * (k % 5))) for value in COLOURS[colour])
            Image.new("RGB", (16, 16), shade).save(root / split / f"{k}.png")
            rows.append({"file_name": f"{k}.png", "text": "a plain image", "labels": {"paint": colour if k else None}})
        (root / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_the_question_about_a_label_has_its_classes_as_answers(folder: Path) -> None:
    dataset = open_dataset(str(folder), "train", View(16))
    asked = dict(zip(dataset.ids, questions_about_label(dataset, "paint"), strict=True))
    assert asked["train/0.png"] == ()
    (question,) = asked["train/1.png"]
    assert question.text == label_question("paint") == "what is the paint?"
    assert question.answers == {"blue": 1.0} and question.kind == "paint"
    with pytest.raises(InputError, match=r"has no label 'pain' \(did you mean paint\?\)"):
        questions_about_label(dataset, "pain")


def test_the_loss_of_labels_is_its_theory_value_and_weighs_as_it_should() -> None:
    config = tiny_config(tasks={"caption": 0, "answer": 0, "label": 0.5}, label="shape")
    reader = tiny_reader()
    torch.manual_seed(0)
    network = ReaderNetwork(config, reader.vocabulary.sizes(None))
    assert network.captions is None and network.answers is not None
    images = to_model(open_dataset("shapes-1", "train", View(16, limit=4)).images(range(4)))
    target = torch.eye(len(reader.answers))[:4]
    batch = QuestionBatch(reader.words([label_question("shape")] * 4), torch.arange(4), target)
    loss, parts = Losses(network, config.tasks)(ReaderMicro(images, None, None, batch))
    assert list(parts) == ["label_nll"] and parts["label_nll"].item() == pytest.approx(
        math.log(target.shape[1]), rel=0.02
    )
    assert loss.item() == pytest.approx(0.5 * parts["label_nll"].item(), rel=1e-6)
    loss.backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["tasks.label=1"], "tasks.label is 1 and label is null; name the label, as in label=class"),
        (["label=class"], "tasks.label is 0 and label is class; set tasks.label=1 too, or remove it"),
        (["tasks.caption=0"], "tasks.caption, tasks.answer and tasks.label are all 0"),
    ],
)
def test_a_label_without_a_weight_and_a_weight_without_a_label_are_refused(sets: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        load(Config, None, sets)
    with pytest.raises(ValidationError):
        Config.model_validate({"label": "class"})


def test_a_reader_of_labels_is_trained_read_and_scored(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {
        "data": {"address": str(folder), "resolution": 16},
        "tasks": {"caption": 0, "label": 1},
        "label": "paint",
    }
    values = {**SMALL, **changes, "max_train_steps": 60, "train_batch_size": 12, "learning_rate": 4e-3, "log_steps": 20}
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    assert main(["train", "reader", "--run-dir", str(tmp_path / "run"), *sets, "--set", "validation_steps=60"]) == 0
    journal = [json.loads(line) for line in (tmp_path / "run/journal.jsonl").read_text().splitlines()]
    assert any(row.get("val_answers_paint") == 1.0 or row.get("val/answers_paint") == 1.0 for row in journal), journal[
        -1
    ]
    capsys.readouterr()
    assert main(["read", str(tmp_path / "run"), str(folder / "val/1.png"), str(folder / "val/2.png")]) == 0
    assert [line.rpartition("\t")[2] for line in capsys.readouterr().out.splitlines()] == ["blue", "red"]
    out = tmp_path / "scores.json"
    assert main(["eval", "captions", str(tmp_path / "run"), "--out", str(out)]) == 0
    scores = {row["protocol"]["metric"]: row["value"] for row in json.loads(out.read_text())["scores"]}
    assert scores == {"answers": 1.0, "answers-paint": 1.0}


def test_data_without_the_label_is_refused_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "reader", "--run-dir", str(tmp_path / "run"), "--data", "shapes-1", "--set", "tasks.label=1"]
    assert main([*words, "--set", "label=species", "--set", "data.limit=8"]) == 2
    assert "data shapes-1 has no label 'species'; it has shape, colour, size" in capsys.readouterr().err


def test_a_reader_of_labels_asks_only_what_it_learned(folder: Path, tmp_path: Path) -> None:
    run = make_reader_run(tmp_path / "both")
    from t2i.reader.reading import Reader

    reader = Reader.from_pretrained(run)
    assert reader.vocabulary.label == "" and reader.vocabulary.questions
    scenes = open_dataset("shapes-2", "val", View(16, limit=3))
    assert [len(own) for own in known_questions(reader, scenes)] == [len(own) for own in scenes.questions]  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="has no questions with answers"):
        known_questions(reader, open_dataset(str(folder), "val", View(16)))
