"""Dual encoders on disk: the tokenizer depends on the captions alone, and damage is reported in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from t2i import checkpoint
from t2i.align.config import Config
from t2i.align.dual_encoder import DualEncoder
from t2i.align.frozen import DESCRIPTION, TOKENIZER, WEIGHTS, FrozenDualEncoder, load_dual_encoder
from t2i.align.tokenizer import CaptionTokenizer
from t2i.errors import InputError
from t2i.extractors import open_image_text

FIT = """
from t2i.align.tokenizer import CaptionTokenizer
from t2i.data import View, open_dataset
dataset = open_dataset("shapes-2", "train", View(resolution=16, limit=400))
captions = [caption for options in dataset.captions for caption in options]
captions += [f"Über {i} naïve words ab ba ab ba" for i in range(50)]  # ties between pairs
print(CaptionTokenizer.fit(captions, 700, 32).json_text)
"""
TINY = {
    "data": {"resolution": 16},
    "text_tower": {"width": 16, "depth": 1, "heads": 2, "max_tokens": 16},
    "image_tower": {"width": 8, "width_limit": 16},
    "embedding": 16,
}


def test_processes_with_other_hash_seeds_fit_the_same_tokenizer():
    """Resuming and the digests of runs depend on it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", FIT],
            env={**environment, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed, threads in (("1", "1"), ("4711", "3"))
    ]
    texts = [child.communicate(timeout=300)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert texts[0] == texts[1] and 300 < len(CaptionTokenizer(texts[0], 32)) <= 700


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns `saved`, the folder of an encoder, and `run`, a run of the same one."""
    root, config = tmp_path_factory.mktemp("places"), Config.model_validate(TINY)
    torch.manual_seed(0)
    tokenizer = CaptionTokenizer.fit(["a red circle", "a blue square"], 300, 16)
    state = DualEncoder(config, len(tokenizer)).state_dict()
    FrozenDualEncoder(config, tokenizer, state).save(root / "saved")
    (root / "run").mkdir()
    (root / "run" / TOKENIZER).write_text(tokenizer.json_text)
    manifest = {"family": "align", "config": config.model_dump(mode="json")}
    checkpoint.save(root / "run" / "checkpoints", 1, {"model": state}, manifest)
    return root


def test_a_run_and_a_saved_folder_of_one_encoder_have_one_digest(places):
    assert load_dual_encoder(places / "run").digest() == load_dual_encoder(places / "saved").digest()


@pytest.mark.parametrize(
    ("place", "file", "damage"),
    [
        ("saved", WEIGHTS, b"rot"),
        ("saved", WEIGHTS, None),
        ("saved", DESCRIPTION, b"{"),
        ("saved", DESCRIPTION, b"[]"),
        ("saved", DESCRIPTION, b'{"a":' * 100_000),
        ("saved", DESCRIPTION, b"\xff\xfe\x00"),
        ("saved", DESCRIPTION, b'{"config": {"embedding": "many"}, "tokenizer": "{}"}'),
        ("saved", DESCRIPTION, json.dumps({"config": TINY, "tokenizer": "{"}).encode()),
        ("run", TOKENIZER, b"{"),
        ("run", TOKENIZER, b"\xff"),
    ],
)
def test_a_damaged_encoder_is_told_in_one_line_that_names_it(places, tmp_path, place, file, damage):
    copy = tmp_path / place
    for path in (path for path in (places / place).rglob("*") if path.is_file()):
        target = copy / path.relative_to(places / place)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (copy / file).unlink() if damage is None else (copy / file).write_bytes(damage)
    for read in (load_dual_encoder, open_image_text):
        with pytest.raises(InputError, match=r"is damaged \(.*\); train it again") as caught:
            read(copy)
        assert str(copy) in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused(places, tmp_path):
    from safetensors.torch import load_file, save_file

    for value in (float("nan"), float("inf")):
        weights = load_file(places / "saved" / WEIGHTS)
        weights["image.stem.weight"][0, 0, 0, 0] = value
        save_file(weights, tmp_path / WEIGHTS)
        (tmp_path / DESCRIPTION).write_bytes((places / "saved" / DESCRIPTION).read_bytes())
        with pytest.raises(InputError, match="is damaged .image.stem.weight is not finite."):
            open_image_text(tmp_path)


@pytest.mark.parametrize("file", [WEIGHTS, DESCRIPTION])
def test_pipes_and_devices_are_not_opened(places, tmp_path, file):
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        for name in (WEIGHTS, DESCRIPTION):
            (tmp_path / name).unlink(missing_ok=True)
            (tmp_path / name).write_bytes((places / "saved" / name).read_bytes())
        (tmp_path / file).unlink()
        make(tmp_path / file)
        with pytest.raises(InputError, match="is damaged|is not a dual encoder") as caught:
            load_dual_encoder(tmp_path)
        assert "\n" not in str(caught.value)


def test_loading_leaves_the_callers_generator_alone(places):
    for place in ("run", "saved"):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        load_dual_encoder(places / place)
        assert torch.equal(torch.rand(3), expected)
