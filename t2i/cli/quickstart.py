"""A tour of the package in a few minutes: `t2i quickstart` runs the commands that a user would type, in order.

    t2i quickstart --run-dir runs/quickstart --minutes 3
    t2i quickstart --family cvae

It trains an image tokenizer and a prior or a one-pass generator over its codes, or a dual encoder and a conditional GAN, on
the embedded data, samples held-out prompts, scores the run, and writes a page that compares all families trained so far. A few
real steps measure the machine first, and the trainings are made as long as it needs. The same command continues after an
interruption and does not repeat what is finished.
"""

import json
import shlex
import time
from collections.abc import Mapping
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
TRAINED = 0.3  # share of correct images from which the scores of a model mean something


class QuickstartOptions(Options):
    """Train, sample and score a small model on the embedded data, and write a page that shows it."""

    run: Path = option(Path("runs/quickstart"), "Folder for everything.", metavar="DIR", flag="--run-dir")
    minutes: float = option(4.0, "Training time of the generator; a slow machine takes longer.", ge=0.1)
    family: Literal["prior", "cvae", "cgan"] = option("prior", "Family of the generator.")


def main(options: QuickstartOptions) -> None:
    run_tour(options.run, options.minutes, options.family, cli.main)


def run_tour(run_dir: Path, minutes: float, family: str, command: Run) -> None:
    """Runs the unfinished commands by `command`; raises SystemExit with the status of one that fails."""
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
    for purpose, line in following.items():
        say(f"\n{purpose}:\n{line}")


def speed_of(run_dir: Path, command: Run) -> float:
    """Returns the speed of this machine in units of the reference, measured once and stored in speed.json."""
    path = run_dir / "speed.json"
    if path.exists():
        from t2i.files import read_json

        if isinstance(stored := read_json(path), int | float) and stored > 0:
            return float(stored)
        raise InputError(f"{path} does not hold a speed; delete it to measure again")
    speed = machine_speed(command)
    path.write_text(json.dumps(speed) + "\n", "utf-8")
    return speed


def write_prompts(path: Path) -> None:
    """Writes the first captions of each held-out split, one per line."""
    from t2i.data import View, open_dataset

    captions = [options[0] for split in SPLITS for options in open_dataset(DATA, split, View(limit=SHOWN)).captions]
    path.write_text("\n".join(captions) + "\n", "utf-8")


def verdict(run: Path, family: str) -> str:
    """Returns the share of correct images in a sentence, with a command that trains longer if it is low."""
    from t2i.metrics.score import read_scores

    try:
        scores = read_scores(scores_of(run, family, "val"))
    except InputError:
        return "there are no scores"
    strict = next((score for score in scores if score.protocol.metric == "faithfulness-strict"), None)
    if strict is None:
        return "the scores do not include the share of correct images"
    share = f"{strict.value:.0%} of the images for new captions are correct"
    if strict.value >= TRAINED:
        return share
    return (
        f"{share}: this model is not trained enough yet, and its scores mean little; to continue, type: "
        f"{quickstart_command(run, family)} --minutes 30"
    )


def show(run: Path, page: Path, plan: Plan, family: str, record: Timings, following: Mapping[str, str]) -> None:
    """Writes the page of all families that are finished, this one first."""
    commands = {name: steps(run, plan, name) for name in sorted(NAMES, key=lambda name: name != family)}
    done = [name for name, every in commands.items() if all(step.result.exists() for step in every)]
    helpers = [run / "align"] * ("cgan" in done) + [run / "vqvae"] * bool({"prior", "cvae"} & set(done))
    shown = {step.name: step for name in done for step in commands[name]}  # prior and cvae share a tokenizer
    runs = [run / name for name in done]
    write_page(page, runs, list(shown.values()), record, helpers, following, title="t2i quickstart")


def quickstart_command(run: Path, family: str) -> str:
    """Returns the command that trains another family, or this one longer, in the same folder."""
    return f"{command_here()} quickstart --family {family} --run-dir {shlex.quote(str(run))}"


def next_commands(run: Path, family: str) -> dict[str, str]:
    """Returns commands to try next: purpose -> command."""
    sample = f"{command_here()} sample {shlex.quote(str(run / family))}"
    other = "prior" if family == "cvae" else "cvae"
    commands = {"Sample a sentence of your own": f'{sample} "a small red circle above a large blue square" -n 4'}
    if family != "prior":
        commands["Go from one sentence to another"] = (
            f'{sample} "a large red heart" "a small green star" --interpolate caption'
        )
    return {
        **commands,
        "Train longer": f"{quickstart_command(run, family)} --minutes 30",
        f"Compare with another family: {NAMES[other]}": quickstart_command(run, other),
        "Train on a folder of your own images with captions": f"{command_here()} fit FOLDER --minutes 60",
    }
