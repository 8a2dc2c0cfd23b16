"""From what was seen of pictures to scores: which metrics apply, which are refused, and each one's computation."""

import difflib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.align.scorer import open_scorer
from t2i.data.shapes import HELDOUT_PAIRS, HELDOUT_RELATIONS
from t2i.data.shapes_captions import Spec, meaning
from t2i.data.shapes_oracle import Reading, judge
from t2i.errors import InputError
from t2i.metrics import METRICS, Extractor, Features, Inputs, Kind, Measured, Resize, clip_score, metric_kind
from t2i.metrics import open_extractor as open_by_address
from t2i.metrics.protocol import BARE, FID_INCEPTION_DIGEST, Protocol, Score, score_name
from t2i.scoring_pictures import Seen

# a `Need`, or one by the extractor of a digest -> why there is nothing of it
Missing = Mapping[str | tuple[str, str], str]
PIXELS = "pixels"
ALL = "all"  # stands for every metric that can be had
FILES = {
    "inception": "Inception weights",
    "clip": "a CLIP folder",
    "dinov2": "a DINOv2 folder",
}


@dataclass(frozen=True)
class Options:
    """What is scored and how.

    Attributes:
        metrics: names as in a score's, without N (`fid-shapes`); `faithfulness` for all its aspects, `precision` for
            that of every extractor, `all`; None: the usual ones that apply.
        seed: decides noise, shuffles and the bootstrap, but not which pictures are scored.
        truncation, guidance: of the generator; None: its own.
        settings: further ones of the generator's family, e.g. temperature.
        best_of: candidates drawn for each picture; an encoder keeps the best, and is not asked for scores then.
        reranker: its address, as `t2i.reranking.open_reranker` takes it; None: the embedded one.
        inception, clip, dinov2: a weights file and folders (or hub ids), for extractors beside the scorer.
        scorer: another dual encoder than the one that ships with the package.
        force: score where the rules forbid it: with an encoder that took part in the training, with too few pictures.
        resize: how pictures reach the size of the Inception and of DINOv2.
        allow_leak: score a run on what it was trained on, and say so in the protocol.
        skip_broken: leave out pictures that cannot be decoded, and count them in the protocol.
        resolution: pixels a side of the real pictures of a data set; None: as many as the generated ones have.
        save_features: a file that keeps features between scorings.
        named: the protocol of `t2i.protocols` that all this is of.
    """

    metrics: Sequence[str] | None = None
    seed: int = 0
    truncation: float | None = None
    guidance: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    best_of: int = 1
    reranker: str | None = None
    inception: Path | None = None
    clip: Path | None = None
    scorer: Path | None = None
    force: bool = False
    dinov2: Path | None = None
    resize: Resize = "clean"
    allow_leak: bool = False
    skip_broken: bool = False
    resolution: int | None = None
    save_features: Path | None = None
    named: str | None = None


class Named(NamedTuple):
    """An extractor under the names that its scores bear."""

    extractor: Extractor
    name: str
    clip_name: str | None  # None: it reads no captions


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


@dataclass
class Case:
    """The pictures of one scoring, as far as they have been seen."""

    captions: list[str] | None  # of the generated pictures
    specs: list[Spec] | None  # what these ask for, where all are in the grammar of the embedded data
    partners: list[int] | None  # the real picture of each caption
    options: Options
    shuffled: Sequence[int] | NDArray[np.int64] = ()  # for each picture, one with another caption
    real: Seen = field(default_factory=Seen)
    fake: Seen = field(default_factory=Seen)
    reconstructed: list[Reading] | None = None  # the real pictures through the run's tokenizer, row by row
    text: dict[str, Features] = field(default_factory=dict)  # extractor's digest -> [N, D] of the captions
    train: Seen = field(default_factory=Seen)  # the pictures that the run was trained on, where a metric needs them
    # score's name -> [N] values, one a picture, whose mean it is; NaN: of a picture that is not counted
    samples: dict[str, NDArray[np.float64]] = field(default_factory=dict, init=False)
    # what a kind of metric gave by an extractor; of these very pictures, so no copy takes it along
    _given: dict[tuple[str, str | None], Mapping[str, Measured]] = field(default_factory=dict, init=False)


# ---- which metrics -------------------------------------------------------------------------------------------------


def open_extractors(options: Options, device: str) -> list[Named]:
    """The scorer and whatever else is named, weights loaded.

    Raises:
        InputError: a file is not there or holds something else.
    """
    scorer = open_scorer(options.scorer)
    opened = [Named(scorer, scorer.name, scorer.clip_name)]
    for kind in FILES:
        if (path := getattr(options, kind)) is not None:
            resize: Resize = "clean" if kind == "clip" else options.resize
            found = open_by_address(f"{kind}:{path}", resize, device)
            opened.append(Named(found, found.name, found.name if hasattr(found, "text_features") else None))
    return opened


def choose_metrics(base: Protocol, extractors: Sequence[Named], missing: Missing, options: Options) -> list[Metric]:
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


def _metrics(base: Protocol, extractors: Sequence[Named], missing: Missing) -> list[Metric]:
    def metric(kind: str, name: str | None, extractor: Extractor | None = None) -> Metric:
        digest, resize = (extractor.digest(), extractor.resize) if extractor else (None, None)
        what = {"metric": kind, "metric_version": metric_kind(kind).version, "extractor": name}
        return Metric(replace(base, **what, extractor_digest=digest, resize=resize), extractor, kind)

    kinds = {name: metric_kind(name) for name in METRICS}
    found = [metric(name, None) for name, kind in kinds.items() if kind.reads == "oracle"]
    for extractor, name, clip_name in extractors:
        classifies = getattr(extractor, "classes", None) is not None
        names = {"features": name, "text": clip_name, "classes": name if classifies else None}
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
    hint = f" (it needs {file})" if (file := _wanted(wrong)) else f" (did you mean {near[0]}?)" if near else ""
    return f"metric {wrong[:80]!r} is unknown here{hint}; {choice}"


def _wanted(name: str) -> str | None:
    """The option that would make a metric known."""
    if name in METRICS:
        return FILES["inception"] if name in BARE else FILES["clip"] if metric_kind(name).reads == "text" else None
    return next((FILES[kind] for kind in ("dinov2", "clip") if f"-{kind}" in f"-{name}"), None)


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


# ---- their computation ---------------------------------------------------------------------------------------------


def compute(metric: Metric, case: Case) -> list[Score]:
    """The scores of one metric: one, or several whose names begin with its own."""
    digest = None if metric.extractor is None else metric.extractor.digest()
    key = METRICS[metric.kind], digest
    if key not in case._given:
        case._given[key] = metric.of.measure(_inputs(metric, case, digest))
    scores = scored(metric, case._given[key])
    for score in scores:
        if (samples := case._given[key][score.protocol.metric].samples) is not None:
            case.samples[score.name] = samples
    return scores


def scored(metric: Metric, given: Mapping[str, Measured]) -> list[Score]:
    """What a metric gave, each with its protocol."""
    scores = []
    for name, (value, interval, method, bounds, counts, _) in given.items():
        if name == metric.kind or name.startswith(f"{metric.kind}-"):
            protocol = replace(metric.protocol, metric=name)
            if counts is not None:
                protocol = replace(protocol, n_fake=counts[0], n_real=counts[1])
            scores.append(Score(value, protocol, interval, method, bounds))
    return scores


def _inputs(metric: Metric, case: Case, digest: str | None) -> Inputs:
    """What the metric asks for."""
    captions, options = case.captions or [], case.options
    more: dict[str, Any] = {}
    if metric.of.reads == "oracle":
        more = {"outcomes": _judged(case), "groups": unseen(case.specs or [])}
    elif digest is not None:
        more = {
            "text": case.text.get(digest),
            "partners": None if case.partners is None else case.real.features[digest][case.partners],
            "classes": getattr(metric.extractor, "classes", None),
            "train": case.train.features.get(digest),
        }
    fake, real = (_known(seen, digest) for seen in (case.fake, case.real))
    meanings = [meaning(caption) for caption in captions]
    return Inputs(fake, real, captions, meanings, **more, seed=options.seed, force=options.force)


def _known(seen: Seen, digest: str | None) -> Any:
    """Features, or where no more is known or asked, their moments."""
    if digest in seen.features:
        return seen.features[digest]
    return seen.moments[digest] if digest in seen.moments else np.empty((0, 0), np.float32)


def _judged(case: Case) -> Mapping[str, Mapping[str, NDArray[np.bool_]]]:
    specs = case.specs
    assert specs is not None
    found = {"fake": judge(case.fake.readings, specs)}
    if case.partners is not None:
        found["real"] = judge([case.real.readings[k] for k in case.partners], specs)
    found["shuffled"] = judge(case.fake.readings, [specs[k] for k in case.shuffled])
    if case.reconstructed is not None:
        found["reconstructed"] = judge(case.reconstructed, specs)
    return found


def diversity_scores(metric: Metric, images_NHWC: NDArray[np.uint8], prompts: Sequence[str]) -> list[Score]:
    """Of pictures drawn for it; `prompts` [N] says of which. By pixels: root mean square difference in grey levels."""
    if metric.extractor is None:
        features = (images_NHWC.reshape(len(images_NHWC), -1) / math.sqrt(images_NHWC[0].size)).astype(np.float32)
    else:
        features = metric.extractor.features(images_NHWC)
    return scored(metric, metric.of.measure(Inputs(features, features[:0], prompts)))


def unseen(specs: Sequence[Spec]) -> dict[str, NDArray[np.bool_]]:
    """Which captions ask for what training pictures of the embedded data never show; empty where none does."""
    pairs = [any(pair in HELDOUT_PAIRS for pair in zip(z.shapes, z.colors, strict=True)) for z in specs]
    relations = [any((z.shapes[a], r, z.shapes[b]) in HELDOUT_RELATIONS for a, r, b in z.relations) for z in specs]
    return {
        name: np.array(flags) for name, flags in (("unseen-pair", pairs), ("unseen-relation", relations)) if any(flags)
    }
