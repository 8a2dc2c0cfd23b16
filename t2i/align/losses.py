"""Contrastive losses of the dual encoder, for each kind of negatives.

Axes: B pairs of a step, E embedding, T text tokens, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i.align.config import BatchNegatives, HardNegatives, NegativesConfig, SoftNegatives, SwapNegatives


def contrastive_loss(image_BE: Tensor, text_BE: Tensor, scale: Tensor, same_BB: Tensor) -> Tensor:
    """Returns symmetric InfoNCE (van den Oord et al., 2018; Radford et al., 2021, figure 3).

    Args:
        image_BE, text_BE: unit-length embeddings of matching pairs.
        scale: 1 / temperature.
        same_BB: True if captions i and j have the same meaning, so that they are not negatives.
    """
    return symmetric(pair_logits(image_BE, text_BE, scale, same_BB))


def pair_logits(image_BE: Tensor, text_BE: Tensor, scale: Tensor, same_BB: Tensor) -> Tensor:
    """Returns logits_BB of image i and caption j; -inf if they are neither a pair nor negatives."""
    logits_BB = scale * image_BE @ text_BE.T
    own = torch.eye(len(logits_BB), dtype=torch.bool, device=logits_BB.device)
    return logits_BB.masked_fill(same_BB & ~own, float("-inf"))


def symmetric(logits_BB: Tensor) -> Tensor:
    """Returns the mean cross-entropy of both directions; caption i belongs to image i."""
    target = torch.arange(len(logits_BB), device=logits_BB.device)
    return (F.cross_entropy(logits_BB, target) + F.cross_entropy(logits_BB.T, target)) / 2


def harder(logits_BB: Tensor, hardness: float) -> Tensor:
    """Weights each negative by exp(hardness * logit), scaled to a mean of 1 over the row (Robinson et al., ICLR 2021).

    The weights have no gradient. Those of a column differ from those of a row, so call it once for each direction.

    Returns:
        logits plus the logarithms of the weights.
    """
    own = torch.eye(len(logits_BB), dtype=torch.bool, device=logits_BB.device)
    with torch.no_grad():
        rated = (hardness * logits_BB).masked_fill(own, float("-inf"))
        count = rated.isfinite().sum(dim=1, keepdim=True).clamp(min=1)
        # a row without negatives is all NaN
        log_weights = torch.nan_to_num(rated - rated.logsumexp(dim=1, keepdim=True) + count.log(), nan=0.0, neginf=0.0)
    return logits_BB + log_weights.masked_fill(own, 0.0)


def softened(logits_BB: Tensor, likeness_BB: Tensor, share: float) -> Tensor:
    """Returns the symmetric cross-entropy with targets that give `share` of the probability to similar captions.

    Args:
        likeness_BB: similarity of captions, symmetric, in [0, 1]; ignored on the diagonal and for pairs that are not negatives.
    """
    own = torch.eye(len(logits_BB), dtype=torch.bool, device=logits_BB.device)
    weights = likeness_BB.masked_fill(own | logits_BB.isinf(), 0.0)
    spread = share * weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-8)
    target = spread + torch.diag_embed(1 - spread.sum(dim=1))
    losses = [-(target * F.log_softmax(x, dim=1).masked_fill(logits_BB.isinf(), 0.0)) for x in (logits_BB, logits_BB.T)]
    return sum(loss.sum(dim=1).mean() for loss in losses) / 2  # pyright: ignore[reportReturnType]


def overlap(bags_BV: Tensor) -> Tensor:
    """Returns the share of tokens [B, B] that two captions have in common (Jaccard index)."""
    shared = bags_BV @ bags_BV.T
    sizes = bags_BV.sum(dim=1)
    return shared / (sizes[:, None] + sizes - shared).clamp(min=1.0)


def bags(ids_BT: Tensor, mask_BT: Tensor, vocabulary: int, special: int) -> Tensor:
    """Returns 1.0 for each token that a caption contains, float [B, V]; the first `special` ids do not count."""
    bags_BV = torch.zeros(len(ids_BT), vocabulary, device=ids_BT.device)
    bags_BV.scatter_(1, ids_BT, mask_BT.float())
    bags_BV[:, :special] = 0.0
    return bags_BV


def swap_loss(image_BE: Tensor, text_BE: Tensor, swapped_BE: Tensor, scale: Tensor, has_B: Tensor) -> Tensor:
    """Returns the mean cross-entropy of captions against the same captions with two attributes exchanged.

    Args:
        has_B: True if the caption has two attributes to exchange; the others are left out.
    """
    margin_B = scale * (image_BE * (text_BE - swapped_BE)).sum(dim=1)
    return (F.softplus(-margin_B) * has_B).sum() / has_B.sum().clamp(min=1)


def negatives_loss(logits_BB: Tensor, config: NegativesConfig, bags_BV: Tensor | None) -> Tensor:
    """Returns the contrastive loss with one kind of negatives.

    Args:
        bags_BV: result of `bags`, for `SoftNegatives` only.
    """
    if isinstance(config, HardNegatives):
        target = torch.arange(len(logits_BB), device=logits_BB.device)
        ways = (harder(x, config.hardness) for x in (logits_BB, logits_BB.T))
        return sum(F.cross_entropy(x, target) for x in ways) / 2  # pyright: ignore[reportReturnType]
    if isinstance(config, SoftNegatives):
        assert bags_BV is not None
        return softened(logits_BB, overlap(bags_BV), config.share)
    assert isinstance(config, BatchNegatives | SwapNegatives)
    return symmetric(logits_BB)
