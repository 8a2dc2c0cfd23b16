"""Starts a run from the weights of another model: what fits is taken, and a table says what was loaded, renewed and left.

Tensors match by name and shape. A network says in `roles` what the rows and columns of some of its tensors stand for: places of
the image are interpolated, words are matched by their strings, and what reads another text encoder or tokenizer than before is
left as it was made.
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
WEIGHTED = ("bow", "tfidf")  # encoders with a column a word
OTHER_SHAPE = "another shape"
SHOWN = 6  # tensors of a kind that are named

Reordering = list[tuple[int, int]]  # (row here, row there)


class Reads(NamedTuple):
    """What the networks of a run read and write beside images."""

    text: TextEncoder | None = None
    tokenizer_digest: str | None = None
    vocabulary: str | None = None  # of a dual encoder, as JSON


class Taken(NamedTuple):
    """What becomes of the tensors of one part."""

    loaded: dict[str, Tensor]
    fitted: dict[str, str]  # of `loaded`, those that were changed -> how
    renewed: dict[str, str]  # left as they were made -> why
    left: list[str]  # of the source, for which there is no place


def initialise(
    run: Run, config: StartConfig, source: Source | None, parts: Mapping[str, nn.Module], reads: Reads
) -> None:
    """Puts the weights of `source` into the parts of a new run, and freezes what is to stay. Before averages and optimizers.

    A resumed run has `source` None: its checkpoint holds the weights.

    Args:
        parts: networks by the names that they are registered under.

    Raises:
        InputError: nothing fits, or `freeze` names what is not there.
    """
    fits: dict[str, Taken] = {}
    if source is not None:
        rows = _Matching(source, reads)
        for name, module in parts.items():
            fits[name] = fit_part(module, source.parts.get(name, {}), rows)
        if not any(fit.loaded for fit in fits.values()):
            raise InputError(
                f"init_from {source.address}: nothing of it fits this model ({_reasons(fits)}); name a model of a like config"
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
            warnings.warn(
                f"freeze: of {path}, {how} are of the source; the others stay as they were drawn", stacklevel=2
            )


def fit_part(module: nn.Module, given: Mapping[str, Tensor], rows: "_Matching") -> Taken:
    """Decides for each tensor of a network what it gets of another's.

    The network's `roles` are patterns of names -> tokens, pooled (columns are channels of the text encoder), codes (of the
    tokenizer), words (rows are those of the vocabulary), order (rows are places of a text), line, square (rows are places of
    an image).
    """
    own, roles = module.state_dict(), getattr(module, "roles", {})
    fit = Taken({}, {}, {}, [name for name in given if name not in own])
    for name, tensor in own.items():
        role = next((role for pattern, role in roles.items() if fnmatchcase(name, pattern)), "")
        if name not in given:
            fit.renewed[name] = "not in the source"
            continue
        try:
            found, how = _fitted(tensor, given[name], role, rows)
        except ValueError as error:
            fit.renewed[name] = str(error)
            continue
        fit.loaded[name] = found.to(tensor.dtype)
        if how:
            fit.fitted[name] = how
    # buffers of one module belong together, as a codebook and the count of its steps
    buffers = dict(module.named_buffers())
    broken = {name.rpartition(".")[0] for name in buffers if name in fit.renewed}
    for name in [name for name in fit.loaded if name in buffers and name.rpartition(".")[0] in broken]:
        fit.renewed[name] = "beside others that are renewed"
        del fit.loaded[name]
        fit.fitted.pop(name, None)
    return fit


def _fitted(own: Tensor, given: Tensor, role: str, rows: "_Matching") -> tuple[Tensor, str]:
    """Returns the tensor as it fits here, and how it was changed; ValueError says why it does not fit."""
    if role in ("tokens", "pooled"):
        order = rows.of_text(role)
        return _reordered(own, given, order, 1, "words") if order is not None else _same(own, given)
    if role == "words" and rows.vocabulary is not None:
        return _reordered(own, given, rows.vocabulary, 0, "tokens")
    if role == "codes" and not rows.same_codes:
        raise ValueError("another tokenizer")
    if own.shape == given.shape or own.shape[1:] != given.shape[1:]:
        return _same(own, given)
    if role == "order":
        count = min(len(own), len(given))
        return torch.cat([given[:count].to(own), own[count:]]), f"the first {count} of {len(own)} places of a text"
    if role in ("line", "square"):
        return _stretched(given, len(own), role), f"{len(given)} places stretched to {len(own)}"
    return _same(own, given)


def _same(own: Tensor, given: Tensor) -> tuple[Tensor, str]:
    if own.shape != given.shape:
        raise ValueError(OTHER_SHAPE)
    return given, ""


def _reordered(own: Tensor, given: Tensor, order: Reordering, dim: int, what: str) -> tuple[Tensor, str]:
    """`own` with the rows or columns that both know from `given`."""
    other = [size for axis, size in enumerate(own.shape) if axis != dim]
    if other != [size for axis, size in enumerate(given.shape) if axis != dim]:
        return _same(own, given)
    if not order:
        raise ValueError(f"no {what} in common")
    here, there = (torch.tensor(side, device=own.device) for side in zip(*order, strict=True))
    found = own.clone().index_copy_(dim, here, given.to(own).index_select(dim, there))
    same = len(order) == own.shape[dim] == given.shape[dim] and torch.equal(here, there)
    return found, "" if same else f"{len(order):,} of {own.shape[dim]:,} {what}"


def _stretched(given: Tensor, count: int, role: str) -> Tensor:
    """Interpolates rows [places, D] of a line or a square of places."""
    if role == "line":
        return F.interpolate(given.T[None].float(), count, mode="linear")[0].T
    before, after = (round(size**0.5) for size in (len(given), count))
    if before**2 != len(given) or after**2 != count:
        raise ValueError(f"{len(given)} places there, {count} here, and both are no squares")
    square = given.T.reshape(1, -1, before, before).float()
    return F.interpolate(square, (after, after), mode="bilinear", antialias=after < before).flatten(2)[0].T


class _Matching:
    """Which words, channels and codes of a source are those of this run."""

    def __init__(self, source: Source, reads: Reads) -> None:
        self.same_codes = source.manifest.get("tokenizer_digest") == reads.tokenizer_digest
        self.vocabulary = None
        if source.vocabulary is not None and reads.vocabulary is not None:
            self.vocabulary = shared(_strings(reads.vocabulary), _strings(source.vocabulary))
        self._here, self._there = reads.text, source.text
        self._alike = self._here is not None and self._there is not None and read_alike(self._here, self._there)

    def of_text(self, role: str) -> Reordering | None:
        """Channels of the text encoder that mean the same; None: all of them do, in order.

        Raises:
            ValueError: they mean something else.
        """
        here, there = self._here, self._there
        if self._alike:
            return None
        if here is None or there is None or here.name not in WEIGHTED or there.name not in WEIGHTED:
            raise ValueError("another text encoder")
        words, before = here.vocabulary, there.vocabulary  # type: ignore[attr-defined]
        one_hot = here.token_dim == len(words), there.token_dim == len(before)
        if role == "tokens" and not any(one_hot):
            return None  # a word's random direction is the same in every vocabulary
        if role == "tokens" and not all(one_hot):
            raise ValueError("another text encoder")
        return shared(words, before)


def shared(here: Sequence[str], there: Sequence[str]) -> Reordering:
    """Returns (row here, row there) of the strings that both lists hold."""
    place = {word: row for row, word in enumerate(there)}
    return [(row, place[word]) for row, word in enumerate(here) if word in place]


def read_alike(here: TextEncoder, there: TextEncoder) -> bool:
    """Returns True if two encoders give the same features, whatever number of tokens they keep."""
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
    """The tokens of a tokenizer by id."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_str(vocabulary).get_vocab()
    return sorted(found, key=lambda token: found[token])


# ---- what is told --------------------------------------------------------------------------------------------------


def table(source: Source, fits: Mapping[str, Taken]) -> str:
    """Returns what became of the weights, a line a part and one each for what is no plain copy."""
    lines = [f"weights of {source.address}", f"  {'part':<16}{'loaded':>8}{'fitted':>8}{'renewed':>9}{'left':>6}"]
    for part, fit in fits.items():
        plain = len(fit.loaded) - len(fit.fitted)
        lines.append(f"  {part:<16}{plain:>8}{len(fit.fitted):>8}{len(fit.renewed):>9}{len(fit.left):>6}")
        told = {"fitted": fit.fitted, "renewed": fit.renewed, "left": dict.fromkeys(fit.left, "not in this model")}
        for what, tensors in told.items():
            by_reason: dict[str, list[str]] = {}
            for name, reason in tensors.items():
                by_reason.setdefault(reason, []).append(name)
            for reason, names in by_reason.items():
                if reason == OTHER_SHAPE:
                    reason = f"{reason}: the first is {_size(source.parts[part][names[0]])} there"
                more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
                lines.append(f"    {what}: {', '.join(names[:SHOWN])}{more} ({reason})")
    return "\n".join(lines)


def _warn_of_little(source: Source, parts: Mapping[str, nn.Module], fits: Mapping[str, Taken]) -> None:
    """Warns where less than half of the main part comes from the source, as with another width."""
    part, module = next(iter(parts.items()))
    total = sum(tensor.numel() for tensor in module.state_dict().values())
    taken = sum(tensor.numel() for tensor in fits[part].loaded.values())
    if 2 * taken < total:
        warnings.warn(
            f"init_from {source.address}: {taken:,} of {total:,} values of {part} are of it, and the rest is fresh; take its "
            "config for as much as fits",
            stacklevel=3,
        )


def _described(source: Source, fits: Mapping[str, Taken]) -> dict[str, Any]:
    """What manifests and model cards say of the start."""
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
