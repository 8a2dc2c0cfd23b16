"""Chooses metrics: every line of `METRICS` by every extractor, less those that cannot be had, and the reasons why."""

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from t2i.errors import InputError
from t2i.extractors import Extractor, address_of, open_extractor
from t2i.metrics import METRICS, Metric, find_metric
from t2i.metrics.clip_score import refuse_training_encoder
from t2i.metrics.score import BARE, FID_INCEPTION_DIGEST, ScoreProtocol
from t2i.reader.judging import JudgingReader, open_judge
from t2i.scoring.options import ExtractorOptions, ScoringOptions

# (need, or name of a metric; digest of an extractor, or "" for all) -> why there is none
Missing = Mapping[tuple[str, str], str]

PIXELS = "pixels"
ALL = "all"  # every metric that can be had
READ = ("caption-likelihood", "questions")  # metrics by a reader
FILES = {"inception": "Inception weights", "clip": "a CLIP folder", "dinov2": "a DINOv2 folder"}


def open_extractors(options: ExtractorOptions, device: str) -> list[Extractor]:
    """Opens the scorer and every other extractor that is named, weights loaded.

    Raises:
        InputError: a file is not there or holds something else.
    """
    named = [f"{kind}:{path}" for kind in FILES if (path := getattr(options, kind)) is not None]
    found = [open_extractor(address, options.resize, device) for address in (address_of(options.scorer), *named)]
    reader = options.reader if isinstance(options, ScoringOptions) else None
    return found if reader is None else [*found, open_judge(reader, device)]


def choose_metrics(
    base: ScoreProtocol,
    extractors: Sequence[Extractor],
    missing: Missing,
    options: ScoringOptions,
    chooser: str | None = None,
    needed: Sequence[str] = (),
) -> list[Metric]:
    """The metrics that were asked for, or all usual ones that can be had and a warning for each that cannot.

    Args:
        base: the protocol of all, but for metric and extractor.
        chooser: digest of the encoder that chose the images among candidates.
        needed: names in `METRICS` that may not be left out.

    Raises:
        InputError: a metric is unknown, or it was asked for by its name and cannot be had.
    """
    every = {metric.title: metric for metric in _all_metrics(base, extractors, missing)}
    absent = {title: why for title, metric in every.items() if (why := _why_not(metric, missing, chooser, options))}
    usable = {title: _marked(metric, chooser) for title, metric in every.items() if title not in absent}
    usual = [title for title, metric in usable.items() if _is_usual(metric)]
    if options.metrics is None:
        for title in filter(lambda title: _is_usual(every[title]), absent):
            if every[title].name in needed:
                raise InputError(absent[title])
            warnings.warn(f"{title} is left out: {absent[title]}", stacklevel=3)
        if not usual:
            raise InputError(f"no metric can be scored: {next(iter(absent.values()), 'none applies')}")
        return [usable[title] for title in usual]
    if not options.metrics:
        raise InputError(f"no metric is named; choose from: {', '.join(usual)}, ...")
    found: list[str] = []
    for word in options.metrics:
        named = [title for title in usable if _means(word, title, usable[title])]
        lacking = [title for title in absent if _means(word, title, every[title])]
        if not named or word in lacking:
            raise InputError(_refusal(word, usable, absent, lacking, options))
        for title in lacking:
            warnings.warn(f"{title} is left out: {absent[title]}", stacklevel=3)
        found += named
    return [usable[title] for title in dict.fromkeys(found)]


def _is_usual(metric: Metric) -> bool:
    return metric.usual or metric.protocol.extractor == PIXELS


def _means(word: str, title: str, metric: Metric) -> bool:
    """True where a word names a metric: by its title, by its kind (`precision` of every extractor, but `fid` of its own
    network alone), by `*` in a title (`clip-vit-*`), or `all`."""
    if word in (title, ALL):
        return True
    return word == metric.name and word not in BARE or "*" in word and fnmatchcase(title, word)


def _all_metrics(base: ScoreProtocol, extractors: Sequence[Extractor], missing: Missing) -> list[Metric]:
    """Every metric by every extractor that can give what it reads."""

    def bound(metric: Metric, label: str | None, extractor: Extractor | None = None) -> Metric:
        digest, resize = (extractor.digest(), extractor.resize) if extractor else (None, None)
        what = {"metric": metric.name, "metric_version": metric.version, "extractor": label}
        protocol = replace(base, **what, extractor_digest=digest, resize=resize)
        return replace(metric, protocol=protocol, extractor=extractor)

    metrics = [find_metric(name) for name in METRICS]
    found = [bound(metric, None) for metric in metrics if metric.reads == "oracle"]
    for extractor in extractors:
        labels = {
            "features": extractor.name,
            "text": extractor.clip_name,
            "classes": None if extractor.classes is None else extractor.name,
        }
        if isinstance(extractor, JudgingReader):
            labels = extractor.reads
        found += [bound(metric, labels[metric.reads], extractor) for metric in metrics if labels.get(metric.reads)]
    pixels = base.run is not None and ("several", "") not in missing
    return [*found, bound(find_metric("diversity"), PIXELS)] if pixels else found


# ---- what cannot be had --------------------------------------------------------------------------------------------


def _why_not(metric: Metric, missing: Missing, chooser: str | None, options: ScoringOptions) -> str:
    """Why a metric cannot be had; nothing where it can."""
    digest = metric.protocol.extractor_digest or ""
    keys = [key for need in (*metric.needs, metric.name) for key in ((need, ""), (need, digest))]
    if why := next((missing[key] for key in keys if key in missing), ""):
        return why
    if chooser is not None and digest == chooser and not options.force:
        return (
            f"its encoder chose these images ({metric.protocol.reranking}), so it would judge its own choice; name another "
            "encoder with --scorer, or score plain images"
        )
    return _too_few(metric, options.force)


def _too_few(metric: Metric, force: bool) -> str:
    """The rule that these numbers of images break, if it may not be or is not overruled."""
    if metric.check is None or metric.extractor is None:
        return ""
    n_fake, n_real, dim = metric.protocol.n_fake, metric.protocol.n_real, metric.extractor.dim
    with warnings.catch_warnings(action="ignore"):  # they are repeated with the score
        try:
            metric.check(n_fake, n_fake if n_real is None else n_real, dim, force)
        except InputError as error:
            return str(error)
    return ""


def _marked(metric: Metric, chooser: str | None) -> Metric:
    """Says in the protocol which rules `force` overruled."""
    protocol = metric.protocol
    if broken := _too_few(metric, force=False):
        protocol = replace(protocol, forced=broken)
    if chooser is not None and protocol.extractor_digest == chooser:
        protocol = replace(protocol, extractor=f"{protocol.extractor}-its-own-choice")
    return replace(metric, protocol=protocol)


def refuse_or_mark(metrics: Sequence[Metric], trained_with: Mapping[str, str], force: bool) -> list[Metric]:
    """Refuses extractors that took part in the training; with `force` their scores say so in their names.

    Args:
        trained_with: digest -> role of that encoder in training.

    Raises:
        InputError: there is one and it is not forced.
    """
    marked = []
    for metric in metrics:
        protocol, digest = metric.protocol, metric.protocol.extractor_digest
        if digest is not None and digest in trained_with:
            if not force:
                refuse_training_encoder(metric.title, digest, trained_with)
            role = trained_with[digest].replace(" ", "-")
            protocol = replace(protocol, extractor=f"{protocol.extractor}-its-own-{role}")
        marked.append(replace(metric, protocol=protocol))
    return marked


# ---- messages ------------------------------------------------------------------------------------------------------


def _refusal(
    wrong: str, usable: Mapping[str, Metric], absent: Mapping[str, str], lacking: Sequence[str], options: ScoringOptions
) -> str:
    """Says why a metric that was asked for is not there, and which ones are.

    Args:
        absent: metrics that cannot be had, and why.
        lacking: those of them that were asked for.
    """
    usual = [title for title, metric in usable.items() if _is_usual(metric)]
    rest = [title for title in usable if title not in usual]
    choice = f"choose from: {', '.join(usual)}" if usual else "no metric can be had here"
    if lacking:
        why = absent[wrong if wrong in lacking else lacking[0]]
        return f"metric {wrong} is not available here: {why}; {choice}"
    if rest:
        choice += f", and by name {', '.join(rest)}"
    other = next((title for title in [*usable, *absent] if title.startswith(f"{wrong}-inception-")), None)
    if wrong in BARE and other is not None and options.inception is not None:
        return (
            f"{options.inception} does not hold the FID Inception of 2015-12-05 (sha256 {FID_INCEPTION_DIGEST[:8]}...), and "
            f"of other weights no score is called {wrong}; name that file, or ask for {other}"
        )
    if wrong in READ:
        return (
            f"metric {wrong} needs a reader that gives it; name a run of t2i train reader with --reader DIR; {choice}"
        )
    if (kind := _wanted(wrong)) is not None and getattr(options, kind) is None:
        place = "auto, or --inception FILE" if kind == "inception" else "DIR"
        return f"metric {wrong[:80]!r} needs {FILES[kind]}; name it with --{kind} {place}; {choice}"
    near = difflib.get_close_matches(wrong, [*usable, *METRICS], 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"metric {wrong[:80]!r} is unknown here{hint}; {choice}"


def _wanted(word: str) -> str | None:
    """The option that would make a metric known."""
    if word in METRICS:
        return "inception" if word in BARE else "clip" if find_metric(word).reads == "text" else None
    return next((kind for kind in ("dinov2", "clip") if f"-{kind}" in f"-{word}"), None)
