"""Starts a run from the weights of another model: loads the tensors that fit and prints a table of what became of each.

Tensors are matched by name and shape. A network declares in `roles` what the rows or columns of some of its tensors mean:
positions in the image are interpolated, words are matched by their strings, and tensors that depend on another text encoder
or tokenizer than before keep their fresh values.
"""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.config.training import StartConfig
from t2i.errors import InputError
from t2i.families import Source
from t2i.names import counted
from t2i.text import TextEncoder
from t2i.training.optimization import freeze
from t2i.training.run import Run

PROBES = ("a", "two red things beside a large one", "the man on the left is holding an umbrella, in black and white")
WEIGHTED = ("bow", "tfidf")  # encoders with one column per word
OTHER_SHAPE = "another shape"
SHOWN = 6  # tensors named in the table for each reason

Reordering = list[tuple[int, int]]  # (row here, row in the source)


class Reads(NamedTuple):
    """The text encoder, tokenizer and vocabulary that the networks of a run depend on."""

    text: TextEncoder | None = None
    tokenizer_digest: str | None = None
    vocabulary: str | None = None  # tokenizer of a dual encoder or a reader, as JSON
    answers: Sequence[str] = ()  # of a reader


class Taken(NamedTuple):
    """The tensors of one part, by what becomes of them."""

    loaded: dict[str, Tensor]
    fitted: dict[str, str]  # those of `loaded` that were changed to fit -> how
    renewed: dict[str, str]  # tensors that keep their fresh values -> why
    left: list[str]  # tensors of the source that this model does not have


def initialise(
    run: Run, config: StartConfig, source: Source | None, parts: Mapping[str, nn.Module], reads: Reads
) -> None:
    """Loads the weights of `source` into the networks of a new run and freezes the parts that `config.freeze` names.

    Call it before averages and optimizers are made. `source` is None for a resumed run, whose checkpoint holds the weights.

    Args:
        parts: networks by the names that they are registered under.

    Raises:
        InputError: no tensor fits, or `freeze` names a part that does not exist.
    """
    fits: dict[str, Taken] = {}
    if source is not None:
        rows = _Matching(source, reads)
        for name, module in parts.items():
            fits[name] = fit_part(module, source.parts.get(name, {}), rows)
        if not any(fit.loaded for fit in fits.values()):
            raise InputError(
                f"init_from {source.address}: none of its tensors fit this model ({_reasons(fits)}); name a model with a "
                "similar config"
            )
        for name, module in parts.items():
            module.load_state_dict(fits[name].loaded, strict=False)
        run.extra["init"] = _described(source, fits)
        run.say(table(source, fits))
        _warn_of_little(source, parts, fits)
    freeze(parts, config.freeze, {f"{part}.{name}" for part, fit in fits.items() for name in fit.renewed})
    partly = {f"{part}.{name}": how for part, fit in fits.items() for name, how in fit.fitted.items()}
    for path, how in partly.items():
        if any(f"{path}.".startswith(f"{name}.") for name in config.freeze):
            warnings.warn(f"freeze: only {how} of {path} were loaded; the others keep random values", stacklevel=2)


def refuse_unseen(source: Source | None, split: str) -> None:
    """Raises InputError if a run on `train` would start from weights trained on the held-out combinations of shapes."""
    if source is not None and source.manifest["config"].get("split") == "all" and split == "train":
        raise InputError(
            f"init_from {source.address} was trained on split=all, which includes the held-out combinations; set split=all, "
            "or start from a model trained on split=train"
        )


def fit_part(module: nn.Module, tensors: Mapping[str, Tensor], rows: "_Matching") -> Taken:
    """Decides for each tensor of a network whether it is loaded from `tensors`, and how it is changed to fit.

    The network's `roles` map patterns of names to: `tokens`, `pooled` (columns are channels of the text encoder), `codes`
    (depends on the tokenizer), `words` (rows are words of the vocabulary), `answers` (rows are a reader's answers), `order` (rows
    are positions in a text), `line` or `square` (rows are positions in an image).
    """
    own, roles = module.state_dict(), getattr(module, "roles", {})
    fit = Taken({}, {}, {}, [name for name in tensors if name not in own])
    for name, tensor in own.items():
        role = next((role for pattern, role in roles.items() if fnmatchcase(name, pattern)), "")
        if name not in tensors:
            fit.renewed[name] = "not in the source"
            continue
        try:
            fitted, how = _fitted(tensor, tensors[name], role, rows)
        except ValueError as error:
            fit.renewed[name] = str(error)
            continue
        fit.loaded[name] = fitted.to(tensor.dtype)
        if how:
            fit.fitted[name] = how
    # buffers of one module belong together, such as a codebook and the count of its steps
    buffers = dict(module.named_buffers())
    incomplete = {name.rpartition(".")[0] for name in buffers if name in fit.renewed}
    for name in [name for name in fit.loaded if name in buffers and name.rpartition(".")[0] in incomplete]:
        fit.renewed[name] = "other buffers of its module are renewed"
        del fit.loaded[name]
        fit.fitted.pop(name, None)
    return fit


def _fitted(own: Tensor, source: Tensor, role: str, rows: "_Matching") -> tuple[Tensor, str]:
    """Returns the tensor that fits this model and how it was changed; raises ValueError with the reason if none does."""
    if role in ("tokens", "pooled"):
        order = rows.of_text(role)
        return _reordered(own, source, order, 1, "words") if order is not None else _same(own, source)
    if role == "words" and rows.vocabulary is not None:
        return _reordered(own, source, rows.vocabulary, 0, "tokens")
    if role == "answers":
        return _reordered(own, source, rows.answers, 0, "answers")
    if role == "codes" and not rows.same_codes:
        raise ValueError("another tokenizer")
    if own.shape == source.shape or own.shape[1:] != source.shape[1:]:
        return _same(own, source)
    if role == "order":
        count = min(len(own), len(source))
        return torch.cat([source[:count].to(own), own[count:]]), f"the first {count} of {len(own)} text positions"
    if role in ("line", "square"):
        return _stretched(source, len(own), role), f"{len(source)} positions interpolated to {len(own)}"
    return _same(own, source)


def _same(own: Tensor, source: Tensor) -> tuple[Tensor, str]:
    if own.shape != source.shape:
        raise ValueError(OTHER_SHAPE)
    return source, ""


def _reordered(own: Tensor, source: Tensor, order: Reordering, dim: int, what: str) -> tuple[Tensor, str]:
    """Returns a copy of `own` in which the rows or columns that both tensors have are taken from `source`."""
    other = [size for axis, size in enumerate(own.shape) if axis != dim]
    if other != [size for axis, size in enumerate(source.shape) if axis != dim]:
        return _same(own, source)
    if not order:
        raise ValueError(f"no {what} in common")
    here, there = (torch.tensor(side, device=own.device) for side in zip(*order, strict=True))
    merged = own.clone().index_copy_(dim, here, source.to(own).index_select(dim, there))
    same = len(order) == own.shape[dim] == source.shape[dim] and torch.equal(here, there)
    return merged, "" if same else f"{len(order):,} of {own.shape[dim]:,} {what}"


def _stretched(source: Tensor, count: int, role: str) -> Tensor:
    """Interpolates rows [positions, D] along a line or over a square."""
    if role == "line":
        return F.interpolate(source.T[None].float(), count, mode="linear")[0].T
    before, after = (round(size**0.5) for size in (len(source), count))
    if before**2 != len(source) or after**2 != count:
        raise ValueError(f"{len(source)} positions in the source and {count} here are not both squares")
    square = source.T.reshape(1, -1, before, before).float()
    return F.interpolate(square, (after, after), mode="bilinear", antialias=after < before).flatten(2)[0].T


class _Matching:
    """Matches the words, channels and codes of a source with those of this run."""

    def __init__(self, source: Source, reads: Reads) -> None:
        self.same_codes = source.manifest.get("tokenizer_digest") == reads.tokenizer_digest
        self.answers = shared(reads.answers, source.manifest.get("reader", {}).get("answers", ()))
        self.vocabulary = None
        if source.vocabulary is not None and reads.vocabulary is not None:
            self.vocabulary = shared(_strings(reads.vocabulary), _strings(source.vocabulary))
        self._here, self._there = reads.text, source.text
        self._alike = self._here is not None and self._there is not None and read_alike(self._here, self._there)

    def of_text(self, role: str) -> Reordering | None:
        """Returns the channels with the same meaning in both text encoders; None if all channels agree, in order.

        Raises:
            ValueError: the channels mean different things.
        """
        here, there = self._here, self._there
        if self._alike:
            return None
        if here is None or there is None or here.name not in WEIGHTED or there.name not in WEIGHTED:
            raise ValueError("another text encoder")
        words, before = here.vocabulary, there.vocabulary  # type: ignore[attr-defined]
        one_hot = here.token_dim == len(words), there.token_dim == len(before)
        if role == "tokens" and not any(one_hot):
            return None  # the random direction of a word does not depend on the vocabulary
        if role == "tokens" and not all(one_hot):
            raise ValueError("another text encoder")
        return shared(words, before)


def shared(here: Sequence[str], there: Sequence[str]) -> Reordering:
    """Returns (row here, row there) for each string that both lists hold."""
    place = {word: row for row, word in enumerate(there)}
    return [(row, place[word]) for row, word in enumerate(here) if word in place]


def read_alike(here: TextEncoder, there: TextEncoder) -> bool:
    """Returns True if two encoders compute the same features; they may keep different numbers of tokens."""
    if (here.name, here.token_dim, here.pooled_dim) != (there.name, there.token_dim, there.pooled_dim):
        return False
    words = [getattr(encoder, "vocabulary", None) for encoder in (here, there)]
    if words[0] != words[1]:
        return False
    probes = words[0] or PROBES
    mine, theirs = (encoder.encode(probes) for encoder in (here, there))
    most = min(here.max_tokens, there.max_tokens)
    short = (mine.mask_BT.sum(dim=1) < most) & (theirs.mask_BT.sum(dim=1) < most)
    pairs = zip(
        (mine.pooled_BP, mine.tokens_BTD[:, :most]), (theirs.pooled_BP, theirs.tokens_BTD[:, :most]), strict=True
    )
    return bool(short.any()) and all(torch.allclose(a[short], b[short], atol=1e-5) for a, b in pairs)


def _strings(vocabulary: str) -> list[str]:
    """Returns the tokens of a tokenizer in order of their ids."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_str(vocabulary).get_vocab()
    return sorted(ids, key=lambda token: ids[token])


# ---- messages ------------------------------------------------------------------------------------------------------


def table(source: Source, fits: Mapping[str, Taken]) -> str:
    """Returns a table of the weights: one line per part, and one line for each reason that tensors are not plain copies."""
    lines = [f"weights of {source.address}", f"  {'part':<16}{'loaded':>8}{'fitted':>8}{'renewed':>9}{'left':>6}"]
    for part, fit in fits.items():
        plain = len(fit.loaded) - len(fit.fitted)
        lines.append(f"  {part:<16}{plain:>8}{len(fit.fitted):>8}{len(fit.renewed):>9}{len(fit.left):>6}")
        changes = {"fitted": fit.fitted, "renewed": fit.renewed, "left": dict.fromkeys(fit.left, "not in this model")}
        for what, tensors in changes.items():
            by_reason: dict[str, list[str]] = {}
            for name, reason in tensors.items():
                by_reason.setdefault(reason, []).append(name)
            for reason, names in by_reason.items():
                if reason == OTHER_SHAPE:
                    reason = f"{reason}: the first is {_size(source.parts[part][names[0]])} in the source"
                more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
                lines.append(f"    {what}: {', '.join(names[:SHOWN])}{more} ({reason})")
    return "\n".join(lines)


def _warn_of_little(source: Source, parts: Mapping[str, nn.Module], fits: Mapping[str, Taken]) -> None:
    """Warns if less than half of the main part was loaded, for example because the widths differ."""
    part, module = next(iter(parts.items()))
    total = sum(tensor.numel() for tensor in module.state_dict().values())
    taken = sum(tensor.numel() for tensor in fits[part].loaded.values())
    if 2 * taken < total:
        warnings.warn(
            f"init_from {source.address}: {taken:,} of {total:,} values of {part} were loaded from it, the others are random; "
            "use its config to load more",
            stacklevel=3,
        )


def _described(source: Source, fits: Mapping[str, Taken]) -> dict[str, Any]:
    """Returns the description of the start that manifests and model cards hold."""
    facts = {"from": source.address, "step": source.manifest.get("step"), "data": _data(source)}
    counts = {part: {"loaded": len(fit.loaded), "renewed": len(fit.renewed)} for part, fit in fits.items()}
    fresh = {part: sorted(fit.renewed) for part, fit in fits.items() if fit.renewed}
    return facts | {"tensors": counts, "fresh": fresh}


def _data(source: Source) -> str | None:
    data = source.manifest.get("config", {}).get("data")
    return data.get("address") if isinstance(data, Mapping) else None


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


def _reasons(fits: Mapping[str, Taken]) -> str:
    reasons = Counter(reason for fit in fits.values() for reason in fit.renewed.values())
    return "; ".join(f"{counted(count, 'tensor')}: {reason}" for reason, count in reasons.most_common(2))
