"""A tour of the whole package in a few minutes: `t2i quickstart` runs the commands that a user would type, in order.

    t2i quickstart --run-dir runs/quickstart --minutes 3

It trains a dual encoder and a conditional GAN on the embedded data, draws held-out prompts, scores the run, and writes
a page of all that. The same command again goes on where it stopped; what is finished is not done again.
"""

import hashlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t2i import cli, images
from t2i.data import View, open_dataset
from t2i.errors import InputError
from t2i.report import Part, Picture, write_report

DATA = "shapes-1"
RESOLUTION = 32
ALIGN: tuple[str, ...] = ("max_train_steps=700", "data.limit=20000")  # settings over those of align-tiny
# over those of cgan-tiny; the minutes are the limit, the steps must not be
CGAN: tuple[str, ...] = ("max_train_steps=1000000", "validation_steps=500", "data.limit=20000")
# Single objects need no word order, and plain words draw unseen pairs that the dual encoder misses: it guides (LOG.md).
ENCODERS = ("text.encoder=bow", "guidance.encoder=aligned")
SHOWN = 12  # prompts of each held-out split that are drawn for the page
SCORED = 500  # pictures that are scored of each
SPLITS = {
    "val": "Combinations that training shows, in new scenes (val)",
    "heldout": "Combinations that training never shows: a shape in that colour, or two shapes so placed (heldout)",
}
JUDGED = ("shape", "colour", "size", "relation", "background")  # told apart where the number of objects is right


class Step(NamedTuple):
    """One command of the tour."""

    name: str
    argv: list[str]
    result: Path  # there once it has run
    inputs: tuple[Path, ...] = ()  # files and runs that its result follows from; none: it trains a run, and can resume

    @property
    def command(self) -> str:
        return shlex.join(["t2i", *self.argv])


def steps(run: Path, minutes: float) -> list[Step]:
    """What is run, in order."""
    align, cgan = run / "align", run / "cgan"

    def sets(*values: str) -> list[str]:
        return [word for value in values for word in ("--set", value)]

    trained_on = ["--data", DATA, "--run-dir"]
    path = f"guidance.path={json.dumps(str(align), ensure_ascii=False)}"
    scored = [
        Step(
            f"score on {split}",
            ["eval", "score", str(cgan), "--split", split, "-n", str(SCORED)],
            cgan / f"scores-{DATA}-{split}-{SCORED}.json",
            (cgan,),
        )
        for split in SPLITS
    ]
    return [
        Step(
            "text encoder",
            ["train", "align", "--config", "align-tiny", *sets(*ALIGN), *trained_on, str(align)],
            align / "checkpoints",
        ),
        Step(
            "generator",
            ["train", "cgan", "--config", "cgan-tiny", *sets(*ENCODERS, path, f"max_train_minutes={minutes:g}", *CGAN)]
            + [*trained_on, str(cgan)],
            cgan / "checkpoints",
        ),
        Step(
            "pictures",
            ["sample", str(cgan), "--prompts", str(run / "prompts.txt"), "--out", str(run / "pictures")],
            run / "pictures",
            (cgan, run / "prompts.txt"),
        ),
        *scored,
    ]


def main(run_dir: Path, minutes: float) -> None:
    """Runs what is not finished yet; SystemExit with the status of a command that did not go through."""
    began = time.monotonic()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{run_dir} is no folder and cannot become one; name another with --run-dir") from None
    tour = steps(run_dir, minutes)
    record = Record(run_dir / "timings.json")
    write_prompts(run_dir / "prompts.txt")
    for number, step in enumerate(tour, 1):
        heading = f"[{number}/{len(tour)}] {step.name}"
        if record.finished(step):
            say(f"{heading}: finished before")
            continue
        say(f"{heading}: {step.command}")
        status = record.run(step)
        if status:
            say(f"{heading}: stopped with status {status}; the same command goes on from here")
            raise SystemExit(status)
        say(f"{heading}: {record.seconds(step):.0f} s")
    page = run_dir / "index.html"
    parts = [Part(step.name, step.command, record.seconds(step)) for step in tour]
    write_report(run_dir, page, "t2i quickstart", pictures(run_dir / "pictures"), parts, next_commands(run_dir))
    say(f"done in {time.monotonic() - began:.0f} s\n\npage      {page}\npictures  {run_dir / 'pictures' / 'grid.png'}")
    for what, command in next_commands(run_dir).items():
        say(f"\n{what}:\n{command}")


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

    def run(self, step: Step) -> int:
        """Runs a command and writes down what it took, even if it did not go through; returns its status."""
        before = self.seconds(step) if step.result.exists() and not step.inputs else 0.0
        if step.inputs and step.result.is_dir():
            shutil.rmtree(step.result)
        began, status = time.monotonic(), 1
        try:
            status = cli.main(step.argv)
        finally:
            seconds = round(before + time.monotonic() - began, 1)
            made_of = {"command": step.command, "inputs": digest(step.inputs)}
            self._entries[step.name] = {"seconds": seconds, "status": status, **made_of}
            self._write()
        return status

    def _write(self) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self._entries, indent=1, ensure_ascii=False) + "\n", "utf-8")
        os.replace(temporary, self.path)


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
    view = View(RESOLUTION, limit=SHOWN)
    captions = [options[0] for split in SPLITS for options in open_dataset(DATA, split, view).captions]
    path.write_text("\n".join(captions) + "\n", "utf-8")


def pictures(folder: Path) -> list[Picture]:
    """What was drawn, in the order of the prompts, with what the oracle of the embedded data reads in it."""
    from t2i.data.shapes_captions import parse
    from t2i.data.shapes_oracle import judge, read

    entries = json.loads((folder / "manifest.json").read_text("utf-8"))["pictures"]
    drawn = np.stack([np.asarray(images.decode(folder / entry["file"])) for entry in entries])
    specs = [spec for entry in entries if (spec := parse(entry["prompt"]))]  # all: these captions are of its grammar
    judged = judge(read(drawn), specs)
    notes = [verdict({name: bool(flags[i]) for name, flags in judged.items()}) for i in range(len(entries))]
    groups = [group for group in SPLITS.values() for _ in range(SHOWN)]
    return [
        Picture(folder / entry["file"], entry["prompt"], group, note)
        for entry, group, note in zip(entries, groups, notes, strict=True)
    ]


def verdict(right: Mapping[str, bool]) -> str:
    """In a few words what is wrong with a picture, as the oracle reads it."""
    if right["strict"]:
        return "reads as asked"
    wrong = [name for name in JUDGED if not right[name]] if right["count"] else ["number of objects"]
    return f"wrong: {', '.join(wrong)}"


def next_commands(run: Path) -> dict[str, str]:
    """What to try next -> the command, as it can be typed here."""
    t2i, cgan = command_here(), shlex.quote(str(run / "cgan"))
    own, encoder = shlex.quote(str(run.parent / "own")), shlex.quote(str(run.parent / "own-align"))
    lines: dict[str, Sequence[str]] = {
        "Draw a sentence of yours": [f'{t2i} sample {cgan} "a small red circle above a large blue square" -n 4'],
        "Go from one sentence to another": [
            f'{t2i} sample {cgan} "a large red heart" "a small green star" --interpolate caption'
        ],
        "Train longer": [f"{t2i} quickstart --run-dir {shlex.quote(str(run))} --minutes 30"],
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
