"""Measures speed and accuracy of evaluation beside other packages, medians of one run, as markdown tables.

    pip install torch-fidelity pytorch-fid
    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python benchmarks/eval_speed.py

The first table has images/s through the FID Inception at 256 px, from uint8 arrays to features, and the largest difference of
a feature from that of the package with the same protocol. The second has the Frechet step at 2,048 dimensions, from the input
that each side takes: for t2i features up to 2,048 images and statistics above, with a factored reference; for the others mean
and covariance. Errors are relative to a closed form in long double: y = A x with a symmetric positive A has a distance of
|mean(x - y)|^2 + tr cov(x - y) from x. Each round runs all cases.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import scipy.linalg
import torch
from eval_parity import nchw, pytorch_fid_network, random_weights
from numpy.typing import NDArray
from timing import Taken, median, timed
from torch import Tensor

from t2i.extractors.inception import InceptionExtractor
from t2i.metrics.frechet import Gaussian, distance
from t2i.metrics.statistics import GaussianStats

DIM = 2048
BATCH = 8
SLOW = 20.0  # seconds: what takes longer is timed once


def medians(cases: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Taken]:
    """Returns the median seconds of each case; each of the `rounds` rounds runs all cases."""
    seconds: dict[str, list[Taken]] = {name: [] for name in cases}
    for name, case in cases.items():
        case()  # the first call allocates
        print(f"warm: {name}", file=sys.stderr)
    for _ in range(rounds):
        for name, case in cases.items():
            if seconds[name] and seconds[name][0].wall > SLOW:
                continue
            seconds[name].append(timed(case)[1])
    return {name: median(found) for name, found in seconds.items()}


# ---- extraction ----------------------------------------------------------------------------------------------------


def extraction(rounds: int, place: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchmetrics.image.fid import NoTrainInceptionV3

    state = random_weights()
    torch.save(state, place / "random.pth")
    coarse = np.random.default_rng(0).uniform(0, 200, (BATCH, 8, 8, 3))
    smooth = np.kron(coarse, np.ones((1, 32, 32, 1)))
    images = (smooth + np.random.default_rng(1).uniform(0, 55, smooth.shape)).astype(np.uint8)
    pixels = nchw(images)
    path = str(place / "random.pth")
    tm = NoTrainInceptionV3("inception-v3-compat", ["2048"], path)
    tf = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], path)
    pf = pytorch_fid_network(state)
    ours = {how: InceptionExtractor(place / "random.pth", how) for how in ("legacy", "torch", "clean")}

    def run(network: Any, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return network(x)[0].reshape(BATCH, -1)

    cases: dict[str, Callable[[], Any]] = {
        "torchmetrics": lambda: run(tm._torch_fidelity_forward, pixels),
        "torch-fidelity": lambda: run(tf, pixels),
        "pytorch-fid": lambda: run(pf, pixels.float() / 255),
        **{f"t2i, {how}": lambda how=how: ours[how].features(images) for how in ours},
    }
    seconds = medians(cases, rounds)
    errors = {}
    for name, peer in (("legacy", "torch-fidelity"), ("torch", "pytorch-fid")):
        theirs = np.asarray(cases[peer]())
        errors[f"t2i, {name}"] = float(np.abs(ours[name].features(images) - theirs).max() / np.abs(theirs).max())
    print(
        f"\n| Inception at 256 px, batch {BATCH} | images/s | of torchmetrics | largest feature error |\n|---|---|---|---|"
    )
    for name, value in seconds.items():
        error = f"{errors[name]:.1e}" if name in errors else ""
        print(
            f"| {name} | {BATCH / value.wall:.1f} | {seconds['torchmetrics'].wall / value.wall:.2f} | {error} |",
            flush=True,
        )


# ---- the Frechet step ----------------------------------------------------------------------------------------------


def pairs(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Returns [n, D] x and y = A x, and their Frechet distance."""
    rng = np.random.default_rng(n)
    few = rng.standard_normal((DIM, 32)) / np.sqrt(DIM)
    x = rng.standard_normal((n, DIM)) * np.arange(1, DIM + 1) ** -0.5
    x += (x @ few) @ few.T  # a spectrum as of real features, not along the axes
    more = rng.standard_normal((DIM, 32)) / np.sqrt(DIM)
    y = 1.1 * x + (x @ more) @ more.T
    moved = (y - x).astype(np.longdouble)
    mean = moved.mean(axis=0)
    return x, y, float(np.square(mean).sum() + np.square(moved - mean).sum() / (n - 1))


def moments(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return x.mean(axis=0), np.cov(x, rowvar=False)


def by_sqrtm(mean: Any, cov: Any, mean_real: Any, cov_real: Any) -> float:
    root = np.asarray(scipy.linalg.sqrtm(cov @ cov_real)).real
    return float(np.square(mean - mean_real).sum() + np.trace(cov) + np.trace(cov_real) - 2 * np.trace(root))


def frechet(sizes: list[int], rounds: int) -> None:
    from torchmetrics.image.fid import _compute_fid

    print("\n| Frechet step, D = 2,048 | N | seconds | times faster | CPU s | times fewer | relative error |")
    print("|---" * 7 + "|")
    for n in sizes:
        x, y, exact = pairs(n)
        reference = Gaussian.of(y)
        given = x if n <= DIM else GaussianStats.of(x)
        numpy_moments = (*moments(x), *moments(y))
        torch_moments = [torch.from_numpy(part) for part in numpy_moments]
        cases: dict[str, Callable[[], float]] = {
            "t2i": lambda given=given, reference=reference: distance(Gaussian.of(given), reference),
            "torchmetrics, eigvals": lambda m=torch_moments: float(_compute_fid(*m)),
            "pytorch-fid, scipy sqrtm": lambda m=numpy_moments: by_sqrtm(*m),
        }
        seconds = medians(cases, rounds)
        for name, case in cases.items():
            wall, cpu = seconds[name]
            faster, fewer = wall / seconds["t2i"].wall, cpu / seconds["t2i"].cpu
            error = (case() - exact) / exact
            print(f"| {name} | {n:,} | {wall:.3g} | {faster:.3g} | {cpu:.3g} | {fewer:.3g} | {error:.1e} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", default="512,1024,2048,4096", help="numbers of images of the Frechet step")
    parser.add_argument("--only", choices=("extraction", "frechet"))
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, scipy {scipy.__version__}")
    with TemporaryDirectory() as place:
        if given.only in (None, "extraction"):
            extraction(given.rounds, Path(place))
    if given.only in (None, "frechet"):
        frechet([int(size) for size in given.sizes.split(",")], given.rounds)


if __name__ == "__main__":
    main()
