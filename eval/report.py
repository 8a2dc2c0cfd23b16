"""Shows one or several runs side by side on one page: pictures beside prompts, scores, curves, configs.

    t2i eval report runs/cgan
    t2i eval report runs/cgan runs/prior --out report.html

Every run draws the same held-out captions with the same seed; a tokenizer shows its reconstructions. Scores are those of
`t2i eval score`, which lie in the runs.
"""

from pathlib import Path

from t2i.console import shown_progress
from t2i.errors import InputError
from t2i.hardware import prepare_cpu
from t2i.report.gallery import Ask
from t2i.report.page import make_report

NAME = "report.html"


def place_of(runs: list[Path], out: Path | None) -> Path:
    """Where the page goes; refused before any work where it cannot."""
    place = out or (runs[0] / NAME if len(runs) == 1 and runs[0].is_dir() else Path(NAME))
    if place.exists():
        raise InputError(f"{place} exists; delete it, or name another file with --out")
    if not place.parent.is_dir():
        raise InputError(f"{place} cannot be written: there is no folder {place.parent}; name an HTML file with --out")
    return place


def main(
    runs: list[Path],
    data: str | None,
    splits: list[str] | None,
    n: int,
    train: int,
    scorer: str | None,
    seed: int,
    title: str | None,
    out: Path | None,
) -> None:
    prepare_cpu()
    place = place_of(runs, out)
    ask = Ask(data, splits, n, train, scorer, seed)
    names = ", ".join(run.resolve().name for run in runs)
    with shown_progress(" pictures") as tick:
        make_report(runs, place, title or names, ask, tick)
    print(f"wrote {place}, {place.stat().st_size / 1e6:.1f} MB")
