"""Chooses metrics: each metric of `METRICS` with each extractor, if it is available, else with a reason."""

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

# (need, or name of a metric; digest of an extractor, or "" for all) -> reason why it is missing
Missing = Mapping[tuple[str, str], str]

PIXELS = "pixels"
ALL = "all"  # every available metric
READ = ("caption-likelihood", "questions")  # metrics that need a reader
FILES = {"inception": "Inception weights", "clip": "a CLIP folder", "dinov2": "a DINOv2 folder"}


def open_extractors(options: ExtractorOptions, device: str) -> list[Extractor]:
    """Opens the scorer and every other extractor of the options, and loads the weights.

    Raises:
        InputError: a file does not exist or holds something else.
    """
    files = [f"{kind}:{path}" for kind in FILES if (path := getattr(options, kind)) is not None]
    extractors = [open_extractor(address, options.resize, device) for address in (address_of(options.scorer), *files)]
    reader = options.reader if isinstance(options, ScoringOptions) else None
    return extractors if reader is None else [*extractors, open_judge(reader, device)]


def choose_metrics(
    base: ScoreProtocol,
    extractors: Sequence[Extractor],
    missing: Missing,
    options: ScoringOptions,
    chooser: str | None = None,
    needed: Sequence[str] = (),
) -> list[Metric]:
    """Returns the metrics of `options.metrics`, or by default all usual ones; warns of each that is not available.

    Args:
        base: the protocol of all metrics, without metric and extractor.
        chooser: digest of the encoder that selected the images among candidates.
        needed: names in `METRICS` that must be available.

    Raises:
        InputError: a metric is unknown, or its exact title is in the options but it is not available.
    """
    every = {metric.title: metric for metric in _all_metrics(base, extractors, missing)}
    absent = {title: why for title, metric in every.items() if (why := _why_not(metric, missing, chooser, options))}
    usable = {title: _marked(metric, chooser) for title, metric in every.items() if title not in absent}
    usual = [title for title, metric in usable.items() if _is_usual(metric)]
    if options.metrics is None:
        skipped = [title for title in absent if _is_usual(every[title])]
        if required := next((title for title in skipped if every[title].name in needed), None):
            raise InputError(absent[required])
        if not usual:
            reasons = dict.fromkeys(absent[title] for title in skipped)
            raise InputError(f"no metric can be scored: {'; '.join(reasons) or 'none applies'}")
        selected = usual
    else:
        selected, skipped = _named_metrics(options, every, usable, absent)
    for title in skipped:
        warnings.warn(f"skipped {title}: {absent[title]}", stacklevel=3)
    return [usable[title] for title in selected]


def _named_metrics(
    options: ScoringOptions, every: Mapping[str, Metric], usable: Mapping[str, Metric], absent: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Returns the titles that the words of `options.metrics` select: the usable ones and the absent ones, each once."""
    if not options.metrics:
        usual = [title for title, metric in usable.items() if _is_usual(metric)]
        raise InputError(f"no metric is named; choose from: {', '.join(usual)}, ...")
    selected, skipped = list[str](), list[str]()
    for word in options.metrics:
        matches = [title for title, metric in every.items() if _matches(word, title, metric)]
        available = [title for title in matches if title in usable]
        lacking = [title for title in matches if title in absent]
        if not available or word in lacking:
            raise InputError(_refusal(word, usable, absent, lacking, options))
        selected += available
        skipped += lacking
    return list(dict.fromkeys(selected)), list(dict.fromkeys(skipped))


def _is_usual(metric: Metric) -> bool:
    return metric.usual or metric.protocol.extractor == PIXELS


def _matches(word: str, title: str, metric: Metric) -> bool:
    """Returns True if a word selects a metric.

    A word is a title, a pattern of titles (`clip-vit-*`), `all`, or the name of a metric, which selects it with every
    extractor (`precision`). `fid` is the title of one metric and does not select those with other networks.
    """
    if word in (title, ALL):
        return True
    return word == metric.name and word not in BARE or "*" in word and fnmatchcase(title, word)


def _all_metrics(base: ScoreProtocol, extractors: Sequence[Extractor], missing: Missing) -> list[Metric]:
    """Returns every metric with every extractor that provides the features it reads."""

    def bound(metric: Metric, label: str | None, extractor: Extractor | None = None) -> Metric:
        digest, resize = (extractor.digest(), extractor.resize) if extractor else (None, None)
        names = {"metric": metric.name, "metric_version": metric.version, "extractor": label}
        protocol = replace(base, **names, extractor_digest=digest, resize=resize)
        return replace(metric, protocol=protocol, extractor=extractor)

    metrics = [find_metric(name) for name in METRICS]
    every = [bound(metric, None) for metric in metrics if metric.reads == "oracle"]
    for extractor in extractors:
        labels = {
            "features": extractor.name,
            "text": extractor.clip_name,
            "classes": None if extractor.classes is None else extractor.name,
        }
        if isinstance(extractor, JudgingReader):
            labels = extractor.reads
        every += [bound(metric, labels[metric.reads], extractor) for metric in metrics if labels.get(metric.reads)]
    pixels = base.run is not None and ("several", "") not in missing
    return [*every, bound(find_metric("diversity"), PIXELS)] if pixels else every


# ---- metrics that are not available --------------------------------------------------------------------------------


def _why_not(metric: Metric, missing: Missing, chooser: str | None, options: ScoringOptions) -> str:
    """Returns the reason why a metric is not available, or "" if it is."""
    digest = metric.protocol.extractor_digest or ""
    keys = [key for need in (*metric.needs, metric.name) for key in ((need, ""), (need, digest))]
    if why := next((missing[key] for key in keys if key in missing), ""):
        return why
    if chooser is not None and digest == chooser and not options.force:
        return (
            f"its encoder selected these images ({metric.protocol.reranking}), so it would judge its own choice; name another "
            "encoder with --scorer, or score images without --best-of"
        )
    return _too_few(metric, options.force)


def _too_few(metric: Metric, force: bool) -> str:
    """Returns the rule on the number of images that is broken and not overruled by `force`, or ""."""
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
    """Records the rules that `force` overruled in the protocol."""
    protocol = metric.protocol
    if broken := _too_few(metric, force=False):
        protocol = replace(protocol, forced=broken)
    if chooser is not None and protocol.extractor_digest == chooser:
        protocol = replace(protocol, extractor=f"{protocol.extractor}-its-own-choice")
    return replace(metric, protocol=protocol)


def refuse_or_mark(metrics: Sequence[Metric], trained_with: Mapping[str, str], force: bool) -> list[Metric]:
    """Refuses extractors that took part in the training; with `force`, marks the names of their scores instead.

    Args:
        trained_with: digest -> role of that encoder in training.

    Raises:
        InputError: an extractor took part in the training, and `force` is False.
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
    """Returns a message about a word that selects no available metric.

    Args:
        absent: reasons for the metrics that are not available.
        lacking: titles of those that the word selects.
    """
    usual = [title for title, metric in usable.items() if _is_usual(metric)]
    rest = [title for title in usable if title not in usual]
    choice = f"choose from: {', '.join(usual)}" if usual else "no metric is available here"
    if lacking:
        why = absent[wrong if wrong in lacking else lacking[0]]
        return f"metric {wrong} is not available here: {why}; {choice}"
    if rest:
        choice += f", and by name {', '.join(rest)}"
    other = next((title for title in [*usable, *absent] if title.startswith(f"{wrong}-inception-")), None)
    if wrong in BARE and other is not None and options.inception is not None:
        return (
            f"{options.inception} does not hold the FID Inception of 2015-12-05 (sha256 {FID_INCEPTION_DIGEST[:8]}...), and "
            f"only its scores are called {wrong}; name that file, or choose {other}"
        )
    if wrong in READ:
        return f"metric {wrong} needs a reader; name a run of t2i train reader with --reader DIR; {choice}"
    if (kind := _missing_option(wrong)) is not None and getattr(options, kind) is None:
        place = "auto, or --inception FILE" if kind == "inception" else "DIR"
        return f"metric {wrong[:80]!r} needs {FILES[kind]}; name it with --{kind} {place}; {choice}"
    near = difflib.get_close_matches(wrong, [*usable, *METRICS], 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"metric {wrong[:80]!r} is unknown here{hint}; {choice}"


def _missing_option(word: str) -> str | None:
    """Returns the option that a metric needs."""
    if word in METRICS:
        return "inception" if word in BARE else "clip" if find_metric(word).reads == "text" else None
    return next((kind for kind in ("dinov2", "clip") if f"-{kind}" in f"-{word}"), None)
