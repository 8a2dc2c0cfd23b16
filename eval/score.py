"""Scores a run on captions it never saw, or pictures in a folder, a .tar or an .npz against others.

    t2i eval score runs/shapes --data shapes-2 --split heldout -n 1000
    t2i eval score generated/ --against real.safetensors --inception weights-inception-2015-12-05-6726825d.pth --clip vit-b-32

A table, and a JSON file in which every score carries its protocol; beside it what each picture scored (.safetensors), for
`t2i eval compare`, and of a run a sheet of its first pictures. docs/scoring.md has the rules.
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

from t2i.console import progress_of
from t2i.data.folders.index import holds_images
from t2i.distributed import launched_ranks
from t2i.errors import InputError
from t2i.extractors import Resize
from t2i.hardware import prepare_cpu
from t2i.images import ImageArray, grid
from t2i.metrics.score import Score, write_scores
from t2i.scoring.comparison import Samples, beside
from t2i.scoring.images.store import FeatureFile
from t2i.scoring.options import Options
from t2i.scoring.protocols import settle
from t2i.scoring.runs import is_run, score_pictures, score_run

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


def check_place(folder: Path, is_run: bool, out: Path | None) -> None:
    """Refuses, before any work, what cannot be written in the end."""
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        what = "is a folder" if out.is_dir() else f"cannot be written: there is no folder {out.parent}"
        raise InputError(f"--out {out} {what}; name a JSON file in an existing folder")
    if out is None and is_run and folder.is_dir() and not os.access(folder, os.W_OK):
        raise InputError(f"{folder} is read-only; name a JSON file for the scores with --out")


def refuse_ignored(given: Mapping[str, object], why: str) -> None:
    """Refuses options that would do nothing."""
    for option, value in given.items():
        if value not in (None, False):
            words = "" if value is True else f" {value}"
            raise InputError(f"{option}{words} does nothing {why}; drop one of the two")


def file_name(scores: Sequence[Score], n: int | None) -> str:
    """E.g. scores-shapes-2-heldout-1000.json; of a folder or file its last name."""
    protocol = scores[0].protocol
    data = protocol.data
    word = re.sub(r"[^\w.-]+", "-", data if ":" not in data else Path(data).name)
    split = "" if protocol.split is None else f"-{protocol.split}"
    return f"scores-{word}{split}-{n or max(score.protocol.n_fake for score in scores)}.json"


def settle_protocol(name: str | None, given: dict[str, Any], files: Mapping[str, object]) -> dict[str, Any]:
    """The options of a scoring, as a protocol of that name has them."""
    settled: dict[str, Any] = given if name is None else given | settle(name, given | dict(files))
    return settled | {"split": settled["split"] or "val"}


def main(
    target: str,
    data: str | None,
    against: str | None,
    prompts: Path | None,
    protocol: str | None,
    split: str | None,
    n: int | None,
    resolution: int | None,
    metrics: list[str] | None,
    seed: int,
    truncation: float | None,
    guidance: float | None,
    settings: dict[str, Any],
    best_of: int,
    reranker: str | None,
    files: dict[str, Any],
    resize: Resize,
    force: bool,
    allow_leak: bool,
    skip_broken: bool,
    save_features: Path | None,
    out: Path | None,
) -> None:
    prepare_cpu()
    run, folder = is_run(target) or not Path(target).exists() and against is None, Path(target)
    if protocol is not None:
        refuse_ignored({"--against": against, "--prompts": prompts}, f"with --protocol {protocol}")
    if against is not None or prompts is not None:
        refuse_ignored({"--data": data}, f"with --against {against}" if against else f"with --prompts {prompts}")
    given = {"data": data, "split": split, "n": n, "resolution": resolution, "metrics": metrics}
    chosen = settle_protocol(protocol, given, files)
    settings = {name: value for name, value in settings.items() if value is not None}
    if run and reranker is not None and best_of == 1:
        raise InputError(
            f"--reranker {reranker} chooses among candidates, and there is one; ask for more with --best-of"
        )
    if not run:
        if folder.is_dir() and not holds_images(folder):
            raise InputError(
                f"{target} holds no pictures and is no run (no checkpoints, no config.yaml); name one of the two"
            )
        knobs = {"truncation": truncation, "guidance": guidance, **settings, "reranker": reranker}
        knobs |= {"best-of": best_of if best_of > 1 else None, "prompts": prompts, "allow-leak": allow_leak}
        refuse_ignored({f"--{name.replace('_', '-')}": its for name, its in knobs.items()}, f"of pictures in {target}")
    options = Options(
        chosen["metrics"],
        seed,
        truncation,
        guidance,
        settings,
        best_of,
        reranker,
        **files,
        force=force,
        resize=resize,
        allow_leak=allow_leak,
        skip_broken=skip_broken,
        resolution=chosen["resolution"],
        save_features=save_features,
        named=protocol,
    )
    check_place(folder, run, out)
    place = {"data": chosen["data"], "split": chosen["split"], "against": against}
    sheets: list[Image.Image] = []
    samples = Samples()

    def keep_sheet(pictures: Sequence[ImageArray], captions: Sequence[str]) -> None:
        sheets.append(grid(pictures, captions, columns=6))

    store = None if save_features is None else FeatureFile(save_features)
    with launched_ranks() as ranks, progress_of(ranks.is_main) as tick:
        how: dict[str, Any] = {"tick": tick, "ranks": ranks, "store": store, "keep": samples, **place}
        if run:
            scores = score_run(target, n=chosen["n"], options=options, show=keep_sheet, prompts=prompts, **how)
        else:
            scores = score_pictures(target, n=chosen["n"], options=options, **how)
        if not ranks.is_main:
            return

    show(scores)
    if weights := scores[0].protocol.weights:
        print(f"weights: {weights}")
    if store is not None:
        read = f"; read from it and not made again: {', '.join(store.read)}" if store.read else ""
        print(f"features are kept in {store.path}{read}")
    if out is None and not run:
        print("the table is all there is: name a JSON file with --out to keep the scores and their protocol")
        return
    out = out or (folder if folder.is_dir() else Path()) / file_name(scores, chosen["n"])
    write_scores(out, scores)
    written = [out]
    if samples.values:
        samples.write(beside(out))
        written.append(beside(out))
    for sheet in sheets:
        sheet.save(out.with_suffix(".png"))
        written.append(out.with_suffix(".png"))
    print(f"wrote {', '.join(map(str, written[:-1]))} and {written[-1]}" if written[1:] else f"wrote {out}")
