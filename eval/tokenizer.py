"""Scores the reconstructions of a tokenizer on held-out images.

    t2i eval tokenizer runs/vqvae --split heldout -n 1000
    t2i eval tokenizer runs/vqvae --inception weights-inception-2015-12-05-6726825d.pth --lpips vgg16-397923af.pth

Computes PSNR, SSIM, LPIPS, the Frechet distance of reconstructions (`rfid`), and for the embedded shapes the share of
reconstructions that the oracle still reads correctly.
"""

from t2i.cli import run_program
from t2i.console import shown_progress
from t2i.errors import InputError
from t2i.files import refuse_unwritable
from t2i.hardware import prepare_cpu
from t2i.metrics.score import write_scores
from t2i.scoring.options import TokenizerOptions
from t2i.scoring.tokenizer import score_tokenizer
from t2i.weights import shipped


def main(options: TokenizerOptions) -> None:
    prepare_cpu()
    place = options.out or options.run / f"scores-{options.split}.json"
    if options.out is not None or options.run.is_dir():
        refuse_unwritable(place, "a JSON file", "--out" if options.out else "")
    elif str(options.run) in shipped():
        raise InputError(f"{options.run} ships with t2i and holds no scores; name a JSON file with --out")
    with shown_progress() as tick:
        scores = score_tokenizer(options, tick)
    for score in scores:
        if "-unseen-" not in score.name or "-strict-" in score.name:
            interval = "" if score.interval is None else " ({:.4g}..{:.4g})".format(*score.interval)
            print(f"{score.name:<44}{score.value:.4g}{interval}")
    write_scores(place, scores)
    print(f"wrote {place}")


if __name__ == "__main__":  # python -m t2i.eval.tokenizer
    run_program("eval", "tokenizer")
