"""The memory of training a prior, estimated on the meta device, against the peak of real steps; recomputed activations."""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from builders.tiny_prior import codes_of, make, order_of, text_of
from t2i.config.load import load
from t2i.families import config_class
from t2i.prior.config import Config
from t2i.prior.memory import TextSizes, memory
from t2i.prior.step import draw_micro, parameter_groups
from t2i.prior.transformer import Grid, Prior
from t2i.text import TextFeatures
from t2i.training.optimization import EMA, clip_gradients

TOLERANCE = 0.1  # of the estimate, of the bytes of tensors alive at once
GRID, TEXT = Grid(8, 8, 1, 512), TextSizes(64, 64, 12)


class Alive(TorchDispatchMode):
    """Counts the bytes of all live tensors, and their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._sizes: dict[int, int] = {}

    def _free(self, key: int) -> None:
        self._now -= self._sizes.pop(key)

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)):
            storage = tensor.untyped_storage()
            if id(storage) not in self._sizes:
                self._sizes[id(storage)] = storage.nbytes()
                self._now += storage.nbytes()
                self.most = max(self.most, self._now)
                weakref.finalize(storage, self._free, id(storage))
        return made


def steps(config: Config, bf16: bool) -> None:
    batch = config.train_batch_size
    text = TextFeatures(torch.randn(batch, 12, 64), torch.ones(batch, 12, dtype=torch.bool), torch.randn(batch, 64))
    codes = torch.randint(0, GRID.codes, (batch, GRID.slots))
    model = Prior(config, GRID, *TEXT)
    ema, optimizer = EMA(model, 1000), torch.optim.AdamW(parameter_groups(model, 0.1), 1e-3)
    best = {name: tensor.clone() for name, tensor in ema.state_tensors().items()}
    for step in range(2):
        for _ in range(config.gradient_accumulation_steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(*draw_micro(config, codes, text, np.arange(batch), step)).loss
            loss.backward()
        clip_gradients(model)
        optimizer.step()
        ema.update(model, batch, batch * (step + 1))
        optimizer.zero_grad()
    assert best


@pytest.mark.parametrize(
    ("order", "again", "bf16", "accumulated"),
    [("raster", False, False, 1), ("random", False, False, 2), ("random", True, False, 1), ("raster", True, True, 1)],
)
def test_the_estimate_is_the_peak_of_real_steps(order: str, again: bool, bf16: bool, accumulated: int) -> None:
    config = Config.model_validate({
        "order": order, "activation_checkpointing": again, "gradient_accumulation_steps": accumulated,
        "model": {"width": 128, "depth": 6, "heads": 4, "mlp_width": 352}, "train_batch_size": 8,
    })  # fmt: skip
    torch.manual_seed(0)
    with Alive() as alive:
        steps(config, bf16)
    assert memory(config, GRID, TEXT, 1, bf16).total == pytest.approx(alive.most, rel=TOLERANCE)


def test_the_largest_prior_fits_on_eight_gpus_of_80_gb_and_on_one_by_computing_again() -> None:
    config, grid, text = load(config_class("prior"), "prior-xl", []), Grid(16, 16, 1, 16384), TextSizes(512, 512, 77)
    eight = memory(config, grid, text, 8, True)  # type: ignore[arg-type]
    assert 1.25e9 < eight.parameters < 1.35e9 and eight.total < 20e9
    assert eight.weights == 4 * -(-eight.parameters // 8) and eight.moments == 2 * eight.weights
    one = memory(config, grid, text, 1, True)  # type: ignore[arg-type]
    assert one.total < 80e9 and one.weights == 4 * one.parameters
    kept = config.model_copy(update={"activation_checkpointing": False})
    assert memory(kept, grid, text, 1, True).total > 80e9  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["raster", "random"])
def test_activations_that_are_computed_again_change_no_bit(order: str) -> None:
    gradients = []
    for again in (False, True):
        prior = make(order)
        prior.config = prior.config.model_copy(update={"activation_checkpointing": again})
        for block in prior.blocks:
            block.dropout = 0.2  # type: ignore[assignment]
        torch.manual_seed(5)
        loss = prior.train()(codes_of(prior, 3), text_of(3), order_of(prior, 3)).loss
        loss.backward()
        gradients.append([loss.detach(), *(p.grad for p in prior.parameters())])
    assert all(
        torch.equal(a, b) for a, b in zip(*gradients, strict=True) if a is not None and b is not None
    )  # fmt: skip
    assert sum(one is not None for one in gradients[0]) == sum(one is not None for one in gradients[1]) > 20
