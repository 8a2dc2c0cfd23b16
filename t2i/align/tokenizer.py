"""A byte-pair tokenizer fitted on the training captions only (Sennrich et al., ACL 2016; the `tokenizers` library)."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

COUNTED = 20_000  # captions that `warn_of_cut` reads


class CaptionTokenizer:
    """Lower-cased byte pairs with start, end and padding; every string has an encoding.

    Args:
        special: ids of padding, start and end, of another tokenizer than `fit` makes.
    """

    PAD, START, END = 0, 1, 2

    def __init__(self, json_text: str, max_tokens: int, special: tuple[int, int, int] = (PAD, START, END)) -> None:
        from tokenizers import Tokenizer, decoders

        self.json_text, self.max_tokens = json_text, max_tokens
        self.PAD, self.START, self.END = special
        self._tokenizer = Tokenizer.from_str(json_text)
        self._tokenizer.decoder = (
            decoders.ByteLevel()
        )  # not in `json_text`, whose digest names encoders of earlier runs

    @classmethod
    def fit(cls, captions: Sequence[str], vocabulary: int, max_tokens: int) -> "CaptionTokenizer":
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<pad>", "<start>", "<end>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(captions, trainer)
        return cls(tokenizer.to_str(), max_tokens)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def __call__(
        self, captions: Sequence[str], max_tokens: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Returns ids [B, T] int64, mask [B, T] (True: real), and how many captions were cut; T is `max_tokens` or its own."""
        length = max_tokens or self.max_tokens
        ids = torch.full((len(captions), length), self.PAD, dtype=torch.long)
        lengths, cut = [], 0
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(captions))):
            tokens = encoding.ids
            cut += len(tokens) > length - 2
            tokens = [self.START, *tokens[: length - 2], self.END]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            lengths.append(len(tokens))
        return ids, torch.arange(length) < torch.tensor(lengths, dtype=torch.long)[:, None], cut

    def warn_of_cut(self, captions: Iterable[str], key: str) -> None:
        """Warns how many of the first captions are cut off, since equal beginnings then read the same.

        Args:
            key: config key of the limit.
        """
        first = list(islice(captions, COUNTED))
        cut = sum(len(encoding.ids) > self.max_tokens - 2 for encoding in self._tokenizer.encode_batch(first))
        if cut:
            every = f"the first {len(first):,}" if len(first) == COUNTED else f"{len(first):,}"
            warnings.warn(
                f"{cut:,} of {every} captions are longer than {key}={self.max_tokens}, start and end included; the rest is "
                "cut off",
                stacklevel=2,
            )

    def decode(self, ids_T: torch.Tensor) -> str:
        """The text of one row of ids, in lower case, without start, end and padding."""
        return self._tokenizer.decode(ids_T.tolist(), skip_special_tokens=True).removeprefix(" ")

    def has_word(self, word: str) -> bool:
        """True if the word is one token, as every word of the captions is that it was fitted on until its tokens ran out."""
        return len(self._tokenizer.encode(word).ids) == 1


def length_batches(mask_BT: Tensor, size: int, step: int = 8) -> Iterator[tuple[Tensor, int, int]]:
    """Yields batches of captions of about one length, so that a text tower computes few tokens of padding.

    Lengths are rounded up to multiples of `step` and batches filled to `size` with their last row, so that a caption's
    features have the same bits whatever captions are beside it.

    Args:
        mask_BT: True at real tokens, which come first.

    Yields:
        rows of a batch [size], how many of them are no filling, and the tokens to read of each.
    """
    lengths = (mask_BT.sum(dim=1) + step - 1) // step * step
    for length in lengths.unique().tolist():
        for rows in (lengths == length).nonzero()[:, 0].split(size):
            filled = rows[torch.arange(size).clamp(max=len(rows) - 1)]
            yield filled, len(rows), min(length, mask_BT.shape[1])
