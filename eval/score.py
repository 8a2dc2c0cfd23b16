"""Scores a run on captions it never saw, or one folder of pictures against another.

    t2i eval score runs/shapes --data shapes-2 --split heldout -n 1000
    t2i eval score generated/ --against real/ --inception weights-inception-2015-12-05-6726825d.pth --clip vit-b-32

A table, and a JSON file in which every score carries its protocol, with a sheet of the first pictures beside it.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from t2i.console import shown_progress
from t2i.cpu import prepare_cpu
from t2i.errors import InputError
from t2i.images import ImageArray, grid
from t2i.metrics.protocol import Score, write_scores
from t2i.scoring import score_folders, score_run
from t2i.scoring_metrics import Options

COLUMNS = ("score", "value", "95 % interval", "real", "shuffled")  # the last two are names of bounds


def number(x: float) -> str:
    """Three decimals of a share, three digits of anything else."""
    return f"{x:.3f}" if 0.001 <= abs(x) < 1 or x == 0 else f"{x:.3g}"


def row(score: Score) -> list[str]:
    """One line of the table."""
    interval = "" if score.interval is None else "..".join(map(number, score.interval))
    beside = (number(score.bounds[key]) if key in score.bounds else "" for key in COLUMNS[3:])
    return [score.name, number(score.value), interval, *beside]


def show(scores: Sequence[Score]) -> None:
    """Prints the table; of unseen combinations `strict` alone, the file has every aspect."""
    shown = [score for score in scores if "-unseen-" not in score.name or "-strict-" in score.name]
    if sys.stdout.isatty():
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        for k, column in enumerate(COLUMNS):
            table.add_column(column, justify="right" if k else "left", no_wrap=k > 0, overflow="fold")
        for score in shown:
            table.add_row(*row(score))
        Console().print(table)
    else:
        lines = [list(COLUMNS), *map(row, shown)]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        for cells in lines:
            print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    for score in shown:
        for bound, value in score.bounds.items():
            if bound not in COLUMNS:
                print(f"{score.name}, {bound}: {number(value)}")


def check_place(folder: Path, against: str | None, out: Path | None) -> None:
    """Refuses, before any work, what cannot be written in the end."""
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        what = "is a folder" if out.is_dir() else f"cannot be written: there is no folder {out.parent}"
        raise InputError(f"--out {out} {what}; name a JSON file in an existing folder")
    if out is None and against is None and folder.is_dir() and not os.access(folder, os.W_OK):
        raise InputError(f"{folder} is read-only; name a JSON file for the scores with --out")


def refuse_ignored(given: Mapping[str, object]) -> None:
    """Refuses options of runs when folders are scored."""
    for option, value in given.items():
        if value is not None:
            raise InputError(f"{option} {value} does nothing with --against; drop one of the two")


def file_name(scores: Sequence[Score], n: int | None) -> str:
    """E.g. scores-shapes-2-heldout-1000.json; of a folder its last name."""
    protocol = scores[0].protocol
    data = protocol.data
    word = re.sub(r"[^\w.-]+", "-", data if ":" not in data else Path(data).name)
    return f"scores-{word}-{protocol.split}-{n or max(score.protocol.n_fake for score in scores)}.json"


def main(
    target: str,
    data: str | None,
    against: str | None,
    split: str,
    n: int | None,
    metrics: list[str] | None,
    seed: int,
    truncation: float | None,
    guidance: float | None,
    settings: dict[str, Any],
    best_of: int,
    reranker: str | None,
    inception: Path | None,
    clip: Path | None,
    scorer: Path | None,
    force: bool,
    out: Path | None,
) -> None:
    prepare_cpu()
    if reranker is not None and best_of == 1:
        raise InputError(
            f"--reranker {reranker} chooses among candidates, and there is one; ask for more with --best-of"
        )
    settings = {name: value for name, value in settings.items() if value is not None}
    options = Options(metrics, seed, truncation, guidance, settings, best_of, reranker, inception, clip, scorer, force)
    folder = Path(target)
    check_place(folder, against, out)
    sheets: list[Image.Image] = []

    def keep_sheet(pictures: Sequence[ImageArray], captions: Sequence[str]) -> None:
        sheets.append(grid(pictures, captions, columns=6))

    with shown_progress() as tick:
        if against is None:
            scores = score_run(target, data, split, n, options, tick, keep_sheet)
            out = out or (folder if folder.is_dir() else Path()) / file_name(scores, n)
        else:
            given = {f"--{name.replace('_', '-')}": value for name, value in settings.items()}
            refuse_ignored({"--data": data, "--truncation": truncation, "--guidance": guidance, **given})
            refuse_ignored({"--best-of": best_of if best_of > 1 else None, "--reranker": reranker})
            scores = score_folders(target, against, n, options, tick)

    show(scores)
    if out is None:
        print("the table is all there is: name a JSON file with --out to keep the scores and their protocol")
        return
    write_scores(out, scores)
    for sheet in sheets:
        sheet.save(out.with_suffix(".png"))
    print(f"wrote {out}" + (f" and {out.with_suffix('.png')}" if sheets else ""))
