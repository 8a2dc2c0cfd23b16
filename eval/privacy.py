"""Guesses which images a model was trained on, and reports how often the guess is right.

    t2i eval privacy runs/prior
    t2i eval privacy cgan -n 1000 --html privacy.html --out privacy.json

Attacks use the likelihood (of a prior), the logit of the critic (of a GAN), and the distance from the nearest sampled image. They
separate training images from images of val: if that is impossible, `auc` is .5 and `found` .01. docs/privacy.md has the limits.
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

    # Scores of all attacks, with their intervals and chance
    with shown_progress(" images") as tick:
        pipe = TextToImagePipeline.from_pretrained(options.run, device())
        result = attack(options, pipe, tick)
    table(("score", "value", "95 % interval", "chance"), [score_row(score, ["chance"]) for score in result.scores])

    # A page, and the scores as a file
    facts = {"model": f"{options.run}, step {pipe.manifest['step']:,}", "data": result.sides.members.name}
    if spent := pipe.manifest.get("privacy"):
        facts["trained with"] = f"epsilon {spent['epsilon']:.3g} at delta {spent['delta']:g}"
        print(f"trained with differential privacy: {facts['trained with'].removeprefix('trained with ')}")
    if options.html is not None:
        write_page(options.html, f"privacy: {options.run}", facts, result)
    if options.out is not None:
        write_scores(options.out, result.scores)
    for place in filter(None, (options.html, options.out)):
        print(f"wrote {place}")


if __name__ == "__main__":  # python -m t2i.eval.privacy
    run_program("eval", "privacy")
