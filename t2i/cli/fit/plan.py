"""What `t2i fit` decides: encoder, tokenizer, generator, their sizes and schedules, from data, machine and minutes.

Two steps, because a fit that is typed again with more minutes goes on with the models it has: `choose` fixes what cannot change
in a run, `schedule` how long each training is. Speeds are in units of two free cores with bf16 (`probe.REFERENCE_SPEED`); every
number here that was measured is in LOG.md.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from t2i.cli.fit.probe import REFERENCE_SPEED
from t2i.cli.fit.record import Step
from t2i.config.section import Section

Family = Literal["prior", "cvae", "cgan"]
LEAST_IMAGES = 16  # training images without which there is no fit
FEW, SMALL = 300, 5000  # images below which a model repeats them; below which it learns them by heart unless held back
LEAST_CAPTIONS = 8  # of val, without which no score says anything
SURE_CAPTIONS = 200  # of val, below which intervals are wide
MOST_SCORED = 500
SHOWN = 12  # captions that are sampled for the sheet of images
LARGER_MINUTES, LARGER_SIDE = 20.0, 48  # reference minutes and pixels from which images have 64 pixels a side, not 32
RECOGNISABLE = {"prior": 4.0, "cvae": 4.0, "cgan": 10.0}  # reference minutes of all trainings together
OVERHEAD, TOKENIZER_SHARE, ALIGN_SHARE = 0.1, 0.3, 0.15  # of the minutes
DUAL_ENCODER = 1000  # images from which a dual encoder is worth training: as text encoder of a GAN, and as judge


class Facts(NamedTuple):
    """What is known of the data."""

    address: str
    train: int  # usable images of the split
    val: int
    side: int  # median shorter side, pixels
    spaced: bool = True  # whether captions have blanks between words
    drawn: bool = False  # the embedded data


class Chosen(Section):
    """What a run cannot change once it has begun; kept in plan.json beside what it follows from.

    Attributes:
        codes: of the tokenizer's codebook.
        warmup: steps over which the learning rates rise.
        text: `bow`, or `align` for a dual encoder trained on this data.
        judge: True where a dual encoder is trained for the scores alone, as the embedded one knows drawn shapes only.
    """

    address: str
    family: Family
    resolution: Literal[32, 64]
    codes: int
    text: Literal["bow", "align"]
    judge: bool
    small: bool
    warmup: int
    train: int
    val: int


class Stage(NamedTuple):
    """One training.

    Attributes:
        cost: time of one of its images, in images of the probe.
        images: as many as are worth while, all epochs together.
    """

    name: str
    family: str
    config: str
    folder: str
    batch: int
    cost: float
    images: int


class Timed(NamedTuple):
    """A stage with its limits."""

    stage: Stage
    steps: int
    minutes: float
    fits: float  # steps that the minutes are expected to be enough for


# resolution -> the stages as their configs were measured: batch, cost and length
TOKENIZERS = {
    32: Stage("tokenizer", "vqvae", "vqvae-tiny", "tokenizer", 32, 1.0, 160_000),
    64: Stage("tokenizer", "vqvae", "vqvae-shapes64", "tokenizer", 32, 1.2, 290_000),
}
GENERATORS = {
    ("prior", 32): Stage("prior", "prior", "prior-tiny", "prior", 64, 1.9, 384_000),
    ("prior", 64): Stage("prior", "prior", "prior-shapes64", "prior", 64, 3.3, 450_000),
    ("cvae", 32): Stage("cvae", "cvae", "cvae-tiny", "cvae", 64, 3.3, 200_000),
    ("cvae", 64): Stage("cvae", "cvae", "cvae-shapes64", "cvae", 64, 3.3, 200_000),
    ("cgan", 32): Stage("cgan", "cgan", "cgan-tiny", "cgan", 32, 2.3, 384_000),
    ("cgan", 64): Stage("cgan", "cgan", "cgan-shapes64", "cgan", 32, 8.0, 384_000),
}
ALIGN = Stage("text encoder", "align", "align-tiny", "text", 64, 1.4, 96_000)
JUDGE = Stage(
    "judge", "align", "align-tiny", "judge", 64, 1.4, 96_000
)  # sees what it is to score, and trains nothing else
CODES = {32: 2048, 64: 4096}
EPOCHS = {
    "vqvae": 300,
    "prior": 200,
    "cvae": 200,
    "cgan": 1000,
    "align": 60,
}  # more of them teach nothing on small data
LEAST_STEPS = 200


def choose(facts: Facts, speed: float, minutes: float, family: Family) -> Chosen:
    """Fixes family, pixels, codes and text encoder."""
    larger = minutes * speed >= LARGER_MINUTES and facts.side >= LARGER_SIDE
    resolution = 64 if larger else 32
    tokens = facts.train * 64
    codes = min(CODES[resolution], 1 << max(4, (tokens // 16).bit_length() - 1))
    dual = not facts.spaced or family == "cgan" and (facts.train >= DUAL_ENCODER)
    chosen = Chosen(
        address=facts.address,
        family=family,
        resolution=resolution,
        codes=codes,
        text="align" if dual else "bow",
        judge=not facts.drawn and facts.train >= DUAL_ENCODER and facts.val >= LEAST_CAPTIONS,
        small=facts.train < SMALL,
        warmup=100,
        train=facts.train,
        val=facts.val,
    )
    # a tenth of what the generator can do, for a warm-up as long as a short training would be all there is of it
    fits = schedule(chosen, speed, minutes)[-1].fits
    return chosen.model_copy(update={"warmup": int(min(100, max(5, fits / 10)))})


def stages(chosen: Chosen) -> list[Stage]:
    """The trainings in order; the generator is the last."""
    text = [ALIGN] if chosen.text == "align" else []
    tokenizer = [] if chosen.family == "cgan" else [TOKENIZERS[chosen.resolution]]
    judge = [JUDGE] if chosen.judge else []
    return [*text, *judge, *tokenizer, GENERATORS[chosen.family, chosen.resolution]]


def schedule(chosen: Chosen, speed: float, minutes: float) -> list[Timed]:
    """Divides the minutes: each stage gets its share or what its images need, the generator what is left."""
    every, left = stages(chosen), minutes * (1 - OVERHEAD)
    shares = {"vqvae": TOKENIZER_SHARE, "align": ALIGN_SHARE}
    timed = []
    for stage in every:
        enough = max(EPOCHS[stage.family] * chosen.train, LEAST_STEPS * stage.batch)
        steps = max(1, min(stage.images, enough) // stage.batch)
        pace = 60 * REFERENCE_SPEED * speed / stage.cost / stage.batch  # steps a minute
        limit = min(left, shares.get(stage.family, 1.0) * minutes)
        own = min(limit, 1.3 * steps / pace) if stage is not every[-1] else limit
        own = max(round(own, 2), 0.01)
        left = max(left - own, 0.0)
        timed.append(Timed(stage, steps, own, min(steps, pace * own)))
    return timed


def needed(timed: Sequence[Timed]) -> float:
    """Minutes that the trainings are expected to take."""
    return sum(one.minutes * min(1.0, one.steps / max(one.fits, 1e-9)) if one.fits >= one.steps else one.minutes
               for one in timed)  # fmt: skip


def settings(one: Timed, chosen: Chosen, folder: Path) -> list[str]:
    """What the command of a stage sets over its config."""
    stage, watch = one.stage, max(1, int(one.fits / (8 if chosen.small else 4)))
    sets = [
        f"data.resolution={chosen.resolution}",
        f"max_train_steps={one.steps}",
        f"max_train_minutes={one.minutes:g}",
        f"lr_warmup_steps={chosen.warmup}",
        f"validation_steps={watch}",
        f"checkpointing_steps={watch}",
        f"log_steps={max(1, min(50, watch // 2))}",
    ]
    if chosen.resolution == 64 and stage.family in ("prior", "cvae"):
        sets.append("data.limit=null")
    if stage.family == "vqvae":
        return [*sets, f"quantizer.codebook_size={chosen.codes}"]
    if stage.family == "align":
        return [*sets, *(["seed=1"] if stage is JUDGE else [])]
    sets += ["text.encoder=bow"] if chosen.text == "bow" else [
        "text.encoder=aligned", named("text.path", folder / ALIGN.folder)
    ]  # fmt: skip
    if stage.family == "cgan":
        guide = ["guidance.encoder=none"] if chosen.text == "bow" else []
        return [*sets, *guide, *(["augment=[translation,cutout]"] if chosen.small else [])]
    sets.append(named("tokenizer.path", folder / TOKENIZERS[chosen.resolution].folder))
    if stage.family == "prior":
        held_back = ["model.dropout=0.1", "loss.token_dropout=0.1", "loss.label_smoothing=0.1"] if chosen.small else []
        return [*sets, *held_back, *(["best_metric=null"] if chosen.val < LEAST_CAPTIONS else [])]
    return sets


def steps(chosen: Chosen, timed: Sequence[Timed], folder: Path) -> list[Step]:
    """The commands in order: trainings, images, scores."""
    trained = [
        Step(
            one.stage.name,
            training(
                one.stage.family,
                one.stage.config,
                chosen.address,
                folder / one.stage.folder,
                *settings(one, chosen, folder),
            ),
            folder / one.stage.folder / "checkpoints",
        )
        for one in timed
    ]
    model, prompts, images = folder / chosen.family, folder / "prompts.txt", folder / f"images-{chosen.family}"
    made = Step(
        "images",
        ["sample", str(model), "--prompts", str(prompts), "--out", str(images)],
        images,
        (model, prompts),
    )
    return [*trained, made, *([scoring(chosen, folder)] if chosen.val >= LEAST_CAPTIONS else [])]


def scoring(chosen: Chosen, folder: Path) -> Step:
    """The command that scores held-out captions."""
    model, file = folder / chosen.family, folder / chosen.family / "scores-val.json"
    n = min(chosen.val, MOST_SCORED)
    command = ["eval", "score", str(model), "--split", "val", "-n", str(n), "--out", str(file)]
    command += ["--scorer", str(folder / JUDGE.folder)] if chosen.judge else []
    return Step("scores", command, file, (model,))


def training(family: str, config: str, data: str, run: Path, *sets: str) -> list[str]:
    """The command that trains a model of this data."""
    words = [word for value in sets for word in ("--set", value)]
    return ["train", family, "--config", config, *words, "--data", data, "--run-dir", str(run)]


def named(key: str, path: Path) -> str:
    """A setting that names a path; quoted, as YAML reads it."""
    return f"{key}={json.dumps(str(path), ensure_ascii=False)}"


# ---- in words ------------------------------------------------------------------------------------------------------


def describe(chosen: Chosen, timed: Sequence[Timed], speed: float, minutes: float) -> list[str]:
    """The plan in lines: machine, model, each stage with its length."""
    text = "a dual encoder trained on these captions" if chosen.text == "align" else "the words of the captions (bow)"
    codes = "" if chosen.family == "cgan" else f", 64 codes an image of {chosen.codes:,}"
    lines = [
        f"machine    {speed:.2g} times the speed of two free CPU cores with bf16 (measured)",
        f"model      {chosen.family}, {chosen.resolution} x {chosen.resolution} pixels{codes}; text: {text}",
        f"time       about {needed(timed):.2g} of {minutes:g} minutes in training",
    ]
    for one in timed:
        seen = one.fits * one.stage.batch
        lines.append(
            f"{one.stage.name:<11}{one.fits:,.0f} steps of {one.stage.batch} images, {seen / chosen.train:,.0f} epochs, in at "
            f"most {one.minutes:g} minutes"
        )
    return lines


def expectations(chosen: Chosen, timed: Sequence[Timed], speed: float, minutes: float) -> list[str]:
    """What to expect, in sentences; only of what is short of what a good model needs."""
    told = []
    least = RECOGNISABLE[chosen.family] / speed
    if minutes < least:
        told.append(
            f"{minutes:g} minutes are too few for recognisable images on this machine, about {least:.0f} would do; the same "
            "command with more --minutes goes on"
        )
    if chosen.train < FEW:
        told.append(f"with {chosen.train:,} training images the model will mostly repeat them; it cannot invent much")
    elif chosen.small:
        told.append(
            f"with {chosen.train:,} training images expect colours and rough layout; fine detail and new combinations need "
            f"{SMALL:,} and more"
        )
    if chosen.val < LEAST_CAPTIONS:
        told.append(
            f"val has {chosen.val} images, fewer than {LEAST_CAPTIONS}: scores are left out, and the best weights are not "
            "chosen by them; about 200 images give a val that can be scored, or make folders train/ and val/"
        )
    elif chosen.val < SURE_CAPTIONS:
        told.append(f"scores on {chosen.val} held-out captions have wide intervals")
    if minutes >= least and needed(timed) < 0.6 * minutes:
        told.append("the data is learned sooner than the minutes are over; more images would help, more time would not")
    return told


def shown(step: Step) -> str:
    """A command as it can be typed."""
    return shlex.join(["t2i", *step.argv])
