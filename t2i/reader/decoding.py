"""Writes captions token by token: greedy, or the best of several beams. One code for every model that writes.

Axes: B images, W beams, K tokens of the vocabulary, T tokens.
"""

from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

LENGTH_POWER = 0.7  # a beam's log-likelihood is divided by its length to this power (Wu et al., 2016)

State = TypeVar("State")


class Writer(Protocol[State]):
    """A model that writes captions of images."""

    start_id: int
    end_id: int
    max_tokens: int  # start and end included

    def start(self, cells: Any) -> State:
        """The state before the first token of each image."""
        ...

    def next(self, state: State, ids_B: Tensor) -> tuple[Tensor, State]:
        """Logits_BK of the token after `ids`, and the state with them."""
        ...

    def rows(self, state: State, rows_B: Tensor) -> State:
        """The state of these rows, any number of times each."""
        ...


class Written(NamedTuple):
    """Token ids [B, T] from the start to the end token, padded with the end token, and log-likelihoods [B] in nats."""

    ids_BT: Tensor
    log_likelihood_B: Tensor
    length_B: Tensor  # tokens after the start, end included


@torch.no_grad()
def write(writer: Writer[Any], cells: Tensor, beams: int = 1) -> Written:
    """Writes a caption for each image: with one beam the likeliest token each time, else by beam search.

    A caption that reaches `max_tokens` ends there.
    """
    count = len(cells)
    state = writer.start(cells)
    state = writer.rows(state, torch.arange(count, device=cells.device).repeat_interleave(beams))
    ids = torch.full((count * beams, 1), writer.start_id, dtype=torch.long, device=cells.device)
    score = torch.full((count, beams), float("-inf"), device=cells.device)
    score[:, 0] = 0.0  # all beams begin alike: only one counts
    length = torch.zeros(count, beams, dtype=torch.long, device=cells.device)
    done = torch.zeros(count, beams, dtype=torch.bool, device=cells.device)
    for step in range(1, writer.max_tokens):
        logits, state = writer.next(state, ids[:, -1])
        told = logits.float().log_softmax(dim=-1).view(count, beams, -1)
        told, size = _only_end(told, done, writer.end_id, step == writer.max_tokens - 1), told.shape[-1]
        total = score[..., None] + told
        longer = (length + ~done)[..., None].expand_as(total)
        ranked = total / longer.clamp(min=1) ** (LENGTH_POWER if beams > 1 else 0.0)
        best = ranked.flatten(1).topk(beams, dim=1).indices
        parent, token = best // size, best % size
        score, length = total.flatten(1).gather(1, best), longer.flatten(1).gather(1, best)
        done = done.gather(1, parent) | (token == writer.end_id)
        rows = (parent + torch.arange(count, device=cells.device)[:, None] * beams).flatten()
        ids = torch.cat([ids[rows], token.view(-1, 1)], dim=1)
        if bool(done.all()):
            break
        state = writer.rows(state, rows) if beams > 1 else state
    first = torch.arange(count, device=cells.device) * beams + (score / length.clamp(min=1) ** LENGTH_POWER).argmax(
        dim=1
    )
    return Written(ids[first], score.flatten()[first], length.flatten()[first])


def _only_end(told_BWK: Tensor, done_BW: Tensor, end: int, last: bool) -> Tensor:
    """Log-probabilities where a finished beam goes on with the end token for free, and at the last place all must end."""
    ended = torch.full_like(told_BWK, float("-inf"))
    ended[..., end] = 0.0
    told_BWK = torch.where(done_BW[..., None], ended, told_BWK)
    if last:
        kept = told_BWK[..., end].clone()
        told_BWK = torch.full_like(told_BWK, float("-inf"))
        told_BWK[..., end] = kept
    return told_BWK
