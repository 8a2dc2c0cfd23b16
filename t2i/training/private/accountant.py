"""Computes epsilon of (epsilon, delta)-differential privacy, with respect to adding or removing one image.

Uses the accountant of Opacus, which the extra `t2i[privacy]` installs: Renyi divergences of the sampled Gaussian mechanism
(Mironov et al., 2019). All steps cost the same, so only their number matters.
"""

import warnings

from t2i.config.training import PrivacyConfig
from t2i.errors import InputError


class Accountant:
    """The privacy account of one run.

    Args:
        rate: probability that an image is in a step.

    Raises:
        InputError: Opacus is not installed.
    """

    def __init__(self, config: PrivacyConfig, rate: float) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from opacus.accountants import RDPAccountant
                from opacus.accountants.analysis import rdp
        except ImportError as error:
            raise InputError("privacy needs Opacus, which is not installed: pip install 't2i[privacy]'") from error
        self._rdp, self._delta = rdp, config.delta
        self._orders = RDPAccountant.DEFAULT_ALPHAS
        self._one_step = rdp.compute_rdp(q=rate, noise_multiplier=config.noise_multiplier, steps=1, orders=self._orders)

    def epsilon(self, steps: int) -> float:
        """Returns epsilon after a number of steps."""
        if steps == 0:
            return 0.0
        # Opacus warns if the best order is the first or the last; the bound holds but may be loose
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spent = self._rdp.get_privacy_spent(orders=self._orders, rdp=self._one_step * steps, delta=self._delta)
        return float(spent[0])
