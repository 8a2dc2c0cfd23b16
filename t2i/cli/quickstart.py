"""A tour of the whole package in a few minutes: `t2i quickstart` runs the commands that a user would type, in order.

    t2i quickstart --run-dir runs/quickstart --minutes 3
    t2i quickstart --family prior

It trains a dual encoder and a conditional GAN, or an image tokenizer and a prior over its codes that reads plain words, on the
embedded data, draws held-out prompts, scores the run, and writes a page of all that, with the other family's beside it
where that was run too. The same command again goes on where it stopped; what is finished is not done again.
"""

import hashlib
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from t2i import cli
from t2i.config.options import Options, option
from t2i.errors import InputError

DATA = "shapes-1"
RESOLUTION = 32
# settings over those of align-tiny; minutes that only a busy or slow machine reaches, so that the tour stays short there too
ALIGN: tuple[str, ...] = ("max_train_steps=700", "max_train_minutes=2.5", "data.limit=20000")
# over those of cgan-tiny; the minutes are the limit, the steps must not be
CGAN: tuple[str, ...] = ("max_train_steps=1000000", "validation_steps=500", "data.limit=20000")
VQVAE: tuple[str, ...] = (
    "max_train_steps=1600",
    "max_train_minutes=2.5",
    "validation_steps=800",
    "checkpointing_steps=800",
    "data.limit=20000",
)
PRIOR: tuple[str, ...] = ("max_train_steps=1000000", "validation_steps=500", "data.limit=40000")
NAMES = {"cgan": "Conditional GAN", "prior": "Prior over the codes of a tokenizer"}
SHOWN = 12  # prompts of each held-out split that are drawn
SCORED = 500  # pictures that are scored of each
NEIGHBOURS = 5000  # training pictures among which the page looks for those nearest to drawn ones
SPLITS = ("val", "heldout")


class QuickstartOptions(Options):
    """Train, sample and score a small model on the embedded data, and write a page that shows it."""

    run: Path = option(Path("runs/quickstart"), "Folder for everything.", metavar="DIR", flag="--run-dir")
    minutes: float = option(4.0, "Training time of the generator.", ge=0.1)
    family: Literal["cgan", "prior"] = option("cgan", "Family of the generator.")


def main(options: QuickstartOptions) -> None:
    run_tour(options.run, options.minutes, options.family, cli.main)


class Step(NamedTuple):
    """One command of the tour."""

    name: str
    argv: list[str]
    result: Path  # there once it has run
    inputs: tuple[Path, ...] = ()  # files and runs that its result follows from; none: it trains a run, and can resume

    @property
    def command(self) -> str:
        return shlex.join(["t2i", *self.argv])


def steps(run: Path, minutes: float, family: str) -> list[Step]:
    """What is run for one family, in order."""
    model = run / family
    train = {"cgan": cgan_steps, "prior": prior_steps}[family]
    scored = [
        Step(
            f"score of {family} on {split}",
            ["eval", "score", str(model), "--split", split, "-n", str(SCORED)],
            model / f"scores-{DATA}-{split}-{SCORED}.json",
            (model,),
        )
        for split in SPLITS
    ]
    drawn = run / f"pictures-{family}"
    return [
        *train(run, minutes),
        Step(
            f"pictures of {family}",
            ["sample", str(model), "--prompts", str(run / "prompts.txt"), "--out", str(drawn)],
            drawn,
            (model, run / "prompts.txt"),
        ),
        *scored,
    ]


def training(family: str, config: str, run: Path, *sets: str) -> list[str]:
    """The command that trains a model of the embedded data."""
    words = [word for value in sets for word in ("--set", value)]
    return ["train", family, "--config", config, *words, "--data", DATA, "--run-dir", str(run)]


def named(key: str, path: Path) -> str:
    """A setting that names a path; quoted, as YAML reads it."""
    return f"{key}={json.dumps(str(path), ensure_ascii=False)}"


def cgan_steps(run: Path, minutes: float) -> list[Step]:
    align = run / "align"
    sets = (named("text.path", align), f"max_train_minutes={minutes:g}", *CGAN)
    return [
        Step("text encoder", training("align", "align-tiny", align, *ALIGN), align / "checkpoints"),
        Step("generator", training("cgan", "cgan-tiny", run / "cgan", *sets), run / "cgan" / "checkpoints"),
    ]


def prior_steps(run: Path, minutes: float) -> list[Step]:
    """The tokenizer's steps do not follow `minutes`: its reconstructions are the ceiling of what the prior can draw.

    The prior's transformer reads words as they are sooner than what a dual encoder makes of them in two minutes: after 500 steps
    77 % of val is right, against 25 % (LOG.md).
    """
    vqvae, prior = run / "vqvae", run / "prior"
    sets = (named("tokenizer.path", vqvae), "text.encoder=bow", f"max_train_minutes={minutes:g}", *PRIOR)
    return [
        Step("tokenizer", training("vqvae", "vqvae-tiny", vqvae, *VQVAE), vqvae / "checkpoints"),
        Step("prior", training("prior", "prior-tiny", prior, *sets), prior / "checkpoints"),
    ]


def run_tour(run_dir: Path, minutes: float, family: str, command: Callable[[list[str]], int]) -> None:
    """Runs what is not finished yet by `command`; SystemExit with the status of one that did not go through."""
    began = time.monotonic()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{run_dir} is no folder and cannot become one; name another with --run-dir") from None
    tour = steps(run_dir, minutes, family)
    record = Record(run_dir / "timings.json")
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
    show(run_dir, page, minutes, family, record, following)
    grid = run_dir / f"pictures-{family}" / "grid.png"
    say(f"done in {time.monotonic() - began:.0f} s\n\npage      {page}\npictures  {grid}")
    for what, words in following.items():
        say(f"\n{what}:\n{words}")


def say(text: str) -> None:
    print(text, flush=True)  # before what the next command prints


class Record:
    """`timings.json`: what each command took, and what its result was made of."""

    def __init__(self, path: Path):
        self.path = path
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            found = None
        self._entries: dict[str, Any] = found if isinstance(found, dict) else {}

    def _entry(self, step: Step) -> Mapping[str, Any]:
        entry = self._entries.get(step.name)
        return entry if isinstance(entry, dict) else {}

    def seconds(self, step: Step) -> float:
        """Time spent on a step, with what a resumed training took before."""
        return float(self._entry(step).get("seconds", 0.0))

    def finished(self, step: Step) -> bool:
        """Whether this very command has gone through, on the weights and prompts that are there now."""
        now = {"command": step.command, "inputs": digest(step.inputs), "status": 0}
        entry = self._entry(step)
        return step.result.exists() and all(entry.get(key) == value for key, value in now.items())

    def run(self, step: Step, command: Callable[[list[str]], int]) -> int:
        """Runs a command and writes down what it took, even if it did not go through; returns its status."""
        before = self.seconds(step) if step.result.exists() and not step.inputs else 0.0
        if step.inputs and step.result.is_dir():
            shutil.rmtree(step.result)
        began, status = time.monotonic(), 1
        try:
            status = command(step.argv)
        finally:
            seconds = round(before + time.monotonic() - began, 1)
            made_of = {"command": step.command, "inputs": digest(step.inputs)}
            self._entries[step.name] = {"seconds": seconds, "status": status, **made_of}
            self._write()
        return status

    def _write(self) -> None:
        from t2i.files import write_text

        write_text(self.path, json.dumps(self._entries, indent=1, ensure_ascii=False) + "\n")


def digest(inputs: Sequence[Path]) -> str:
    """Tells states of files and runs apart: a run's is its newest checkpoint."""
    found = hashlib.sha256()
    for path in inputs:
        files = [path] if path.is_file() else sorted((path / "checkpoints").glob("step-*/manifest.json"))[-1:]
        for file in files:
            found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def write_prompts(path: Path) -> None:
    """The first captions of each held-out split, one a line."""
    from t2i.data import View, open_dataset

    view = View(RESOLUTION, limit=SHOWN)
    captions = [options[0] for split in SPLITS for options in open_dataset(DATA, split, view).captions]
    path.write_text("\n".join(captions) + "\n", "utf-8")


def show(run: Path, page: Path, minutes: float, family: str, record: Record, following: Mapping[str, str]) -> None:
    """Writes the page of `t2i eval report`, the family that was asked for first."""
    from t2i.console import shown_progress
    from t2i.report.gallery import Ask
    from t2i.report.page import Extras, Part, make_report

    tour = {one: steps(run, minutes, one) for one in sorted(NAMES, key=lambda name: name != family)}
    done = [one for one, every in tour.items() if all(step.result.exists() for step in every)]
    parts = [Part(step.name, step.command, record.seconds(step)) for one in done for step in tour[one]]
    helpers = [run / name for name, one in (("align", "cgan"), ("vqvae", "prior")) if one in done]
    with shown_progress(" pictures") as tick:
        extras = Extras(helpers, parts, following)
        make_report([run / one for one in done], page, "t2i quickstart", Ask(train=NEIGHBOURS), tick, extras)


def next_commands(run: Path, family: str) -> dict[str, str]:
    """What to try next -> the command, as it can be typed here."""
    t2i, model = command_here(), shlex.quote(str(run / family))
    other = next(name for name in NAMES if name != family)
    own, encoder = shlex.quote(str(run.parent / "own")), shlex.quote(str(run.parent / "own-align"))
    lines: dict[str, Sequence[str]] = {
        "Draw a sentence of yours": [f'{t2i} sample {model} "a small red circle above a large blue square" -n 4'],
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
        "Train on a folder of your own pictures with captions": [
            f"{t2i} data check FOLDER",
            f"{t2i} train align --config align-tiny --data FOLDER --run-dir {encoder}",
            f"{t2i} train cgan --config cgan-tiny --data FOLDER --set text.path={encoder} --run-dir {own}",
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
