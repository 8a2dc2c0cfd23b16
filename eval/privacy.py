"""Guesses which images a model was trained on, and tells how often the guess is right.

    t2i eval privacy runs/prior
    t2i eval privacy cgan -n 1000 --html privacy.html --out privacy.json

Attacks by likelihood (a prior), by the logit of the critic (a GAN), and by the distance from the nearest sampled image. Training
images against images of val: where the two cannot be told apart, `auc` is .5 and `found` .01. docs/privacy.md has the limits.
"""

from t2i.cli import run_program
from t2i.console import shown_progress, table
from t2i.files import refuse_unwritable
from t2i.hardware import device, prepare_cpu
from t2i.metrics.score import rounded, write_scores
from t2i.privacy.options import PrivacyOptions


def main(options: PrivacyOptions) -> None:
    prepare_cpu()
    if options.html is not None:
        refuse_unwritable(options.html, "an HTML file", "--html")
    if options.out is not None:
        refuse_unwritable(options.out, "a JSON file", "--out")
    # slow to import: a mistake above is told first
    from t2i.pipeline import TextToImagePipeline
    from t2i.privacy.page import write_page
    from t2i.privacy.scores import attack

    with shown_progress(" images") as tick:
        pipe = TextToImagePipeline.from_pretrained(options.run, device())
        found = attack(options, pipe, tick)
    rows = []
    for score in found.scores:
        interval = "" if score.interval is None else "..".join(map(rounded, score.interval))
        rows.append([score.name, rounded(score.value), interval, rounded(score.bounds["chance"])])
    table(("score", "value", "95 % interval", "chance"), rows)
    facts = {"model": f"{options.run}, step {pipe.manifest['step']:,}", "data": found.sides.members.name}
    if spent := pipe.manifest.get("privacy"):
        facts["trained with"] = f"epsilon {spent['epsilon']:.3g} at delta {spent['delta']:g}"
        print(f"trained with differential privacy: {facts['trained with'].removeprefix('trained with ')}")
    if options.html is not None:
        write_page(options.html, f"privacy: {options.run}", facts, found)
    if options.out is not None:
        write_scores(options.out, found.scores)
    for place in filter(None, (options.html, options.out)):
        print(f"wrote {place}")


if __name__ == "__main__":  # python -m t2i.eval.privacy
    run_program("eval", "privacy")
