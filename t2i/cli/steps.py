"""The commands of `t2i quickstart`, fitted to the speed of this machine."""

from pathlib import Path
from typing import NamedTuple

from t2i.cli.fit.plan import named, training
from t2i.cli.fit.record import Step

DATA = "shapes-1"
SCORED = 500  # images scored of each split
SPLITS = ("val", "heldout")
# settings over those of align-tiny; the minutes matter on a busy machine alone
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
CVAE: tuple[str, ...] = ("max_train_steps=1000000", "validation_steps=500", "data.limit=40000")
# minutes until images are recognisable, on two free cores with bf16 (LOG.md); that of the cvae is estimated from shapes-2
LEAST_MINUTES = {"prior": 2.0, "cvae": 3.0, "cgan": 2.0}
FAST = 0.65  # of the reference speed; below it the tokenizer gets fewer steps and the data is smaller


class Plan(NamedTuple):
    """Lengths of the trainings."""

    minutes: float  # of the generator
    speed: float = 1.0  # of this machine, in units of the reference
    tokenizer: tuple[str, ...] = ()  # settings over VQVAE
    generator: tuple[str, ...] = ()  # settings over PRIOR, CVAE or CGAN

    def describe(self, asked: float) -> str:
        """One line: the speed, and what follows from it."""
        told = f"this machine trains at {self.speed:.2g} times the speed of two free cores with bf16"
        if self.minutes > asked:
            told += f"; images need {self.minutes:.0f} minutes of training to be recognisable, {asked:g} were asked for"
        return told


def fitted(minutes: float, speed: float, family: str) -> Plan:
    """The plan for a machine of this speed, in units of the reference."""
    shorter = speed < FAST and family != "cgan"
    length = ("max_train_steps=800", "max_train_minutes=30", "validation_steps=400", "checkpointing_steps=400")
    return Plan(
        minutes=max(minutes, round(min(minutes, LEAST_MINUTES[family]) / speed, 1)),
        speed=speed,
        tokenizer=length if shorter else (),
        generator=("data.limit=20000",) if shorter else (),
    )


def steps(run: Path, plan: Plan, family: str) -> list[Step]:
    """The commands for one family, in order."""
    model = run / family
    train = {"cgan": cgan_steps, "cvae": cvae_steps, "prior": prior_steps}[family]
    scored = [
        Step(
            f"score of {family} on {split}",
            ["eval", "score", str(model), "--split", split, "-n", str(SCORED)],
            scores_of(run, family, split),
            (model,),
        )
        for split in SPLITS
    ]
    sampled = run / f"pictures-{family}"
    return [
        *train(run, plan),
        Step(
            f"images of {family}",
            ["sample", str(model), "--prompts", str(run / "prompts.txt"), "--out", str(sampled)],
            sampled,
            (model, run / "prompts.txt"),
        ),
        *scored,
    ]


def scores_of(run: Path, family: str, split: str) -> Path:
    """The score file of one family and split."""
    return run / family / f"scores-{DATA}-{split}-{SCORED}.json"


def cgan_steps(run: Path, plan: Plan) -> list[Step]:
    align = run / "align"
    sets = (named("text.path", align), f"max_train_minutes={plan.minutes:g}", *CGAN, *plan.generator)
    return [
        Step("text encoder", training("align", "align-tiny", DATA, align, *ALIGN), align / "checkpoints"),
        Step("generator", training("cgan", "cgan-tiny", DATA, run / "cgan", *sets), run / "cgan" / "checkpoints"),
    ]


def prior_steps(run: Path, plan: Plan) -> list[Step]:
    """The prior reads plain words sooner than what a dual encoder makes of them in two minutes: after 500 steps 77 % of val
    is right, against 25 % (LOG.md).
    """
    prior = run / "prior"
    sets = (*over_codes(run, plan), "text.encoder=bow", *PRIOR, *plan.generator)
    train = training("prior", "prior-tiny", DATA, prior, *sets)
    return [tokenizer_step(run, plan), Step("prior", train, prior / "checkpoints")]


def cvae_steps(run: Path, plan: Plan) -> list[Step]:
    cvae = run / "cvae"
    train = training("cvae", "cvae-tiny", DATA, cvae, *over_codes(run, plan), *CVAE, *plan.generator)
    return [tokenizer_step(run, plan), Step("one-pass generator", train, cvae / "checkpoints")]


def tokenizer_step(run: Path, plan: Plan) -> Step:
    """Its steps do not follow the minutes: its reconstructions are the ceiling of all images made over its codes."""
    vqvae = run / "vqvae"
    return Step(
        "tokenizer", training("vqvae", "vqvae-tiny", DATA, vqvae, *VQVAE, *plan.tokenizer), vqvae / "checkpoints"
    )


def over_codes(run: Path, plan: Plan) -> tuple[str, ...]:
    """Settings of a generator over the codes of the tokenizer."""
    return named("tokenizer.path", run / "vqvae"), f"max_train_minutes={plan.minutes:g}"
