"""One HTML file that shows a run: pictures under their prompts, scores with their protocol, curves, timings, configs.

It needs no network and no other file: pictures are inside, curves are SVG, nothing is a script. What is missing in the
run directory is said in a line of the page.
"""

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple, get_args

from t2i import journal
from t2i.data import Split
from t2i.errors import InputError
from t2i.folders import write_text
from t2i.metrics.protocol import Score, read_scores
from t2i.report_curves import charts, number, series_of
from t2i.report_style import STYLE

SHEETS = 6  # of those that a training left, spread over its length
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # a browser loads nothing but the page
FAITHFULNESS = "faithfulness"
LEGEND = (
    '<p class="muted">Under each value: its 95 % interval and what to read it against (real: the same measured on the '
    "real pictures; reconstructed: on those through the tokenizer, the ceiling of a prior; shuffled: on the generated ones "
    "with others' captions). N, the number of pictures, belongs to the "
    "name of a score. Of the distances fid and kid lower is better.</p>"
)


@dataclass(frozen=True)
class Picture:
    """One picture of the page."""

    file: Path  # PNG
    prompt: str
    group: str  # pictures of a group stand together under this heading
    note: str = ""  # a line under the prompt


@dataclass(frozen=True)
class Part:
    """One command that made the run."""

    name: str
    command: str
    seconds: float


@dataclass(frozen=True)
class Training:
    """What one training left in its folder."""

    folder: Path
    name: str
    records: list[dict[str, Any]]


def write_report(
    run: Path,
    out: Path,
    title: str,
    pictures: Sequence[Picture] = (),
    parts: Sequence[Part] = (),
    next_commands: Mapping[str, str] | None = None,
) -> None:
    """Writes the page, whole or not at all.

    Args:
        run: a run directory, or a folder of several; their journals, configs, scores and sheets of samples are shown.
        pictures: groups stand in the order of their first picture.
        parts: what was run, in order.
        next_commands: what a command does -> the command.

    Raises:
        InputError: `out` cannot be written.
    """
    trainings = _trainings(run)
    scores, unreadable = _score_files([run, *(training.folder for training in trainings)])
    body = [
        _headline(scores),
        *_section("Pictures", _pictures(pictures), "no pictures here; t2i sample draws them"),
        *_section("Scores", [*_score_table(scores), *unreadable], "no scores*.json here; t2i eval score writes one"),
        *_section("Training", map(_training, trainings), "no journal.jsonl here; t2i train writes one"),
        *_section("What was run", _parts(parts), "not recorded"),
        *_section("What to try next", starmap(_command, (next_commands or {}).items())),
        *_section("Configs", map(_config, trainings), "no run here; t2i train makes one"),
    ]
    write_text(out, _page(title, body))


def _section(heading: str, lines: Iterable[str], absent: str | None = None) -> list[str]:
    """Its lines under a heading; where there are none, a line that says so, or nothing."""
    found = list(lines) or ([_absent(absent)] if absent else [])
    return [f"<section><h2>{heading}</h2>", *found, "</section>"] if found else []


def _trainings(run: Path) -> list[Training]:
    """Folders with a journal, oldest first: `run` and those directly in it."""
    found = []
    for folder in [run, *(run.iterdir() if run.is_dir() else [])]:
        path = folder / "journal.jsonl"
        if path.is_file():
            found.append(Training(folder, folder.name, journal.read(path)))
    return sorted(found, key=lambda one: (one.records[0].get("time") or 0 if one.records else 0, one.name))


# ---- pictures ------------------------------------------------------------------------------------------------------


def _pictures(pictures: Sequence[Picture]) -> list[str]:
    groups: dict[str, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(picture.group, []).append(picture)
    lines = []
    for group, members in groups.items():
        lines.append(f'<h3>{escape(group)}</h3><div class="pictures">')
        for one in members:
            note = f'<small class="muted">{escape(one.note)}</small>' if one.note else ""
            caption = f"<figcaption>{escape(one.prompt)}{note}</figcaption>"
            lines.append(f"<figure>{_image(one.file, f'generated for: {one.prompt}')}{caption}</figure>")
        lines.append("</div>")
    return lines


def _image(path: Path, spoken: str) -> str:
    """The PNG itself, in the page."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return _absent(f"{path.name}: {error.strerror or error}")
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _absent(f"{path.name} is no PNG picture")
    return f'<img src="data:image/png;base64,{base64.b64encode(data).decode()}" alt="{escape(spoken)}">'


# ---- scores --------------------------------------------------------------------------------------------------------


class ScoreFile(NamedTuple):
    """The scores of one file, and the run that they are of where the page shows several."""

    run: str
    scores: list[Score]


def _score_files(folders: Sequence[Path]) -> tuple[list[ScoreFile], list[str]]:
    """The score files, in the order of the splits, and a line for each that cannot be read."""
    paths = sorted({path for folder in folders for path in folder.glob("scores*.json")})
    several = len({path.parent for path in paths}) > 1
    files, problems = [], []
    for path in paths:
        try:
            scores = read_scores(path)
        except InputError as error:
            problems.append(_absent(str(error)))
            continue
        if scores:
            files.append(ScoreFile(path.parent.name if several else "", scores))
    order = [None, *get_args(Split)]
    return sorted(files, key=lambda file: order.index(file.scores[0].protocol.split)), problems


def _headline(files: Sequence[ScoreFile]) -> str:
    """The score that needs no expert, one sentence a file."""
    lines = []
    strict = f"{FAITHFULNESS}-strict"
    for run, score in ((file.run, score) for file in files for score in file.scores if score.protocol.metric == strict):
        bounds = {
            "real": "real pictures",
            "reconstructed": "real pictures through the tokenizer",
            "shuffled": "with other captions",
        }
        beside = [f"{words} {score.bounds[key]:.1%}" for key, words in bounds.items() if key in score.bounds]
        shown = (
            f"{escape(run + ': ' if run else '')}<b>{score.value:.1%}</b> of {score.protocol.n_fake:,} pictures for "
            f"captions of {escape(_where(score))}"
        )
        note = f'<span class="muted">({escape(", ".join(beside))})</span>' if beside else ""
        lines.append(f"<li>{shown} show all that the caption says {note}</li>")
    return f'<ul class="headline">{"".join(lines)}</ul>' if lines else ""


def _where(score: Score, run: str = "") -> str:
    return " ".join(filter(None, (run, score.protocol.data, score.protocol.split)))


def _score_table(files: Sequence[ScoreFile]) -> list[str]:
    """Faithfulness by aspect, then all others: a row a metric, a column a score file or a subgroup of its captions."""
    tables: dict[str, dict[str, dict[str, Score]]] = {FAITHFULNESS: {}, "others": {}}
    for run, score in ((file.run, score) for file in files for score in file.scores):
        found = re.fullmatch(rf"{FAITHFULNESS}-([a-z]+)(?:-(.+))?", score.protocol.metric)
        aspect, group = found.groups() if found else (score.name.rpartition("@")[0], None)
        column = _where(score, run) + (f", {group.replace('-', ' ')}" if group else "")
        tables[FAITHFULNESS if found else "others"].setdefault(column, {})[aspect] = score
    drawn = [_pivot(name if name == FAITHFULNESS else "", columns) for name, columns in tables.items() if columns]
    return [LEGEND, *drawn, *map(_protocol, files)] if files else []


def _pivot(title: str, columns: Mapping[str, Mapping[str, Score]]) -> str:
    head, sizes = [f'<th scope="col">{escape(title)}</th>'], []
    for name, column in columns.items():
        sizes.append(max(score.protocol.n_fake for score in column.values()))
        note = f'<small class="muted">N {sizes[-1]:,}</small>'
        head.append(f'<th scope="col">{escape(name)}{note}</th>')
    rows = []
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        found = zip((column.get(name) for column in columns.values()), sizes, strict=True)
        cells = ["<td></td>" if score is None else _cell(score, n) for score, n in found]
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    table = f"<table><thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _cell(score: Score, n: int) -> str:
    """The value and, small, what belongs to it; N where it is not that of the column."""
    lines = [] if score.interval is None else [" to ".join(map(_value, score.interval))]
    lines += [", ".join(f"{name} {_value(value)}" for name, value in score.bounds.items())] if score.bounds else []
    lines += [f"N {score.protocol.n_fake:,}"] if score.protocol.n_fake != n else []
    small = "<br>".join(map(escape, lines))
    return f'<td><b>{_value(score.value)}</b><small class="muted">{small}</small></td>'


def _value(value: float) -> str:
    """Three decimals of a share, three digits of anything else."""
    return f"{value:.3f}" if 0.001 <= abs(value) <= 1 or value == 0 else number(value)


def _protocol(file: ScoreFile) -> str:
    """What all scores of a file have in common, then what is each one's own."""
    run, scores = file
    each = [asdict(score.protocol) | {"interval_method": score.interval_method} for score in scores]
    common = {key: value for key, value in each[0].items() if all(other[key] == value for other in each)}
    libraries = common.get("libraries")
    if isinstance(libraries, Mapping):
        common["libraries"] = ", ".join(f"{name} {version}" for name, version in libraries.items())
    shared = "".join(f"<dt>{escape(k)}</dt><dd>{escape(_said(v))}</dd>" for k, v in common.items() if v is not None)
    own = [key for key in each[0] if key not in common]
    rows = [[score.name, *(_said(one[key]) for key in own)] for score, one in zip(scores, each, strict=True)]
    return (
        f"<details><summary>Protocol of {escape(_where(scores[0], run))}</summary>"
        f"<dl>{shared}</dl>{_table(['score', *own], rows)}</details>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain texts in rows; wider than the page, it scrolls by itself."""
    top = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _said(value: object) -> str:
    """Long digests are cut in the table; the score file has them whole."""
    text = "" if value is None else str(value)
    return f"{text[:12]}..." if len(text) == 64 and text.isalnum() else text


# ---- training ------------------------------------------------------------------------------------------------------


def _training(training: Training) -> str:
    drawn = charts(training.records)
    curves = f'<div class="charts">{"".join(drawn)}</div>' if drawn else _absent("the journal holds no numbers yet")
    head = f'<h3>{escape(training.name)}</h3><p class="muted">{escape(_facts(training))}</p>'
    return head + curves + _sheets(training.folder)


def _facts(training: Training) -> str:
    """What is known of a training, in a line."""
    command = _json(training.folder / "command.json")
    versions = command.get("versions")
    facts = [f"{training.records[-1]['step']:,} steps"] if training.records else []
    speeds = [value for _, value in series_of(training.records).get("images_per_second", []) if value is not None]
    facts += [f"{sum(speeds) / len(speeds):,.0f} images/s"] if speeds else []
    facts += [f"on {command['device']}"] if "device" in command else []
    facts += [f"{k} {v}" for k, v in versions.items()] if isinstance(versions, dict) else []
    return ", ".join(facts)


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; nothing where there is none."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sheets(folder: Path) -> str:
    """The same prompts at several steps."""
    paths = sorted((folder / "samples").glob("step-*.png"))
    if len(paths) > SHEETS:
        paths = [paths[round(k * (len(paths) - 1) / (SHEETS - 1))] for k in range(SHEETS)]
    figures = []
    for path in paths:
        image = _image(path, f"the same held-out prompts at {path.stem}")
        figures.append(f"<figure>{image}<figcaption>{escape(path.stem)}</figcaption></figure>")
    shown = f'<div class="sheets">{"".join(figures)}</div>'
    return f"<details><summary>Pictures during the training</summary>{shown}</details>" if paths else ""


def _config(training: Training) -> str:
    try:
        text = (training.folder / "config.yaml").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return _absent(f"{training.name} has no config.yaml that can be read")
    return f"<details><summary>{escape(training.name)}</summary><pre>{escape(text)}</pre></details>"


# ---- the rest ------------------------------------------------------------------------------------------------------


def _parts(parts: Sequence[Part]) -> list[str]:
    rows = [[part.name, f"{part.seconds:,.0f} s", part.command] for part in parts]
    total = ["total", f"{sum(part.seconds for part in parts):,.0f} s", ""]
    return [_table(["part", "time", "command"], [*rows, total])] if rows else []


def _command(what: str, command: str) -> str:
    return f"<p>{escape(what)}</p><pre>{escape(command)}</pre>"


def _absent(why: str) -> str:
    return f'<p class="muted absent">{escape(why)}</p>'


def _page(title: str, body: Sequence[str]) -> str:
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
    ]
    top = ["<!doctype html>", '<html lang="en"><head>', *head, "</head><body><main>", f"<h1>{escape(title)}</h1>"]
    return "\n".join([*top, *body, "</main></body></html>", ""])
