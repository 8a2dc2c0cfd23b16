"""The commands of `t2i quickstart`, with trainings fitted to the speed of this machine."""

from pathlib import Path
from typing import NamedTuple

from t2i.cli.fit.plan import named, training
from t2i.cli.fit.record import Step

DATA = "shapes-1"
SCORED = 500  # images scored of each split
SPLITS = ("val", "heldout")
# family -> settings that override its smallest config; the minutes of align only matter on a busy machine, and generators are
# trained for the minutes of the plan, whatever their steps
SETTINGS: dict[str, tuple[str, ...]] = {
    "align": ("max_train_steps=700", "max_train_minutes=2.5", "data.limit=20000"),
    "vqvae": (
        "max_train_steps=1600",
        "max_train_minutes=2.5",
        "validation_steps=800",
        "checkpointing_steps=800",
        "data.limit=20000",
    ),
    "prior": ("max_train_steps=1000000", "validation_steps=500", "data.limit=40000"),
    "cvae": ("max_train_steps=1000000", "validation_steps=500", "data.limit=40000"),
    "cgan": ("max_train_steps=1000000", "validation_steps=500", "data.limit=20000"),
}
# the same for a slow machine, on top of SETTINGS: fewer steps of the tokenizer and less data
SLOW_SETTINGS: dict[str, tuple[str, ...]] = {
    "vqvae": ("max_train_steps=800", "max_train_minutes=30", "validation_steps=400", "checkpointing_steps=400"),
    "prior": ("data.limit=20000",),
    "cvae": ("data.limit=20000",),
}
SLOW = 0.65  # a machine with a lower speed, in units of the reference, is slow
# minutes until images are recognisable, on two free cores with bf16 (LOG.md); a cvae of 400 steps samples backgrounds alone, one
# of 600 has most colours and places right
LEAST_MINUTES = {"prior": 2.0, "cvae": 4.0, "cgan": 2.0}


class Plan(NamedTuple):
    """Training time of the generator, and speed of this machine in units of the reference."""

    minutes: float
    speed: float = 1.0

    def describe(self, requested: float) -> str:
        """Describes the speed, and explains minutes other than the requested ones, in one line."""
        line = f"this machine trains at {self.speed:.2g} times the speed of two free cores with bf16"
        if self.minutes > requested:
            line += f"; recognisable images need {self.minutes:.0f} minutes of training instead of {requested:g}"
        return line


def fitted(minutes: float, speed: float, family: str) -> Plan:
    """Returns the plan for a machine of this speed: `minutes`, or as many as recognisable images need."""
    return Plan(max(minutes, round(min(minutes, LEAST_MINUTES[family]) / speed, 1)), speed)


def steps(run: Path, plan: Plan, family: str) -> list[Step]:
    """Returns the commands for one family, in order: trainings, images, scores."""
    model, prompts, images = run / family, run / "prompts.txt", run / f"pictures-{family}"
    sample = ["sample", str(model), "--prompts", str(prompts), "--out", str(images)]
    scores = [
        Step(
            f"score of {family} on {split}",
            ["eval", "score", str(model), "--split", split, "-n", str(SCORED)],
            scores_of(run, family, split),
            (model,),
        )
        for split in SPLITS
    ]
    return [*trainings(run, plan, family), Step(f"images of {family}", sample, images, (model, prompts)), *scores]


def scores_of(run: Path, family: str, split: str) -> Path:
    """Returns the path of the score file of one family and split."""
    return run / family / f"scores-{DATA}-{split}-{SCORED}.json"


def trainings(run: Path, plan: Plan, family: str) -> list[Step]:
    """Returns the trainings for one family; the generator is the last."""
    minutes = f"max_train_minutes={plan.minutes:g}"
    if family == "cgan":
        encoder = _training("text encoder", "align", run, plan)
        return [encoder, _training("generator", "cgan", run, plan, named("text.path", run / "align"), minutes)]
    # its length does not depend on the minutes, as images over its codes cannot be better than its reconstructions
    tokenizer = _training("tokenizer", "vqvae", run, plan)
    over_codes = named("tokenizer.path", run / "vqvae"), minutes
    if family == "cvae":
        return [tokenizer, _training("one-pass generator", "cvae", run, plan, *over_codes)]
    # with a dual encoder of two minutes instead, 25 % of val is right after 500 steps, with bow 77 % (LOG.md)
    return [tokenizer, _training("prior", "prior", run, plan, *over_codes, "text.encoder=bow")]


def _training(name: str, family: str, run: Path, plan: Plan, *sets: str) -> Step:
    sets = (*sets, *SETTINGS[family], *(SLOW_SETTINGS.get(family, ()) if plan.speed < SLOW else ()))
    return Step(name, training(family, f"{family}-tiny", DATA, run / family, *sets), run / family / "checkpoints")
