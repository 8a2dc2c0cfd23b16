"""Low-rank fine-tuning (LoRA; Hu et al., ICLR 2022): loaded weights are frozen, and each linear layer learns a difference.

The weight of a layer is W + alpha / rank * up @ down. `up` is initialised with zeros, so training starts from the loaded model.
The run's average is taken over these sums; it is a plain model of the same config, as `t2i sample` expects.
"""

import copy
import math
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from t2i.config.training import LowRankConfig
from t2i.errors import InputError


class LowRank(nn.Module):
    """Adds a product of two narrow matrices to a weight [O, I]."""

    def __init__(self, weight: Tensor, config: LowRankConfig) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.scale = config.alpha / config.rank
        self.down = nn.Parameter(torch.randn(config.rank, inputs, device=weight.device) / math.sqrt(inputs))
        self.up = nn.Parameter(torch.zeros(outputs, config.rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down)


def add_low_rank(model: nn.Module, config: LowRankConfig, fresh: Collection[str]) -> None:
    """Freezes a loaded model and adds a low-rank difference to each of its linear layers.

    Args:
        fresh: names of tensors that were not loaded, which are trained directly.

    Raises:
        InputError: no linear layer was loaded.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in fresh)
    layers = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and f"{name}.weight" not in fresh]
    if not layers:
        raise InputError("lora: no linear layer was loaded from init_from; train without lora")
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, config))


class Merged:
    """A plain copy of a model, to which `update` copies the sums of weights and low-rank differences.

    Create it before `add_low_rank`. Without low-rank differences, `update` returns the model itself.
    """

    def __init__(self, model: nn.Module, low_rank: bool) -> None:
        self._model, self._copy = model, copy.deepcopy(model) if low_rank else None

    @torch.no_grad()
    def update(self) -> nn.Module:
        if self._copy is None:
            return self._model
        trained = dict(self._model.named_modules())
        for name, module in self._copy.named_modules():
            for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                tensor.copy_(getattr(trained[name], key))
        return self._copy
