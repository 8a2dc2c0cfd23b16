"""The arithmetic of one optimizer step of the dual encoder: the pairs of a micro-batch and their loss.

Axes: B pairs, C channels, H W image, T text tokens, E embedding.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from t2i.align.config import NegativesConfig, SoftNegatives, SwapNegatives
from t2i.align.dual_encoder import Captioner, DualEncoder
from t2i.align.losses import bags, negatives_loss, pair_logits, swap_loss

SPECIAL = 3  # ids of padding, start and end
NOISE = 0.05  # standard deviation of the noise added to training images, in units of [-1, 1]


class Pairs(NamedTuple):
    """Images and captions of one micro-batch on the device; pairs of one row or one caption are no negatives."""

    images_BCHW: Tensor
    ids_BT: Tensor
    mask_BT: Tensor
    rows_B: Tensor  # of the data set
    captions_B: Tensor  # a number for each text
    swapped_ids_BT: Tensor | None = None  # the captions with two attributes exchanged, for negatives of that kind
    swapped_mask_BT: Tensor | None = None
    has_swap_B: Tensor | None = None  # False where a caption has no two attributes of one kind


class Embedded(NamedTuple):
    """Unit-length embeddings of one micro-batch."""

    image_BE: Tensor
    text_BE: Tensor


class Paired(nn.Module):
    """Both embeddings and the caption's likelihood in one call, as DistributedDataParallel needs them."""

    def __init__(self, model: DualEncoder, captioner: Captioner) -> None:
        super().__init__()
        self.model, self.captioner = model, captioner

    def forward(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Returns image_BE, text_BE, 1 / temperature, the mean NLL of a caption token in nats, and swapped_BE, embeddings of
        exchanged captions, where there are any."""
        map_BCHW = self.model.image.map(pairs.images_BCHW)
        image_BE = F.normalize(self.model.image.embed(map_BCHW).float(), dim=-1)
        said = self.captioner(map_BCHW, pairs.ids_BT, pairs.mask_BT)
        if pairs.swapped_ids_BT is None or pairs.swapped_mask_BT is None:
            return image_BE, self.model.embed_text(pairs.ids_BT, pairs.mask_BT), self.model.scale(), said, None
        ids, mask = (
            torch.cat(both) for both in ((pairs.ids_BT, pairs.swapped_ids_BT), (pairs.mask_BT, pairs.swapped_mask_BT))
        )
        text_BE, swapped_BE = self.model.embed_text(ids, mask).chunk(2)
        return image_BE, text_BE, self.model.scale(), said, swapped_BE


def parameter_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Returns AdamW's groups: weight decay for matrices and kernels, none for gains, biases and embeddings."""
    decayed = {n: p for n, p in model.named_parameters() if p.ndim >= 2 and "tokens" not in n and "positions" not in n}
    rest = [p for name, p in model.named_parameters() if name not in decayed]
    return [{"params": list(decayed.values()), "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


@torch.no_grad()
def embed_all(paired: nn.Module, micros: Sequence[Pairs]) -> list[Embedded]:
    """Returns the embeddings of every micro-batch of a step, without gradients."""
    return [Embedded(*paired(pairs)[:2]) for pairs in micros]


def contrast_all(
    parts: Sequence[Embedded], scale: Tensor, micros: Sequence[Pairs], config: NegativesConfig, num_processes: int
) -> Tensor:
    """Returns the contrastive loss among the pairs of all micro-batches of all processes."""
    image_BE, text_BE = (everywhere(torch.cat(side), num_processes) for side in zip(*parts, strict=True))
    rows_B = everywhere(torch.cat([pairs.rows_B for pairs in micros]), num_processes)
    captions_B = everywhere(torch.cat([pairs.captions_B for pairs in micros]), num_processes)
    same_BB = (captions_B[:, None] == captions_B) | (rows_B[:, None] == rows_B)
    bags_BV = None
    if isinstance(config, SoftNegatives):
        ids_BT, mask_BT = (
            everywhere(torch.cat(side), num_processes)
            for side in zip(*((p.ids_BT, p.mask_BT) for p in micros), strict=True)
        )
        bags_BV = bags(ids_BT, mask_BT, int(ids_BT.max()) + 1, SPECIAL)
    return negatives_loss(pair_logits(image_BE, text_BE, scale, same_BB), config, bags_BV)


def micro_loss(
    paired: nn.Module,
    micros: Sequence[Pairs],
    number: int,
    known: Sequence[Embedded],
    config: NegativesConfig,
    num_processes: int = 1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the loss of one micro-batch, and scalars to watch.

    Every caption of the step is a negative of every image of it. The mean of these losses over the micro-batches has the
    gradient of the whole step, though only one of them is held in memory (GradCache, Gao et al., 2021): the
    others enter by their embeddings, and the temperature learns from the last one alone.

    Args:
        number: which of `micros`.
        known: from `embed_all`; may be empty for a single micro-batch.
    """
    pairs, count = micros[number], len(micros)
    image_BE, text_BE, scale, said, swapped_BE = paired(pairs)
    parts = [*known[:number], Embedded(image_BE, text_BE), *known[number + 1 :]]
    loss = contrast_all(parts, scale if number == count - 1 else scale.detach(), micros, config, num_processes)
    watch = {"loss": loss.detach(), "caption_nll": said.detach()}
    total = count * loss + said
    if isinstance(config, SwapNegatives) and swapped_BE is not None and pairs.has_swap_B is not None:
        swaps = swap_loss(image_BE, text_BE, swapped_BE, scale, pairs.has_swap_B)
        total, watch = total + config.weight * swaps, watch | {"swap_loss": swaps.detach()}
    return total, watch


def everywhere(tensor: Tensor, num_processes: int) -> Tensor:
    """Returns the rows of all processes, with gradients."""
    return torch.cat(all_gather(tensor)) if num_processes > 1 else tensor  # type: ignore[arg-type]
