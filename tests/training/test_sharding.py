"""A prior that is sharded over processes, or recomputes activations, equals one that is not."""

import copy
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from builders.small_settings import SMALL
from builders.tiny_prior import make
from builders.tiny_prior_run import save_random_tokenizer
from builders.toy_run import digests, two_processes, warm_up
from t2i import checkpoint
from t2i.cli import app
from t2i.pipeline import TextToImagePipeline
from t2i.prior.config import Config
from t2i.training import journal
from t2i.training.state.sharding import shard, whole

PRIOR = [
    *(
        "model={width: 32, depth: 2, heads: 2, mlp_width: 48}",
        "text={encoder: bow}",
        "order=random",
        "sampling.steps=3",
    ),
    *(
        "max_train_steps=4",
        "checkpointing_steps=2",
        "checkpoints_total_limit=9",
        "validation_n=4",
        "learning_rate=1e-2",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    warm_up()
    folder = tmp_path_factory.mktemp("tokenizer") / "saved"
    save_random_tokenizer(folder)
    return folder


def train(run: Path, tokenizer: Path, *sets: str, world: int = 1) -> None:
    words = ["train", "prior", "--config", "prior-tiny", "--data", "shapes-1", "--run-dir", str(run)]
    sets = (*SMALL, *PRIOR, f"tokenizer.path={json.dumps(str(tokenizer))}", *sets)
    words += [word for value in sets for word in ("--set", value)]

    def rank(index: int) -> None:
        torch.set_num_threads(1)
        os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        raise SystemExit(app.main(words))

    assert two_processes(rank, world=world, seconds=200) == [0] * world


def noted(run: Path, name: str) -> list[float]:
    return [record[name] for record in journal.read(run / "journal.jsonl") if name in record]


def tensors(run: Path, step: int = 4) -> dict[str, torch.Tensor]:
    state, _ = checkpoint.load(run / "checkpoints" / f"step-{step:08d}")
    return {f"{part}.{name}": tensor for part, its in state.items() for name, tensor in its.items()}


@pytest.mark.timeout(900)  # five short runs, on a machine that may be busy
def test_a_sharded_prior_trains_saves_and_resumes_as_a_whole_one(tmp_path: Path, tokenizer: Path) -> None:
    plain, sharded = tmp_path / "plain", tmp_path / "sharded"
    # dropout on purpose, a validation on the way, and two micro-batches
    common = ["gradient_accumulation_steps=2", "model.dropout=0.1", "validation_steps=2"]
    train(plain, tokenizer, *common, world=2)
    train(sharded, tokenizer, *common, "sharding=full", world=2)
    assert noted(sharded, "loss") == pytest.approx(noted(plain, "loss"), rel=1e-5)
    assert noted(sharded, "gradient_norm") == pytest.approx(noted(plain, "gradient_norm"), rel=1e-4)
    scores = noted(sharded, "val_bits_per_token")
    assert scores == pytest.approx(noted(plain, "val_bits_per_token"), rel=1e-4) and len(scores) == 2
    a, b = tensors(plain), tensors(sharded)
    assert a.keys() == b.keys() and {"model", "ema", "optimizer", "best"} <= {name.split(".")[0] for name in a}
    for name, tensor in a.items():
        assert torch.allclose(b[name], tensor, rtol=1e-3, atol=1e-5), name

    # one process samples the same codes from either
    one, other = (TextToImagePipeline.from_pretrained(run)(["a red circle"], seed=3).images for run in (plain, sharded))
    assert np.array_equal(one, other)

    # the last steps once more, from the checkpoint before them, bit for bit; then on one process, which has room for all
    before = digests(sharded, 4)
    shutil.rmtree(sharded / "checkpoints" / "step-00000004")
    train(sharded, tokenizer, *common, "sharding=full", world=2)
    assert digests(sharded, 4) == before
    train(sharded, tokenizer, *common, "sharding=none", "max_train_steps=5")
    assert (sharded / "checkpoints" / "step-00000005").is_dir()


@pytest.mark.timeout(600)
def test_weights_gathered_in_bfloat16_train_as_those_that_autocast_converts(tmp_path: Path, tokenizer: Path) -> None:
    common = ["mixed_precision=bf16", "max_train_steps=3", "activation_checkpointing=true"]
    train(tmp_path / "plain", tokenizer, *common, world=2)
    train(tmp_path / "sharded", tokenizer, *common, "sharding=full", world=2)
    assert noted(tmp_path / "sharded", "loss") == pytest.approx(noted(tmp_path / "plain", "loss"), rel=1e-4)


def test_few_weights_are_not_sharded() -> None:
    with pytest.raises(ValueError, match="lora trains few weights, .*; set sharding=none"):
        Config.model_validate({"sharding": "full", "lora": {"rank": 4}, "init_from": "prior"})


@pytest.mark.timeout(600)
def test_one_process_has_nothing_to_shard(tmp_path: Path, tokenizer: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "run", tokenizer, "sharding=full", "max_train_steps=1")
    assert "sharding has no effect on one process" in capfd.readouterr().err


def test_each_process_keeps_its_part_of_weights_and_average(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        dist.init_process_group("gloo")
        model = make()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        average, count = copy.deepcopy(model), sum(p.numel() for p in model.parameters())
        shard(model, model.blocks, average, torch.device("cpu"), bf16=False)
        for module in (model, average):
            own = sum(p.to_local().numel() for p in module.parameters())  # type: ignore[attr-defined]
            assert abs(own - count / 2) < 0.02 * count
        made = whole(average, keep=rank == 0)
        if rank == 0:
            assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())
        assert (made is average) == (rank == 1)

    assert two_processes(body) == [0, 0]
