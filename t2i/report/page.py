"""One HTML file that shows runs side by side: pictures under their prompts, scores with their protocols, curves, configs.

    t2i eval report runs/cgan runs/prior --out report.html

It needs no network and no other file: pictures are inside, curves are SVG, nothing is a script. What a run does not hold is
left out, or said in a line.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from t2i.config import yaml
from t2i.families import FAMILIES
from t2i.files import write_text
from t2i.report.curves import charts, number, shared_charts
from t2i.report.html import absent, columns, dot, facts, folded, image, page, section, sheet, table
from t2i.report.runs import ShownRun, open_runs
from t2i.report.scores import headline, score_lines

if TYPE_CHECKING:
    from t2i.report.gallery import Ask, Beside, Extremes, Gallery, Judged, Near, Neighbours
    from t2i.scoring.images.collection import Tick

SHEETS = 4  # of those that a training left, spread over its length
SPLITS = {
    "val": "New scenes of combinations that training shows (val)",
    "heldout": "Combinations that training never shows: a shape in that colour, or two shapes so placed (heldout)",
}


class Part(NamedTuple):
    """One command that made what is shown."""

    name: str
    command: str
    seconds: float


@dataclass(frozen=True)
class Extras:
    """What a page has beside its runs.

    Attributes:
        helpers: places of further runs that took part, such as a text encoder: their curves and configs.
        parts: what was run, in order.
        next_commands: what a command does -> the command.
    """

    helpers: Sequence[Path] = ()
    parts: Sequence[Part] = ()
    next_commands: Mapping[str, str] | None = None


def make_report(
    places: Sequence[str | Path], out: Path, title: str, ask: "Ask", tick: "Tick", extras: Extras = Extras()
) -> None:
    """Opens the runs, draws with each, and writes the page, whole or not at all.

    Args:
        places: run directories of any family, or saved pipelines; a column each.
        tick: called with what is going on, how many pictures are done and of how many.

    Raises:
        InputError: one is no run or has no checkpoint, the held-out captions cannot be had, `out` cannot be written.
    """
    from t2i.report.gallery import make_gallery

    runs = open_runs([*places, *extras.helpers])
    shown, helpers = runs[: len(places)], runs[len(places) :]
    gallery = make_gallery(shown, ask, tick)
    write_report(out, title, shown, gallery, helpers, extras)


def write_report(
    out: Path,
    title: str,
    runs: Sequence[ShownRun],
    gallery: "Gallery | None" = None,
    helpers: Sequence[ShownRun] = (),
    extras: Extras = Extras(),
) -> None:
    """Writes the page of what was gathered, whole or not at all.

    Raises:
        InputError: `out` cannot be written.
    """
    every = [*runs, *helpers]
    why = "none: a dual encoder makes no pictures" if runs else None
    sections = {
        "pictures": ("Pictures beside prompts", _pictures(runs, gallery), why),
        "extremes": ("Best and worst", _extremes(runs, gallery), None),
        "neighbours": ("Nearest training pictures", _neighbours(runs, gallery), None),
        "scores": ("Scores", score_lines(runs), "no score files in these runs; t2i eval score writes one"),
        "curves": ("Curves", _curves(runs, helpers), "no journal.jsonl in these runs; t2i train writes one"),
        "parts": ("What was run", _parts(extras.parts), None),
        "next": ("What to try next", list(starmap(_command, (extras.next_commands or {}).items())), None),
        "configs": ("Configs and commands", [*_differences(runs), *map(_papers, every)], None),
    }
    drawn = {name: section(name, heading, lines, why) for name, (heading, lines, why) in sections.items()}
    links = "".join(f'<a href="#{name}">{escape(sections[name][0])}</a>' for name, lines in drawn.items() if lines)
    body = [
        f'<header><h1>{escape(title)}</h1><nav aria-label="sections">{links}</nav></header><main>',
        *_notes(gallery),
        *_cards(runs),
        *(line for lines in drawn.values() for line in lines),
        "</main>",
    ]
    write_text(out, page(title, body))


# ---- the runs ------------------------------------------------------------------------------------------------------


def _notes(gallery: "Gallery | None") -> list[str]:
    notes = [] if gallery is None else gallery.notes
    return [f'<div class="warning">{"".join(f"<p>{escape(note)}</p>" for note in notes)}</div>'] if notes else []


def _cards(runs: Sequence[ShownRun]) -> list[str]:
    """What each run is, with the scores that need no expert."""
    tiles = headline(runs)
    cells = []
    for place, run in enumerate(runs):
        told = "".join(
            f"<li><b>{escape(value)}</b> {escape(what)}"
            f"{f' <small class=muted>{escape(beside)}</small>' if beside else ''}</li>"
            for value, what, beside in tiles[run.name]
        )
        kind = FAMILIES[run.family].words
        cells.append(
            f'<article class="card"><h2>{dot(place)}{escape(run.name)}</h2><p class="muted">{escape(kind)}</p>'
            f"{f'<ul class=tiles>{told}</ul>' if told else ''}{facts(_facts(run))}</article>"
        )
    return [columns(cells)]


def _facts(run: ShownRun) -> dict[str, str]:
    """What a model card tells of it, and how it was trained."""
    manifest, config, command = run.manifest, run.manifest["config"], run.command
    text, data, best = config.get("text"), run.data, manifest.get("best")
    seconds, speed = run.seconds(), run.speed()
    hardware = [str(command[key]) for key in ("device", "mixed_precision") if key in command]
    if int(command.get("num_processes") or 1) > 1:
        hardware.append(f"{command['num_processes']} processes")
    told = {
        "checkpoint": f"step {manifest['step']:,}, {manifest['images_seen']:,} pictures seen",
        "best": f"{best['metric']} {number(best['value'])} on val at step {best['step']:,}" if best else "",
        "parameters": "" if run.parameters is None else f"{run.parameters:,}",
        "text encoder": str(text.get("encoder", "")) if isinstance(text, Mapping) else "",
        "data": f"{data['address']}, {data['resolution']} x {data['resolution']} pixels"
        + (f", {data['limit']:,} pictures" if data.get("limit") else ""),
        "drawn with": _knobs(run),
        "training time": "" if seconds is None else _duration(seconds),
        "speed": "" if speed is None else f"{speed:,.0f} pictures/s",
        "hardware": ", ".join(hardware),
        "started": str(command.get("started", "")),
    }
    return {key: value for key, value in told.items() if value}


def _knobs(run: ShownRun) -> str:
    """Settings of sampling that pictures of this page were drawn with."""
    if run.pipe is None:
        return ""
    shown = {"guidance": run.pipe.guidance_scale, "truncation": run.pipe.truncation} | run.pipe.sampler.settings()
    told = ("guidance", "truncation", "temperature", "top_k", "top_p", "steps")
    return ", ".join(f"{name} {shown[name]:g}" for name in told if shown.get(name) is not None)


def _duration(seconds: float) -> str:
    """In the unit that needs few digits."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


# ---- pictures ------------------------------------------------------------------------------------------------------


def _pictures(runs: Sequence[ShownRun], gallery: "Gallery | None") -> list[str]:
    if gallery is None:
        return []
    lines = [
        '<p class="muted">The same captions and the same seed for all runs, taken by lot and not chosen; no run was trained on '
        f"them unless it is said above. Beside each picture: how well it fits its caption by {escape(gallery.score)} "
        "(100 at most; of a tokenizer the PSNR of its reconstruction in dB)"
        f"{_oracle_words(gallery)}.</p>"
    ]
    places = {run.name: place for place, run in enumerate(runs)}
    for group in gallery.beside:
        heading = SPLITS.get(group.split, "") if group.data.startswith("shapes-") else ""
        lines.append(f"<h3>{escape(heading or f'Captions of {group.data}, split {group.split}')}</h3>")
        lines.append(f'<div class="cards{" wide" if len(group.made) > 2 else ""}">')
        lines += [_prompt(runs, group, k, places) for k in range(len(group.real))]
        lines.append("</div>")
    return lines


def _oracle_words(gallery: "Gallery") -> str:
    known = any(one.verdict for group in gallery.beside for one in group.real)
    return ", and what an analytic oracle reads in it: ✓ all as asked, ✗ what is wrong" if known else ""


def _prompt(runs: Sequence[ShownRun], group: "Beside", k: int, places: Mapping[str, int]) -> str:
    """A caption, the real picture and what each run made of it."""
    real = group.real[k]
    units = {run.name: run.unit for run in runs}
    figures = [_figure(real, "<b>real</b>", f"real picture of: {real.caption}")]
    for name, made in group.made.items():
        head = f"<b>{dot(places[name])}{escape(name)}</b>"
        figures.append(_figure(made[k], head, f"{name}, for: {real.caption}", units[name]))
    caption = f'<h4 dir="auto">{escape(real.caption)}</h4>'
    return f'<article class="prompt">{caption}<div class="row">{"".join(figures)}</div></article>'


def _figure(one: "Judged", head: str, spoken: str, unit: str = "") -> str:
    """A picture over what is known of it."""
    words = [head] if head else []
    words += [f"<span>{one.score:.0f}{unit}</span>" if one.score is not None else ""]
    if one.verdict is not None:
        kind, mark = ("right", "✓") if one.verdict.right else ("wrong", "✗")
        words.append(f'<span class="{kind}">{mark} {escape(one.verdict.words)}</span>')
    return f"<figure>{image(one.image, spoken)}<figcaption>{' '.join(filter(None, words))}</figcaption></figure>"


def _extremes(runs: Sequence[ShownRun], gallery: "Gallery | None") -> list[str]:
    if gallery is None or not gallery.extremes:
        return []
    shown = [(place, run) for place, run in enumerate(runs) if run.name in gallery.extremes]
    return [columns([_extremes_of(place, run, gallery.extremes[run.name]) for place, run in shown])]


def _extremes_of(place: int, run: ShownRun, found: "Extremes") -> str:
    blocks = []
    for word, pictures in (("Best", found.best), ("Worst", found.worst)):
        figures = "".join(
            f'<div class="captioned">{_figure(one, "", f"{run.name}, for: {one.caption}", run.unit)}'
            f'<p dir="auto">{escape(one.caption)}</p></div>'
            for one in pictures
        )
        blocks.append(f'<h4>{word}</h4><div class="pictures">{figures}</div>' if pictures else "")
    return f'<h3>{dot(place)}{escape(run.name)}</h3><p class="muted">{escape(found.among)}</p>{"".join(blocks)}'


def _neighbours(runs: Sequence[ShownRun], gallery: "Gallery | None") -> list[str]:
    if gallery is None or not gallery.neighbours:
        return []
    shown = [(place, run) for place, run in enumerate(runs) if run.name in gallery.neighbours]
    words = (
        '<p class="muted">Of the pictures that each run drew, those nearest to its training data, and the training pictures '
        "that are nearest to them, with the distance. A model that copies draws pictures much nearer to the training data "
        "than held-out real pictures lie.</p>"
    )
    return [words, columns([_neighbours_of(place, run, gallery.neighbours[run.name]) for place, run in shown])]


def _neighbours_of(place: int, run: ShownRun, found: "Neighbours") -> str:
    medians = f"median distance {found.median:.3f}, of held-out real pictures {found.held_out:.3f}"
    strips = "".join(_strip(run, near) for near in found.nearest)
    return (
        f'<h3>{dot(place)}{escape(run.name)}</h3><p class="muted">{escape(f"{found.among}; {medians}")}</p>'
        f'<div class="strips">{strips}</div>'
    )


def _strip(run: ShownRun, near: "Near") -> str:
    figures = [_figure(near.made, "<b>drawn</b>", f"{run.name}, for: {near.made.caption}")]
    for one, distance in near.training:
        figures.append(_figure(one, f"<span>{distance:.3f}</span>", f"training picture of: {one.caption}"))
    return f'<div class="strip"><p dir="auto">{escape(near.made.caption)}</p><div class="row">{"".join(figures)}</div></div>'


# ---- training ------------------------------------------------------------------------------------------------------


def _curves(runs: Sequence[ShownRun], helpers: Sequence[ShownRun]) -> list[str]:
    """Scores of validations that runs share, then what each one wrote down."""
    told = [run for run in [*runs, *helpers] if run.records]
    shared = shared_charts({run.name: (run.records, _pictures_a_step(run)) for run in runs if run.records})
    lines = [f'<h3>Side by side</h3><div class="charts">{"".join(shared)}</div>'] if shared else []
    cells = []
    for run in told:
        first, rest = charts(run.records)
        drawn = f'<div class="charts">{"".join(first)}</div>' if first else ""
        more = folded("More curves", f'<div class="charts">{"".join(rest)}</div>') if rest else ""
        none = "" if first or rest else absent("the journal holds no numbers yet")
        mark = dot(list(runs).index(run)) if run in runs else ""
        cells.append(f"<h3>{mark}{escape(run.name)}</h3>{drawn}{none}{more}{_sheets(run.folder)}")
    return [*lines, columns(cells)] if cells else []


def _pictures_a_step(run: ShownRun) -> float:
    return run.manifest["images_seen"] / max(1, run.manifest["step"])


def _sheets(folder: Path) -> str:
    """The same prompts at several steps."""
    paths = sorted((folder / "samples").glob("step-*.png"))
    if len(paths) > SHEETS:
        paths = [paths[round(k * (len(paths) - 1) / (SHEETS - 1))] for k in range(SHEETS)]
    figures = "".join(
        f"<figure>{sheet(path, f'the same held-out pictures at {path.stem}')}"
        f"<figcaption>{escape(path.stem)}</figcaption></figure>"
        for path in paths
    )
    return folded("Pictures during the training", f'<div class="sheets">{figures}</div>') if paths else ""


# ---- the rest ------------------------------------------------------------------------------------------------------


def _parts(parts: Sequence[Part]) -> list[str]:
    rows = [[part.name, f"{part.seconds:,.0f} s", part.command] for part in parts]
    total = ["total", f"{sum(part.seconds for part in parts):,.0f} s", ""]
    return [table(["part", "time", "command"], [*rows, total])] if rows else []


def _command(what: str, command: str) -> str:
    return f"<p>{escape(what)}</p><pre>{escape(command)}</pre>"


def _differences(runs: Sequence[ShownRun]) -> Iterator[str]:
    """In what the configs of several runs differ; what only some families have is left out."""
    if len(runs) < 2:
        return
    flat = [dict(_leaves(run.manifest["config"])) for run in runs]
    keys = [key for key in flat[0] if all(key in one for one in flat)]
    rows = [
        [key, *(json.dumps(one[key], ensure_ascii=False) for one in flat)]
        for key in keys
        if any(one[key] != flat[0][key] for one in flat)
    ]
    if rows:
        yield f"<h3>What differs</h3>{table(['key', *(run.name for run in runs)], rows)}"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _papers(run: ShownRun) -> str:
    """How it was started, with what versions, and its whole config."""
    argv, versions = run.command.get("argv"), run.command.get("versions")
    command = shlex.join(["t2i", *map(str, argv[1:])]) if isinstance(argv, list) else ""
    told = {
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, Mapping) else "",
        "commit": str(run.command.get("git") or ""),
        "config hash": str(run.manifest.get("config_hash", "")),
        "folder": str(run.folder),
    }
    started = f"<pre>{escape(command)}</pre>" if command else ""
    config = f"<pre>{escape(yaml.dump(dict(run.manifest['config'])))}</pre>"
    return folded(run.name, started + facts({key: value for key, value in told.items() if value}) + config)
