"""Draws the images of each step, and its noise, from a secret; with it, the noise could be removed again.

The draws are functions of (secret, step), so a run resumes bit for bit. The secret is in the file `privacy.key` of the run
directory, which saved pipelines do not have. The generators are not cryptographic.
"""

import os
import secrets
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from t2i import seeding
from t2i.data.loader import Rows
from t2i.errors import InputError
from t2i.files import read_regular, write_text
from t2i.training.run import Run

KEY = "privacy.key"
_BYTES = 8


def secret_of(run: Run) -> int:
    """Returns the secret of a run, which is drawn when the run starts; if its file is missing on resume, draws another."""
    path = run.directory / KEY
    if run.is_new or not path.exists():
        if not run.is_new:
            warnings.warn(f"{path} is missing; the run continues with other noise, which is as private", stacklevel=2)
        write_text(path, secrets.token_hex(_BYTES) + "\n")
        os.chmod(path, 0o600)
    try:
        return int(read_regular(path).decode(), 16)
    except ValueError as error:
        raise InputError(f"{path} holds no key; delete it, and the next start draws another") from error


def noise_of(secret: int, step: int, device: torch.device) -> torch.Generator:
    """Returns the generator of the noise of one step."""
    return torch.Generator(device).manual_seed(seeding.derive(secret, "noise", step))


class PoissonRows(Iterator[Rows]):
    """Draws a batch for each step; each row is in it independently with the same probability, as the account assumes.

    Args:
        rows: the rows to draw from.
        rate: probability of each row.
        start: number of the first step.
    """

    def __init__(self, rows: NDArray[np.int64], rate: float, secret: int, start: int = 0) -> None:
        self._rows, self._rate, self._secret, self._step = rows, rate, secret, start

    def __next__(self) -> Rows:
        draws = seeding.uniform(self._secret, f"poisson/{self._step}", self._rows, 1)[:, 0]
        rows = self._rows[draws < self._rate]
        places = self._step * (int(self._rows.max()) + 1) + rows
        self._step += 1
        return Rows(rows, places, np.full(len(rows), self._step - 1))
