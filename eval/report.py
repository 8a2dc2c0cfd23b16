"""Shows one or several runs side by side on one page: images beside prompts, scores, curves, configs.

    t2i eval report runs/cgan
    t2i eval report runs/cgan runs/prior --out report.html

Every run samples the same held-out captions with the same seed; a tokenizer shows its reconstructions. The scores are those
that `t2i eval score` left in the runs.
"""

from pathlib import Path

from t2i.cli import run_program
from t2i.console import shown_progress
from t2i.errors import InputError
from t2i.files import refuse_unwritable
from t2i.hardware import prepare_cpu
from t2i.report.options import ReportOptions
from t2i.report.page import make_report
from t2i.weights import shipped

NAME = "report.html"


def place_of(options: ReportOptions) -> Path:
    """The file of the page; refused before any work if it cannot be written."""
    own = [Path(run) for run in options.runs if run not in shipped()]
    alone = len(options.runs) == len(own) == 1 and own[0].is_dir()
    place = options.out or (own[0] if alone else Path()) / NAME
    if place.exists():
        raise InputError(f"{place} exists; delete it, or name another file with --out")
    refuse_unwritable(place, "an HTML file")
    return place


def main(options: ReportOptions) -> None:
    prepare_cpu()
    place = place_of(options)
    with shown_progress(" images") as tick:
        make_report(options, place, tick)
    print(f"wrote {place}, {place.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":  # python -m t2i.eval.report
    run_program("eval", "report")
