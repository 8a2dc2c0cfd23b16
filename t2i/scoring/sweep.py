"""Chooses settings of sampling: each is scored for fidelity and for faithfulness, and one of them is best.

Settings are chosen on `val`. A choice made on a split that is reported later would make that report too good.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from t2i.errors import InputError
from t2i.metrics.score import Score
from t2i.sampling.saved import Defaults
from t2i.scoring.advice import only_own_options
from t2i.scoring.images.collection import Tick, silent
from t2i.scoring.images.extraction import Pass
from t2i.scoring.options import Number, SweepOptions
from t2i.scoring.runs import score_settings

SCHEMA = 1
KEPT_BACK = ("heldout", "test")  # splits that are reported
OF_THE_CALL = ("guidance", "truncation")  # the rest are settings of the family
RULE = (
    "the lowest fidelity distance among all whose faithfulness reaches the lower end of the 95 % interval of the most "
    "faithful"
)

Knobs = dict[str, Number]


class Point(NamedTuple):
    """One setting and its scores."""

    knobs: Knobs
    scores: list[Score]

    @property
    def fidelity(self) -> Score:
        """A Frechet distance, less is better: by the Inception where its weights are given, else by the scorer."""
        return [score for score in self.scores if score.protocol.metric == "fid"][-1]

    @property
    def faithfulness(self) -> Score:
        """Share of images that the oracle finds as asked; of captions that it cannot read, the CLIP score."""
        found = {score.protocol.metric: score for score in reversed(self.scores)}
        return found["faithfulness-strict"] if "faithfulness-strict" in found else found["clip"]


def combinations(values: Mapping[str, Sequence[float | int | None]]) -> list[Knobs]:
    """Every combination; the first knob changes last.

    Raises:
        InputError: there is none.
    """
    tried = {name: list(dict.fromkeys(given)) for name, given in values.items() if given}
    if not tried:
        raise InputError("no setting to try; name values of one at least, as --guidance 1,1.5,2,3,5")
    return [dict(zip(tried, one, strict=True)) for one in product(*tried.values())]


def sweep(options: SweepOptions, settings: Sequence[Knobs], tick: Tick = silent) -> Iterator[Point]:
    """Scores each setting on the same captions with the same noise, as `t2i.scoring.runs.score_run` does.

    Args:
        settings: values of guidance, truncation and the settings of the run's family.

    Raises:
        InputError: a split that is kept back for scores, or what `score_run` refuses.
    """
    if options.split in KEPT_BACK:
        raise InputError(
            f"split {options.split} is kept back for scores: what is chosen on it scores too well on it; sweep on val"
        )
    variants = [options.scored_with(knobs) for knobs in settings]
    found = only_own_options(score_settings(variants, Pass(tick), needed=("fid",)), SweepOptions)
    for knobs, scores in zip(settings, found, strict=True):
        yield Point(knobs, scores)


def best(points: Sequence[Point]) -> int:
    """Index of the best setting by `RULE`."""
    most = max((point.faithfulness for point in points), key=lambda score: score.value)
    least = most.value if most.interval is None else most.interval[0]
    good = [k for k, point in enumerate(points) if point.faithfulness.value >= least]
    return min(good, key=lambda k: points[k].fidelity.value)


def on_the_front(points: Sequence[Point]) -> list[bool]:
    """True for settings that no other one beats in one of the two and equals in the other."""
    at = [(point.fidelity.value, -point.faithfulness.value) for point in points]
    return [not any(x <= a and y <= b and (x, y) != (a, b) for x, y in at) for a, b in at]


def defaults_of(knobs: Knobs) -> Defaults:
    """The setting as a run keeps it; a setting that was not tried stays that of the model."""
    words: dict[str, Any] = {"settings": {name: value for name, value in knobs.items() if name not in OF_THE_CALL}}
    if knobs.get("guidance") is not None:
        words["guidance_scale"] = knobs["guidance"]
    if knobs.get("truncation") is not None:
        words["truncation"] = knobs["truncation"]
    return Defaults.model_validate(words)


def document(points: Sequence[Point]) -> dict[str, Any]:
    """The sweep as JSON: every score with its protocol, the rule and the best setting."""
    front = on_the_front(points)
    settings = [
        {
            "knobs": point.knobs,
            "fidelity": point.fidelity.name,
            "faithfulness": point.faithfulness.name,
            "on_the_front": front[k],
            "scores": [score.entry() for score in point.scores],
        }
        for k, point in enumerate(points)
    ]
    return {"schema": SCHEMA, "rule": RULE, "best": points[best(points)].knobs, "settings": settings}
