"""The scores of a report: tables with a column a run and split, and in words where protocols differ."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from t2i.metrics.score import Score, differences
from t2i.report.curves import number
from t2i.report.html import absent, dot, folded, scrolling, table
from t2i.report.runs import ScoreFile, ShownRun

FAITHFULNESS = "faithfulness"
LEGEND = (
    '<p class="muted">Under each value: its 95 % interval and what to read it against (real: the same measured on the '
    "real pictures; reconstructed: on those through the tokenizer, the ceiling of a prior; shuffled: on the generated ones "
    "with others' captions). N, the number of pictures, belongs to the name of a score. Of distances (fid, kid, cmmd) lower "
    "is better. ≠ marks a value whose protocol is not that of the first run; what differs stands below.</p>"
)


@dataclass
class Column:
    """The scores of one file, or of a subgroup of its captions, under the name of each."""

    run: ShownRun
    place: int  # of the run among those of the page
    file: ScoreFile
    group: str = ""
    scores: dict[str, Score] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """E.g. `shapes-2 heldout, unseen pair`."""
        protocol = self.file.scores[0].protocol
        return " ".join(filter(None, (protocol.data, protocol.split))) + (f", {self.group}" if self.group else "")

    @property
    def n(self) -> int:
        return max(score.protocol.n_fake for score in self.scores.values())

    @property
    def stale(self) -> bool:
        """Whether other weights were scored than those that are shown."""
        found = {score.protocol.checkpoint for score in self.scores.values()}
        return found != {self.run.manifest.get("sha256")}


def score_lines(runs: Sequence[ShownRun]) -> list[str]:
    """Faithfulness by aspect, then all others; differing protocols; the protocol of each file."""
    tables = _columns(runs)
    several = len(runs) > 1
    groups = [column for column in tables[FAITHFULNESS] if column.group]
    whole = [column for column in tables[FAITHFULNESS] if not column.group]
    parts = (FAITHFULNESS, whole), ("score", tables["score"])
    drawn = [_pivot(title, columns, several) for title, columns in parts if columns]
    lines = [LEGEND, *drawn] if drawn or groups else []
    if groups:
        lines.append(
            folded("Faithfulness to combinations that training never shows", _pivot(FAITHFULNESS, groups, several))
        )
    lines += _flags([*whole, *groups, *tables["score"]])
    problems = [absent(problem) for run in runs for problem in run.problems]
    return [*lines, *problems, *(_protocol(run, file, several) for run in runs for file in run.scores)]


def _columns(runs: Sequence[ShownRun]) -> dict[str, list[Column]]:
    """Table -> its columns, those of one split side by side."""
    tables: dict[str, dict[tuple[int, str, str], Column]] = {FAITHFULNESS: {}, "score": {}}
    for place, run in enumerate(runs):
        for file in run.scores:
            for score in file.scores:
                found = re.fullmatch(rf"{FAITHFULNESS}-([a-z]+)(?:-(.+))?", score.protocol.metric)
                aspect, group = found.groups() if found else (score.name.rpartition("@")[0], None)
                group = (group or "").replace("-", " ")
                columns = tables[FAITHFULNESS if found else "score"]
                column = columns.setdefault((place, file.path.name, group), Column(run, place, file, group))
                column.scores[aspect] = score
    order: dict[str, int] = {}
    for columns in tables.values():
        for column in columns.values():
            order.setdefault(column.where, len(order))
    return {
        title: sorted(columns.values(), key=lambda column: (bool(column.group), order[column.where], column.place))
        for title, columns in tables.items()
    }


def _first(columns: Sequence[Column], column: Column) -> Column:
    """The column that this one is read against: the first of the same data and split."""
    return next(other for other in columns if other.where == column.where)


def _differing(columns: Sequence[Column], column: Column, name: str) -> list[str]:
    """In what the protocol of a score differs from that of the first run with that score."""
    before = next((other for other in columns if other.where == column.where and name in other.scores), column)
    return [] if before is column else differences(before.scores[name], column.scores[name])


def _pivot(title: str, columns: Sequence[Column], several: bool) -> str:
    head = [f'<th scope="col">{escape(title)}</th>']
    for column in columns:
        run = f"{dot(column.place)}{escape(column.run.name)}<br>" if several else ""
        note = f"N {column.n:,}" + (", of another checkpoint" if column.stale else "")
        head.append(f'<th scope="col">{run}{escape(column.where)}<small class="muted">{note}</small></th>')
    rows = []
    for name in dict.fromkeys(name for column in columns for name in column.scores):
        cells = [_cell(column, name, bool(_differing(columns, column, name))) for column in columns]
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    drawn = f"<table><thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return scrolling(drawn, f"{title}s by run and split" if title == "score" else f"{title} by run and split")


def _cell(column: Column, name: str, flagged: bool) -> str:
    """The value and, small, what belongs to it; N where it is not that of the column."""
    score = column.scores.get(name)
    if score is None:
        return "<td></td>"
    lines = [] if score.interval is None else [" to ".join(map(value_text, score.interval))]
    lines += [", ".join(f"{bound} {value_text(value)}" for bound, value in score.bounds.items())]
    lines += [f"N {score.protocol.n_fake:,}"] if score.protocol.n_fake != column.n else []
    small = "<br>".join(map(escape, filter(None, lines)))
    mark = ' <abbr title="another protocol than the first run\'s">≠</abbr>' if flagged else ""
    return f'<td><b>{value_text(score.value)}</b>{mark}<small class="muted">{small}</small></td>'


def value_text(value: float) -> str:
    """Three decimals of a share, three digits of anything else."""
    return f"{value:.3f}" if 0.001 <= abs(value) <= 1 or value == 0 else number(value)


def _flags(columns: Sequence[Column]) -> Iterator[str]:
    """For each run but the first: each difference of protocols once, with the splits and scores that have it."""
    every: dict[tuple[str, str], dict[tuple[str, str, str], list[tuple[str, str]]]] = {}
    counts: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for column in columns:
        if (first := _first(columns, column)) is column:
            continue
        key = f"{first.run.name}{_beside(first, column)}", f"{column.run.name}{_beside(column, first)}"
        for name, score in column.scores.items():
            having = (column.file.scores[0].protocol.split or column.where, score.name)
            counts.setdefault(key, set()).add(having)
            for difference in _differing(columns, column, name):
                every.setdefault(key, {}).setdefault(_told(difference), []).append(having)
    for (first, other), found in every.items():
        rows = [
            [*told, "all" if set(having) == counts[first, other] else ", ".join(f"{n} ({s})" for s, n in having)]
            for told, having in found.items()
        ]
        heading = f"<h3>Protocols differ: {escape(first)} and {escape(other)}</h3>"
        yield f'<div class="warning">{heading}{table(["", first, other, "scores"], rows)}</div>'


def _beside(column: Column, other: Column) -> str:
    """The file, where both are of one run."""
    return f", {column.file.path.name}" if column.run is other.run else ""


def _told(difference: str) -> tuple[str, str, str]:
    """`guidance: 1.0 / 2.0` -> its three parts."""
    key, _, values = difference.partition(": ")
    first, _, second = values.partition(" / ")
    return key, said(first), said(second)


def said(value: object) -> str:
    """Long digests are cut in the table; the score file has them whole."""
    text = "" if value is None or value == "None" else str(value)
    if text.startswith("{"):  # settings of sampling
        text = text.translate(str.maketrans("", "", '{}"'))
    return f"{text[:12]}..." if len(text) == 64 and text.isalnum() else text


def _protocol(run: ShownRun, file: ScoreFile, several: bool) -> str:
    """What all scores of a file have in common, then what is each one's own."""
    scores = file.scores
    each: list[dict[str, Any]] = [
        asdict(score.protocol) | {"interval_method": score.interval_method} for score in scores
    ]
    common = {key: value for key, value in each[0].items() if all(other[key] == value for other in each)}
    libraries = common.get("libraries")
    if isinstance(libraries, Mapping):
        common["libraries"] = ", ".join(f"{name} {version}" for name, version in libraries.items())
    shared = "".join(f"<dt>{escape(k)}</dt><dd>{escape(said(v))}</dd>" for k, v in common.items() if v is not None)
    own = [key for key in each[0] if key not in common]
    rows = [[score.name, *(said(one[key]) for key in own)] for score, one in zip(scores, each, strict=True)]
    where = Column(run, 0, file).where
    return folded(
        f"Protocol of {f'{run.name}: ' if several else ''}{where}, {file.path.name}",
        f"<dl>{shared}</dl>{table(['score', *own], rows)}",
    )


def headline(runs: Sequence[ShownRun]) -> dict[str, list[tuple[str, str, str]]]:
    """For each run the scores that need no expert: what, value, and what to read it against."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for run in runs:
        tiles = found.setdefault(run.name, [])
        for file in run.scores:
            strict = [score for score in file.scores if score.protocol.metric == f"{FAITHFULNESS}-strict"]
            clip = [score for score in file.scores if score.protocol.metric == "clip"]
            for score in strict or clip[:1]:
                what = "show all that the caption says" if strict else score.name.rpartition("@")[0]
                value = f"{score.value:.1%}" if strict else number(score.value)
                bounds = {"real": "real pictures", "reconstructed": "through the tokenizer"}
                read = [
                    f"{words} {score.bounds[key]:.0%}" if strict else f"{words} {number(score.bounds[key])}"
                    for key, words in bounds.items()
                    if key in score.bounds
                ]
                tiles.append(
                    (value, f"{what}, {Column(run, 0, file).where}, N {score.protocol.n_fake:,}", ", ".join(read))
                )
    return found
