"""Plans `t2i fit`: chooses encoder, tokenizer and generator with sizes and schedules, by data, machine and minutes.

There are two steps, since a fit that is called again with more minutes continues with its models: `choose` fixes the settings
that cannot change in a run, `schedule` the length of each training. Speeds are in units of two free cores with bf16
(`probe.REFERENCE_SPEED`); the measurements behind the constants are in LOG.md.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from t2i.cli.fit.probe import REFERENCE_SPEED
from t2i.cli.fit.record import Step
from t2i.config.section import Section

Family = Literal["prior", "cvae", "cgan"]
LEAST_IMAGES = 16  # minimum number of training images
SMALL = 5000  # a model memorises fewer images unless it is regularised
LEAST_CAPTIONS = 8  # minimum number of val captions for scores
MOST_SCORED = 500
SHOWN = 12  # captions that are sampled for the sheet of images
# images get 64 instead of 32 pixels per side from these reference minutes and this side of the originals
LARGER_MINUTES, LARGER_SIDE = 20.0, 48
OVERHEAD = 0.1  # share of the minutes in which nothing is trained
SHARES = {"tokenizer": 0.3, "text encoder": 0.15, "judge": 0.1}  # maximum shares of the minutes
DUAL_ENCODER = 1000  # images from which a dual encoder is worth training, as a GAN's text encoder and as judge


class Facts(NamedTuple):
    """Facts about the data."""

    address: str
    train: int  # number of usable images
    val: int
    side: int  # median shorter side, in pixels
    spaced: bool = True  # True if captions have spaces between words
    rendered: bool = False  # True for rendered shapes


class Chosen(Section):
    """The settings that a run cannot change later, and the facts that they depend on; stored in plan.json.

    Attributes:
        codes: size of the tokenizer's codebook.
        warmup: warm-up steps of the learning rates.
        text: `bow`, or `align` for a dual encoder trained on this data.
        judge: True if a dual encoder is trained for scoring only, as the embedded one only knows rendered shapes.
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
        cost: time per image, relative to the probe.
        images: number of images, over all epochs, after which training has converged.
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
    fits: float  # expected number of steps
    expected: float  # expected minutes


# resolution -> stages with batch size, measured cost and length
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
JUDGE = Stage("judge", "align", "align-tiny", "judge", 64, 1.4, 96_000)  # for scoring only
CODES = {32: 2048, 64: 4096}
# maximum numbers of epochs, after which small data teaches nothing more
EPOCHS = {"vqvae": 300, "prior": 200, "cvae": 200, "cgan": 1000, "align": 60}
LEAST_STEPS = 200
AGAIN = 1.5  # a stage before the generator is trained further if its minutes grow by this factor
NOTHING: Mapping[str, float] = MappingProxyType({})


def choose(facts: Facts, speed: float, minutes: float, family: Family) -> Chosen:
    """Chooses resolution, number of codes, text encoder and judge."""
    larger = minutes * speed >= LARGER_MINUTES and facts.side >= LARGER_SIDE
    resolution = 64 if larger else 32
    tokens = facts.train * 64
    codes = min(CODES[resolution], 1 << max(4, (tokens // 16).bit_length() - 1))
    dual = not facts.spaced or family == "cgan" and facts.train >= DUAL_ENCODER
    chosen = Chosen(
        address=facts.address,
        family=family,
        resolution=resolution,
        codes=codes,
        text="align" if dual else "bow",
        judge=not facts.rendered and facts.train >= DUAL_ENCODER and facts.val >= LEAST_CAPTIONS,
        small=facts.train < SMALL,
        warmup=100,
        train=facts.train,
        val=facts.val,
    )
    # at most a tenth of the generator's steps, so that warm-up does not take all of a short training
    fits = schedule(chosen, speed, minutes)[-1].fits
    return chosen.model_copy(update={"warmup": int(min(100, max(5, fits / 10)))})


def stages(chosen: Chosen) -> list[Stage]:
    """Returns the trainings in order; the generator is the last."""
    text = [ALIGN] if chosen.text == "align" else []
    tokenizer = [] if chosen.family == "cgan" else [TOKENIZERS[chosen.resolution]]
    judge = [JUDGE] if chosen.judge else []
    return [*text, *judge, *tokenizer, GENERATORS[chosen.family, chosen.resolution]]


def schedule(chosen: Chosen, speed: float, minutes: float, earlier: Mapping[str, float] = NOTHING) -> list[Timed]:
    """Divides the minutes: each stage gets its share, or less if its images need less; the generator gets the rest.

    Args:
        earlier: stage -> minutes of the stages before the generator in an earlier call. They are kept unless there is much more
            time now, since with another tokenizer or text encoder the generator is trained from scratch.
    """
    every, left = stages(chosen), minutes * (1 - OVERHEAD)
    timed = []
    for stage in every:
        enough = max(EPOCHS[stage.family] * chosen.train, LEAST_STEPS * stage.batch)
        steps = max(1, min(stage.images, enough) // stage.batch)
        pace = 60 * REFERENCE_SPEED * speed / stage.cost / stage.batch  # steps per minute
        limit = min(left, SHARES.get(stage.name, 1.0) * minutes)
        own = min(limit, 1.3 * steps / pace) if stage is not every[-1] else limit
        own = max(round(own, 2), 0.01)
        if own < AGAIN * earlier.get(stage.name, 0.0):
            own = earlier[stage.name]
        left = max(left - own, 0.0)
        timed.append(Timed(stage, steps, own, min(steps, pace * own), min(own, steps / pace)))
    return timed


def is_stale(before: Chosen, timed: Sequence[Timed], earlier: Mapping[str, float]) -> bool:
    """Returns True if a tokenizer or text encoder of an earlier generator is trained further, so that it no longer fits."""
    used = {stage.name for stage in stages(before)[:-1]} - {JUDGE.name}
    return any(one.stage.name in used and one.minutes != earlier.get(one.stage.name, one.minutes) for one in timed)


def needed(timed: Sequence[Timed]) -> float:
    """Returns the expected minutes of all trainings."""
    return sum(one.expected for one in timed)


def settings(one: Timed, chosen: Chosen, folder: Path) -> list[str]:
    """Returns the `--set` values of a stage's command."""
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
        regular = ["model.dropout=0.1", "loss.token_dropout=0.1", "loss.label_smoothing=0.1"] if chosen.small else []
        return [*sets, *regular, *(["best_metric=null"] if chosen.val < LEAST_CAPTIONS else [])]
    return sets


def steps(chosen: Chosen, timed: Sequence[Timed], folder: Path) -> list[Step]:
    """Returns the commands in order: trainings, images, scores."""
    trainings = []
    for one in timed:
        run, sets = folder / one.stage.folder, settings(one, chosen, folder)
        command = training(one.stage.family, one.stage.config, chosen.address, run, *sets)
        trainings.append(Step(one.stage.name, command, run / "checkpoints"))
    model, prompts, images = folder / chosen.family, folder / "prompts.txt", folder / f"images-{chosen.family}"
    sample = ["sample", str(model), "--prompts", str(prompts), "--out", str(images)]
    scores = [scoring(chosen, folder)] if chosen.val >= LEAST_CAPTIONS else []
    return [*trainings, Step("images", sample, images, (model, prompts)), *scores]


def scoring(chosen: Chosen, folder: Path) -> Step:
    """Returns the command that scores held-out captions."""
    model, file = folder / chosen.family, folder / chosen.family / "scores-val.json"
    n = min(chosen.val, MOST_SCORED)
    command = ["eval", "score", str(model), "--split", "val", "-n", str(n), "--out", str(file)]
    command += ["--scorer", str(folder / JUDGE.folder)] if chosen.judge else []
    return Step("scores", command, file, (model,))


def training(family: str, config: str, data: str, run: Path, *sets: str) -> list[str]:
    """Returns the command that trains a model on this data."""
    words = [word for value in sets for word in ("--set", value)]
    return ["train", family, "--config", config, *words, "--data", data, "--run-dir", str(run)]


def named(key: str, path: Path) -> str:
    """Returns a setting with a path, quoted for YAML."""
    return f"{key}={json.dumps(str(path), ensure_ascii=False)}"
