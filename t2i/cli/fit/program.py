"""`t2i fit`: from captioned images to a model that makes images of new captions.

    t2i fit FOLDER --minutes 60
    t2i fit FOLDER --family cgan --plan

It checks the data, measures the machine by a few real training steps, says its plan and the commands that the plan stands for,
and runs them: the same programs that one would type. What it leaves: the runs, scores of held-out captions, a page that shows
all of it, and a saved pipeline. The same command again goes on where it stopped; with more minutes it trains on.
"""

import json
import re
import shutil
import time
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from pydantic import ValidationError

from t2i import cli
from t2i.cli.environment import tell_address
from t2i.cli.fit.data import look
from t2i.cli.fit.plan import (
    LEAST_CAPTIONS,
    SHOWN,
    Chosen,
    Timed,
    choose,
    describe,
    expectations,
    schedule,
    shown,
    stages,
    steps,
)
from t2i.cli.fit.probe import machine_speed
from t2i.cli.fit.record import Record, Step
from t2i.cli.fit.tour import Run, carry_out, command_here, make_folder, say, write_page
from t2i.config.options import Options, argument, option
from t2i.errors import InputError

KEPT = "plan.json"
NEIGHBOURS = 5000  # training images among which the page looks for those nearest to generated ones


class FitOptions(Options):
    """From a folder of captioned images to a model: checks, plans, trains, scores, writes a page. Type it again to resume."""

    data: str = argument("A folder of captioned images, or any data.", metavar="DATA")
    minutes: float = option(60.0, "Time for all trainings together.", gt=0)
    family: Literal["prior", "cvae", "cgan"] = option("prior", "Family of the generator.")
    run: Path | None = option(None, "Folder for everything; default: runs/fit-NAME.", metavar="DIR", flag="--run-dir")
    plan: bool = option(False, "Only print the plan and its commands.", short="--dry-run")


def main(options: FitOptions) -> None:
    fit(options, cli.main)


def fit(options: FitOptions, command: Run) -> None:
    """Plans, and carries the plan out by `command`; SystemExit with the status of a command that failed.

    Raises:
        InputError: the data cannot be trained on, or the folder holds something else.
    """
    folder = options.run or Path("runs") / f"fit-{name_of(options.data)}"
    kept = read_kept(folder, options.data)
    began = time.monotonic()
    tell_address(options.data)
    chosen, speed = decide(options, kept, command)
    timed = schedule(chosen, speed, options.minutes)
    tour = steps(chosen, timed, folder)
    page, images, model = folder / "index.html", folder / f"images-{chosen.family}", folder / "model"
    say("\n".join(describe(chosen, timed, speed, options.minutes)))
    say("commands\n" + "\n".join(f"  {shown(step)}" for step in tour))
    say(f"then       a page ({page}) and a saved pipeline ({model})")
    expected = [f"expect     {line}" for line in expectations(chosen, timed, speed, options.minutes)]
    if expected:
        say("\n".join(expected))
    if options.plan:
        return
    make_folder(folder)
    keep(folder, kept, chosen, speed)
    write_prompts(folder / "prompts.txt", chosen)
    record = Record(folder / "timings.json")
    carry_out(tour, record, command)
    save_pipeline(folder / chosen.family, model)
    sample = f"{command_here()} sample {quote(str(model))} {quote(first_prompt(folder))} -n 4"
    longer = f"{command_here()} fit {quote(options.data)} --family {chosen.family} --run-dir {quote(str(folder))}"
    following = {"Sample a sentence of yours": sample, "Train longer": f"{longer} --minutes {3 * options.minutes:g}"}
    show(page, folder, chosen, tour, record, timed, following)
    say(
        f"done in {time.monotonic() - began:.0f} s\n\npage      {page}\nimages    {images / 'grid.png'}\nmodel     {model}"
    )
    say("\n".join(["", *expected, f"\nnext: {sample}"]))


def name_of(address: str) -> str:
    """The last name of an address, fit for a folder: `coco:/data/coco?split=train2014` -> `coco`."""
    place = address.partition("?")[0].rstrip("/")
    return re.sub(r"[^\w.-]+", "-", place.rpartition("/")[2].rpartition(":")[2]).strip("-.") or "data"


# ---- the plan, and what is kept of it -------------------------------------------------------------------------------


def decide(options: FitOptions, kept: dict[str, Any], command: Run) -> tuple[Chosen, float]:
    """Returns what was kept of the plan for this family; else looks at data and machine and makes it."""
    families: dict[str, Any] = kept.get("families", {})
    if options.family in families:
        return Chosen(**families[options.family]), float(kept["speed"])
    facts = look(options.data, say)
    speed = float(kept["speed"]) if kept else machine_speed(command)
    chosen = choose(facts, speed, options.minutes, options.family)
    for other in families.values():  # the tokenizer is shared
        chosen = chosen.model_copy(update={key: other[key] for key in ("resolution", "codes", "train", "val")})
    return chosen, speed


def read_kept(folder: Path, address: str) -> dict[str, Any]:
    """What an earlier start left in `folder`; empty for a new one.

    Raises:
        InputError: it holds a fit of other data, something else, or a damaged plan.
    """
    path = folder / KEPT
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder} holds something else than a fit; name a new folder with --run-dir")
        return {}
    try:
        kept = json.loads(path.read_text("utf-8"))
        speed, families = float(kept["speed"]), {name: Chosen(**one) for name, one in kept["families"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise InputError(f"{path} is no plan of a fit; delete {folder}, or name another with --run-dir") from error
    other = next((one.address for one in families.values() if one.address != address), None)
    if other is not None:
        raise InputError(f"{folder} holds a fit of {other}, not of {address}; name another folder with --run-dir")
    return {"speed": speed, "families": {name: one.model_dump() for name, one in families.items()}}


def keep(folder: Path, kept: dict[str, Any], chosen: Chosen, speed: float) -> None:
    """Writes plan.json, in which the plans for other families stay."""
    from t2i.files import write_text

    families = kept.get("families", {}) | {chosen.family: chosen.model_dump()}
    write_text(folder / KEPT, json.dumps({"speed": speed, "families": families}, indent=1, ensure_ascii=False) + "\n")


# ---- what it leaves -------------------------------------------------------------------------------------------------


def write_prompts(path: Path, chosen: Chosen) -> None:
    """Writes captions to sample, one a line: of val, or of train where val has too few."""
    from t2i.data import View, open_dataset

    split = "val" if chosen.val >= LEAST_CAPTIONS else "train"
    captions = dict.fromkeys(own[0] for own in open_dataset(chosen.address, split, View(limit=4 * SHOWN)).captions)
    path.write_text("\n".join(list(captions)[:SHOWN]) + "\n", "utf-8")


def first_prompt(folder: Path) -> str:
    return (folder / "prompts.txt").read_text("utf-8").splitlines()[0]


def save_pipeline(run: Path, model: Path) -> None:
    """Saves the pipeline of a run, in the place of an older one."""
    from t2i.pipeline import TextToImagePipeline

    pipe = TextToImagePipeline.from_pretrained(str(run), device="cpu")
    shutil.rmtree(model, ignore_errors=True)
    pipe.save_pretrained(model)


def show(
    page: Path,
    folder: Path,
    chosen: Chosen,
    tour: list[Step],
    record: Record,
    timed: list[Timed],
    following: dict[str, str],
) -> None:
    """Writes the page; where val has too few images it shows captions of train, and says so."""
    helpers = [folder / stage.folder for stage in stages(chosen)[:-1]]
    split = {} if chosen.val >= LEAST_CAPTIONS else {"split": ("train",)}
    title = f"t2i fit of {name_of(chosen.address)}"
    write_page(
        page, [folder / chosen.family], tour, record, helpers, following, title=title, neighbours=NEIGHBOURS, **split
    )
