"""The arithmetic of one optimizer step of the reader: images with captions and questions, and their losses.

Axes: B images, C channels, H W image, Q questions, T tokens, A answers.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from t2i.reader.config import TasksConfig
from t2i.reader.network import ReaderNetwork, Tokens
from t2i.text import TextFeatures

NOISE = 0.05  # standard deviation of the noise added to training images, in units of [-1, 1]


class Asked(NamedTuple):
    """Questions of one micro-batch, and what is right."""

    questions: Tokens | TextFeatures
    image_Q: Tensor  # which image each is about
    target_QA: Tensor  # credit of each answer, rows adding up to 1


class ReaderMicro(NamedTuple):
    """One micro-batch on the device; None: the reader does not learn that task."""

    images_BCHW: Tensor
    said: Tokens | None
    asked: Asked | None


class Losses(nn.Module):
    """All losses of a reader in one call, as DistributedDataParallel needs them."""

    def __init__(self, reader: ReaderNetwork, tasks: TasksConfig) -> None:
        super().__init__()
        self.reader, self.tasks = reader, tasks

    def forward(self, micro: ReaderMicro) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted sum of the losses of all tasks, and each of them, in nats a token and a question."""
        reader, total, watched = self.reader, micro.images_BCHW.new_zeros(()), {}
        cells = reader.see(micro.images_BCHW)
        if micro.said is not None:
            nll = reader.caption_nll(cells, micro.said)
            watched["caption_nll"] = nll.sum() / micro.said.mask_BT[:, 1:].sum()
            total = total + self.tasks.caption * watched["caption_nll"]
        if micro.asked is not None and reader.answers is not None:
            logits = reader.answers(cells[micro.asked.image_Q], micro.asked.questions)
            watched["answer_nll"] = F.cross_entropy(logits, micro.asked.target_QA)
            total = total + self.tasks.answer * watched["answer_nll"]
        return total, {name: value.detach() for name, value in watched.items()}
