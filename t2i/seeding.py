"""Makes every random draw a pure function of (seed, purpose, step, sample id), so that no generator state must be saved.

An image thus does not depend on its batch, a resumed run continues bit for bit, and N processes draw the same numbers as one.
The hash is the finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), vectorised in numpy.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from torch import Tensor

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(x: Any) -> Any:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def key_of(text: str) -> int:
    """Returns a 63-bit integer for a word or an id, which is the same in every process (unlike Python's `hash`)."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") >> 1


def hash64(seed: int, purpose: str, ids: ArrayLike, draws: int) -> NDArray[np.uint64]:
    """Returns [N, draws] independent 64-bit hashes; row i is a function of (seed, purpose, ids[i]) alone."""
    with np.errstate(over="ignore"):
        start = _mix(np.uint64(seed & 0xFFFFFFFFFFFFFFFF) + _GAMMA * np.uint64(key_of(purpose)))
        rows = _mix(start + _GAMMA * (np.asarray(ids, dtype=np.int64).astype(np.uint64) + np.uint64(1)))
        return _mix(rows[:, None] + _GAMMA * np.arange(1, draws + 1, dtype=np.uint64))


def uniform(seed: int, purpose: str, ids: ArrayLike, draws: int) -> NDArray[np.float64]:
    """Returns [N, draws] uniform numbers in [0, 1)."""
    return (hash64(seed, purpose, ids, draws) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(seed: int, purpose: str, ids: ArrayLike, draws: int) -> NDArray[np.float32]:
    """Returns [N, draws] standard normal numbers (Box-Muller on pairs of uniform numbers)."""
    pairs = (draws + 1) // 2
    u = uniform(seed, purpose, ids, 2 * pairs)
    radius = np.sqrt(-2.0 * np.log1p(-u[:, :pairs]))
    angle = 2.0 * np.pi * u[:, pairs:]
    out = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return out[:, :draws].astype(np.float32)


def gumbel(seed: int, slots: ArrayLike, codes: int) -> NDArray[np.float64]:
    """Returns standard Gumbel noise [len(slots), codes] for an image's codes; row i is a function of (seed, slots[i])."""
    u = uniform(seed, "sample/gumbel", slots, codes)
    return -np.log(-np.log(np.maximum(u, 2.0**-54)))


def permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """Returns the data order of one epoch, a function of (seed, epoch, size) alone."""
    return np.random.Generator(np.random.Philox(key=[seed & 0xFFFFFFFFFFFFFFFF, epoch])).permutation(size)


def derive(seed: int, *words: str | int) -> int:
    """Returns a 63-bit seed derived from `seed` for one purpose, e.g. `derive(seed, "step", 10)`."""
    return key_of("/".join(str(word) for word in (seed, *words)))


def ids_of(names: Sequence[str]) -> NDArray[np.int64]:
    """Returns integer ids of names, for `uniform` and `normal`."""
    return np.array([key_of(name) for name in names], dtype=np.int64)


def noise(seeds: Sequence[int], z_dim: int) -> "Tensor":
    """Returns noise z_BZ for images; row i is a function of seeds[i] alone."""
    import torch

    rows = [normal(seed, "sample/z", [0], z_dim)[0] for seed in seeds]
    return torch.from_numpy(np.stack(rows))


def slerp(a_Z: "Tensor", b_Z: "Tensor", weights: Sequence[float]) -> "Tensor":
    """Interpolates along the great circle between two noise vectors; returns [len(weights), Z].

    Linear interpolation would give vectors that are too short. Weight 0 gives `a_Z` and 1 gives `b_Z`, bit for bit.
    """
    import torch

    angle = torch.arccos((a_Z @ b_Z / (a_Z.norm() * b_Z.norm())).clamp(-1, 1)).double()
    t = torch.tensor(weights, dtype=torch.float64)[:, None]
    if torch.sin(angle) < 1e-6:  # same or opposite directions, for which no great circle is unique
        share_a, share_b = 1 - t, t
    else:
        share_a, share_b = torch.sin((1 - t) * angle) / torch.sin(angle), torch.sin(t * angle) / torch.sin(angle)
    return (share_a * a_Z + share_b * b_Z).float()
