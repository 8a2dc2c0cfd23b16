"""The loss of one optimizer step of the reader on images with captions and questions.

Axes: B images, C channels, H W image, Q questions, T tokens, A answers.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from t2i.reader.config import TasksConfig
from t2i.reader.network import ReaderNetwork, Tokens
from t2i.text import TextFeatures

NOISE = 0.05  # standard deviation of the noise added to training images, in units of [-1, 1]


class QuestionBatch(NamedTuple):
    """The questions of one micro-batch and the credit of their answers."""

    text: Tokens | TextFeatures
    image_Q: Tensor  # index of the image that each question is about
    target_QA: Tensor  # credit of each answer; rows sum to 1, or to 0 if no answer is known


class ReaderMicro(NamedTuple):
    """One micro-batch on the device; a task that the reader does not learn is None."""

    images_BCHW: Tensor
    captions: Tokens | None
    questions: QuestionBatch | None
    labels: QuestionBatch | None = None  # one question about each image that has a class


class Losses(nn.Module):
    """Computes all losses of a reader in one forward call, as DistributedDataParallel requires."""

    def __init__(self, reader: ReaderNetwork, tasks: TasksConfig) -> None:
        super().__init__()
        self.reader, self.tasks = reader, tasks

    def forward(self, micro: ReaderMicro) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted sum of the losses of all tasks, and each loss, in nats per token or per question."""
        reader, total, losses = self.reader, micro.images_BCHW.new_zeros(()), {}
        cells = reader.see(micro.images_BCHW)
        if micro.captions is not None:
            nll = reader.caption_nll(cells, micro.captions)
            losses["caption_nll"] = nll.sum() / micro.captions.mask_BT[:, 1:].sum()
            total = total + self.tasks.caption * losses["caption_nll"]
        asked = ("answer", micro.questions, self.tasks.answer), ("label", micro.labels, self.tasks.label)
        for name, batch, weight in asked:
            if batch is not None and reader.answers is not None:
                logits = reader.answers(cells[batch.image_Q], batch.text)
                losses[f"{name}_nll"] = F.cross_entropy(logits, batch.target_QA)
                total = total + weight * losses[f"{name}_nll"]
        return total, {name: value.detach() for name, value in losses.items()}
