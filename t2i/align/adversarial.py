"""A rotation learned without pairs, or with a few: a discriminator must not tell turned captions from images.

Follows MUSE (Conneau et al., ICLR 2018), in bases whose variances are nearly equal, and with directions weighed by their
correlation in the refinement (Artetxe et al., AAAI 2018).

Axes: B features of one batch, K the common basis, E the shared space.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from t2i.align.config import AdversarialAligner
from t2i.align.linear import Array, LinearMaps, Pairing, check_pairs, principal_axes, rotation
from t2i.errors import InputError

ORTHOGONALITY = 0.01  # of MUSE: how fast the map returns to the rotations
SMOOTHING, DROPOUT, NEIGHBOURS = 0.1, 0.1, 10
PULL = 30.0  # weight of known pairs in the game; at 4 it only blurs what they tell (LOG.md)
MOST_REFINED = 5000  # features of a side among which mutual neighbours are sought


class Parted(NamedTuple):
    """Captions and images in their common basis, with few pairs known and of the rest no image beside its caption."""

    text_MK: Array
    image_MK: Array
    text_anchors_AK: Array
    image_anchors_AK: Array
    bases: LinearMaps  # from features into the common basis


def part(pairs: Pairing, dims: int, aligner: AdversarialAligner) -> Parted:
    """Takes the first pairs as anchors, and of the others the captions of every second and the images of the rest.

    Raises:
        InputError: fewer pairs than anchors, or too few others.
    """
    anchors, count = aligner.anchors, len(pairs.text_NP)
    check_pairs(pairs.text_NP, pairs.image_NQ)
    if count - anchors < 4 * NEIGHBOURS:
        raise InputError(
            f"aligner.anchors={anchors} of {count} images leave too few without a pair; take fewer anchors or more images"
        )
    text_rows, image_rows = np.arange(anchors, count, 2), np.arange(anchors + 1, count, 2)
    known = np.arange(anchors)
    text_mean, text_PK = _basis(pairs.text_NP[np.r_[known, text_rows]], dims, aligner.regularisation)
    image_mean, image_QK = _basis(pairs.image_NQ[np.r_[known, image_rows]], dims, aligner.regularisation)
    shared = min(text_PK.shape[1], image_QK.shape[1])
    bases = LinearMaps(text_mean, text_PK[:, :shared], image_mean, image_QK[:, :shared])
    text_NK, image_NK = bases.text(pairs.text_NP), bases.image(pairs.image_NQ)
    return Parted(text_NK[text_rows], image_NK[image_rows], text_NK[:anchors], image_NK[:anchors], bases)


def _basis(x_ND: Array, dims: int, regularisation: float) -> tuple[Array, Array]:
    """Returns the mean and the principal axes, each divided by its regularised deviation."""
    mean = x_ND.mean(axis=0)
    axes = principal_axes(x_ND - mean, dims)
    variances = ((x_ND - mean) @ axes).var(axis=0)
    return mean, axes / np.sqrt(variances + regularisation * variances.mean())


class Game(nn.Module):
    """The rotation and its discriminator, in one module for the processes of a run."""

    def __init__(self, parted: Parted, hidden: int) -> None:
        super().__init__()
        dims = parted.text_MK.shape[1]
        self.turn = nn.Linear(dims, dims, bias=False)
        start = (
            rotation(parted.text_anchors_AK, parted.image_anchors_AK) if len(parted.text_anchors_AK) else np.eye(dims)
        )
        self.turn.weight.data.copy_(torch.from_numpy(start.T))
        self.discriminator = nn.Sequential(
            nn.Dropout(DROPOUT),
            nn.Linear(dims, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1),
        )

    def discriminate(self, text_BK: Tensor, image_BK: Tensor) -> Tensor:
        """Returns the discriminator's mean cross-entropy, ln 2 where it cannot tell; captions have no gradient."""
        logits = self.discriminator(torch.cat([self.turn(text_BK).detach(), image_BK]))[:, 0]
        target = torch.full_like(logits, SMOOTHING)
        target[len(text_BK) :] = 1 - SMOOTHING
        return F.binary_cross_entropy_with_logits(logits, target)

    def deceive(self, text_BK: Tensor, anchors: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the loss of the rotation: captions taken for images, and known pairs brought together."""
        logits = self.discriminator(self.turn(text_BK))[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, 1 - SMOOTHING))
        if len(anchors[0]):
            loss = loss + PULL * (1 - F.cosine_similarity(self.turn(anchors[0]), anchors[1]).mean())
        return loss

    @torch.no_grad()
    def straighten(self) -> None:
        """Brings the map back towards the rotations: W <- (1 + b) W - b (W W') W."""
        weight = self.turn.weight
        weight.copy_((1 + ORTHOGONALITY) * weight - ORTHOGONALITY * (weight @ weight.T) @ weight)

    def maps(self, parted: Parted, aligner: AdversarialAligner) -> LinearMaps:
        """Returns the maps of both sides, after the refinement."""
        turn_KK = self.turn.weight.detach().double().cpu().numpy().T
        text_KE, image_KE = refined(parted, turn_KK, aligner.refinements, aligner.anchor_weight)
        bases = parted.bases
        return LinearMaps(bases.text_mean_P, bases.text_PE @ text_KE, bases.image_mean_Q, bases.image_QE @ image_KE)


def refined(parted: Parted, turn_KK: Array, rounds: int, anchor_weight: float) -> tuple[Array, Array]:
    """Returns the maps of text and image after rounds of Procrustes on known pairs and on mutual nearest neighbours."""
    text_KE, image_KE = turn_KK, np.eye(len(turn_KK))
    text_MK, image_MK = parted.text_MK[:MOST_REFINED], parted.image_MK[:MOST_REFINED]
    root = anchor_weight**0.5
    for _ in range(rounds):
        text_rows, image_rows = mutual_neighbours(text_MK @ text_KE, image_MK @ image_KE)
        text = np.concatenate([root * parted.text_anchors_AK, text_MK[text_rows]])
        image = np.concatenate([root * parted.image_anchors_AK, image_MK[image_rows]])
        if len(text) == 0:
            break
        left, values, right = np.linalg.svd(text.T @ image, full_matrices=False)
        weights = values / values[0]
        text_KE, image_KE = left * weights, right.T * weights
    return text_KE, image_KE


def mutual_neighbours(text_ME: Array, image_ME: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns rows of text and of image that are each other's nearest by CSLS, in which hubs are near to nobody."""
    text, image = (F.normalize(torch.from_numpy(x).float(), dim=-1) for x in (text_ME, image_ME))
    cosines = text @ image.T
    count = min(NEIGHBOURS, *cosines.shape)
    crowds = [cosines.topk(count, dim=dim).values.mean(dim=dim, keepdim=True) for dim in (1, 0)]
    nearness = 2 * cosines - crowds[0] - crowds[1]
    forth, back = nearness.argmax(dim=1), nearness.argmax(dim=0)
    rows = (back[forth] == torch.arange(len(forth))).nonzero()[:, 0]
    return rows.numpy(), forth[rows].numpy()
