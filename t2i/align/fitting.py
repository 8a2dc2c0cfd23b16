"""What learns the maps between frozen features: a solver in closed form, or a game. A program steps either alike.

Axes: A anchors, B captions of one batch, K the common basis.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from t2i.align.adversarial import Game, part
from t2i.align.config import AdversarialAligner, Config
from t2i.align.dual_encoder import TEMPERATURE_START
from t2i.align.linear import Pairing, fit_linear, fitted_scale
from t2i.align.mapped import Projections


class Fitting(Protocol):
    """A way to the maps; `state_tensors` gives those of now, as a checkpoint's part `model` keeps them."""

    parts: Mapping[str, nn.Module | Optimizer]  # further parts of a checkpoint
    optimizers: tuple[Optimizer, ...]  # that get the learning rate

    def step(self, rows_B: Tensor) -> dict[str, Tensor]:
        """Takes one step and returns scalars to watch."""
        ...

    def state_tensors(self) -> dict[str, Tensor]: ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...


class Solving:
    """The maps in closed form, in one step."""

    parts: Mapping[str, nn.Module | Optimizer] = {}
    optimizers = ()

    def __init__(self, config: Config, read: Callable[[], Pairing]) -> None:
        """
        Args:
            read: gives the pairs, when they are needed: a run that is finished does not read them.
        """
        self._config, self._read = config, read
        self._found: dict[str, Tensor] = {}

    def step(self, rows_B: Tensor) -> dict[str, Tensor]:
        pairs = self._read()
        maps, regularisation = fit_linear(self._config, pairs)
        self._found = Projections.of(maps, fitted_scale(maps, pairs)).state_dict()
        return {} if regularisation is None else {"regularisation": torch.tensor(regularisation)}

    def state_tensors(self) -> dict[str, Tensor]:
        return self._found

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self._found = dict(tensors)


class Playing:
    """The game of a rotation against its discriminator, a batch of each side at a time."""

    def __init__(self, config: Config, pairs: Pairing, device: torch.device) -> None:
        assert isinstance(config.aligner, AdversarialAligner)
        self._aligner, self._parted = config.aligner, part(pairs, config.embedding, config.aligner)
        self._known = pairs.part(np.arange(config.aligner.anchors))
        self.game = Game(self._parted, config.aligner.hidden).to(device)
        self._turner = torch.optim.Adam(self.game.turn.parameters())
        self._judge = torch.optim.Adam(self.game.discriminator.parameters())
        self.parts: Mapping[str, nn.Module | Optimizer] = {
            "game": self.game,
            "turn_optimizer": self._turner,
            "discriminator_optimizer": self._judge,
        }
        self.optimizers: tuple[Optimizer, ...] = (self._turner, self._judge)
        parted = self._parted
        self._text_MK, self._image_MK, *anchors = (torch.from_numpy(x).float().to(device) for x in parted[:4])
        self._anchors: tuple[Tensor, Tensor] = (anchors[0], anchors[1])

    def step(self, rows_B: Tensor) -> dict[str, Tensor]:
        """The images are drawn from torch's generator, which a run seeds anew in each step."""
        game, text_MK, image_MK = self.game, self._text_MK, self._image_MK
        text_BK = text_MK[rows_B.to(text_MK.device) % len(text_MK)]
        image_BK = image_MK[torch.randint(len(image_MK), (len(rows_B),)).to(image_MK.device)]
        losses = {}
        for name, optimizer, loss in (
            ("discriminator_loss", self._judge, lambda: game.discriminate(text_BK, image_BK)),
            ("turn_loss", self._turner, lambda: game.deceive(text_BK, self._anchors)),
        ):
            optimizer.zero_grad()
            found = loss()
            found.backward()
            optimizer.step()
            losses[name] = found.detach()
        game.straighten()
        return losses

    def state_tensors(self) -> dict[str, Tensor]:
        maps = self.game.maps(self._parted, self._aligner)
        scale = fitted_scale(maps, self._known) if self._aligner.anchors > 1 else 1 / TEMPERATURE_START
        return Projections.of(maps, scale).state_dict()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing: the maps follow from the game."""


def fitting_of(config: Config, read: Callable[[], Pairing], device: torch.device) -> Fitting:
    """Returns what learns the maps of the aligner that a config names, from the pairs that `read` gives."""
    return Solving(config, read) if config.is_solved else Playing(config, read(), device)
