"""Runs of each family that can be exported, and of each way in which a prior samples its codes."""

from collections.abc import Callable
from pathlib import Path

from builders.tiny_cvae_run import make_cvae_run
from builders.tiny_prior_run import make_prior_run
from builders.tiny_run import make_run

TOP = {"guidance": 2.0, "temperature": 1.0, "top_k": 20, "top_p": 0.9}
RUNS: dict[str, Callable[[Path], Path]] = {
    "cgan": make_run,
    "cvae": make_cvae_run,
    "raster": lambda folder: make_prior_run(folder, "raster", sampling=TOP),
    "random": lambda folder: make_prior_run(folder, "random"),
}
