"""A tour of the package in a few minutes: `t2i quickstart` runs the commands that a user would type, in order.

    t2i quickstart --run-dir runs/quickstart --minutes 3
    t2i quickstart --family cvae

It trains an image tokenizer and a prior or a one-pass generator over its codes, or a dual encoder and a conditional GAN, on
the embedded data, samples held-out prompts, scores the run, and writes a page of all that, with the other families beside it
where they were run too. A few real steps measure the machine first, and the plan fits what they show. The same command again
goes on where it stopped; what is finished is not done again.
"""

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from t2i import cli
from t2i.cli.fit.probe import machine_speed
from t2i.cli.fit.record import Run, Timings
from t2i.cli.fit.tour import carry_out, command_here, make_folder, say, write_page
from t2i.cli.steps import DATA, SPLITS, Plan, fitted, scores_of, steps
from t2i.config.options import Options, option
from t2i.errors import InputError

NAMES = {
    "prior": "Prior over the codes of a tokenizer",
    "cvae": "One-pass generator over the codes of a tokenizer",
    "cgan": "Conditional GAN",
}
SHOWN = 12  # prompts of each held-out split that are sampled
FOLLOWS = 0.3  # share of images that are right, from which a score is worth reading


class QuickstartOptions(Options):
    """Train, sample and score a small model on the embedded data, and write a page that shows it."""

    run: Path = option(Path("runs/quickstart"), "Folder for everything.", metavar="DIR", flag="--run-dir")
    minutes: float = option(4.0, "Training time of the generator; a slow machine takes longer.", ge=0.1)
    family: Literal["prior", "cvae", "cgan"] = option("prior", "Family of the generator.")


def main(options: QuickstartOptions) -> None:
    run_tour(options.run, options.minutes, options.family, cli.main)


def run_tour(run_dir: Path, minutes: float, family: str, command: Run) -> None:
    """Runs what is not finished yet by `command`; SystemExit with the status of one that failed."""
    began = time.monotonic()
    make_folder(run_dir)
    plan = fitted(minutes, speed_of(run_dir, command), family)
    say(plan.describe(minutes))
    tour = steps(run_dir, plan, family)
    record = Timings(run_dir / "timings.json")
    write_prompts(run_dir / "prompts.txt")
    carry_out(tour, record, command)
    page, following = run_dir / "index.html", next_commands(run_dir, family)
    show(run_dir, page, plan, family, record, following)
    grid = run_dir / f"pictures-{family}" / "grid.png"
    say(f"done in {time.monotonic() - began:.0f} s\n\npage      {page}\nimages    {grid}\n\n{verdict(run_dir, family)}")
    for what, words in following.items():
        say(f"\n{what}:\n{words}")


def speed_of(run_dir: Path, command: Run) -> float:
    """Speed of this machine in units of the reference, measured once and kept in speed.json."""
    kept = run_dir / "speed.json"
    if kept.exists():
        from t2i.files import read_json

        if isinstance(found := read_json(kept), int | float) and found > 0:
            return float(found)
        raise InputError(f"{kept} holds no speed; delete it, and it is measured anew")
    speed = machine_speed(command)
    kept.write_text(json.dumps(speed) + "\n", "utf-8")
    return speed


def write_prompts(path: Path) -> None:
    """Writes the first captions of each held-out split, one a line."""
    from t2i.data import View, open_dataset

    captions = [options[0] for split in SPLITS for options in open_dataset(DATA, split, View(limit=SHOWN)).captions]
    path.write_text("\n".join(captions) + "\n", "utf-8")


def verdict(run: Path, family: str) -> str:
    """One sentence on what the scores are worth, and what to type where that is little."""
    from t2i.metrics.score import read_scores

    try:
        scores = read_scores(scores_of(run, family, "val"))
    except InputError:
        return "no scores to read"
    strict = next((score for score in scores if score.protocol.metric == "faithfulness-strict"), None)
    if strict is None:
        return "the scores do not say how often an image is right"
    share = f"{strict.value:.0%} of the images for new captions show all that the caption says"
    if strict.value >= FOLLOWS:
        return share
    again = f"{command_here()} quickstart --family {family} --run-dir {shlex.quote(str(run))} --minutes 30"
    return f"{share}: this model is not trained enough yet, and its scores say little; to go on, type: {again}"


def show(run: Path, page: Path, plan: Plan, family: str, record: Timings, following: Mapping[str, str]) -> None:
    """Writes the page of `t2i eval report`, the family that was asked for first."""
    tour = {one: steps(run, plan, one) for one in sorted(NAMES, key=lambda name: name != family)}
    done = [one for one, every in tour.items() if all(step.result.exists() for step in every)]
    helpers = [run / "align"] * ("cgan" in done) + [run / "vqvae"] * bool({"prior", "cvae"} & set(done))
    every = {step.name: step for one in done for step in tour[one]}  # families over one tokenizer share its step
    write_page(
        page, [run / one for one in done], list(every.values()), record, helpers, following, title="t2i quickstart"
    )


def next_commands(run: Path, family: str) -> dict[str, str]:
    """Returns commands to try next, by what each of them does."""
    t2i, model = command_here(), shlex.quote(str(run / family))
    other = "prior" if family == "cvae" else "cvae"
    lines: dict[str, Sequence[str]] = {
        "Sample a sentence of yours": [f'{t2i} sample {model} "a small red circle above a large blue square" -n 4'],
        **(
            {
                "Go from one sentence to another": [
                    f'{t2i} sample {model} "a large red heart" "a small green star" --interpolate caption'
                ]
            }
            if family != "prior"
            else {}
        ),
        "Train longer": [f"{t2i} quickstart --family {family} --run-dir {shlex.quote(str(run))} --minutes 30"],
        f"The other family beside it: {NAMES[other]}": [
            f"{t2i} quickstart --family {other} --run-dir {shlex.quote(str(run))}"
        ],
        "Train on a folder of your own images with captions": [f"{t2i} fit FOLDER --minutes 60"],
    }
    return {what: "\n".join(commands) for what, commands in lines.items()}
