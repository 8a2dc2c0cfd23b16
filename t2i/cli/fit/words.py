"""Describes a plan of `t2i fit` in words: what will be trained, and what to expect."""

from collections.abc import Sequence

from t2i.cli.fit.plan import LEAST_CAPTIONS, SMALL, Chosen, Timed, needed
from t2i.names import counted, number, verb

FEW = 300  # a model with fewer training images repeats them
SURE_CAPTIONS = 200  # intervals are wide with fewer captions of val
RECOGNISABLE = {"prior": 4.0, "cvae": 4.0, "cgan": 10.0}  # total training minutes, on the reference machine


def describe(chosen: Chosen, timed: Sequence[Timed], speed: float, minutes: float) -> list[str]:
    """Returns lines about the machine, the model, and the length of each stage."""
    text = "a dual encoder trained on these captions" if chosen.text == "align" else "the words of the captions (bow)"
    codes = "" if chosen.family == "cgan" else f", 64 codes per image out of {chosen.codes:,}"
    lines = [
        f"machine    {speed:.2g} times the speed of two free CPU cores with bf16 (measured)",
        f"model      {chosen.family}, {chosen.resolution} x {chosen.resolution} pixels{codes}; text: {text}",
        f"time       about {number(needed(timed), 2)} of {counted(minutes, 'minute')} in training",
    ]
    for one in timed:
        seen = one.fits * one.stage.batch
        lines.append(
            f"{one.stage.name:<11}{counted(round(one.fits), 'step')} of {counted(one.stage.batch, 'image')}, "
            f"{counted(round(seen / chosen.train), 'epoch')}, in at most {counted(one.minutes, 'minute')}"
        )
    return lines


def expectations(chosen: Chosen, timed: Sequence[Timed], speed: float, minutes: float) -> list[str]:
    """Returns sentences about what to expect if minutes or images are fewer than a good model needs."""
    warnings = []
    least = RECOGNISABLE[chosen.family] / speed
    if minutes < least:
        warnings.append(
            f"{counted(minutes, 'minute')} {verb(minutes)} too few for recognisable images on this machine; "
            f"about {least:.0f} are needed for some thousand images; the same command with more --minutes continues"
        )
    if chosen.train < FEW:
        warnings.append(f"with {counted(chosen.train, 'training image')}, the model will mostly repeat them")
    elif chosen.small:
        warnings.append(
            f"with {chosen.train:,} training images, expect colours and rough layout; fine detail and new combinations need "
            f"{SMALL:,} or more"
        )
    if chosen.val < LEAST_CAPTIONS:
        warnings.append(
            f"val has {counted(chosen.val, 'image')}, fewer than {LEAST_CAPTIONS}: there will be no scores, and they cannot "
            "select the best weights; about 200 images give a val that can be scored, or make folders train/ and val/"
        )
    elif chosen.val < SURE_CAPTIONS:
        warnings.append(f"scores on {counted(chosen.val, 'held-out caption')} have wide intervals")
    if minutes >= least and needed(timed) < 0.6 * minutes:
        warnings.append("the model will converge before the time is over; more images would help, more time would not")
    return warnings
