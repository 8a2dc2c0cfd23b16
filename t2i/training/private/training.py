"""Private training of a run: its batches, its gradients and its accountant."""

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
    """DP-SGD of one run; the manifest of every checkpoint records its privacy cost.

    Args:
        shown: the image that each row shows; rows that show the image of another row, as their own cannot be decoded, are not
            used.

    Raises:
        InputError: Opacus is missing, or the settings do not allow private training.
    """

    def __init__(self, run: Run, config: PrivacyConfig, shown: np.ndarray) -> None:
        self._rows = np.flatnonzero(shown == np.arange(len(shown)))
        refuse_unaccountable(config, len(self._rows), run.images_per_step, run.num_processes)
        self._run, self._config = run, config
        self._rate = run.images_per_step / len(self._rows)
        self._accountant = Accountant(config, self._rate)
        self._secret = secret_of(run)

    def rows(self) -> PoissonRows:
        """Returns the batches that follow the run's step."""
        return PoissonRows(self._rows, self._rate, self._secret, self._run.step)

    def put_gradients(self, parameters: Sequence[nn.Parameter], losses: Iterable[Tensor]) -> None:
        """Writes the private gradients of the step to `grad`; takes one loss per image."""
        generator = noise_of(self._secret, self._run.step, parameters[0].device)
        limits = self._config.max_grad_norm, self._config.noise_multiplier
        put_private_gradients(parameters, losses, *limits, self._run.images_per_step, generator)

    def account(self, steps: int) -> float:
        """Records the privacy cost of `steps` steps in the manifest and returns epsilon."""
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
