"""Fits maps between frozen features in closed form or by adversarial training, behind one interface for `train/align.py`.

Axes: A anchors, B captions of one batch, K the common basis.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from t2i.align.adversarial import Game, unpair
from t2i.align.config import AdversarialAligner, Config
from t2i.align.dual_encoder import TEMPERATURE_START
from t2i.align.linear import LinearMaps, Pairing, fit_linear, fitted_scale
from t2i.align.mapped import FIELDS


class Fitting(Protocol):
    """Fits maps; `state_tensors` returns the present ones, which a checkpoint stores as its part `model`."""

    parts: Mapping[str, nn.Module | Optimizer]  # further parts of a checkpoint
    optimizers: tuple[Optimizer, ...]  # optimizers that follow the learning rate schedule

    def step(self, rows_B: Tensor) -> dict[str, Tensor]:
        """Takes one step and returns scalars to log."""
        ...

    def state_tensors(self) -> dict[str, Tensor]: ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...


def tensors_of(maps: LinearMaps, scale: float) -> dict[str, Tensor]:
    """Returns the tensors of `t2i.align.mapped.Projections`, in float32, of maps with cosines times `scale`."""
    tensors = [torch.from_numpy(array.copy()).float() for array in maps]
    return dict(zip(FIELDS, [*tensors, torch.tensor(scale).log()], strict=True))


class ClosedForm:
    """Fits the maps in closed form, in one step."""

    parts: Mapping[str, nn.Module | Optimizer] = {}
    optimizers = ()

    def __init__(self, config: Config, read: Callable[[], Pairing]) -> None:
        """
        Args:
            read: returns the pairs; it is called by `step`, so that a finished run does not read them.
        """
        self._config, self._read = config, read
        self._tensors: dict[str, Tensor] = {}

    def step(self, rows_B: Tensor) -> dict[str, Tensor]:
        pairs = self._read()
        maps, regularisation = fit_linear(self._config, pairs)
        self._tensors = tensors_of(maps, fitted_scale(maps, pairs))
        return {} if regularisation is None else {"regularisation": torch.tensor(regularisation)}

    def state_tensors(self) -> dict[str, Tensor]:
        return self._tensors

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)


class Adversarial:
    """Trains a rotation against its discriminator, with a batch of unpaired captions and images in each step."""

    def __init__(self, config: Config, pairs: Pairing, device: torch.device) -> None:
        assert isinstance(config.aligner, AdversarialAligner)
        self._aligner, self._data = config.aligner, unpair(pairs, config.embedding, config.aligner)
        self._anchor_pairs = pairs.part(np.arange(config.aligner.anchors))
        self.game = Game(self._data, config.aligner.hidden).to(device)
        self._turn_optimizer = torch.optim.Adam(self.game.turn.parameters())
        self._discriminator_optimizer = torch.optim.Adam(self.game.discriminator.parameters())
        self.parts: Mapping[str, nn.Module | Optimizer] = {
            "game": self.game,
            "turn_optimizer": self._turn_optimizer,
            "discriminator_optimizer": self._discriminator_optimizer,
        }
        self.optimizers: tuple[Optimizer, ...] = (self._turn_optimizer, self._discriminator_optimizer)
        self._text_MK, self._image_MK, *anchors = (torch.from_numpy(x).float().to(device) for x in self._data[:4])
        self._anchors: tuple[Tensor, Tensor] = (anchors[0], anchors[1])

    def step(self, rows_B: Tensor) -> dict[str, Tensor]:
        """Takes one step of each; the images come from torch's generator, which a run seeds in each step."""
        game, text_MK, image_MK = self.game, self._text_MK, self._image_MK
        text_BK = text_MK[rows_B.to(text_MK.device) % len(text_MK)]
        image_BK = image_MK[torch.randint(len(image_MK), (len(rows_B),)).to(image_MK.device)]
        losses = {}
        for name, optimizer, loss in (
            ("discriminator_loss", self._discriminator_optimizer, lambda: game.discriminate(text_BK, image_BK)),
            ("turn_loss", self._turn_optimizer, lambda: game.rotation_loss(text_BK, self._anchors)),
        ):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            losses[name] = value.detach()
        game.orthogonalise()
        return losses

    def state_tensors(self) -> dict[str, Tensor]:
        maps = self.game.maps(self._data, self._aligner)
        scale = fitted_scale(maps, self._anchor_pairs) if self._aligner.anchors > 1 else 1 / TEMPERATURE_START
        return tensors_of(maps, scale)

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Does nothing, as the maps are computed from the game, which is another part of the checkpoint."""


def fitting_of(config: Config, read: Callable[[], Pairing], device: torch.device) -> Fitting:
    """Returns the fitting of a config's aligner to the pairs that `read` returns."""
    return ClosedForm(config, read) if config.is_solved else Adversarial(config, read(), device)
