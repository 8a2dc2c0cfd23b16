"""Scores captions against references with corpus BLEU-4 and CIDEr-D, and the answers of a reader.

    t2i eval captions written.jsonl --out scores.json
    t2i eval captions runs/reader --data shapes-2 --split heldout -n 500

The file has a line for each image: {"candidate": "a red circle", "references": ["a red disc", "one red circle"]}. A reader
writes its captions, and answers the questions of the data, if there are any.
"""

from t2i.cli import run_program
from t2i.files import refuse_unwritable
from t2i.metrics.score import write_scores
from t2i.scoring.captions import score_captions
from t2i.scoring.options import CaptionsOptions


def main(options: CaptionsOptions) -> None:
    out = options.out
    refuse_unwritable(out, "a JSON file", "--out")

    # Scores, each with its interval and floor
    scores = score_captions(options)
    for score in scores:
        interval = "" if score.interval is None else " ({:.3f}..{:.3f})".format(*score.interval)
        floor = f"  shuffled images {score.bounds['shuffled']:.3f}" if "shuffled" in score.bounds else ""
        print(f"{score.name:<26}{score.value:.3f}{interval}{floor}")

    # The same as a file
    if out is not None:
        write_scores(out, scores)
        print(f"wrote {out}")


if __name__ == "__main__":  # python -m t2i.eval.captions
    run_program("eval", "captions")
