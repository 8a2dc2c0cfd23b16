"""A tour of the package in a few minutes: `t2i quickstart` runs the commands that a user would type, in order.

    t2i quickstart --run-dir runs/quickstart --minutes 3
    t2i quickstart --family cgan

It trains an image tokenizer and a prior over its codes, or a dual encoder and a conditional GAN, on the embedded data,
samples held-out prompts, scores the run, and writes a page of all that, with the other family beside it where that was run
too. A few real steps measure the machine first, and the plan fits what they show. The same command again goes on where it
stopped; what is finished is not done again.
"""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from t2i import cli
from t2i.cli.steps import DATA, PROBE, REFERENCE_SPEED, SPLITS, Plan, fitted, scores_of, steps, training
from t2i.cli.timings import Timings
from t2i.config.options import Options, option
from t2i.errors import InputError

Run = Callable[[list[str]], int]  # runs one command line and returns its status
NAMES = {"cgan": "Conditional GAN", "prior": "Prior over the codes of a tokenizer"}
SHOWN = 12  # prompts of each held-out split that are sampled
NEIGHBOURS = 5000  # training images among which the page looks for those nearest to generated ones
FOLLOWS = 0.3  # share of images that are right, from which a score is worth reading


class QuickstartOptions(Options):
    """Train, sample and score a small model on the embedded data, and write a page that shows it."""

    run: Path = option(Path("runs/quickstart"), "Folder for everything.", metavar="DIR", flag="--run-dir")
    minutes: float = option(4.0, "Training time of the generator; a slow machine takes longer.", ge=0.1)
    family: Literal["cgan", "prior"] = option("prior", "Family of the generator.")


def main(options: QuickstartOptions) -> None:
    run_tour(options.run, options.minutes, options.family, cli.main)


def run_tour(run_dir: Path, minutes: float, family: str, command: Run) -> None:
    """Runs what is not finished yet by `command`; SystemExit with the status of one that failed."""
    began = time.monotonic()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{run_dir} is no folder and cannot become one; name another with --run-dir") from None
    plan = fitted(minutes, speed_of(run_dir, command), family)
    say(plan.describe(minutes))
    tour = steps(run_dir, plan, family)
    record = Timings(run_dir / "timings.json")
    write_prompts(run_dir / "prompts.txt")
    for number, step in enumerate(tour, 1):
        heading = f"[{number}/{len(tour)}] {step.name}"
        if record.finished(step):
            say(f"{heading}: finished before")
            continue
        say(f"{heading}: {step.command}")
        status = record.run(step, command)
        if status:
            say(f"{heading}: stopped with status {status}; the same command goes on from here")
            raise SystemExit(status)
        say(f"{heading}: {record.seconds(step):.0f} s")
    page, following = run_dir / "index.html", next_commands(run_dir, family)
    show(run_dir, page, plan, family, record, following)
    grid = run_dir / f"pictures-{family}" / "grid.png"
    say(f"done in {time.monotonic() - began:.0f} s\n\npage      {page}\nimages    {grid}\n\n{verdict(run_dir, family)}")
    for what, words in following.items():
        say(f"\n{what}:\n{words}")


def say(text: str) -> None:
    print(text, flush=True)  # before the output of the next command


def speed_of(run_dir: Path, command: Run) -> float:
    """Speed of this machine in units of the reference, measured once by a few real steps and kept in speed.json.

    Raises:
        SystemExit: the steps were stopped.
    """
    from t2i.training.journal import read

    kept = run_dir / "speed.json"
    if kept.exists():
        from t2i.files import read_json

        if isinstance(found := read_json(kept), int | float) and found > 0:
            return float(found)
        raise InputError(f"{kept} holds no speed; delete it, and it is measured anew")
    say("measuring this machine by a few training steps")
    probe = run_dir / "probe"
    shutil.rmtree(probe, ignore_errors=True)
    if status := command(training("vqvae", "vqvae-tiny", probe, *PROBE)):
        raise SystemExit(status)
    speeds = [found["images_per_second"] for found in read(probe / "journal.jsonl") if "images_per_second" in found]
    shutil.rmtree(probe)
    speed = max(speeds, default=REFERENCE_SPEED) / REFERENCE_SPEED
    kept.write_text(json.dumps(round(speed, 3)) + "\n", "utf-8")
    return round(speed, 3)


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
    from t2i.console import shown_progress
    from t2i.report.options import ReportOptions
    from t2i.report.page import Extras, Part, make_report

    tour = {one: steps(run, plan, one) for one in sorted(NAMES, key=lambda name: name != family)}
    done = [one for one, every in tour.items() if all(step.result.exists() for step in every)]
    parts = [Part(step.name, record.command(step), record.seconds(step)) for one in done for step in tour[one]]
    helpers = [run / name for name, one in (("align", "cgan"), ("vqvae", "prior")) if one in done]
    with shown_progress(" images") as tick:
        extras = Extras(helpers, parts, following)
        runs = tuple(str(run / one) for one in done)
        make_report(ReportOptions(runs=runs, title="t2i quickstart", neighbours=NEIGHBOURS), page, tick, extras)


def next_commands(run: Path, family: str) -> dict[str, str]:
    """Returns commands to try next, by what each of them does."""
    t2i, model = command_here(), shlex.quote(str(run / family))
    other = next(name for name in NAMES if name != family)
    own, tokenizer = shlex.quote(str(run.parent / "own")), shlex.quote(str(run.parent / "own-tokenizer"))
    lines: dict[str, Sequence[str]] = {
        "Sample a sentence of yours": [f'{t2i} sample {model} "a small red circle above a large blue square" -n 4'],
        **(
            {
                "Go from one sentence to another": [
                    f'{t2i} sample {model} "a large red heart" "a small green star" --interpolate caption'
                ]
            }
            if family == "cgan"
            else {}
        ),
        "Train longer": [f"{t2i} quickstart --family {family} --run-dir {shlex.quote(str(run))} --minutes 30"],
        f"The other family beside it: {NAMES[other]}": [
            f"{t2i} quickstart --family {other} --run-dir {shlex.quote(str(run))}"
        ],
        "Train on a folder of your own images with captions": [
            f"{t2i} data check FOLDER",
            f"{t2i} train vqvae --config vqvae-tiny --data FOLDER --run-dir {tokenizer}",
            f"{t2i} train prior --config prior-tiny --data FOLDER --set tokenizer.path={tokenizer} "
            f"--set text.encoder=bow --run-dir {own}",
        ],
    }
    return {what: "\n".join(commands) for what, commands in lines.items()}


def command_here() -> str:
    """`t2i` if the shell finds this installation's, else the path of it."""
    installed = Path(sys.executable).with_name("t2i")
    found = shutil.which("t2i")
    if not installed.exists() or (found and Path(found).resolve() == installed.resolve()):
        return "t2i"
    here = Path.cwd()
    return shlex.quote(str(installed.relative_to(here) if installed.is_relative_to(here) else installed))
