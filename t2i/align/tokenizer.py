"""A byte-pair tokenizer that is fitted to the training captions (Sennrich et al., ACL 2016; the `tokenizers` library)."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from t2i.names import counted, verb

COUNTED = 20_000  # maximum number of captions that `warn_of_cut` checks


class CaptionTokenizer:
    """Encodes any string as lower-case byte pairs with start, end and padding.

    Args:
        special: ids of padding, start and end, if the tokenizer was not made by `fit`.
    """

    PAD, START, END = 0, 1, 2

    def __init__(self, json_text: str, max_tokens: int, special: tuple[int, int, int] = (PAD, START, END)) -> None:
        from tokenizers import Tokenizer, decoders

        self.json_text, self.max_tokens = json_text, max_tokens
        self.PAD, self.START, self.END = special
        self._tokenizer = Tokenizer.from_str(json_text)
        # not in `json_text`, as digests of earlier runs depend on it
        self._tokenizer.decoder = decoders.ByteLevel()

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

    def __call__(self, captions: Sequence[str], max_tokens: int | None = None) -> tuple[Tensor, Tensor, int]:
        """Returns int64 ids [B, T], a mask [B, T] that is True at real tokens, and the number of truncated captions.

        Args:
            max_tokens: T; None: the limit of the tokenizer.
        """
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
        """Warns if captions are truncated, since captions with equal beginnings then become the same.

        Args:
            key: config key of the limit.
        """
        first = list(islice(captions, COUNTED))
        cut = sum(len(encoding.ids) > self.max_tokens - 2 for encoding in self._tokenizer.encode_batch(first))
        if cut:
            every = f"{'the first ' * (len(first) == COUNTED)}{counted(len(first), 'caption')}"
            warnings.warn(
                f"{cut:,} of {every} {verb(cut)} longer than {key}={self.max_tokens}, start and end included; the rest is "
                "cut off",
                stacklevel=2,
            )

    def decode(self, ids_T: Tensor) -> str:
        """Returns the text of one row of ids, in lower case, without start, end and padding."""
        return self._tokenizer.decode(ids_T.tolist(), skip_special_tokens=True).removeprefix(" ")

    def has_word(self, word: str) -> bool:
        """Returns True if the word is a single token, as all frequent words of the fitted captions are."""
        return len(self._tokenizer.encode(word).ids) == 1


def length_batches(mask_BT: Tensor, size: int, step: int = 8) -> Iterator[tuple[Tensor, int, int]]:
    """Yields batches of captions of similar length, so that a text tower processes little padding.

    Lengths are rounded up to multiples of `step`, and a batch is filled to `size` by repeating its last row, so that the bits
    of a caption's features do not depend on the other captions.

    Args:
        mask_BT: True at real tokens, which come first.

    Yields:
        rows of a batch [size], the number of rows before the repeated ones, and the number of tokens to process.
    """
    lengths = (mask_BT.sum(dim=1) + step - 1) // step * step
    for length in lengths.unique().tolist():
        for rows in (lengths == length).nonzero()[:, 0].split(size):
            filled = rows[torch.arange(size).clamp(max=len(rows) - 1)]
            yield filled, len(rows), min(length, mask_BT.shape[1])
