"""Writes the page of `t2i eval privacy`: scores, and the sampled images that are nearest to training images."""

from pathlib import Path

import numpy as np

from t2i.files import write_text
from t2i.metrics.score import rounded
from t2i.names import counted
from t2i.privacy.attacks import flat
from t2i.privacy.scores import Attacked
from t2i.report.judged import Pool
from t2i.report.neighbours import neighbours_of
from t2i.report.template import inline, render, style

FOLDER = Path(__file__).parent


def write_page(out: Path, title: str, facts: dict[str, str], attacked: Attacked) -> None:
    """Writes the page atomically.

    Args:
        facts: facts about the model, by name.

    Raises:
        InputError: `out` cannot be written.
    """
    members, others = attacked.sides.members, attacked.sides.others
    sampled = attacked.sampled[: len(members)]
    pool = Pool(members, [], list(sampled), np.empty(0))
    features = (flat(pixels) for pixels in (sampled, attacked.sides.other_pixels, attacked.sides.member_pixels))
    near = neighbours_of(counted(len(members), "training image"), pool, members, *features)
    rows = [
        {
            "sampled": inline(one.generated.image),
            "caption": one.generated.caption,
            "training": [(inline(image.image), f"{distance:.3f}", image.caption) for image, distance in one.training],
        }
        for one in near.nearest
    ]
    scores = [
        (
            score.name,
            rounded(score.value),
            "" if score.interval is None else " to ".join(map(rounded, score.interval)),
            rounded(score.bounds["chance"]),
        )
        for score in attacked.scores
    ]
    medians = {
        "sampled_median": f"{near.median:.3f}",
        "val_median": f"{near.held_out:.3f}",
        "others": f"{len(others):,}",
    }
    values = {"facts": facts, "scores": scores, "rows": rows, "near": near, **medians}
    write_text(out, render("page.html", FOLDER, title=title, style=style("chart.css", "style.css"), **values))
