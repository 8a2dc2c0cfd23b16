"""`t2i fit`: trains a model on a folder of captioned images that generates images for new captions.

    t2i fit FOLDER --minutes 60
    t2i fit FOLDER --family cgan --plan

It checks the data, measures the machine by a few real training steps, prints a plan with its commands, and runs these commands.
The results are the runs, scores on held-out captions, a page with everything, and a saved pipeline. The same command continues
after an interruption; with more minutes it trains longer.
"""

import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from pydantic import ValidationError

from t2i import cli
from t2i.cli.environment import print_address_notice
from t2i.cli.fit.data import look
from t2i.cli.fit.plan import (
    LEAST_CAPTIONS,
    SHOWN,
    Chosen,
    Timed,
    choose,
    is_stale,
    schedule,
    stages,
    steps,
)
from t2i.cli.fit.probe import machine_speed
from t2i.cli.fit.record import Run, Step, Timings
from t2i.cli.fit.tour import carry_out, command_here, make_folder, say, write_page
from t2i.cli.fit.words import describe, expectations
from t2i.config.options import Options, argument, option
from t2i.config.section import Section
from t2i.errors import InputError

PLAN_FILE = "plan.json"


class FitOptions(Options):
    """Train a model on a folder of captioned images: check, plan, train, score, write a page. The same command resumes."""

    data: str = argument("A folder of captioned images, or any data.", metavar="DATA")
    minutes: float = option(60.0, "Minutes of all trainings together, without checks, scores and the page.", gt=0)
    family: Literal["prior", "cvae", "cgan"] = option("prior", "Family of the generator.")
    run: Path | None = option(None, "Folder for everything; default: runs/fit-NAME.", metavar="DIR", flag="--run-dir")
    plan: bool = option(False, "Only print the plan and its commands.", short="--dry-run")


def main(options: FitOptions) -> None:
    fit(options, cli.main)


def fit(options: FitOptions, command: Run) -> None:
    """Makes a plan and runs its commands by `command`; raises SystemExit with the status of a command that fails.

    Raises:
        InputError: the data cannot be used for training, or the folder holds something else.
    """
    folder = options.run or Path("runs") / f"fit-{name_of(options.data)}"
    stored = read_plan(folder, options.data)
    began = time.monotonic()
    print_address_notice(options.data)
    if stored is None:
        facts = look(options.data, say)  # before measuring the machine, as it may refuse the data
        stored = StoredPlan(speed=machine_speed(command))
        chosen = choose(facts, stored.speed, options.minutes, options.family)
    else:
        chosen = decide(options, stored)
    timed = schedule(chosen, stored.speed, options.minutes, stored.minutes)
    stale = [name for name, one in stored.families.items() if is_stale(one, timed, stored.minutes)]
    stale = [name for name in stale if (folder / name).is_dir()]
    tour = steps(chosen, timed, folder)
    expected = [f"expect     {line}" for line in expectations(chosen, timed, stored.speed, options.minutes)]
    say("\n".join(describe(chosen, timed, stored.speed, options.minutes)))
    say("commands\n" + "\n".join(f"  {step.command}" for step in tour))
    say(f"then       a page ({page_of(folder)}) and a saved pipeline ({model_of(folder, chosen)})")
    say("\n".join([*(f"retrained  {name}, as a model that it uses is trained further" for name in stale), *expected]))
    if options.plan:
        return
    make_folder(folder)
    for name in stale:
        shutil.rmtree(folder / name)
    write_plan(folder, stored, chosen, timed)
    write_prompts(folder / "prompts.txt", chosen)
    record = Timings(folder / "timings.json")
    carry_out(tour, record, command)
    sample = finish(options, folder, chosen, tour, record)
    say(f"done in {time.monotonic() - began:.0f} s\n\npage       {page_of(folder)}")
    say(f"images     {folder / f'images-{chosen.family}' / 'grid.png'}\nmodel      {model_of(folder, chosen)}")
    say("\n".join(["", *expected, f"\nnext: {sample}"]))


def finish(options: FitOptions, folder: Path, chosen: Chosen, tour: Sequence[Step], record: Timings) -> str:
    """Saves the pipeline and writes the page; returns the command that samples."""
    model = model_of(folder, chosen)
    save_pipeline(folder / chosen.family, model)
    sample = f"{command_here()} sample {quote(str(model))} {quote(first_prompt(folder))} -n 4"
    longer = f"{command_here()} fit {quote(options.data)} --family {chosen.family} --run-dir {quote(str(folder))}"
    following = {"Sample a sentence of your own": sample, "Train longer": f"{longer} --minutes {3 * options.minutes:g}"}
    helpers = [folder / stage.folder for stage in stages(chosen)[:-1]]
    more: dict[str, Any] = {"title": f"t2i fit of {name_of(chosen.address)}"}
    if chosen.val < LEAST_CAPTIONS:  # the page then marks them as training captions
        more["split"] = ("train",)
    write_page(page_of(folder), [folder / chosen.family], tour, record, helpers, following, **more)
    return sample


def page_of(folder: Path) -> Path:
    return folder / "index.html"


def model_of(folder: Path, chosen: Chosen) -> Path:
    """Returns the folder of the saved pipeline."""
    return folder / f"model-{chosen.family}"


def name_of(address: str) -> str:
    """Returns a folder name for an address: `coco:/data/coco?split=train2014` -> `coco`."""
    place = address.partition("?")[0].rstrip("/")
    return re.sub(r"[^\w.-]+", "-", place.rpartition("/")[2].rpartition(":")[2]).strip("-.") or "data"


# ---- the stored plan ------------------------------------------------------------------------------------------------


class StoredPlan(Section):
    """The plan of an earlier call, stored in plan.json.

    Attributes:
        speed: speed of this machine, in units of the reference.
        minutes: stage -> minutes, for the stages before a generator.
        families: the choices for each family so far.
    """

    speed: float
    minutes: dict[str, float] = {}
    families: dict[str, Chosen] = {}


def decide(options: FitOptions, stored: StoredPlan) -> Chosen:
    """Returns the stored choices for this family; if there are none, checks the data and makes them."""
    if options.family in stored.families:
        return stored.families[options.family]
    facts = look(options.data, say)
    chosen = choose(facts, stored.speed, options.minutes, options.family)
    for other in stored.families.values():  # the tokenizer is shared
        chosen = chosen.model_copy(update={key: getattr(other, key) for key in ("resolution", "codes")})
    return chosen


def read_plan(folder: Path, address: str) -> StoredPlan | None:
    """Returns the plan in `folder`; None for a new folder.

    Raises:
        InputError: the folder holds a fit of other data, something else, or a damaged plan.
    """
    from t2i.files import read_regular

    path = folder / PLAN_FILE
    if not path.exists():
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; name a folder with --run-dir")
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty and does not hold a fit; name a new folder with --run-dir")
        return None
    try:
        stored = StoredPlan.model_validate_json(read_regular(path))
    except (OSError, ValidationError) as error:
        raise InputError(
            f"{path} is not a plan of a fit; delete {folder}, or name another folder with --run-dir"
        ) from error
    other = next((plan.address for plan in stored.families.values() if plan.address != address), None)
    if other is not None:
        raise InputError(f"{folder} holds a fit of {other}, not of {address}; name another folder with --run-dir")
    return stored


def write_plan(folder: Path, stored: StoredPlan, chosen: Chosen, timed: Sequence[Timed]) -> None:
    """Writes plan.json, which keeps the plans for other families."""
    from t2i.files import write_text

    minutes = {**stored.minutes, **{one.stage.name: one.minutes for one in timed[:-1]}}
    families = {**stored.families, chosen.family: chosen}
    now = stored.model_copy(update={"minutes": minutes, "families": families})
    write_text(folder / PLAN_FILE, now.model_dump_json(indent=1) + "\n")


# ---- results --------------------------------------------------------------------------------------------------------


def write_prompts(path: Path, chosen: Chosen) -> None:
    """Writes captions to sample, one per line: of val, or of train if val has too few."""
    from t2i.data import View, open_dataset

    split = "val" if chosen.val >= LEAST_CAPTIONS else "train"
    every = open_dataset(chosen.address, split, View(limit=4 * SHOWN)).captions
    captions = dict.fromkeys(options[0] for options in every)
    path.write_text("\n".join(list(captions)[:SHOWN]) + "\n", "utf-8")


def first_prompt(folder: Path) -> str:
    return (folder / "prompts.txt").read_text("utf-8").splitlines()[0]


def save_pipeline(run: Path, model: Path) -> None:
    """Saves the pipeline of a run and replaces an older one."""
    from t2i.pipeline import TextToImagePipeline

    pipe = TextToImagePipeline.from_pretrained(str(run), device="cpu")
    shutil.rmtree(model, ignore_errors=True)
    pipe.save_pretrained(model)
