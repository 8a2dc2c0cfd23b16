"""From what was seen of pictures to scores: which metrics apply, which are refused, and each one's computation."""

import difflib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from t2i.align.scorer import open_scorer
from t2i.data.shapes import HELDOUT_PAIRS, HELDOUT_RELATIONS
from t2i.data.shapes_captions import Spec, meaning
from t2i.data.shapes_oracle import Reading, judge
from t2i.errors import InputError
from t2i.metrics import Extractor, Features, clip_score, diversity, faithfulness, frechet, kernel
from t2i.metrics import open_extractor as open_by_address
from t2i.metrics.intervals import Estimate, frechet_intervals
from t2i.metrics.protocol import Protocol, Score, score_name
from t2i.scoring_pictures import Seen

Kind = Literal["fid", "kid", "clip", "faithfulness", "diversity"]
VERSIONS: dict[Kind, int] = {
    "fid": frechet.VERSION,
    "kid": kernel.VERSION,
    "clip": clip_score.VERSION,
    "faithfulness": faithfulness.VERSION,
    "diversity": diversity.VERSION,
}
BOOTSTRAPPED_DIM = 512  # the 100 draws of a wider Frechet distance take minutes


@dataclass(frozen=True)
class Options:
    """What is scored and how.

    Attributes:
        metrics: names as in a score's, without N (`fid-shapes`), and `faithfulness` for all its aspects; None: all that
            apply.
        seed: decides noise, shuffles and the bootstrap, but not which pictures are scored.
        truncation, guidance: of the generator; None: its own.
        settings: further ones of the generator's family, e.g. temperature.
        best_of: candidates drawn for each picture; an encoder keeps the best, and is not asked for scores then.
        reranker: its address, as `t2i.reranking.open_reranker` takes it; None: the embedded one.
        inception, clip: a weights file and a folder, for extractors beside the scorer.
        scorer: another dual encoder than the one that ships with the package.
        force: score where the rules forbid it: with an encoder that took part in the training, with too few pictures.
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


class Named(NamedTuple):
    """An extractor under the names that its scores bear."""

    extractor: Extractor
    name: str
    clip_name: str | None  # None: it reads no captions


class Metric(NamedTuple):
    protocol: Protocol
    extractor: Extractor | None

    @property
    def kind(self) -> Kind:
        return cast(Kind, self.protocol.metric)


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


# ---- which metrics -------------------------------------------------------------------------------------------------


def open_extractors(options: Options, device: str) -> list[Named]:
    """The scorer and whatever else is named, weights loaded.

    Raises:
        InputError: a file is not there or holds something else.
    """
    scorer = open_scorer(options.scorer)
    opened = [Named(scorer, scorer.name, scorer.clip_name)]
    if options.inception is not None:
        inception = open_by_address(f"inception:{options.inception}", device=device)
        opened.append(Named(inception, inception.name, None))
    if options.clip is not None:
        clip = open_by_address(f"clip:{options.clip}", device=device)
        opened.append(Named(clip, clip.name, clip.name))
    return opened


def choose_metrics(
    base: Protocol, extractors: Sequence[Named], missing: Mapping[Kind, str], options: Options
) -> list[Metric]:
    """The metrics that were asked for, or all that apply and a warning for each that does not.

    Args:
        base: the protocol of all, but for metric and extractor.
        missing: kinds that do not apply, and why.

    Raises:
        InputError: a metric that is unknown or does not apply.
    """
    every = {_name(metric): metric for metric in _metrics(base, extractors)}
    absent = {name: missing[metric.kind] for name, metric in every.items() if metric.kind in missing}
    usable = [name for name in every if name not in absent]
    if options.metrics is None:
        for name, why in absent.items():
            warnings.warn(f"{name} is left out: {why}", stacklevel=3)
    elif wrong := next((name for name in options.metrics if name not in usable), None):
        raise InputError(_refusal(wrong, usable, absent))
    elif not options.metrics:
        raise InputError(f"no metric is named; choose from: {', '.join(usable)}")
    return [every[name] for name in dict.fromkeys(options.metrics or usable)]


def check_sizes(metrics: Sequence[Metric], force: bool) -> None:
    """Refuses a Frechet distance of too few pictures, before any is seen."""
    for metric in metrics:
        if metric.kind == "fid" and metric.extractor is not None:
            counts = metric.protocol.n_fake, metric.protocol.n_real or 0
            with warnings.catch_warnings(action="ignore"):  # what it warns of, it warns of again with the score
                frechet.check_sample_size(*counts, metric.extractor.dim, force)


def _metrics(base: Protocol, extractors: Sequence[Named]) -> list[Metric]:
    def metric(kind: Kind, name: str | None, extractor: Extractor | None = None) -> Metric:
        digest, resize = (extractor.digest(), extractor.resize) if extractor else (None, None)
        what = {"metric": kind, "metric_version": VERSIONS[kind], "extractor": name, "extractor_digest": digest}
        return Metric(replace(base, **what, resize=resize), extractor)

    found = [metric("faithfulness", None)]
    for extractor, name, clip_name in extractors:
        found += [metric("fid", name, extractor), metric("kid", name, extractor)]
        found += [metric("clip", clip_name, extractor)] if clip_name else []
    return [*found, metric("diversity", "pixels")] if base.run else found


def _name(metric: Metric) -> str:
    return score_name(metric.protocol).rpartition("@")[0]


def _refusal(wrong: str, usable: Sequence[str], absent: Mapping[str, str]) -> str:
    choice = f"choose from: {', '.join(usable)}"
    if wrong in absent:
        return f"metric {wrong} is not to be had: {absent[wrong]}; {choice}"
    near = difflib.get_close_matches(wrong, usable, 1)
    files = {"fid": "Inception weights", "kid": "Inception weights", "clip": "a CLIP folder"}
    hint = f" (it needs {files[wrong]})" if wrong in files else f" (did you mean {near[0]}?)" if near else ""
    return f"metric {wrong[:80]!r} is unknown here{hint}; {choice}"


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
                clip_score.refuse_training_encoder(_name(metric), digest, trained_with)
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
    names = ", ".join(map(_name, own))
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
    """The scores of one metric but for diversity, which needs other pictures."""
    if metric.kind == "faithfulness":
        return _faithfulness(metric.protocol, case)
    assert metric.extractor is not None
    digest = metric.extractor.digest()
    return [_OF_FEATURES[metric.kind](metric.protocol, case, digest)]


def _frechet(protocol: Protocol, case: Case, digest: str) -> Score:
    fake, reference = case.fake.features[digest], frechet.Reference.of(case.real.features[digest])
    value = frechet.frechet_distance(fake, reference, force=case.options.force)
    if reference.dim > BOOTSTRAPPED_DIM:
        return Score(value, protocol)
    interval = frechet_intervals(fake, reference, seed=case.options.seed).expected
    return Score(value, protocol, interval, "bootstrap, of the expected value at this N")


def _kernel(protocol: Protocol, case: Case, digest: str) -> Score:
    return Score(kernel.kernel_distance(case.fake.features[digest], case.real.features[digest]), protocol)


def _clip(protocol: Protocol, case: Case, digest: str) -> Score:
    assert case.captions is not None
    images, text = case.fake.features[digest], case.text[digest]
    real = None if case.partners is None else case.real.features[digest][case.partners]
    labels = [meaning(caption) for caption in case.captions]
    bounds = clip_score.clip_bounds(images, text, images if real is None else real, labels, case.options.seed)
    if real is None:
        del bounds["real"]
    return _estimated(clip_score.clip_score(images, text, case.captions), protocol, bounds)


_OF_FEATURES = {"fid": _frechet, "kid": _kernel, "clip": _clip}


def diversity_score(protocol: Protocol, images_NHWC: NDArray[np.uint8], prompts: Sequence[str]) -> Score:
    """Root mean square difference, in grey levels of 255, between pictures of one prompt; `prompts` [N] says of which.

    The bound is the same of different prompts: what a generator that ignores captions shows within a prompt too.
    """
    flat = images_NHWC.reshape(len(images_NHWC), -1) / math.sqrt(images_NHWC[0].size)
    first = [prompts.index(prompt) for prompt in dict.fromkeys(prompts)]
    bounds = {}
    if len(first) > 1:
        bounds["different prompts"] = diversity.within_prompt_diversity(flat[first], [0] * len(first)).value
    protocol = replace(protocol, n_real=None, n_fake=len(images_NHWC))
    return _estimated(diversity.within_prompt_diversity(flat, prompts), protocol, bounds)


def _estimated(estimate: Estimate, protocol: Protocol, bounds: Mapping[str, float]) -> Score:
    interval = estimate.interval() if math.isfinite(estimate.standard_error) else None
    return Score(estimate.value, protocol, interval, interval and "normal, clustered by prompt", bounds)


def _faithfulness(protocol: Protocol, case: Case) -> list[Score]:
    specs = case.specs
    assert specs is not None
    groups = unseen(specs)
    rates = faithfulness.faithfulness(judge(case.fake.readings, specs), groups)
    elsewhere = [specs[k] for k in case.shuffled]
    bounds = {"shuffled": faithfulness.faithfulness(judge(case.fake.readings, elsewhere), groups)}
    if case.partners is not None:
        readings = [case.real.readings[k] for k in case.partners]
        bounds = {"real": faithfulness.faithfulness(judge(readings, specs), groups), **bounds}
    if case.reconstructed is not None:
        bounds["reconstructed"] = faithfulness.faithfulness(judge(case.reconstructed, specs), groups)
    scores = []
    for group, by_aspect in rates.items():
        for aspect, rate in by_aspect.items():
            name = f"faithfulness-{aspect}" + ("" if group == "all" else f"-{group}")
            its = replace(protocol, metric=name, n_fake=rate.count, n_real=rate.count if "real" in bounds else None)
            beside = {bound: found[group][aspect].value for bound, found in bounds.items()}
            scores.append(Score(rate.value, its, rate.interval, "wilson", beside))
    return scores


def unseen(specs: Sequence[Spec]) -> dict[str, NDArray[np.bool_]]:
    """Which captions ask for what training pictures of the embedded data never show; empty where none does."""
    pairs = [any(pair in HELDOUT_PAIRS for pair in zip(z.shapes, z.colors, strict=True)) for z in specs]
    relations = [any((z.shapes[a], r, z.shapes[b]) in HELDOUT_RELATIONS for a, r, b in z.relations) for z in specs]
    return {
        name: np.array(flags) for name, flags in (("unseen-pair", pairs), ("unseen-relation", relations)) if any(flags)
    }
