"""A plan of `t2i fit` in words: what will be trained, and what to expect of it."""

from collections.abc import Sequence

from t2i.cli.fit.plan import LEAST_CAPTIONS, SMALL, Chosen, Timed, needed

FEW = 300  # training images below which a model repeats them
SURE_CAPTIONS = 200  # of val, below which intervals are wide
RECOGNISABLE = {"prior": 4.0, "cvae": 4.0, "cgan": 10.0}  # reference minutes of all trainings together


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
            f"{minutes:g} minutes are too few for recognisable images on this machine, about {least:.0f} would do on "
            "some thousand images; the same command with more --minutes goes on"
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
