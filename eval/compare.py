"""Scores of several files side by side, each against the first.

    t2i eval compare runs/a/scores-shapes-2-heldout-1000.json runs/b/scores-shapes-2-heldout-1000.json

Differences of protocol are named. Scores that are a mean over images of the same captions are compared image by
image: a paired bootstrap of prompts. A Frechet distance is one number of all images: it is shown, and not tested.
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

SUPERSCRIPT = "*"  # behind a value whose protocol is another


def cell(score: Score | None, differing: Sequence[str] = ()) -> str:
    return "-" if score is None else rounded(score.value) + (SUPERSCRIPT if differing else "")


def row(line: Line) -> list[str]:
    """Returns the name, the first value, then of each other file its value, the difference and p."""
    cells = [line.name, cell(line.scores[0])]
    for score, differing, found in zip(line.scores[1:], line.differing, line.differences, strict=True):
        cells.append(cell(score, differing))
        if found is None:
            cells += ["", ""]
        else:
            low, high = map(rounded, found.interval)
            cells += [f"{rounded(found.value)} ({low}..{high})", f"{found.p:.3f}" if found.p >= 0.001 else "<0.001"]
    return cells


def headings(paths: Sequence[Path]) -> list[str]:
    """Returns the head of the table, with the files' names as short as they differ."""
    names = [path.stem for path in paths]
    names = names if len(set(names)) == len(names) else [str(path.with_suffix("")) for path in paths]
    return ["score", names[0], *(word for name in names[1:] for word in (name, "difference (95 %)", "p"))]


def show(lines: Sequence[Line], head: Sequence[str]) -> None:
    """Prints the table; of unseen combinations `strict` alone, as t2i eval score does."""
    rows = [row(line) for line in lines if "-unseen-" not in line.name or "-strict-" in line.name]
    table(head, rows)


def warn_differing(lines: Sequence[Line], paths: Sequence[Path]) -> None:
    """Warns, for each file but the first, of differences of protocol, and in how many of the scores."""
    for k, path in enumerate(paths[1:]):
        counts = Counter(difference for line in lines for difference in line.differing[k])
        both = sum(line.scores[0] is not None and line.scores[k + 1] is not None for line in lines)
        told = [f"{short(what)} ({'all' if n == both else n})" for what, n in counts.items()]
        if told:
            words = "; ".join(told)
            print(
                f"warning: {paths[0]} and {path} are of other protocols, and do not compare where they differ: {words}",
                file=sys.stderr,
            )


def short(difference: str) -> str:
    """Returns the text with digests cut to their first digits."""
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{24,}\b", r"\1...", difference)


def explain(lines: Sequence[Line], paths: Sequence[Path]) -> None:
    """Prints the reason for each score that is not tested."""
    for k, path in enumerate(paths[1:]):
        why: dict[str, list[str]] = {}
        for line in lines:
            if line.why[k]:
                why.setdefault(line.why[k], []).append(line.name)
        for reason, names in why.items():
            beside = f" ({path})" if len(paths) > 2 else ""
            print(f"not tested{beside}, {reason}: {', '.join(names)}")


def main(options: CompareOptions) -> None:
    paths = options.scores
    lines = compare(paths)
    warn_differing(lines, paths)
    show(lines, headings(paths))
    explain(lines, paths)


if __name__ == "__main__":  # python -m t2i.eval.compare
    run_program("eval", "compare")
