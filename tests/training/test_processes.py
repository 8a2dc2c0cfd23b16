"""One global batch gives the same losses on 1, 2 and 4 processes, and shared computations are divided among them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.small_settings import GAN, SMALL, VQVAE
from builders.tiny_prior_run import save_random_tokenizer
from builders.toy_run import two_processes, warm_up
from t2i.cli import app
from t2i.data import View, open_dataset
from t2i.distributed import Ranks
from t2i.families.tokenizers import load_tokenizer
from t2i.text import TextConfig, fit_encoder
from t2i.training import codes, journal, text_features
from t2i.training.codes import encode_codes
from t2i.training.text_features import encode_cached

BATCH, STEPS = 8, 2
KEYS = {
    "vqvae": VQVAE,
    "cgan": GAN,
    # dropout is drawn by each process for itself
    "prior": ["model={width: 16, depth: 2, heads: 2, mlp_width: 16, dropout: 0.0}", "text={encoder: bow}", "order=random",
              "sampling.steps=3"],
    "cvae": ["model={width: 16, depth: 2, heads: 2, posterior_width: 8}", "text={encoder: bow}"],
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    warm_up()
    folder = tmp_path_factory.mktemp("tokenizer") / "saved"
    save_random_tokenizer(folder)
    return folder


def losses(family: str, world: int, run: Path, tokenizer: Path) -> list[float]:
    sets = [*SMALL, *KEYS[family], f"train_batch_size={BATCH // world}", f"max_train_steps={STEPS}", "validation_n=2"]
    sets += [f"tokenizer.path={json.dumps(str(tokenizer))}"] if family in ("prior", "cvae") else []
    words = ["train", family, "--config", f"{family}-tiny", "--data", "shapes-1", "--run-dir", str(run)]
    words += [word for value in sets for word in ("--set", value)]

    def rank(index: int) -> None:
        torch.set_num_threads(1)
        os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        raise SystemExit(app.main(words))

    assert two_processes(rank, world=world, seconds=200) == [0] * world
    name = "d_loss" if family == "cgan" else "loss"
    return [record[name] for record in journal.read(run / "journal.jsonl") if name in record]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("family", "worlds"), [("vqvae", (2, 4)), ("prior", (2, 4)), ("cgan", (2,)), ("cvae", (2,))], ids=list(KEYS)
)
def test_losses_are_those_of_one_process(family: str, worlds: tuple[int, ...], tmp_path: Path, tokenizer: Path) -> None:
    alone = losses(family, 1, tmp_path / "1", tokenizer)
    assert len(alone) == STEPS
    for world in worlds:
        assert losses(family, world, tmp_path / str(world), tokenizer) == pytest.approx(alone, rel=2e-5), world


def test_processes_share_features_and_codes(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "SHARD_IMAGES", 8)
    monkeypatch.setattr(text_features, "SHARD_CAPTIONS", 4)
    data = open_dataset("shapes-1", "train", View(16, limit=32))
    captions = [one for options in data.captions for one in options]
    encoder = fit_encoder(TextConfig(encoder="bow"), captions)

    def body(rank: int) -> None:
        torch.distributed.init_process_group("gloo")
        ranks, frozen, seen = Ranks(2, rank == 0), load_tokenizer(tokenizer), {"captions": 0, "images": 0}
        encode_text, encode_images = encoder.encode, frozen.encode

        def count_captions(batch: list[str]) -> object:
            seen["captions"] += len(batch)
            return encode_text(batch)

        def count_images(batch: np.ndarray) -> torch.Tensor:
            seen["images"] += len(batch)
            return encode_images(batch)

        encoder.encode, frozen.encode = count_captions, count_images  # type: ignore[method-assign, assignment]
        os.environ["T2I_CACHE"] = str(tmp_path / "cache")
        text = encode_cached(encoder, captions, ranks=ranks)
        found = encode_codes(frozen, data, ranks=ranks)
        rows = np.arange(len(data))
        sums = [float(text.rows(range(len(text))).pooled_BP.sum()), int(found.at(rows, 0 * rows).sum())]
        (tmp_path / f"{rank}.json").write_text(json.dumps([seen, sums]))

    assert two_processes(body) == [0, 0]
    (first, sums), (second, others) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["images"] == second["images"] == 16 and sums == others
    different = len(set(captions))
    assert abs(first["captions"] - second["captions"]) <= 1 and first["captions"] + second["captions"] == different
