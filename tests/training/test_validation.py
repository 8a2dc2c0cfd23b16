"""Scores on val during training: their values, no effect on training, and the best weights."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from t2i import checkpoint
from t2i.align.frozen import load_dual_encoder
from t2i.cli import app
from t2i.data import View, open_dataset
from t2i.errors import InputError
from t2i.families.tokenizers import load_tokenizer
from t2i.pipeline import TextToImagePipeline
from t2i.prior.config import Config as PriorConfig
from t2i.training import journal
from t2i.training.run import Run
from t2i.training.validation import Best, HeldOut, Patience, note_validation, oracle_names, oracle_scores

CPU = torch.device("cpu")
SMALL = [
    *("data.limit=32", "data.resolution=16", "train_batch_size=4", "log_steps=1", "max_train_steps=4"),
    *("mixed_precision=no", "device=cpu", "validation_n=8", "checkpointing_steps=4"),
]
FAMILY = {
    "cgan": [
        *("generator={width: 8, width_limit: 16, w_dim: 16, z_dim: 8}", "text={encoder: bow}", "loss.negatives=8"),
        *("discriminator={width: 8, width_limit: 16, feature_dim: 16}", "guidance.encoder=none"),
    ],
    "align": ["text_tower={width: 16, depth: 1, heads: 2}", "image_tower={width: 16, width_limit: 16}", "embedding=16"],
    "vqvae": ["autoencoder={width: 8, width_limit: 16, grid: 4}", "quantizer={codebook_size: 16, dim: 4}"],
}


def train(family: str, run: Path, *sets: str) -> int:
    words = ["train", family, "--data", "shapes-1", "--run-dir", str(run)]
    return app.main(words + [word for value in (*SMALL, *FAMILY[family], *sets) for word in ("--set", value)])


def newest(run: Path) -> Path:
    found = checkpoint.latest(run / "checkpoints")
    assert found is not None
    return found


def scores_of(run: Path, name: str) -> dict[int, float]:
    return {r["step"]: r[f"val_{name}"] for r in journal.read(run / "journal.jsonl") if f"val_{name}" in r}


# ---------------------------------------------------------------- scores


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    val = open_dataset("shapes-2", "val", View(32, limit=60))
    return HeldOut(val, [options[0] for options in val.captions], range(60), None, CPU)


def test_right_pictures_score_better_than_wrong_ones(held_out: HeldOut) -> None:
    images = open_dataset("shapes-2", "val", View(32, limit=60)).images(range(60))
    right, wrong = held_out.scores(images), held_out.scores(images[::-1])
    noise = held_out.scores(np.random.default_rng(0).integers(0, 255, images.shape, np.uint8))
    assert list(right) == list(wrong) == held_out.names
    assert held_out.names[-3:] == ["strict", "kid-shapes", "clip-aligned"]
    assert right["strict"] == 1.0 and wrong["strict"] < 0.1
    assert right["clip-aligned"] > wrong["clip-aligned"] + 20
    assert (
        right["kid-shapes"] == pytest.approx(wrong["kid-shapes"]) and noise["kid-shapes"] > right["kid-shapes"] + 0.01
    )


def test_other_pictures_are_scored_only_by_an_extractor_that_is_named() -> None:
    val = open_dataset("shapes-2", "val", View(32, limit=4))
    photos = HeldOut(val, ["a photo of a dog"] * 4, range(4), None, CPU)
    assert photos.names == [] and photos.scores(val.images(range(4))) == {}
    assert oracle_names(["a photo"]) == [] and oracle_scores(val.images([0]), ["a photo"]) == {}
    with pytest.raises(InputError, match="extractor 'resnet' is unknown"):
        HeldOut(val, ["a dog"] * 4, range(4), "resnet", CPU)


# ---------------------------------------------------------------- the best weights


class Weights:
    """One number that a validation finds good or bad, and its run."""

    def __init__(self) -> None:
        self.run = cast(Run, SimpleNamespace(step=0, extra={}, is_main=True))
        self.value = 0.0

    def now(self) -> dict[str, torch.Tensor]:
        return {"w": torch.tensor(self.value)}

    def best(self, metric: str, *names: str) -> Best:
        return Best(self.run, self.now, metric, names)


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("strict", [0.1, 0.4, 0.3, 0.4], 2),
        ("kid-shapes", [0.1, -0.2, 0.3, -0.1], 2),
        ("bits_per_token", [3.0, 2.0, 2.5, float("nan")], 2),
        ("psnr", [20.0, 21.0, 22.0, 23.0], 4),
    ],
)
def test_the_best_is_the_highest_or_lowest_as_the_score_is(metric: str, values: list[float], best: int) -> None:
    weights = Weights()
    kept = weights.best(metric, metric)
    assert float(kept.state_tensors()["w"]) == 0 and "best" not in weights.run.extra
    for step, value in enumerate(values, 1):
        weights.value, weights.run.step = float(step), step
        kept.update({metric: value, "other": 0.0})
    assert float(kept.state_tensors()["w"]) == best and kept.misses == len(values) - best
    assert weights.run.extra["best"] == {"metric": metric, "value": values[best - 1], "step": best}


def test_the_best_survives_a_checkpoint_and_an_older_one_is_read() -> None:
    weights = Weights()
    kept, again = weights.best("strict", "strict"), weights.best("strict", "strict")
    again.load_tensors(kept.state_tensors())
    Patience(again).load_tensors(Patience(kept).state_tensors())  # before any validation
    assert again.update({"strict": 0.0}) and weights.run.extra["best"]["value"] == 0
    weights.value, weights.run.step = 5.0, 5
    kept.update({"strict": 0.5})
    weights.value, weights.run.step, weights.run.extra = 6.0, 6, {}
    again.load_tensors(kept.state_tensors())
    Patience(again).load_tensors(Patience(kept).state_tensors())
    assert weights.run.extra["best"] == {"metric": "strict", "value": 0.5, "step": 5}
    assert not again.update({"strict": 0.5}) and again.misses == 1 and float(again.state_tensors()["w"]) == 5
    Patience(again).load_tensors({"nll": torch.tensor(2.0), "misses": torch.tensor(3)})
    assert (again.cost, again.misses, again.step) == (2.0, 3, 0)


def test_a_metric_that_no_validation_gives_is_refused_and_none_at_all_warned_of() -> None:
    with pytest.raises(
        InputError,
        match=r"best_metric 'srtict' is not a validation score .*did you mean strict\?.* choose from count, st",
    ):
        Weights().best("srtict", "count", "strict")
    with pytest.warns(UserWarning, match="has no split val, so best_metric strict has no effect"):
        Best(Weights().run, dict, "strict", None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="best_metric 'kid' cannot be computed.*set validation_extractor"):
        Weights().best("kid")


def test_patience_needs_something_to_wait_for() -> None:
    assert PriorConfig().best_metric == "bits_per_token"
    with pytest.raises(ValidationError, match="patience 3 waits for a better best_metric"):
        PriorConfig.model_validate({"patience": 3, "best_metric": None})


# ---------------------------------------------------------------- runs


def test_validations_leave_training_alone_and_the_best_is_sampled_from(tmp_path: Path, capsys: Any) -> None:
    rare, often = tmp_path / "rare", tmp_path / "often"
    assert train("cgan", rare, "validation_steps=1000") == 0
    assert train("cgan", often, "validation_steps=1", "best_metric=kid-shapes") == 0
    digests = [
        {name: hashlib.sha256((newest(run) / f"{name}.safetensors").read_bytes()).hexdigest() for name in names}
        for run in (rare, often)
        for names in [("generator", "discriminator", "ema", "generator_optimizer", "discriminator_optimizer")]
    ]
    assert digests[0] == digests[1]
    assert not (newest(rare) / "best.safetensors").exists()
    found = scores_of(often, "kid-shapes")
    assert list(found) == [1, 2, 3, 4] and list(scores_of(rare, "kid-shapes")) == [4]
    assert found[4] == scores_of(rare, "kid-shapes")[4]  # fixed captions, fixed noise
    manifest = checkpoint.load(newest(often))[1]
    best = min(found, key=lambda step: found[step])
    assert manifest["best"]["step"] == best and manifest["best"]["value"] == pytest.approx(found[best], rel=1e-4)
    assert "(best so far)" in capsys.readouterr().err
    pipe = TextToImagePipeline.from_pretrained(often)
    assert str(pipe.chosen).startswith("the best of the run by kid-shapes on val (")
    assert str(pipe.chosen).endswith(f"), step {best}") and TextToImagePipeline.from_pretrained(rare).chosen is None
    drawn = pipe.sampler.components()["generator"][1]
    kept = load_file(newest(often) / "best.safetensors")
    assert all(torch.equal(drawn[name], tensor) for name, tensor in kept.items())


@pytest.mark.parametrize(("family", "metric"), [("align", "text_to_image_recall@1"), ("vqvae", "psnr")])
def test_every_family_keeps_its_best(family: str, metric: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(family, run, "validation_steps=2", f"best_metric={metric}") == 0
    found = scores_of(run, metric)
    state, manifest = checkpoint.load(newest(run))
    assert list(found) == [2, 4] and manifest["best"]["value"] == pytest.approx(max(found.values()), rel=1e-4)
    last = manifest["best"]["step"] == 4
    assert last == all(torch.equal(state["best"][k], v) for k, v in state["ema" if "ema" in state else "model"].items())
    model = load_dual_encoder(run).model if family == "align" else load_tokenizer(run).model  # type: ignore[attr-defined]
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state["best"].items())


def test_an_unknown_metric_stops_a_run_before_its_first_step(tmp_path: Path, capsys: Any) -> None:
    assert train("vqvae", tmp_path / "run", "best_metric=heldout_psnr") == 2
    said = capsys.readouterr().err
    assert "best_metric 'heldout_psnr' is not a validation score" in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_scores_on_the_console_have_their_number_of_images() -> None:
    said: list[str] = []
    run = cast(Run, SimpleNamespace(step=7, record=lambda _: None, show_samples=lambda: None, say=said.append))
    note_validation(run, {"recall@10": 1.0}, None, 1)
    note_validation(run, {"recall@10": 0.25}, None, 1000, "heldout")
    note_validation(run, {}, None, 1000)
    assert said == ["step 7, val, N 1: recall@10 1", "step 7, heldout, N 1,000: recall@10 0.25"]
