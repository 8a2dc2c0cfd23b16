"""Writes an HTML page with runs side by side: images under their prompts, scores with their protocols, curves, configs.

    t2i eval report runs/cgan runs/prior --out report.html

The page needs no network and no other file: images are embedded, curves are SVG, and there are no scripts. This module gathers
the values, and `page.html` lays them out. If a run lacks something, the page omits it or mentions it in a line.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from t2i.config import yaml
from t2i.config.load import leaves
from t2i.families import FAMILIES
from t2i.files import write_text
from t2i.names import counted, number
from t2i.report.curves import charts, shared_charts
from t2i.report.options import ReportOptions
from t2i.report.runs import ShownRun, open_runs
from t2i.report.scores import headline, score_section
from t2i.report.template import Inline, inline_sheet, render, style

if TYPE_CHECKING:
    from t2i.report.gallery import Gallery
    from t2i.scoring.images.collection import Tick

SHEETS = 4  # contact sheets of a training, evenly spread over its length
SECTIONS = {
    "images": "Images beside prompts",
    "extremes": "Best and worst",
    "neighbours": "Nearest training images",
    "scores": "Scores",
    "curves": "Curves",
    "parts": "Commands",
    "next": "What to try next",
    "configs": "Configs and commands",
}
SPLITS = {
    "val": "New scenes of combinations in the training data (val)",
    "heldout": "Combinations not in the training data: a shape in that colour, or two shapes in that relation (heldout)",
}
PRECISIONS = {"no": "float32", "fp16": "float16 mixed precision", "bf16": "bfloat16 mixed precision"}


class Part(NamedTuple):
    """A command that produced a part of the page."""

    name: str
    command: str
    seconds: float


@dataclass(frozen=True)
class Extras:
    """Contents of a page in addition to its runs.

    Attributes:
        helpers: folders of other runs, such as a text encoder, of which the page has curves and configs.
        parts: commands that were run, in order.
        next_commands: description -> command.
    """

    helpers: Sequence[Path] = ()
    parts: Sequence[Part] = ()
    next_commands: Mapping[str, str] | None = None


def make_report(options: ReportOptions, out: Path, tick: "Tick", extras: Extras = Extras()) -> None:
    """Opens the runs, samples with each, and writes the page atomically.

    Args:
        options: `runs` are run directories of any family, or saved pipelines; each has a column.
        tick: called with the name of the stage, the number of finished images and the total.

    Raises:
        InputError: a folder is not a run or has no checkpoint, there are no held-out captions, or `out` cannot be written.
    """
    from t2i.report.gallery import make_gallery

    count = len(options.runs)
    runs = open_runs([*options.runs, *extras.helpers])
    shown, helpers = runs[:count], runs[count:]
    gallery = make_gallery(shown, options, tick)
    write_report(out, options.heading(), shown, gallery, helpers, extras)


def write_report(
    out: Path,
    title: str,
    runs: Sequence[ShownRun],
    gallery: "Gallery | None" = None,
    helpers: Sequence[ShownRun] = (),
    extras: Extras = Extras(),
) -> None:
    """Writes the page atomically; raises InputError if `out` cannot be written."""
    values = _gather(runs, gallery, helpers, extras)
    write_text(out, render("page.html", title=title, style=style("chart.css", "style.css"), **values))


def _gather(
    runs: Sequence[ShownRun], gallery: "Gallery | None", helpers: Sequence[ShownRun], extras: Extras
) -> dict[str, Any]:
    """Returns the values for `page.html`."""
    parts = [[part.name, f"{part.seconds:,.0f} s", part.command] for part in extras.parts]
    absent = {
        "images": not runs,
        "extremes": gallery is None or not gallery.extremes,
        "neighbours": gallery is None or not gallery.neighbours,
        "parts": not parts,
        "next": not extras.next_commands,
    }
    config_head, config_rows = _differences(runs)
    return dict(
        sections={name: heading for name, heading in SECTIONS.items() if not absent.get(name)},
        runs=runs,
        cards=[_card(run) for run in runs],
        gallery=gallery,
        places={run.name: place for place, run in enumerate(runs)},
        units={run.name: run.unit for run in runs},
        headings=[] if gallery is None else [_heading(group.data, group.split) for group in gallery.splits],
        oracle=gallery is not None and any(one.verdict for group in gallery.splits for one in group.real),
        scores=score_section(runs),
        shared=shared_charts({run.name: (run.records, _images_a_step(run)) for run in runs if run.records}),
        curves=[_curves(run, runs) for run in [*runs, *helpers] if run.records],
        parts=[*parts, ["total", f"{sum(part.seconds for part in extras.parts):,.0f} s", ""]],
        next_commands=extras.next_commands or {},
        config_head=config_head,
        config_rows=config_rows,
        papers=[_papers(run) for run in [*runs, *helpers]],
    )


def _card(run: ShownRun) -> dict[str, Any]:
    """Returns a summary of a run, with its headline scores."""
    return {"name": run.name, "kind": FAMILIES[run.family].words, "tiles": headline(run), "facts": _facts(run)}


def _heading(data: str, split: str) -> str:
    heading = SPLITS.get(split) if data.startswith("shapes-") else None
    return heading or f"Captions of {data}, split {split}"


def _facts(run: ShownRun) -> dict[str, str]:
    """Returns the known facts about a run and its training."""
    manifest, config, command = run.manifest, run.manifest["config"], run.command
    text, data, best = config.get("text"), run.data, manifest.get("best")
    seconds, speed = run.seconds(), run.speed()
    facts = {
        "checkpoint": f"step {manifest['step']:,}, {counted(manifest['images_seen'], 'image')} seen",
        "best": f"{best['metric']} {number(best['value'])} on val at step {best['step']:,}" if best else "",
        "parameters": "" if run.parameters is None else f"{run.parameters:,}",
        "text encoder": str(text.get("encoder", "")) if isinstance(text, Mapping) else "",
        "data": f"{data['address']}, {data['resolution']} x {data['resolution']} pixels"
        + (f", {counted(data['limit'], 'image')}" if data.get("limit") else ""),
        "sampled with": _knobs(run),
        "training time": "" if seconds is None else _duration(seconds),
        "speed": "" if speed is None else f"{speed:,.0f} images/s",
        "hardware": _hardware(command),
        "started": str(command.get("started", "")),
    }
    return {key: value for key, value in facts.items() if value}


def _hardware(command: Mapping[str, Any]) -> str:
    """Returns e.g. `cpu, float32` or `cuda, bfloat16 mixed precision, 2 processes`."""
    precision = command.get("mixed_precision")
    words = [
        str(command.get("device") or ""),
        "" if precision is None else PRECISIONS.get(str(precision), str(precision)),
        f"{command['num_processes']} processes" if int(command.get("num_processes") or 1) > 1 else "",
    ]
    return ", ".join(filter(None, words))


def _knobs(run: ShownRun) -> str:
    """Describes the sampling settings of the images on this page."""
    if run.pipe is None:
        return ""
    values = {"guidance": run.pipe.guidance_scale, "truncation": run.pipe.truncation} | run.pipe.sampler.settings()
    names = ("guidance", "truncation", "temperature", "top_k", "top_p", "steps")
    return ", ".join(f"{name} {values[name]:g}" for name in names if values.get(name) is not None)


def _duration(seconds: float) -> str:
    """Returns a duration in a unit that needs few digits."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{number(seconds / size)} {unit}"
    return f"{seconds:.0f} s"


def _curves(run: ShownRun, runs: Sequence[ShownRun]) -> dict[str, Any]:
    """Returns the charts of a journal, and contact sheets of the training."""
    first, rest = charts(run.records)
    place = next((k for k, other in enumerate(runs) if other is run), None)
    return {"name": run.name, "place": place, "first": first, "rest": rest, "sheets": _sheets(run.folder)}


def _images_a_step(run: ShownRun) -> float:
    return run.manifest["images_seen"] / max(1, run.manifest["step"])


def _sheets(folder: Path) -> dict[str, Inline | str]:
    """Returns contact sheets of the same prompts at several steps."""
    paths = sorted((folder / "samples").glob("step-*.png"))
    if len(paths) > SHEETS:
        paths = [paths[round(k * (len(paths) - 1) / (SHEETS - 1))] for k in range(SHEETS)]
    return {path.stem: inline_sheet(path) for path in paths}


def _differences(runs: Sequence[ShownRun]) -> tuple[list[str], list[list[str]]]:
    """Returns head and rows of a table of the config keys that all runs have and that differ between them."""
    flat = [dict(leaves(run.manifest["config"])) for run in runs]
    keys = [key for key in flat[0] if all(key in one for one in flat)] if flat else []
    rows = [
        [key, *(json.dumps(one[key], ensure_ascii=False) for one in flat)]
        for key in keys
        if any(one[key] != flat[0][key] for one in flat)
    ]
    return ["key", *(run.name for run in runs)], rows


def _papers(run: ShownRun) -> dict[str, Any]:
    """Returns the command that started a run, versions, and the config."""
    argv, versions = run.command.get("argv"), run.command.get("versions")
    facts = {
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, Mapping) else "",
        "commit": str(run.command.get("git") or ""),
        "config hash": str(run.manifest.get("config_hash", "")),
        "folder": str(run.folder),
    }
    return {
        "name": run.name,
        "command": shlex.join(["t2i", *map(str, argv[1:])]) if isinstance(argv, list) else "",
        "facts": {key: value for key, value in facts.items() if value},
        "config": yaml.dump(dict(run.manifest["config"])),
    }
