"""Learns a rotation of captions onto images with few pairs or none, against a discriminator that tells the two apart.

Follows MUSE (Conneau et al., ICLR 2018), on nearly whitened features; the refinement weights directions by their correlation
(Artetxe et al., AAAI 2018).

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
from t2i.names import counted

ORTHOGONALITY = 0.01  # rate at which the map is pulled back to a rotation, as in MUSE
SMOOTHING, DROPOUT, NEIGHBOURS = 0.1, 0.1, 10
ANCHOR_WEIGHT = 30.0  # weight of known pairs in the loss of the rotation; at 4 they are too weak
MOST_REFINED = 5000  # features of each side among which mutual neighbours are searched


class Unpaired(NamedTuple):
    """Captions and images without correspondence in a common basis, and the known pairs, the anchors."""

    text_MK: Array
    image_MK: Array
    text_anchors_AK: Array
    image_anchors_AK: Array
    bases: LinearMaps  # maps of features into the common basis


def unpair(pairs: Pairing, dims: int, aligner: AdversarialAligner) -> Unpaired:
    """Keeps the first pairs as anchors; from the others, takes only the caption of every second pair and the image of the rest.

    Raises:
        InputError: there are fewer pairs than anchors, or too few others.
    """
    anchors, count = aligner.anchors, len(pairs.text_NP)
    check_pairs(pairs.text_NP, pairs.image_NQ)
    others, needed = max(0, count - anchors), 4 * NEIGHBOURS
    if others < needed:
        raise InputError(
            f"aligner.anchors={anchors} leaves {others} of {counted(count, 'image')}, but at least {needed} are needed; use "
            "fewer anchors or more images"
        )
    text_rows, image_rows = np.arange(anchors, count, 2), np.arange(anchors + 1, count, 2)
    known = np.arange(anchors)
    text_mean, text_PK = _basis(pairs.text_NP[np.r_[known, text_rows]], dims, aligner.regularisation)
    image_mean, image_QK = _basis(pairs.image_NQ[np.r_[known, image_rows]], dims, aligner.regularisation)
    shared = min(text_PK.shape[1], image_QK.shape[1])
    bases = LinearMaps(text_mean, text_PK[:, :shared], image_mean, image_QK[:, :shared])
    text_NK, image_NK = bases.text(pairs.text_NP), bases.image(pairs.image_NQ)
    return Unpaired(text_NK[text_rows], image_NK[image_rows], text_NK[:anchors], image_NK[:anchors], bases)


def _basis(x_ND: Array, dims: int, regularisation: float) -> tuple[Array, Array]:
    """Returns the mean, and the principal axes divided by their regularised standard deviations."""
    mean = x_ND.mean(axis=0)
    axes = principal_axes(x_ND - mean, dims)
    variances = ((x_ND - mean) @ axes).var(axis=0)
    return mean, axes / np.sqrt(variances + regularisation * variances.mean())


class Game(nn.Module):
    """The rotation and its discriminator, in one module."""

    def __init__(self, data: Unpaired, hidden: int) -> None:
        super().__init__()
        dims = data.text_MK.shape[1]
        self.turn = nn.Linear(dims, dims, bias=False)
        start = rotation(data.text_anchors_AK, data.image_anchors_AK) if len(data.text_anchors_AK) else np.eye(dims)
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
        """Returns the discriminator's mean cross-entropy, ln 2 at chance; the rotation gets no gradient."""
        logits = self.discriminator(torch.cat([self.turn(text_BK).detach(), image_BK]))[:, 0]
        target = torch.full_like(logits, SMOOTHING)
        target[len(text_BK) :] = 1 - SMOOTHING
        return F.binary_cross_entropy_with_logits(logits, target)

    def rotation_loss(self, text_BK: Tensor, anchors: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the loss of the rotation: the adversarial loss, and the distance of the anchors."""
        logits = self.discriminator(self.turn(text_BK))[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, 1 - SMOOTHING))
        if len(anchors[0]):
            loss = loss + ANCHOR_WEIGHT * (1 - F.cosine_similarity(self.turn(anchors[0]), anchors[1]).mean())
        return loss

    @torch.no_grad()
    def orthogonalise(self) -> None:
        """Pulls the map back to a rotation: W <- (1 + b) W - b (W W') W."""
        weight = self.turn.weight
        weight.copy_((1 + ORTHOGONALITY) * weight - ORTHOGONALITY * (weight @ weight.T) @ weight)

    def maps(self, data: Unpaired, aligner: AdversarialAligner) -> LinearMaps:
        """Returns the refined maps of both sides."""
        turn_KK = self.turn.weight.detach().double().cpu().numpy().T
        text_KE, image_KE = refined(data, turn_KK, aligner.refinements, aligner.anchor_weight)
        bases = data.bases
        return LinearMaps(bases.text_mean_P, bases.text_PE @ text_KE, bases.image_mean_Q, bases.image_QE @ image_KE)


def refined(data: Unpaired, turn_KK: Array, rounds: int, anchor_weight: float) -> tuple[Array, Array]:
    """Returns the maps of text and image after rounds of Procrustes on anchors and mutual nearest neighbours."""
    text_KE, image_KE = turn_KK, np.eye(len(turn_KK))
    text_MK, image_MK = data.text_MK[:MOST_REFINED], data.image_MK[:MOST_REFINED]
    root = anchor_weight**0.5
    for _ in range(rounds):
        text_rows, image_rows = mutual_neighbours(text_MK @ text_KE, image_MK @ image_KE)
        text = np.concatenate([root * data.text_anchors_AK, text_MK[text_rows]])
        image = np.concatenate([root * data.image_anchors_AK, image_MK[image_rows]])
        if len(text) == 0:
            break
        left, values, right = np.linalg.svd(text.T @ image, full_matrices=False)
        weights = values / values[0]
        text_KE, image_KE = left * weights, right.T * weights
    return text_KE, image_KE


def mutual_neighbours(text_ME: Array, image_ME: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns rows of text and image that are mutual nearest neighbours by CSLS, which penalises hubs."""
    text, image = (F.normalize(torch.from_numpy(x).float(), dim=-1) for x in (text_ME, image_ME))
    cosines = text @ image.T
    count = min(NEIGHBOURS, *cosines.shape)
    density = [cosines.topk(count, dim=dim).values.mean(dim=dim, keepdim=True) for dim in (1, 0)]
    similarity = 2 * cosines - density[0] - density[1]
    nearest_image, nearest_text = similarity.argmax(dim=1), similarity.argmax(dim=0)
    rows = (nearest_text[nearest_image] == torch.arange(len(nearest_image))).nonzero()[:, 0]
    return rows.numpy(), nearest_image[rows].numpy()
