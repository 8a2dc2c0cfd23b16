"""Scores a tokenizer on held-out pictures: what its tokens lose.

    t2i eval tokenizer runs/vqvae --split heldout -n 1000
    t2i eval tokenizer runs/vqvae --inception weights-inception-2015-12-05-6726825d.pth --lpips vgg16-397923af.pth

PSNR, SSIM, LPIPS, the Frechet distance of reconstructions (`rfid`), and of drawn shapes what can still be read from them.
"""

from pathlib import Path
from typing import Any

from t2i.console import shown_progress
from t2i.errors import InputError
from t2i.extractors import Resize
from t2i.hardware import prepare_cpu
from t2i.metrics.score import write_scores
from t2i.scoring.options import Options
from t2i.scoring.tokenizer import score_tokenizer


def main(
    run: Path,
    data: str | None,
    split: str,
    n: int | None,
    files: dict[str, Any],
    lpips: Path | None,
    resize: Resize,
    force: bool,
    allow_leak: bool,
    out: Path | None,
) -> None:
    prepare_cpu()
    place = out or run / f"scores-{split}.json"
    if place.is_dir() or not place.parent.is_dir():
        raise InputError(f"{place} cannot be written; name a JSON file in an existing folder with --out")
    options = Options(**files, force=force, resize=resize, allow_leak=allow_leak)
    with shown_progress() as tick:
        scores = score_tokenizer(run, data, split, n, options, lpips, tick)
    for score in scores:
        if "-unseen-" not in score.name or "-strict-" in score.name:
            interval = "" if score.interval is None else " ({:.4g}..{:.4g})".format(*score.interval)
            print(f"{score.name:<44}{score.value:.4g}{interval}")
    write_scores(place, scores)
    print(f"wrote {place}")
