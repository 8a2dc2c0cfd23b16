"""Measures how much a model reveals about its training images, by guessing which images it was trained on.

    t2i eval privacy runs/prior
    t2i eval privacy cgan -n 1000 --html privacy.html --out privacy.json

Attacks training images and images of val by likelihood (a prior), by the logit of the critic (a GAN), and by the distance from
the nearest sampled image. If the two cannot be separated, `auc` is .5 and `found` is .01. docs/privacy.md has the limits.
"""

from t2i.cli import run_program
from t2i.console import shown_progress, table
from t2i.files import refuse_unwritable
from t2i.hardware import device, prepare_cpu
from t2i.metrics.score import score_row, write_scores
from t2i.privacy.options import PrivacyOptions


def main(options: PrivacyOptions) -> None:
    prepare_cpu()
    refuse_unwritable(options.html, "an HTML file", "--html")
    refuse_unwritable(options.out, "a JSON file", "--out")
    # slow to import, so only after the checks
    from t2i.pipeline import TextToImagePipeline
    from t2i.privacy.page import write_page
    from t2i.privacy.scores import attack

    # Attacks on training images and images of val
    with shown_progress(" images") as tick:
        pipe = TextToImagePipeline.from_pretrained(options.run, device())
        attacked = attack(options, pipe, tick)

    # Scores with their intervals, and the epsilon of private training
    table(("score", "value", "95 % interval", "chance"), [score_row(score, ["chance"]) for score in attacked.scores])
    facts = {"model": f"{options.run}, step {pipe.manifest['step']:,}", "data": attacked.sides.members.name}
    if spent := pipe.manifest.get("privacy"):
        facts["trained with"] = f"epsilon {spent['epsilon']:.3g} at delta {spent['delta']:g}"
        print(f"trained with differential privacy: {facts['trained with'].removeprefix('trained with ')}")

    # The same as a page and as a file
    if options.html is not None:
        write_page(options.html, f"privacy: {options.run}", facts, attacked)
    if options.out is not None:
        write_scores(options.out, attacked.scores)
    for path in filter(None, (options.html, options.out)):
        print(f"wrote {path}")


if __name__ == "__main__":  # python -m t2i.eval.privacy
    run_program("eval", "privacy")
