"""Greedy and beam search against brute force, with the same code for a reader and for the captioner of a dual encoder."""

from itertools import product

import pytest
import torch
from torch import Tensor

from builders.tiny_reader_run import tiny_reader
from t2i.align.config import Config
from t2i.align.dual_encoder import Captioner
from t2i.reader.decoding import LENGTH_POWER, write
from t2i.reader.writers import CaptionerWriter, DecoderWriter


class Table:
    """A writer whose next token depends on the last two alone."""

    start_id, end_id, max_tokens = 0, 1, 5

    def __init__(self, seed: int) -> None:
        self.logits = 2 * torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(seed))

    def start(self, cells: Tensor) -> Tensor:
        return torch.zeros(len(cells), dtype=torch.long)

    def next(self, state: Tensor, ids_B: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits[state.clamp(max=2), ids_B.clamp(max=2)], ids_B

    def rows(self, state: Tensor, rows_B: Tensor) -> Tensor:
        return state[rows_B]


def log_likelihood(table: Table, tokens: tuple[int, ...]) -> float:
    before, last, total = 0, 0, 0.0
    for token in tokens:
        told = table.logits[min(before, 2), min(last, 2)].log_softmax(dim=0)
        total, before, last = total + float(told[token]), last, token
    return total


@pytest.mark.parametrize("seed", range(4))
def test_enough_beams_find_what_brute_force_finds(seed: int) -> None:
    table = Table(seed)
    every = [
        (*body, 1) for n in range(4) for body in product((0, 2, 3), repeat=n)
    ]  # of at most 4 tokens after the start, the last of which ends
    best = max(every, key=lambda tokens: log_likelihood(table, tokens) / len(tokens) ** LENGTH_POWER)
    found = write(table, torch.zeros(2, 1, 1), beams=81)
    length = int(found.length_B[0])
    assert tuple(found.ids_BT[0, 1 : 1 + length].tolist()) == best
    assert float(found.log_likelihood_B[0]) == pytest.approx(log_likelihood(table, best), abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_one_beam_takes_the_likeliest_token_each_time(seed: int) -> None:
    table, tokens, state = Table(seed), [0], (0, 0)
    while tokens[-1] != 1 and len(tokens) < 4:
        tokens.append(int(table.logits[min(state[0], 2), min(state[1], 2)].argmax()))
        state = state[1], tokens[-1]
    tokens += [] if tokens[-1] == 1 else [1]
    found = write(table, torch.zeros(1, 1, 1))
    assert found.ids_BT[0].tolist() == tokens and int(found.length_B[0]) == len(tokens) - 1


@pytest.mark.parametrize("beams", [1, 3])
def test_the_likelihood_of_what_is_written_is_the_readers_own(beams: int) -> None:
    reader = tiny_reader()
    images = torch.randint(0, 255, (5, 16, 16, 3), dtype=torch.uint8).numpy()
    captions: object = reader.network.captions
    done = write(DecoderWriter(captions, reader.tokenizer), next(reader.cells(images)), beams)  # type: ignore[arg-type]
    for row, ids in enumerate(done.ids_BT):
        one = write(DecoderWriter(captions, reader.tokenizer), next(reader.cells(images[row : row + 1])), beams)  # type: ignore[arg-type]
        length = int(done.length_B[row])
        assert one.ids_BT[0, : length + 1].tolist() == ids[: length + 1].tolist()  # in any company
        assert float(one.log_likelihood_B[0]) == pytest.approx(float(done.log_likelihood_B[row]), abs=1e-3)


def test_the_captioner_of_a_dual_encoder_writes_by_the_same_code() -> None:
    config = Config.model_validate(
        {
            "text_tower": {"width": 16, "depth": 1, "heads": 2, "max_tokens": 8},
            "image_tower": {"width": 8, "width_limit": 16},
            "data": {"resolution": 16},
        }
    )
    torch.manual_seed(0)
    captioner = Captioner(config, 40).eval()

    class Tokens:
        START, END, max_tokens = 1, 2, 8

    cells = 3 * torch.randn(2, 16, 16)
    found = write(CaptionerWriter(captioner, Tokens()), cells)  # type: ignore[arg-type]
    ids = torch.tensor([[1]])
    while ids.shape[1] < 8 and ids[0, -1] != 2:
        logits = captioner.logits(cells[:1].transpose(1, 2).unflatten(2, (4, 4)), ids)[:, -1]
        token = logits.argmax(dim=-1, keepdim=True) if ids.shape[1] < 7 else torch.tensor([[2]])
        ids = torch.cat([ids, token], dim=1)
    assert found.ids_BT[0, : ids.shape[1]].tolist() == ids[0].tolist()
