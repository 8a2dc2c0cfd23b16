"""Writes a page with one or several runs side by side: images with their prompts, scores, curves, configs.

    t2i eval report runs/cgan
    t2i eval report runs/cgan runs/prior --out report.html

Every run samples the same held-out captions with the same seed; a tokenizer shows its reconstructions. The scores are read
from the files that `t2i eval score` wrote into the runs.
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
    """Returns the file of the page; raises InputError if it cannot be written."""
    run = options.runs[0]
    inside = len(options.runs) == 1 and run not in shipped() and Path(run).is_dir()
    place = options.out or (Path(run) if inside else Path()) / NAME
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
