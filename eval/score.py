"""Scores a run on held-out captions, or images in a folder, a .tar or an .npz against other images.

    t2i eval score runs/shapes --data shapes-2 --split heldout -n 1000
    t2i eval score generated/ --against real.safetensors --inception weights-inception-2015-12-05-6726825d.pth --clip vit-b-32

Prints a table, and writes a JSON file in which every score has its protocol, the scores of single images (.safetensors) for
`t2i eval compare`, and for a run a sheet of its first images. docs/scoring.md has the rules.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from t2i.cli import run_program
from t2i.console import progress_of, table
from t2i.data.folders.index import holds_images
from t2i.distributed import launched_ranks
from t2i.errors import InputError
from t2i.files import refuse_unwritable
from t2i.hardware import prepare_cpu
from t2i.images import ImageArray, grid
from t2i.metrics.score import Score, rounded, score_row, write_scores
from t2i.scoring.comparison import Samples, beside
from t2i.scoring.images.store import FeatureFile
from t2i.scoring.options import ScoreOptions, refuse_ignored
from t2i.scoring.protocols import settle
from t2i.scoring.runs import score_images, score_run
from t2i.scoring.sides import is_run
from t2i.weights import shipped

COLUMNS = ("score", "value", "95 % interval", "real", "shuffled")  # the last two are names of bounds


def show(scores: Sequence[Score]) -> None:
    """Prints the table; for unseen combinations only `strict`, while the file has every aspect."""
    shown = [score for score in scores if "-unseen-" not in score.name or "-strict-" in score.name]
    table(COLUMNS, [score_row(score, COLUMNS[3:]) for score in shown])
    for score in shown:
        for bound, value in score.bounds.items():
            if bound not in COLUMNS:
                print(f"{score.name}, {bound}: {rounded(value)}")


def file_name(scores: Sequence[Score], n: int | None) -> str:
    """Returns e.g. scores-shapes-2-heldout-1000.json, or for images the last name of their path instead of the data."""
    protocol = scores[0].protocol
    data = protocol.data
    word = re.sub(r"[^\w.-]+", "-", data if ":" not in data else Path(data).name)
    split = "" if protocol.split is None else f"-{protocol.split}"
    return f"scores-{word}{split}-{n or max(score.protocol.n_fake for score in scores)}.json"


def apply_protocol(options: ScoreOptions) -> ScoreOptions:
    """Returns the options with those of their protocol filled in."""
    if options.protocol is None:
        return options.model_copy(update={"split": options.split or "val"})
    metrics = None if options.metrics is None else list(options.metrics)
    fixed = settle(options.protocol, options.model_dump() | {"metrics": metrics})
    return options.model_copy(update=fixed | {"metrics": tuple(fixed["metrics"])})


def refuse_settings_of_runs(options: ScoreOptions) -> None:
    """Raises InputError for options that have an effect only on a run, when images are scored."""
    folder = Path(options.target)
    if folder.is_dir() and not holds_images(folder):
        raise InputError(
            f"{folder} holds no images and is not a run (no checkpoints, no config.yaml); name one of the two"
        )
    knobs: dict[str, object] = {"truncation": options.truncation, "guidance": options.guidance, **options.settings}
    knobs |= {"reranker": options.reranker, "best-of": options.best_of if options.best_of > 1 else None}
    knobs |= {"prompts": options.prompts, "allow-leak": options.allow_leak}
    refuse_ignored(
        {f"--{name.replace('_', '-')}": value for name, value in knobs.items()}, f"for images in {options.target}"
    )


def write_results(scores: Sequence[Score], samples: Samples, sheets: Sequence[Image.Image], out: Path) -> None:
    """Writes the scores, those of single images and the sheet; prints the paths."""
    write_scores(out, scores)
    written = [out]
    if samples.values:
        samples.write(beside(out))
        written.append(beside(out))
    for sheet in sheets:
        sheet.save(out.with_suffix(".png"))
        written.append(out.with_suffix(".png"))
    print(f"wrote {', '.join(map(str, written[:-1]))} and {written[-1]}" if written[1:] else f"wrote {out}")


def target_of(options: ScoreOptions) -> tuple[bool, Path]:
    """Returns True if the target is a run, False for images, and the folder for its scores; checks the options.

    Raises:
        InputError: an option has no effect on this target, or the scores cannot be written.
    """
    target = options.target
    folder = Path() if target in shipped() else Path(target)  # scores of a shipped model go into the working directory
    run = is_run(target) or not folder.exists() and options.against is None
    place = folder if run and folder.is_dir() else Path()
    if run and options.reranker is not None and options.best_of == 1:
        raise InputError(
            f"--reranker {options.reranker} chooses among candidates, and there is only one; set --best-of to 2 or more"
        )
    if not run:
        refuse_settings_of_runs(options)
    if options.out is not None or run:
        refuse_unwritable(options.out or place / "scores.json", "a JSON file", "--out" if options.out else "")
    return run, place


def main(options: ScoreOptions) -> None:
    prepare_cpu()
    options = apply_protocol(options)
    run, place = target_of(options)

    # Scores from all processes, scores of single images, and a sheet of the first ones
    sheets: list[Image.Image] = []
    samples = Samples()

    def keep_sheet(images: Sequence[ImageArray], captions: Sequence[str]) -> None:
        sheets.append(grid(images, captions, columns=6))

    store = None if options.save_features is None else FeatureFile(options.save_features)
    with launched_ranks() as ranks, progress_of(ranks.is_main) as tick:
        how: dict[str, Any] = {"tick": tick, "ranks": ranks, "store": store, "keep": samples}
        scores = score_run(options, show=keep_sheet, **how) if run else score_images(options, **how)
        if not ranks.is_main:
            return

    # Results on the terminal
    show(scores)
    if weights := scores[0].protocol.weights:
        print(f"weights: {weights}")
    if store is not None:
        reused = f"; reused from it: {', '.join(store.read)}" if store.read else ""
        print(f"features are stored in {store.path}{reused}")

    # Files: scores with their protocol, scores of single images, the sheet
    if options.out is None and not run:
        print("nothing was written; name a JSON file with --out to store the scores and their protocol")
        return
    write_results(scores, samples, sheets, options.out or place / file_name(scores, options.n))


if __name__ == "__main__":  # python -m t2i.eval.score
    run_program("eval", "score")
