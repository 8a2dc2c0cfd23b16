"""Implements `Writer` for a reader's decoder, and for the captioner that `t2i train align` trains with its towers."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from t2i.align.dual_encoder import Captioner, ImageTower
from t2i.align.tokenizer import CaptionTokenizer
from t2i.reader.decoder import CaptionDecoder, Past
from t2i.reader.network import Tokens, token_nll


class DecoderWriter:
    """A `Writer` that caches keys and values of the tokens so far."""

    def __init__(self, decoder: CaptionDecoder, tokenizer: CaptionTokenizer) -> None:
        self._decoder = decoder
        self.start_id, self.end_id, self.max_tokens = tokenizer.START, tokenizer.END, tokenizer.max_tokens

    def start(self, cells: Tensor) -> Past:
        return self._decoder.start(cells)

    def next(self, state: Past, ids_B: Tensor) -> tuple[Tensor, Past]:
        logits, state = self._decoder(ids_B[:, None], state)
        return logits[:, 0], state

    def rows(self, state: Past, rows_B: Tensor) -> Past:
        return state.rows(rows_B)


class AlignedReader(nn.Module):
    """The image tower and the captioner of a dual encoder, as a reader that writes captions but does not answer questions."""

    answers = None

    def __init__(self, image: ImageTower, captioner: Captioner) -> None:
        super().__init__()
        self.image, self.captions = image, captioner

    def see(self, images_BCHW: Tensor) -> Tensor:
        """Returns cells [B, L, C]: the positions of the last feature map."""
        return self.image.map(images_BCHW).flatten(2).transpose(1, 2)

    def caption_nll(self, cells_BLC: Tensor, captions: Tokens) -> Tensor:
        """Returns the same as `ReaderNetwork.caption_nll`."""
        return token_nll(lambda ids_BT: self.captions.logits(as_map(cells_BLC), ids_BT), captions)


class Prefix(NamedTuple):
    """Cells and the tokens so far, which are processed again for each token."""

    cells_BLC: Tensor
    ids_BT: Tensor


class CaptionerWriter:
    """A `Writer` over the captioner of a dual encoder."""

    def __init__(self, captioner: Captioner, tokenizer: CaptionTokenizer) -> None:
        self._captioner = captioner
        self.start_id, self.end_id, self.max_tokens = tokenizer.START, tokenizer.END, tokenizer.max_tokens

    def start(self, cells: Tensor) -> Prefix:
        return Prefix(cells, torch.zeros(len(cells), 0, dtype=torch.long, device=cells.device))

    def next(self, state: Prefix, ids_B: Tensor) -> tuple[Tensor, Prefix]:
        ids = torch.cat([state.ids_BT, ids_B[:, None]], dim=1)
        return self._captioner.logits(as_map(state.cells_BLC), ids)[:, -1], Prefix(state.cells_BLC, ids)

    def rows(self, state: Prefix, rows_B: Tensor) -> Prefix:
        return Prefix(state.cells_BLC[rows_B], state.ids_BT[rows_B])


def as_map(cells_BLC: Tensor) -> Tensor:
    """Converts [B, L, C] to [B, C, side, side]."""
    side = int(cells_BLC.shape[1] ** 0.5)
    return cells_BLC.transpose(1, 2).unflatten(2, (side, side))
