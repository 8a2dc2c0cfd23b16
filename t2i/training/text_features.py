"""Caches text features on disk, so that each encoder encodes a caption once and no outdated feature is ever read.

Layout: CACHE/text/KEY/NAME.safetensors. KEY hashes everything that the features depend on (the encoder's digest, its token
limit, whether token states are stored); NAME hashes KEY and the captions of the shard. A shard with N captions and M real
tokens in total holds: `captions` [N, 16], their hashes; `pooled` [N, P]; `mask` [N, T]; `tokens` [M, D], without rows of
padding. Its header has the number of captions that were cut off.
Shards are written atomically and read memory-mapped; one that does not match its name, its shapes or its checksum is deleted
and its captions are encoded again. The whole folder may be deleted at any time.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from t2i.cache import cache_dir, read_shard, write_shard
from t2i.distributed import Ranks
from t2i.errors import InputError, TruncationWarning, warn_truncated
from t2i.names import counted
from t2i.text import TextEncoder, TextFeatures

FORMAT = 1
SHARD_CAPTIONS = 4096
ENCODE_CAPTIONS = 256  # captions that are in memory with their padding at a time
_HASH_BYTES = 16


class _Shard(NamedTuple):
    captions: Tensor  # uint8 [N, 16]
    pooled_NP: Tensor
    mask_NT: Tensor
    tokens_MD: Tensor  # the rows where the mask is True, caption by caption
    starts_N: Tensor  # row of the first token of each caption
    truncated: int  # captions that were longer than the limit


@dataclass(frozen=True)
class CachedText:
    """Features of a list of captions, in its order; equal captions share rows. Token states stay on disk until used."""

    hits: int  # unique captions that were on disk
    misses: int  # unique captions that were encoded now
    token_dim: int
    pooled_dim: int
    max_tokens: int
    _shards: list[_Shard]
    _where: Tensor  # int64 [N, 2]: shard and row of each caption

    def __len__(self) -> int:
        return len(self._where)

    @property
    def pooled_BP(self) -> Tensor:
        """Pooled vectors of all captions, float32 [N, P]."""
        return self.rows(range(len(self)), tokens=False).pooled_BP

    def rows(self, indices: Sequence[int] | Tensor | np.ndarray, tokens: bool = True) -> TextFeatures:
        """Returns the features of the captions `indices`, float32; rows of padding are zero.

        Args:
            indices: positions in the list of captions, in any order, repeats allowed.
            tokens: False leaves the token states on disk: they and the mask are then [B, 0, D] and [B, 0], as they always are
                if the cache was filled without them.
        """
        where_B2 = self._where[torch.as_tensor(np.asarray(indices, dtype=np.int64))]
        length = self.max_tokens if tokens else 0
        tokens_BTD = torch.zeros(len(where_B2), length, self.token_dim)
        mask_BT = torch.zeros(len(where_B2), length, dtype=torch.bool)
        pooled_BP = torch.zeros(len(where_B2), self.pooled_dim)
        for number in where_B2[:, 0].unique().tolist():
            shard = self._shards[number]
            into = (where_B2[:, 0] == number).nonzero()[:, 0]
            rows = where_B2[into, 1]
            pooled_BP[into] = shard.pooled_NP[rows].float()
            if length:
                mask = shard.mask_NT[rows]
                mask_BT[into] = mask
                states = torch.zeros(len(rows), length, self.token_dim)
                # the k-th True of a row of the mask is the k-th row of its caption's tokens
                states[mask] = shard.tokens_MD[(shard.starts_N[rows, None] + mask.cumsum(dim=1) - 1)[mask]].float()
                tokens_BTD[into] = states
        return TextFeatures(tokens_BTD, mask_BT, pooled_BP)


def encode_cached(
    encoder: TextEncoder,
    captions: Sequence[str],
    *,
    tokens: bool = True,
    ranks: Ranks | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> CachedText:
    """Returns the features of `captions`: cached ones are read from disk, the others are encoded and stored.

    Args:
        captions: cleaned; equal captions are encoded once.
        tokens: also store token states, which take most of the space.
        ranks: the processes that call this together, each of which encodes its share; None: this process alone.
        on_progress: called with (captions encoded, captions to encode) of this process.

    Raises:
        InputError: on every rank, if the cache cannot be written or the encoder returns features that are not finite.
    """
    ranks, form = ranks or Ranks(1, True), _Form.of(encoder, tokens)
    hashes = [_hash(caption) for caption in captions]
    shelf = _Shelf(cache_dir() / "text" / form.key[:32], form, dict(zip(hashes, captions, strict=True)))
    missing = ranks.broadcast(shelf.missing())
    share = ranks.share(len(missing))
    ranks.each(lambda: shelf.encode(encoder, missing[share.start : share.stop], on_progress))
    ranks.each(shelf.open_new)
    # a process on another machine may use another cache folder
    ranks.each(lambda: shelf.encode(encoder, shelf.missing(), on_progress))
    if lost := len(shelf.missing()):
        raise InputError(
            f"{counted(lost, 'caption')} cannot be read back from the cache {shelf.folder}; check that disk"
        )
    warn_truncated(shelf.truncated(), encoder.name, encoder.max_tokens)
    places = torch.tensor([shelf.place[caption] for caption in hashes], dtype=torch.int64).reshape(-1, 2)
    sizes = form.token_dim, form.pooled_dim, form.max_tokens
    return CachedText(len(shelf.caption_of) - len(missing), len(missing), *sizes, shelf.shards, places)


class _Form(NamedTuple):
    """The layout that all shards of one folder share."""

    key: str
    pooled_dim: int
    max_tokens: int
    token_dim: int

    @classmethod
    def of(cls, encoder: TextEncoder, tokens: bool) -> "_Form":
        """Returns the form of an encoder's features; `tokens` says if token states are stored."""
        parts = [FORMAT, encoder.name, encoder.digest(), encoder.max_tokens, str(torch.float32), tokens]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return cls(key, encoder.pooled_dim, encoder.max_tokens * tokens, encoder.token_dim)


class _Shelf:
    """Finds the captions of a list in the shards of one folder, and adds shards for those that are missing."""

    def __init__(self, folder: Path, form: _Form, caption_of: dict[bytes, str]) -> None:
        self.folder, self._form, self.caption_of = folder, form, caption_of
        self.shards: list[_Shard] = []
        self.place: dict[bytes, tuple[int, int]] = {}  # shard and row of each caption that was found
        self._seen: set[Path] = set()
        self.open_new()

    def missing(self) -> list[bytes]:
        return [caption for caption in self.caption_of if caption not in self.place]

    def open_new(self) -> None:
        """Opens the shards that have appeared since the last call."""
        for path in sorted(set(self.folder.glob("*.safetensors")) - self._seen):
            self._add(path)

    def encode(
        self, encoder: TextEncoder, hashes: Sequence[bytes], on_progress: Callable[[int, int], None] | None
    ) -> None:
        """Encodes captions and writes them to new shards."""
        for done in range(0, len(hashes), SHARD_CAPTIONS):
            part = list(hashes[done : done + SHARD_CAPTIONS])
            report = (lambda count, done=done: on_progress(done + count, len(hashes))) if on_progress else None
            with _counted_truncations() as cut:
                tensors = _encode(encoder, [self.caption_of[one] for one in part], self._form, report)
            self._add(_write(self.folder, self._form, part, tensors, sum(cut)))

    def truncated(self) -> int:
        """Returns the number of captions that were cut off; an upper bound if a shard also has captions of other lists."""
        if not any(shard.truncated for shard in self.shards):
            return 0
        rows: dict[int, list[int]] = {}
        for number, row in map(self.place.__getitem__, self.caption_of):
            rows.setdefault(number, []).append(row)
        # a caption that was cut off fills the mask; a shard without token states has no mask
        full = {number: int(self.shards[number].mask_NT[used].all(dim=1).sum()) for number, used in rows.items()}
        return sum(min(self.shards[number].truncated, count) for number, count in full.items())

    def _add(self, path: Path) -> None:
        shard = _open(path, self._form, self.caption_of.keys() - self.place.keys())
        self._seen.add(path)
        if shard is not None:
            rows = enumerate(_split(shard.captions))
            self.place.update({one: (len(self.shards), row) for row, one in rows if one not in self.place})
            self.shards.append(shard)


def _hash(caption: str) -> bytes:
    return hashlib.blake2b(caption.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()


def _split(captions: Tensor) -> list[bytes]:
    data = captions.numpy().tobytes()
    return [data[i : i + _HASH_BYTES] for i in range(0, len(data), _HASH_BYTES)]


def _name(form: _Form, captions: bytes) -> str:
    return hashlib.sha256(form.key.encode() + captions).hexdigest()[:32]


def _encode(
    encoder: TextEncoder, captions: list[str], form: _Form, on_progress: Callable[[int], None] | None
) -> dict[str, Tensor]:
    """Returns the tensors of one shard, with token states that have no rows of padding."""
    pooled, mask, tokens = [], [], []
    for start in range(0, len(captions), ENCODE_CAPTIONS):
        features = encoder.encode(captions[start : start + ENCODE_CAPTIONS])
        pooled.append(features.pooled_BP.float())
        mask.append(features.mask_BT[:, : form.max_tokens])
        tokens.append(features.tokens_BTD[:, : form.max_tokens][mask[-1]].float())
        if not (pooled[-1].isfinite().all() and tokens[-1].isfinite().all()):
            raise InputError(f"the text encoder {encoder.name} returns features that are not finite; check its weights")
        if on_progress is not None:
            on_progress(start + len(features.pooled_BP))
    return {"pooled": torch.cat(pooled), "mask": torch.cat(mask), "tokens": torch.cat(tokens)}


def _write(folder: Path, form: _Form, hashes: list[bytes], tensors: dict[str, Tensor], truncated: int) -> Path:
    captions = b"".join(hashes)
    tensors["captions"] = torch.frombuffer(bytearray(captions), dtype=torch.uint8).reshape(-1, _HASH_BYTES)
    path = folder / f"{_name(form, captions)}.safetensors"
    write_shard(path, tensors, truncated=str(truncated))
    return path


def _open(path: Path, form: _Form, missing: set[bytes]) -> _Shard | None:
    """Returns a shard, memory-mapped; None if it holds no missing caption, or is damaged and therefore deleted."""

    def check(tensors: dict[str, Tensor]) -> bool:
        captions = tensors["captions"]
        if path.stem != _name(form, captions.numpy().tobytes()):
            raise ValueError("its captions are not those of its name")
        if missing.isdisjoint(_split(captions)):
            return False
        expected = {
            "captions": ((len(captions), _HASH_BYTES), torch.uint8),
            "mask": ((len(captions), form.max_tokens), torch.bool),
            "pooled": ((len(captions), form.pooled_dim), torch.float32),
            "tokens": ((int(tensors["mask"].sum()), form.token_dim), torch.float32),
        }
        present = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        if present != expected:
            raise ValueError(f"it holds {present}")
        return True

    if (shard := read_shard(path, "text", check)) is None:
        return None
    tensors, header = shard
    lengths_N = tensors["mask"].sum(dim=1)
    return _Shard(
        captions=tensors["captions"],
        pooled_NP=tensors["pooled"],
        mask_NT=tensors["mask"],
        tokens_MD=tensors["tokens"],
        starts_N=lengths_N.cumsum(dim=0) - lengths_N,
        truncated=int(header["truncated"]) if header.get("truncated", "").isdecimal() else 0,
    )


@contextmanager
def _counted_truncations() -> Iterator[list[int]]:
    """Yields a list that receives the counts of the truncation warnings; other warnings are passed on unchanged."""
    counts: list[int] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield counts
    for item in caught:
        if isinstance(item.message, TruncationWarning):
            counts.append(item.message.count)
        else:
            warnings.warn_explicit(item.message, item.category, item.filename, item.lineno)
