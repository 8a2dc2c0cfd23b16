"""Trains skip-gram word vectors with negative sampling (Mikolov et al., NeurIPS 2013).

Axes: N words of all captions in sequence, V words of the vocabulary, D width, B pairs of a step, K noise words.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t2i import seeding
from t2i.hardware import one_thread_each

WINDOW = 5  # words on each side; near ones are drawn more often, as with word2vec's random window size
NEGATIVES = 5  # total weight of the noise words relative to one true pair
PAIRS, NOISE = 1024, 64  # pairs and noise words of a step; all pairs share the noise, for a single matrix product
MOST_PAIRS = 2_000_000
LEARNING_RATE = 0.1  # of Adagrad


def word_vectors(captions: list[NDArray[np.int64]], counts_V: NDArray[np.int64], dim: int) -> NDArray[np.float32]:
    """Returns vectors [V, D] of words, trained to predict their neighbours; equal captions give equal bits on any machine.

    Args:
        captions: the words of each caption as rows of the vocabulary.
        counts_V: number of occurrences of each word.
    """
    words_N = np.concatenate(captions)
    caption_of_N = np.repeat(np.arange(len(captions)), [len(caption) for caption in captions])
    steps = np.arange(1, WINDOW + 1)
    offsets, chances = np.concatenate([steps, -steps]), np.tile((WINDOW + 1 - steps) / (WINDOW * (WINDOW + 1)), 2)
    noise_V = np.cumsum(counts_V**0.75)
    # 5 to 50 passes, more for small sets: about two million words in total
    passes = min(50, max(5, math.ceil(2_000_000 / len(words_N))))
    rng = np.random.Generator(np.random.Philox(key=seeding.key_of("skip-gram")))
    centre_VD = torch.from_numpy((rng.random((len(counts_V), dim), dtype=np.float32) - 0.5) / dim)
    context_VD = torch.zeros_like(centre_VD)
    squares = torch.zeros_like(centre_VD), torch.zeros_like(centre_VD)

    with one_thread_each():  # the number of threads would change how sums are rounded
        for _ in range(math.ceil(min(MOST_PAIRS, passes * len(words_N) * (WINDOW + 1)) / PAIRS)):
            at = rng.integers(len(words_N), size=PAIRS)
            near = at + rng.choice(offsets, size=PAIRS, p=chances)
            together = (near >= 0) & (near < len(words_N))
            together[together] = caption_of_N[at[together]] == caption_of_N[near[together]]
            centre_B, context_B = (torch.from_numpy(words_N[one[together]]) for one in (at, near))
            noise_K = torch.from_numpy(np.searchsorted(noise_V, rng.random(NOISE) * noise_V[-1], side="right"))

            # gradients of -log s(x y) - w sum_K log s(-x z), where s is the sigmoid and w = NEGATIVES / NOISE
            x_BD, y_BD, z_KD = centre_VD[centre_B], context_VD[context_B], context_VD[noise_K]
            hit_B1 = torch.sigmoid((x_BD * y_BD).sum(dim=1, keepdim=True)) - 1
            miss_BK = torch.sigmoid(x_BD @ z_KD.T) * (NEGATIVES / NOISE)
            _adagrad(centre_VD, squares[0], centre_B, hit_B1 * y_BD + miss_BK @ z_KD)
            _adagrad(
                context_VD, squares[1], torch.cat([context_B, noise_K]), torch.cat([hit_B1 * x_BD, miss_BK.T @ x_BD])
            )
    return centre_VD.numpy()


def _adagrad(table_VD: Tensor, squares_VD: Tensor, rows: Tensor, gradients: Tensor) -> None:
    """Does one step of Adagrad (Duchi et al., JMLR 2011) on rows of a table; rows may be repeated."""
    unique, inverse = rows.unique(return_inverse=True)
    total = torch.zeros(len(unique), table_VD.shape[1]).index_add_(0, inverse, gradients)
    squares_VD[unique] += total.square()
    table_VD[unique] -= LEARNING_RATE * total / (squares_VD[unique].sqrt() + 1e-10)
