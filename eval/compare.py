"""Compares score files with the first of them.

    t2i eval compare runs/a/scores-shapes-2-heldout-1000.json runs/b/scores-shapes-2-heldout-1000.json

Prints differences of protocol. Scores that are means over images of the same captions are tested with a paired bootstrap of
prompts. A Frechet distance is one number for all images, and is not tested.
"""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from t2i.cli import run_program
from t2i.console import table
from t2i.metrics.score import Score, rounded
from t2i.scoring.comparison import Line, compare
from t2i.scoring.options import CompareOptions

SUPERSCRIPT = "*"  # marks a value with another protocol


def cell(score: Score | None, differing: Sequence[str] = ()) -> str:
    return "-" if score is None else rounded(score.value) + (SUPERSCRIPT if differing else "")


def row(line: Line) -> list[str]:
    """Returns the name and the first value, then value, difference and p for each other file."""
    cells = [line.name, cell(line.scores[0])]
    for score, differing, difference in zip(line.scores[1:], line.differing, line.differences, strict=True):
        cells.append(cell(score, differing))
        if difference is None:
            cells += ["", ""]
        else:
            low, high = map(rounded, difference.interval)
            p = f"{difference.p:.3f}" if difference.p >= 0.001 else "<0.001"
            cells += [f"{rounded(difference.value)} ({low}..{high})", p]
    return cells


def headings(paths: Sequence[Path]) -> list[str]:
    """Returns the head of the table, with file names, or paths if two names are equal."""
    names = [path.stem for path in paths]
    names = names if len(set(names)) == len(names) else [str(path.with_suffix("")) for path in paths]
    return ["score", names[0], *(word for name in names[1:] for word in (name, "difference (95 %)", "p"))]


def show(lines: Sequence[Line], head: Sequence[str]) -> None:
    """Prints the table; for unseen combinations only `strict`, as t2i eval score does."""
    rows = [row(line) for line in lines if "-unseen-" not in line.name or "-strict-" in line.name]
    table(head, rows)


def warn_differing(lines: Sequence[Line], paths: Sequence[Path]) -> None:
    """Warns of differences of protocol between the first file and each other one, with the number of scores they affect."""
    for k, path in enumerate(paths[1:]):
        counts = Counter(difference for line in lines for difference in line.differing[k])
        both = sum(line.scores[0] is not None and line.scores[k + 1] is not None for line in lines)
        if counts:
            listed = "; ".join(f"{short(what)} ({'all' if n == both else n})" for what, n in counts.items())
            print(f"warning: scores of {paths[0]} and {path} have different protocols: {listed}", file=sys.stderr)


def short(difference: str) -> str:
    """Cuts digests to their first 8 digits."""
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{24,}\b", r"\1...", difference)


def explain(lines: Sequence[Line], paths: Sequence[Path]) -> None:
    """Prints the reason for each score that is not tested."""
    for k, path in enumerate(paths[1:]):
        names_by_reason: dict[str, list[str]] = {}
        for line in lines:
            if line.why[k]:
                names_by_reason.setdefault(line.why[k], []).append(line.name)
        for reason, names in names_by_reason.items():
            which = f" ({path})" if len(paths) > 2 else ""
            print(f"not tested{which}, {reason}: {', '.join(names)}")


def main(options: CompareOptions) -> None:
    paths = options.scores
    lines = compare(paths)
    warn_differing(lines, paths)
    show(lines, headings(paths))
    explain(lines, paths)


if __name__ == "__main__":  # python -m t2i.eval.compare
    run_program("eval", "compare")
