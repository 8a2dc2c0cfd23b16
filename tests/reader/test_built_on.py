"""Readers built on existing networks: image towers, a GPT-2, a frozen encoder of questions; trained, then used."""

import json
from pathlib import Path

import pytest
import torch

from builders.small_settings import SMALL
from builders.tiny_text_models import save_bert, save_clip_with_images, save_gpt2
from t2i import Reader, checkpoint
from t2i.cli import app
from t2i.data import View, open_dataset
from t2i.reader.gpt2 import open_gpt2
from t2i.weights import scorer_dir

SETS = [*SMALL, "data.resolution=32", "width=32", "decoder={depth: 1, heads: 2}", "fusion={depth: 1, heads: 2}"]
SETS += ["text={depth: 1}", "validation_n=4", "max_train_steps=2", "checkpointing_steps=1"]


def train(run: Path, *sets: str) -> int:
    words = ["train", "reader", "--config", "reader-both", "--data", "shapes-2", "--run-dir", str(run)]
    return app.main(words + [word for value in (*SETS, *sets) for word in ("--set", value)])


def named(encoder: str, path: Path, **more: object) -> str:
    return json.dumps({"encoder": encoder, "path": str(path), **more})


def weights_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    return checkpoint.load(run / "checkpoints" / f"step-{step:08d}")[0]["model"]


def test_a_frozen_tower_stays_and_a_trained_one_moves(tmp_path: Path, capsys) -> None:
    clip = save_clip_with_images(tmp_path / "clip")
    for trained in (False, True):
        run = tmp_path / f"run-{trained}"
        assert train(run, f"image={named('clip', clip, trained=trained)}") == 0
        reader = Reader.from_pretrained(run)
        images = open_dataset("shapes-2", "val", View(32, limit=3)).images(range(3))
        assert len(reader.caption(images)) == 3 and len(reader.answer(images, ["is there a star?"])) == 3
        towers = [name for name in weights_of(run, 1) if name.startswith("tower.")]
        first, last = weights_of(run, 1), weights_of(run, 2)
        moved = [name for name in towers if not torch.equal(first[name], last[name])]
        assert bool(moved) == bool(towers) == trained
    # another tower than the run was started with is refused by name
    other = save_clip_with_images(tmp_path / "moved")
    weights = tmp_path / "run-False" / "image" / "tower" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(data)
    capsys.readouterr()
    assert train(tmp_path / "run-False", f"image={named('clip', other)}", "max_train_steps=3") == 2
    assert "the image in" in capsys.readouterr().err


def test_a_reader_starts_from_gpt2_an_aligned_map_and_frozen_questions(tmp_path: Path) -> None:
    gpt2, run = save_gpt2(tmp_path / "gpt2"), tmp_path / "run"
    sets = [f"decoder.path={json.dumps(str(gpt2))}", f"image={named('aligned', scorer_dir())}", "lr_warmup_steps=1000"]
    assert train(run, *sets, f"text={named('bert', save_bert(tmp_path / 'bert'))}") == 0
    start = open_gpt2(str(gpt2), 48)
    after_one = weights_of(run, 1)
    for name, tensor in start.weights.items():  # one step of a thousandth of the learning rate later
        own = after_one[f"captions.{name}"]
        torch.testing.assert_close(own, tensor[: len(own)], rtol=0, atol=1e-4)
    reader = Reader.from_pretrained(run)
    images = open_dataset("shapes-2", "val", View(48, limit=3)).images(range(3))
    assert reader.tokenizer.END == start.end and len(reader.caption(images, beams=2)) == 3
    assert set(reader.answer(images, ["how many objects are there?"])) <= set(reader.answers)
    assert (run / "text" / "encoder.json").is_file() and (run / "image" / "encoder.json").is_file()


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["tasks={caption: 0, answer: 0}"], "nothing to learn"),
        (["image={encoder: vit, path: nowhere}"], "image.path='nowhere' does not exist|no such folder"),
        (["image={encoder: vit}"], "image.encoder=vit needs image.path"),
        (["decoder.path=nowhere"], "decoder.path='nowhere'"),
        (["width=48", "fusion.heads=5"], "is not a multiple of fusion.heads=5"),
        (["fusion.kind=product"], "fusion.kind"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path: Path, capsys, sets: list[str], said: str) -> None:
    import re

    assert train(tmp_path / "run", *sets) == 2
    shown = capsys.readouterr().err
    assert re.search(said, shown) and "Traceback" not in shown and not (tmp_path / "run" / "checkpoints").exists()


def test_data_without_questions_is_refused_before_it_trains(tmp_path: Path, capsys) -> None:
    data = tmp_path / "data"
    assert app.main(["data", "export", "shapes-2", str(data), "-n", "8", "--size", "16"]) == 0
    words = ["train", "reader", "--config", "reader-vqa", "--data", str(data), "--run-dir", str(tmp_path / "run")]
    assert app.main(words) == 2
    assert "has no questions with answers; give shapes-1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
