"""Chooses settings of sampling by their fidelity and faithfulness.

Settings are chosen on `val`: scores on a split that the settings were chosen on are too good.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from t2i.config.options import flag_of
from t2i.errors import InputError
from t2i.metrics.score import Score
from t2i.sampling.saved import Defaults
from t2i.scoring.images.collection import Tick, silent
from t2i.scoring.images.extraction import Pass
from t2i.scoring.options import Number, SweepOptions
from t2i.scoring.runs import score_settings

SCHEMA = 1
KEPT_BACK = ("heldout", "test")  # splits for reported scores
OF_THE_CALL = ("guidance", "truncation")  # the rest are settings of the family
RULE = (
    "the lowest fidelity distance among the settings whose faithfulness is at least the lower end of the 95 % interval of "
    "the most faithful one"
)

_FLAG = re.compile(r"--[a-z][a-z-]*")

Knobs = dict[str, Number]


class Point(NamedTuple):
    """One setting and its scores."""

    knobs: Knobs
    scores: list[Score]

    @property
    def fidelity(self) -> Score:
        """Returns the Frechet distance, less is better: with the Inception if its weights are named, else with the scorer."""
        return [score for score in self.scores if score.protocol.metric == "fid"][-1]

    @property
    def faithfulness(self) -> Score:
        """Returns the share of images that the oracle finds correct, or the CLIP score if it cannot read the captions."""
        scores = {score.protocol.metric: score for score in reversed(self.scores)}
        return scores["faithfulness-strict"] if "faithfulness-strict" in scores else scores["clip"]


def combinations(values: Mapping[str, Sequence[float | int | None]]) -> list[Knobs]:
    """Returns every combination; the first setting varies slowest.

    Raises:
        InputError: there are no values.
    """
    distinct = {name: list(dict.fromkeys(several)) for name, several in values.items() if several}
    if not distinct:
        raise InputError("no setting to try; name values of at least one, as in --guidance 1,1.5,2,3,5")
    return [dict(zip(distinct, one, strict=True)) for one in product(*distinct.values())]


def sweep(options: SweepOptions, settings: Sequence[Knobs], tick: Tick = silent) -> Iterator[Point]:
    """Scores each setting on the same captions with the same noise, as in `t2i.scoring.runs.score_run`.

    Args:
        settings: values of guidance, truncation and the settings of the run's family.

    Raises:
        InputError: the split is kept back for scores, or `score_run` refuses the options.
    """
    if options.split in KEPT_BACK:
        raise InputError(
            f"split {options.split} is kept back for scores: settings chosen on it score too well on it; sweep on val"
        )
    variants = [options.scored_with(knobs) for knobs in settings]
    try:
        for knobs, scores in zip(settings, score_settings(variants, Pass(tick), needed=("fid",)), strict=True):
            yield Point(knobs, scores)
    except InputError as error:
        raise InputError(without_other_options(str(error))) from error


def without_other_options(message: str) -> str:
    """Returns an error message of a scoring without the clauses that suggest options which a sweep does not have."""
    flags = {flag_of(name, field) for name, field in SweepOptions.model_fields.items()}
    first, *rest = re.split(r"(; |, or |, )", message)
    clauses = zip(rest[::2], rest[1::2], strict=True)
    return first + "".join(joint + clause for joint, clause in clauses if set(_FLAG.findall(clause)) <= flags)


def best(points: Sequence[Point]) -> int:
    """Returns the index of the best setting by `RULE`."""
    most = max((point.faithfulness for point in points), key=lambda score: score.value)
    least = most.value if most.interval is None else most.interval[0]
    faithful = [k for k, point in enumerate(points) if point.faithfulness.value >= least]
    return min(faithful, key=lambda k: points[k].fidelity.value)


def on_the_front(points: Sequence[Point]) -> list[bool]:
    """Returns True for the settings of the Pareto front of fidelity and faithfulness."""
    values = [(point.fidelity.value, -point.faithfulness.value) for point in points]
    return [not any(x <= a and y <= b and (x, y) != (a, b) for x, y in values) for a, b in values]


def defaults_of(knobs: Knobs) -> Defaults:
    """Returns the setting as defaults of a run; settings that were not tried keep the model's default."""
    fields: dict[str, Any] = {"settings": {name: value for name, value in knobs.items() if name not in OF_THE_CALL}}
    if knobs.get("guidance") is not None:
        fields["guidance_scale"] = knobs["guidance"]
    if knobs.get("truncation") is not None:
        fields["truncation"] = knobs["truncation"]
    return Defaults.model_validate(fields)


def document(points: Sequence[Point]) -> dict[str, Any]:
    """Returns the sweep as JSON: every score with its protocol, the rule and the best setting."""
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
