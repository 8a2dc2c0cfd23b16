"""The loss of one optimizer step of the dual encoder, cut into micro-batches of pairs.

Axes: B pairs, C channels, H W image, T text tokens, E embedding.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from t2i.align.config import Config, NegativesConfig, SoftNegatives, SwapNegatives
from t2i.align.dual_encoder import Captioner, DualEncoder
from t2i.align.image_decoder import Decoded
from t2i.align.losses import bags, negatives_loss, pair_logits, swap_loss

SPECIAL = 3  # number of special tokens: padding, start and end
NOISE = 0.05  # standard deviation of the noise added to training images, in units of [-1, 1]


class Pairs(NamedTuple):
    """Images and captions of one micro-batch on the device. Pairs with equal rows or captions are not negatives."""

    images_BCHW: Tensor
    ids_BT: Tensor
    mask_BT: Tensor
    rows_B: Tensor  # rows of the data set
    captions_B: Tensor  # a number for each caption text
    swapped_ids_BT: Tensor | None = None  # captions with two attributes exchanged, for SwapNegatives
    swapped_mask_BT: Tensor | None = None
    has_swap_B: Tensor | None = None  # False if a caption does not have two attributes of one kind


class Embedded(NamedTuple):
    """Unit-length embeddings of one micro-batch."""

    image_BE: Tensor
    text_BE: Tensor


class PairOutputs(NamedTuple):
    """Outputs of all networks for one micro-batch."""

    image_BE: Tensor
    text_BE: Tensor
    scale: Tensor  # 1 / temperature
    caption_nll: Tensor  # mean over caption tokens, in nats
    swapped_BE: Tensor | None  # embeddings of exchanged captions
    decoded: Decoded | None  # errors of the image decoder


class Paired(nn.Module):
    """Computes the outputs of all networks in one forward call, as DistributedDataParallel requires."""

    def __init__(self, model: DualEncoder, captioner: Captioner) -> None:
        super().__init__()
        self.model, self.captioner = model, captioner

    def forward(self, pairs: Pairs) -> PairOutputs:
        model = self.model
        map_BCHW = model.image.map(pairs.images_BCHW)
        image_BE = F.normalize(model.image.embed(map_BCHW).float(), dim=-1)
        caption_nll = self.captioner(map_BCHW, pairs.ids_BT, pairs.mask_BT)
        swapped_BE = decoded = None
        if pairs.swapped_ids_BT is None or pairs.swapped_mask_BT is None:
            text_BE = model.embed_text(pairs.ids_BT, pairs.mask_BT)
        else:
            ids, mask = (
                torch.cat(both)
                for both in ((pairs.ids_BT, pairs.swapped_ids_BT), (pairs.mask_BT, pairs.swapped_mask_BT))
            )
            text_BE, swapped_BE = model.embed_text(ids, mask).chunk(2)
        # only the loss needs it, not `embed_all`
        if model.image_decoder is not None and torch.is_grad_enabled():
            decoded = model.image_decoder.losses(image_BE, text_BE, pairs.images_BCHW)
        return PairOutputs(image_BE, text_BE, model.scale(), caption_nll, swapped_BE, decoded)


def parameter_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Returns AdamW's parameter groups: weight decay for matrices and kernels, none for gains, biases and embeddings."""
    decayed = {n: p for n, p in model.named_parameters() if p.ndim >= 2 and "tokens" not in n and "positions" not in n}
    rest = [p for name, p in model.named_parameters() if name not in decayed]
    return [{"params": list(decayed.values()), "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


@torch.no_grad()
def embed_all(paired: nn.Module, micros: Sequence[Pairs]) -> list[Embedded]:
    """Returns the embeddings of each micro-batch of a step, without gradients."""
    return [Embedded(*paired(pairs)[:2]) for pairs in micros]


def contrast_all(
    parts: Sequence[Embedded], scale: Tensor, micros: Sequence[Pairs], config: NegativesConfig, num_processes: int
) -> Tensor:
    """Returns the contrastive loss between the pairs of all micro-batches of all processes."""
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
    config: Config,
    num_processes: int = 1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the loss of one micro-batch, and scalars to log.

    Each caption of the step is a negative of each of its other images. The mean of these losses over the micro-batches has the
    gradient of the whole step, though the activations of only one micro-batch are in memory (GradCache, Gao et al., 2021). The
    others contribute their embeddings, and only the last one trains the temperature.

    Args:
        number: index of the micro-batch in `micros`.
        known: the result of `embed_all`; may be empty if there is one micro-batch.
    """
    pairs, count = micros[number], len(micros)
    output: PairOutputs = paired(pairs)
    parts = [*known[:number], Embedded(output.image_BE, output.text_BE), *known[number + 1 :]]
    scale = output.scale if number == count - 1 else output.scale.detach()
    loss = contrast_all(parts, scale, micros, config.negatives, num_processes)
    watch = {"loss": loss.detach(), "caption_nll": output.caption_nll.detach()}
    total = count * loss + output.caption_nll
    if isinstance(config.negatives, SwapNegatives) and output.swapped_BE is not None and pairs.has_swap_B is not None:
        swaps = swap_loss(output.image_BE, output.text_BE, output.swapped_BE, output.scale, pairs.has_swap_B)
        total, watch = total + config.negatives.weight * swaps, watch | {"swap_loss": swaps.detach()}
    if output.decoded is not None:
        image_error, text_error, nats = output.decoded
        total = total + config.image_weight * (image_error + text_error) / 2 + config.kl_weight * nats
        watch |= {"image_error": image_error.detach(), "text_error": text_error.detach()}
        watch |= {"nats": nats.detach()} if config.kl_weight else {}
    return total, watch


def everywhere(tensor: Tensor, num_processes: int) -> Tensor:
    """Returns the rows of all processes in one tensor, with gradients."""
    return torch.cat(all_gather(tensor)) if num_processes > 1 else tensor  # type: ignore[arg-type]
