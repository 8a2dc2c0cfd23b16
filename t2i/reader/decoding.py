"""Writes captions token by token, greedily or by beam search, with any model that implements `Writer`.

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
    max_tokens: int  # including start and end

    def start(self, cells: Any) -> State:
        """Returns the state before the first token of each image."""
        ...

    def next(self, state: State, ids_B: Tensor) -> tuple[Tensor, State]:
        """Returns logits_BK for the token after `ids`, and the state including `ids`."""
        ...

    def rows(self, state: State, rows_B: Tensor) -> State:
        """Returns the state of the given rows, which may be repeated."""
        ...


class Written(NamedTuple):
    """Token ids [B, T] from the start to the end token, padded with the end token, and log likelihoods [B] in nats."""

    ids_BT: Tensor
    log_likelihood_B: Tensor
    length_B: Tensor  # number of tokens after the start, including the end


@torch.no_grad()
def write(writer: Writer[Any], cells: Tensor, beams: int = 1) -> Written:
    """Writes a caption for each image: greedily with one beam, else by beam search. `max_tokens` limits its length."""
    count = len(cells)
    state = writer.start(cells)
    state = writer.rows(state, torch.arange(count, device=cells.device).repeat_interleave(beams))
    ids = torch.full((count * beams, 1), writer.start_id, dtype=torch.long, device=cells.device)
    score = torch.full((count, beams), float("-inf"), device=cells.device)
    score[:, 0] = 0.0  # all beams are equal at first, so only one counts
    length = torch.zeros(count, beams, dtype=torch.long, device=cells.device)
    done = torch.zeros(count, beams, dtype=torch.bool, device=cells.device)
    for step in range(1, writer.max_tokens):
        logits, state = writer.next(state, ids[:, -1])
        log_p = logits.float().log_softmax(dim=-1).view(count, beams, -1)
        log_p, size = _only_end(log_p, done, writer.end_id, step == writer.max_tokens - 1), log_p.shape[-1]
        total = score[..., None] + log_p
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


def _only_end(log_p_BWK: Tensor, done_BW: Tensor, end: int, last: bool) -> Tensor:
    """Changes log probabilities so that finished beams continue with the end token at no cost, and all beams end at the
    last position."""
    ended = torch.full_like(log_p_BWK, float("-inf"))
    ended[..., end] = 0.0
    log_p_BWK = torch.where(done_BW[..., None], ended, log_p_BWK)
    if last:
        log_p_end = log_p_BWK[..., end].clone()
        log_p_BWK = torch.full_like(log_p_BWK, float("-inf"))
        log_p_BWK[..., end] = log_p_end
    return log_p_BWK
