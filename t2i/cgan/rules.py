"""The training objectives of generator and discriminator.

Captions are pooled vectors. Each step has a pool of M captions of other images; an image of the batch and a caption of the
pool form a mismatched pair, unless its own caption is the same. The pool is drawn for the step, not from the batch, so the
objective does not depend on how a step is divided into micro-batches and processes.

Axes: B batch, C channels, H W image, P pooled text, M captions of the pool, F discriminator features.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.cgan import losses
from t2i.cgan.config import HingeLoss, LossConfig

MISMATCHED = 0.5  # weight of real images with captions of other images
CENTERING = 0.01  # weight of (D(real) + D(fake))^2, which keeps logits from drifting
PROBE = 0.01  # step of the finite difference, for pixels in [-1, 1]
MA_GP = 2.0  # weight of the matching-aware gradient penalty, as in DF-GAN


class CaptionPool(NamedTuple):
    """The captions of one micro-batch and the step's pool."""

    pooled_BP: Tensor
    pool_MP: Tensor
    same_BM: Tensor  # True if caption m of the pool belongs to image b or equals its caption: not a mismatch
    labelled_B: Tensor | None = None  # False for images without a caption, judged without one; None: all have captions

    def condition(self, condition: float) -> float | Tensor:
        """Returns the weight of each image's caption."""
        return condition if self.labelled_B is None else condition * self.labelled_B

    def no_mismatch(self) -> Tensor:
        """Returns [B, M], True if image b and caption m are not a mismatched pair."""
        return self.same_BM if self.labelled_B is None else self.same_BM | ~self.labelled_B[:, None]


def _pairwise(u_B: Tensor, features_BF: Tensor, text_F: Tensor, condition: float | Tensor) -> Tensor:
    return u_B + condition * (features_BF * text_F).sum(dim=1)


def mismatched_mean(values_BM: Tensor, same_BM: Tensor) -> Tensor:
    """Returns the mean over all pairs, with 0 for matching pairs, so that the means of micro-batches average to the batch's."""
    return (values_BM * ~same_BM).mean()


def penalised(config: LossConfig, batch: int) -> int:
    """Returns the number of images of a batch that R1 and R2 are computed on."""
    return 0 if isinstance(config, HingeLoss) else max(1, round(config.penalty_fraction * batch))


def has_probes(config: LossConfig) -> bool:
    """Returns True if the penalties need noise, which finite differences do."""
    return not isinstance(config, HingeLoss) and config.penalty == "finite_difference"


def discriminator_loss(
    discriminator: nn.Module,
    real_BCHW: Tensor,
    fake_BCHW: Tensor,
    captions: CaptionPool,
    noise: tuple[Tensor, Tensor] | None,
    config: LossConfig,
    gamma: float,
    condition: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the discriminator's loss and scalars for the journal.

    Args:
        real_BCHW, fake_BCHW: augmented images in [-1, 1]; no gradient flows to the generator.
        noise: standard normal numbers [n, C, H, W] for penalties on n real and n generated images; None: autograd penalties.
        gamma: weight of R1 + R2 at this step.
        condition: 0 ignores the captions, 1 uses them; ramped up on small data.
    """
    count, exact = penalised(config, len(real_BCHW)), not has_probes(config)
    real, fake = real_BCHW.detach().requires_grad_(exact), fake_BCHW.detach().requires_grad_(exact)
    pooled = captions.pooled_BP.detach().requires_grad_(config.kind == "hinge")
    images = [real, fake]
    if noise is not None and not exact:
        images += [real[:count] + PROBE * noise[0], fake[:count] + PROBE * noise[1]]
    logits = _logits(discriminator, images, pooled, captions, condition)
    real_B, fake_B, no_mismatch = logits.real_B, logits.fake_B, captions.no_mismatch()
    watch = {"d_real": real_B.mean(), "d_fake": fake_B.mean()}
    watch["d_mismatched"] = mismatched_mean(logits.mismatched_BM, no_mismatch)
    if isinstance(config, HingeLoss):
        mismatched = mismatched_mean(F.relu(1 + logits.mismatched_BM), no_mismatch)
        watch["penalty"] = losses.matching_aware_penalty(real_B, real, pooled)
        loss = losses.hinge_discriminator(real_B, fake_B, mismatched, condition * MISMATCHED)
        return loss + MA_GP * watch["penalty"], watch
    loss = losses.relativistic(real_B, fake_B)
    pairing_BM = F.softplus(logits.mismatched_BM - real_B[:, None])
    loss = loss + condition * MISMATCHED * mismatched_mean(pairing_BM, no_mismatch)
    loss = loss + CENTERING * losses.centering(real_B, fake_B)
    watch["r1"] = _penalty(real_B[:count], real, logits.real_probed_n)
    watch["r2"] = _penalty(fake_B[:count], fake, logits.fake_probed_n)
    return loss + gamma / 2 * (watch["r1"] + watch["r2"]), watch


def _penalty(logits_n: Tensor, images_BCHW: Tensor, probed_n: Tensor | None) -> Tensor:
    """Returns the gradient penalty by finite differences if there are logits of images with noise, else by autograd."""
    if probed_n is None:
        return losses.gradient_penalty_autograd(logits_n, images_BCHW)
    return losses.gradient_penalty_finite_difference(logits_n, probed_n, PROBE)


class _Logits(NamedTuple):
    """The discriminator's logits of pairs of image and caption."""

    real_B: Tensor
    fake_B: Tensor
    mismatched_BM: Tensor  # real images with the captions of the pool
    real_probed_n: Tensor | None = None  # the first real images plus noise; None: there is no noise
    fake_probed_n: Tensor | None = None  # the same of generated images


def _logits(
    discriminator: nn.Module, images: list[Tensor], pooled_BP: Tensor, captions: CaptionPool, condition: float
) -> _Logits:
    """Runs the discriminator once on all images: real ones, generated ones and optionally both with noise."""
    batch, weight = len(images[0]), captions.condition(condition)
    sizes = [len(part) for part in images]
    u, features, projected = discriminator(torch.cat(images), torch.cat([pooled_BP, captions.pool_MP]))
    text, pool = projected[:batch], projected[batch:]

    def pairs(logits: Tensor, part_features: Tensor) -> Tensor:
        if (n := len(logits)) == batch:
            return _pairwise(logits, part_features, text, weight)
        return _pairwise(logits, part_features, text[:n], weight[:n] if isinstance(weight, Tensor) else weight)

    real_B, fake_B, *probed = map(pairs, u.split(sizes), features.split(sizes))
    mismatched_BM = u[:batch, None] + condition * features[:batch] @ pool.T
    return _Logits(real_B, fake_B, mismatched_BM, *probed)


def generator_loss(
    discriminator: nn.Module,
    real_BCHW: Tensor,
    fake_BCHW: Tensor,
    captions: CaptionPool,
    config: LossConfig,
    condition: float = 1.0,
) -> Tensor:
    """Returns the generator's adversarial loss; gradients reach the generator through `fake_BCHW` alone."""
    weight = captions.condition(condition)
    u, features, text = discriminator(fake_BCHW, captions.pooled_BP)
    fake_B = _pairwise(u, features, text, weight)
    if isinstance(config, HingeLoss):
        return losses.hinge_generator(fake_B)
    with torch.no_grad():  # in one batch with the generated images, a gradient of the real ones would be computed too
        u, features, text = discriminator(real_BCHW, captions.pooled_BP)
        real_B = _pairwise(u, features, text, weight)
    return losses.relativistic(fake_B, real_B)


def guidance_loss(image_BE: Tensor, text_BE: Tensor, pool_ME: Tensor, same_BM: Tensor, scale: float) -> Tensor:
    """Returns the contrastive loss of generated images against their captions and the pool's, by a frozen dual encoder.

    Args:
        image_BE, text_BE, pool_ME: unit-length embeddings.
        scale: the encoder's 1 / temperature.
    """
    own_B = scale * (image_BE * text_BE).sum(dim=1)
    others_BM = (scale * image_BE @ pool_ME.T).masked_fill(same_BM, float("-inf"))
    logits = torch.cat([own_B[:, None], others_BM], dim=1)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
