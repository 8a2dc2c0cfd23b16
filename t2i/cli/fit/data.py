"""Collects the facts about captioned images that `t2i fit` plans by, using the checks of `t2i data check`."""

from collections.abc import Callable
from statistics import median

from t2i.cli.fit.plan import LEAST_IMAGES, Facts
from t2i.errors import InputError
from t2i.names import counted

# scripts without spaces between words, by the first word of the Unicode names of their letters
UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"}


def look(address: str, say: Callable[[str], None]) -> Facts:
    """Checks all images, prints the report of `t2i data check`, and returns the facts that a plan needs.

    Raises:
        InputError: there is no data, training would refuse it, or there are too few images.
    """
    from t2i.data import parse_address

    facts = _of_shapes(address, say) if parse_address(address).kind == "shapes" else _of_images(address, say)
    if facts.train < LEAST_IMAGES:
        raise InputError(
            f"data {address}: {counted(facts.train, 'image')} with a caption to train on; provide at least {LEAST_IMAGES}, "
            "preferably some thousands"
        )
    return facts


def _of_shapes(address: str, say: Callable[[str], None]) -> Facts:
    """Returns the facts about rendered shapes, which need no check."""
    from t2i.data import open_dataset

    sizes = {split: len(open_dataset(address, split)) for split in ("train", "val")}
    say(f"data       {address}: {sizes['train']:,} images of train, {sizes['val']:,} of val, rendered")
    return Facts(address, sizes["train"], sizes["val"], side=1024, rendered=True)


def _of_images(address: str, say: Callable[[str], None]) -> Facts:
    from t2i.console import shown_progress
    from t2i.data.shapes.captions import parse
    from t2i.data.tools.check import examine, gather
    from t2i.data.tools.check_report import format_report, save_report
    from t2i.data.verify import watched

    with shown_progress(" images") as tick, watched(lambda done, total: tick("decoding", done, total)):
        here = gather(address)
    report = examine(here)
    save_report(report, here)
    say(format_report(report) + "\n")
    if report.problem:
        raise InputError(report.problem)
    usable = [here.verified[name] for name in here.usable]
    unspaced = sum(count for script, count in report.scripts.items() if script in UNSPACED)
    return Facts(
        address=address,
        train=report.splits.get("train", 0),
        val=report.splits.get("val", 0),
        side=int(median(min(image.width, image.height) for image in usable)) if usable else 0,
        spaced=2 * unspaced < report.captions,
        rendered=all(parse(caption) is not None for captions in here.usable.values() for caption in captions),
    )
