"""From what was seen of pictures to scores: which metrics apply, which are refused, and each one's computation."""

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import NamedTuple

from t2i.errors import InputError
from t2i.extractors import Extractor, address_of, open_extractor
from t2i.metrics import METRICS, Kind, clip_score, metric_kind
from t2i.metrics.score import BARE, FID_INCEPTION_DIGEST, Protocol, score_name
from t2i.scoring.options import Options

# a `Need`, or one by the extractor of a digest -> why there is nothing of it
Missing = Mapping[str | tuple[str, str], str]


PIXELS = "pixels"


ALL = "all"  # stands for every metric that can be had


BESIDE = ("inception", "clip", "dinov2")  # kinds of extractors that options name beside the scorer


class Metric(NamedTuple):
    """A line of `METRICS` by one extractor; None: it reads pixels, or what the oracle read."""

    protocol: Protocol
    extractor: Extractor | None
    kind: str  # its name in `METRICS`

    @property
    def of(self) -> Kind:
        return metric_kind(self.kind)

    @property
    def name(self) -> str:
        """As in its score's, without N."""
        return score_name(self.protocol).rpartition("@")[0]

    @property
    def usual(self) -> bool:
        return self.of.usual or self.protocol.extractor == PIXELS


# ---- which metrics -------------------------------------------------------------------------------------------------


def open_extractors(options: Options, device: str) -> list[Extractor]:
    """The scorer and the extractors that are named beside it, weights loaded.

    Raises:
        InputError: a file is not there or holds something else.
    """
    named = [f"{kind}:{path}" for kind in BESIDE if (path := getattr(options, kind)) is not None]
    return [open_extractor(address, options.resize, device) for address in (address_of(options.scorer), *named)]


def choose_metrics(base: Protocol, extractors: Sequence[Extractor], missing: Missing, options: Options) -> list[Metric]:
    """The metrics that were asked for, or all usual ones that apply and a warning for each that does not.

    Args:
        base: the protocol of all, but for metric and extractor.
        missing: what there is not, or not by the extractor of that digest, and why.

    Raises:
        InputError: a metric that is unknown or does not apply.
    """
    every = {metric.name: metric for metric in _metrics(base, extractors, missing)}
    absent = {name: why for name, metric in every.items() if (why := _why_not(metric, missing))}
    usable = {name: metric for name, metric in every.items() if name not in absent}
    usual = [name for name, metric in usable.items() if metric.usual]
    if options.metrics is None:
        for name, why in absent.items():
            if every[name].usual:
                warnings.warn(f"{name} is left out: {why}", stacklevel=3)
        return [usable[name] for name in usual]
    if not options.metrics:
        raise InputError(f"no metric is named; choose from: {', '.join(usual)}, ...")
    found: list[str] = []
    for word in options.metrics:
        named = [word] if word in usable else [name for name, m in usable.items() if word == ALL or _means(word, m)]
        if not named:
            kinds = {every[name].kind: why for name, why in absent.items()}
            raise InputError(_refusal(word, usable, kinds | absent, options))
        found += named
    return [usable[name] for name in dict.fromkeys(found)]


def _means(word: str, metric: Metric) -> bool:
    """`precision` stands for that of every extractor, `clip-vit-*` for all so called; `fid` never for another network
    than its own."""
    return word == metric.kind and word not in BARE or "*" in word and fnmatchcase(metric.name, word)


def _why_not(metric: Metric, missing: Missing) -> str:
    digest = metric.protocol.extractor_digest or ""
    keys = [key for need in metric.of.needs for key in (need, (digest, need))]
    return next((missing[key] for key in keys if key in missing), "")


def check_sizes(metrics: Sequence[Metric], force: bool) -> list[Metric]:
    """Refuses metrics of too few pictures, before any is seen; with `force` their protocols say so."""
    checked = []
    refused: list[InputError] = []
    for metric in metrics:
        if metric.of.check is not None and metric.extractor is not None:
            n_fake, n_real, dim = metric.protocol.n_fake, metric.protocol.n_real, metric.extractor.dim
            counts = n_fake, n_fake if n_real is None else n_real
            with warnings.catch_warnings(action="ignore"):  # what it warns of, it warns of again with the score
                try:
                    metric.of.check(*counts, dim, False)
                except InputError as error:
                    if not force:
                        refused.append(error)
                        continue
                    metric.of.check(*counts, dim, force)
                    metric = metric._replace(protocol=replace(metric.protocol, forced=str(error)))
        checked.append(metric)
    if refused:
        rest = ",".join(metric.name for metric in checked)
        raise InputError(f"{refused[0]}{f'; the others: --metrics {rest}' if rest else ''}")
    return checked


def _metrics(base: Protocol, extractors: Sequence[Extractor], missing: Missing) -> list[Metric]:
    def metric(kind: str, name: str | None, extractor: Extractor | None = None) -> Metric:
        digest, resize = (extractor.digest(), extractor.resize) if extractor else (None, None)
        what = {"metric": kind, "metric_version": metric_kind(kind).version, "extractor": name}
        return Metric(replace(base, **what, extractor_digest=digest, resize=resize), extractor, kind)

    kinds = {name: metric_kind(name) for name in METRICS}
    found = [metric(name, None) for name, kind in kinds.items() if kind.reads == "oracle"]
    for extractor in extractors:
        name = extractor.name
        names = {
            "features": name,
            "text": extractor.clip_name,
            "classes": name if extractor.classes is not None else None,
        }
        found += [metric(k, names[kind.reads], extractor) for k, kind in kinds.items() if names.get(kind.reads)]
    return [*found, metric("diversity", PIXELS)] if base.run and "several" not in missing else found


def _refusal(wrong: str, usable: Mapping[str, Metric], absent: Mapping[str, str], options: Options) -> str:
    usual = [name for name, metric in usable.items() if metric.usual]
    choice = f"choose from: {', '.join(usual)}"
    if wrong in absent:
        return f"metric {wrong} is not to be had: {absent[wrong]}; {choice}"
    if rest := [name for name in usable if name not in usual]:
        choice += f", and by name {', '.join(rest)}"
    other = next((name for name in [*usable, *absent] if name.startswith(f"{wrong}-inception-")), None)
    if wrong in BARE and other is not None:
        return (
            f"{options.inception} does not hold the FID Inception of 2015-12-05 (sha256 {FID_INCEPTION_DIGEST[:8]}...), and "
            f"of other weights no score is called {wrong}; name that file, or ask for {other}"
        )
    near = difflib.get_close_matches(wrong, [*usable, *METRICS], 1)
    hint = f" (it needs --{kind})" if (kind := _wanted(wrong)) else f" (did you mean {near[0]}?)" if near else ""
    return f"metric {wrong[:80]!r} is unknown here{hint}; {choice}"


def _wanted(name: str) -> str | None:
    """The option that would make a metric known."""
    if name in METRICS:
        return "inception" if name in BARE else "clip" if metric_kind(name).reads == "text" else None
    return next((kind for kind in ("dinov2", "clip") if f"-{kind}" in f"-{name}"), None)


def refuse_or_mark(metrics: Sequence[Metric], trained_with: Mapping[str, str], force: bool) -> list[Metric]:
    """Refuses extractors that took part in the training; with `force` their scores say so in their names.

    Args:
        trained_with: digest -> what that encoder did in training.

    Raises:
        InputError: there is one and it is not forced.
    """
    marked = []
    for metric in metrics:
        protocol, digest = metric.protocol, metric.protocol.extractor_digest
        if digest is not None and digest in trained_with:
            if not force:
                clip_score.refuse_training_encoder(metric.name, digest, trained_with)
            role = trained_with[digest].replace(" ", "-")
            words = f"{protocol.extractor}-its-own-{role}"
            metric = metric._replace(protocol=replace(protocol, extractor=words))
        marked.append(metric)
    return marked


def leave_out_the_chooser(metrics: Sequence[Metric], digest: str, options: Options) -> list[Metric]:
    """Leaves out, or refuses where they were asked for, the metrics by the encoder that chose the pictures.

    Raises:
        InputError: one was asked for by name, or none is left.
    """
    own = [metric for metric in metrics if metric.protocol.extractor_digest == digest]
    rest = [metric for metric in metrics if metric not in own]
    if not own:
        return rest
    names = ", ".join(metric.name for metric in own)
    told = f"its encoder chose these pictures ({own[0].protocol.reranking}), so it would judge its own choice"
    if options.force:
        return rest + [
            metric._replace(protocol=replace(metric.protocol, extractor=f"{metric.protocol.extractor}-its-own-choice"))
            for metric in own
        ]
    if options.metrics is not None or not rest:
        raise InputError(f"{names} cannot score: {told}; name another encoder with --scorer, or score plain pictures")
    warnings.warn(f"{names} left out: {told}", stacklevel=4)
    return rest
