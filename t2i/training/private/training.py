"""Private training of a run: its draws, its gradients and its account."""

from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor, nn

from t2i.config.training import PrivacyConfig
from t2i.training.private.accountant import Accountant
from t2i.training.private.checks import refuse_unaccountable
from t2i.training.private.drawing import PoissonRows, noise_of, secret_of
from t2i.training.private.gradients import put_private_gradients
from t2i.training.run import Run


class PrivateTraining:
    """DP-SGD of one run; its account is written into the manifest of every checkpoint.

    Args:
        shown: the row of the image that each row shows; rows of broken images show another one, and are not drawn.

    Raises:
        InputError: Opacus is missing, or the account would not hold with these settings.
    """

    def __init__(self, run: Run, config: PrivacyConfig, shown: np.ndarray) -> None:
        self._rows = np.flatnonzero(shown == np.arange(len(shown)))
        refuse_unaccountable(config, len(self._rows), run.images_per_step, run.num_processes)
        self._run, self._config = run, config
        self._rate = run.images_per_step / len(self._rows)
        self._accountant = Accountant(config, self._rate)
        self._secret = secret_of(run)

    def rows(self) -> PoissonRows:
        """Returns the batches, from the run's step on."""
        return PoissonRows(self._rows, self._rate, self._secret, self._run.step)

    def put_gradients(self, parameters: Sequence[nn.Parameter], losses: Iterable[Tensor]) -> None:
        """Sets `grad` to the private gradients of the step; `losses` has the loss of each image."""
        generator = noise_of(self._secret, self._run.step, parameters[0].device)
        limits = self._config.max_grad_norm, self._config.noise_multiplier
        put_private_gradients(parameters, losses, *limits, self._run.images_per_step, generator)

    def account(self, steps: int) -> float:
        """Writes the cost of a number of steps into the manifest, and returns epsilon."""
        epsilon = self._accountant.epsilon(steps)
        self._run.extra["privacy"] = {
            "epsilon": round(epsilon, 4),
            "delta": self._config.delta,
            "noise_multiplier": self._config.noise_multiplier,
            "max_grad_norm": self._config.max_grad_norm,
            "sampling_rate": self._rate,
            "steps": steps,
            "images": len(self._rows),
        }
        return epsilon
