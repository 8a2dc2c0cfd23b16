"""Scores several settings of sampling on a run; shows fidelity against faithfulness as a table, a JSON file and a chart.

    t2i eval sweep runs/prior --guidance 1,1.5,2,3,5 --temperature 0.7,1
    t2i eval sweep runs/cgan --guidance 1,1.5,2 --truncation 0.6,0.8,1 --make-default

Every setting samples the same captions of `val` with the same noise. `--make-default` makes the best setting the default of the
run: it is written to sampling.json in the run, which may be edited or deleted.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from t2i.cli import run_program
from t2i.console import shown_progress, table
from t2i.errors import InputError
from t2i.files import refuse_unwritable, write_text
from t2i.hardware import prepare_cpu
from t2i.metrics.score import Score
from t2i.report.chart import number
from t2i.report.sweep import knobs_text, sweep_chart, value_text
from t2i.sampling.saved import DEFAULTS, write_defaults
from t2i.scoring.options import SweepOptions
from t2i.scoring.sweep import RULE, Point, best, combinations, defaults_of, document, on_the_front, sweep


def with_interval(score: Score) -> str:
    interval = "" if score.interval is None else f" ({number(score.interval[0])}..{number(score.interval[1])})"
    return number(score.value) + interval


def show(points: Sequence[Point]) -> None:
    """Prints the table: `best` by the rule, `front` where no other setting is better in both."""
    names = list(points[0].knobs)
    head = [*(name.replace("_", "-") for name in names), points[0].fidelity.name, points[0].faithfulness.name, ""]
    chosen, front = best(points), on_the_front(points)
    rows = [
        [
            *(value_text(point.knobs[name]) for name in names),
            with_interval(point.fidelity),
            with_interval(point.faithfulness),
            "best" if k == chosen else "front" if front[k] else "",
        ]
        for k, point in enumerate(points)
    ]
    table(head, rows, bold=chosen)


def place_of(options: SweepOptions, subject: str) -> Path:
    """Returns the path of the JSON file; raises InputError if it cannot be written. The chart is written beside it."""
    folder, word = Path(options.run), re.sub(r"[^\w.-]+", "-", subject)
    place = options.out or (folder if folder.is_dir() else Path()) / f"sweep-{word}.json"
    refuse_unwritable(place, "a JSON file", "--out" if options.out else "")
    return place


def main(options: SweepOptions) -> None:
    prepare_cpu()

    # Settings to try, and a place for the results
    run = Path(options.run)
    settings = combinations(options.values())
    if options.make_default and not (run / "checkpoints").is_dir():
        raise InputError(f"--make-default writes into a run directory, and {run} is not one; drop it")
    place_of(options, "")

    # A point for each setting
    points: list[Point] = []
    with shown_progress() as tick:

        def report(what: str, done: int, total: int) -> None:
            stage = f"setting {len(points) + 1} of {len(settings)}" if what == "generated images" else what
            tick(stage, done, total)

        for point in sweep(options, settings, report):
            points.append(point)

    # Table, JSON file and chart
    show(points)
    protocol = points[0].fidelity.protocol
    chosen = points[best(points)].knobs
    place = place_of(options, f"{Path(protocol.data).name}-{protocol.split}-{options.n}")
    write_text(place, json.dumps(document(points), indent=1) + "\n")
    title = f"{run} on {options.n:,} captions of {protocol.data}, split {protocol.split}"
    write_text(place.with_suffix(".svg"), sweep_chart(points, title))
    print(f"best: {knobs_text(chosen)} ({RULE})")

    # The best setting as the default of the run
    defaults = defaults_of(chosen)
    if options.make_default:
        write_defaults(run, defaults)
        print(f"it is now the default of this run: {run / DEFAULTS}")
    else:
        print(f"to make it the default of this run, write into {run / DEFAULTS}: {defaults.model_dump_json()}")
    print(f"wrote {place} and {place.with_suffix('.svg')}")


if __name__ == "__main__":  # python -m t2i.eval.sweep
    run_program("eval", "sweep")
