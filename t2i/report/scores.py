"""Arranges the scores of a report in tables, a column for each run and split, and lists differences of protocols."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from t2i.metrics.score import Score, differences, rounded
from t2i.report.runs import ScoreFile, ShownRun

FAITHFULNESS = "faithfulness"
MAY_BE_NEGATIVE = ("kid", "fid-infinity")


@dataclass
class Column:
    """The scores of one file, or of a subgroup of its captions, by name."""

    run: ShownRun
    place: int  # position of the run on the page
    file: ScoreFile
    group: str = ""
    scores: dict[str, Score] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """Returns e.g. `shapes-2 heldout, unseen pair`."""
        protocol = self.file.scores[0].protocol
        return " ".join(filter(None, (protocol.data, protocol.split))) + (f", {self.group}" if self.group else "")

    @property
    def n(self) -> int:
        return max(score.protocol.n_fake for score in self.scores.values())

    @property
    def note(self) -> str:
        """Returns N, and a remark if the scores are of another checkpoint than the one shown."""
        stale = {score.protocol.checkpoint for score in self.scores.values()} != {self.run.manifest.get("sha256")}
        return f"N {self.n:,}" + (", of another checkpoint" if stale else "")


class Cell(NamedTuple):
    """A value, the lines below it, and True if its protocol differs from that of the first run."""

    value: str
    lines: list[str]
    marked: bool


class ScoreTable(NamedTuple):
    """A row for each score; None: the column does not have the score."""

    title: str
    columns: list[Column]
    rows: list[tuple[str, list[Cell | None]]]


class Differing(NamedTuple):
    """Two columns with different protocols; each row has a key, both values and the affected scores."""

    first: str
    other: str
    rows: list[list[str]]


class FileProtocol(NamedTuple):
    """The protocol of a score file: the fields that all its scores share, and a table of the others."""

    title: str
    common: dict[str, str]
    head: list[str]
    rows: list[list[str]]


class Tile(NamedTuple):
    """A headline score."""

    value: str
    what: str
    beside: str  # values to compare it with


@dataclass(frozen=True)
class ScoreSection:
    """The section about scores.

    Attributes:
        tables: faithfulness by aspect, then all other scores.
        unseen: faithfulness to combinations that are not in the training data; None: it was not scored.
        negative: an unbiased distance is below zero, which the page explains.
    """

    tables: list[ScoreTable]
    unseen: ScoreTable | None
    differing: list[Differing]
    problems: list[str]
    protocols: list[FileProtocol]
    negative: bool

    def __bool__(self) -> bool:
        return bool(self.tables or self.unseen or self.problems)


def score_section(runs: Sequence[ShownRun]) -> ScoreSection:
    """Gathers the score files of all runs."""
    columns = _columns(runs)
    groups = [column for column in columns[FAITHFULNESS] if column.group]
    whole = [column for column in columns[FAITHFULNESS] if not column.group]
    parts = (FAITHFULNESS, whole), ("score", columns["score"])
    every = [score for column in columns["score"] for score in column.scores.values()]
    return ScoreSection(
        [_table(title, several) for title, several in parts if several],
        _table(FAITHFULNESS, groups) if groups else None,
        _all_differences([*whole, *groups, *columns["score"]]),
        [problem for run in runs for problem in run.problems],
        [_protocol(run, file, len(runs) > 1) for run in runs for file in run.scores],
        any(score.value < 0 and score.protocol.metric in MAY_BE_NEGATIVE for score in every),
    )


def _columns(runs: Sequence[ShownRun]) -> dict[str, list[Column]]:
    """Returns the columns of each table, with columns of the same split side by side."""
    tables: dict[str, dict[tuple[int, str, str], Column]] = {FAITHFULNESS: {}, "score": {}}
    for place, run in enumerate(runs):
        for file in run.scores:
            for score in file.scores:
                match = re.fullmatch(rf"{FAITHFULNESS}-([a-z]+)(?:-(.+))?", score.protocol.metric)
                aspect, group = match.groups() if match else (score.name.rpartition("@")[0], None)
                group = (group or "").replace("-", " ")
                columns = tables[FAITHFULNESS if match else "score"]
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


def _table(title: str, columns: list[Column]) -> ScoreTable:
    names = dict.fromkeys(name for column in columns for name in column.scores)
    return ScoreTable(title, columns, [(name, [_cell(columns, one, name) for one in columns]) for name in names])


def _cell(columns: Sequence[Column], column: Column, name: str) -> Cell | None:
    """Returns the value; below it interval, bounds, and N if it differs from that of the column."""
    score = column.scores.get(name)
    if score is None:
        return None
    lines = [] if score.interval is None else [" to ".join(map(rounded, score.interval))]
    lines += [", ".join(f"{bound} {rounded(value)}" for bound, value in score.bounds.items())]
    lines += [f"N {score.protocol.n_fake:,}"] if score.protocol.n_fake != column.n else []
    return Cell(rounded(score.value), [line for line in lines if line], bool(_differing(columns, column, name)))


def _first(columns: Sequence[Column], column: Column) -> Column:
    """Returns the column to compare with: the first one of the same data and split."""
    return next(other for other in columns if other.where == column.where)


def _differing(columns: Sequence[Column], column: Column, name: str) -> list[str]:
    """Returns the differences between the protocol of a score and that of the first run with this score."""
    before = next((other for other in columns if other.where == column.where and name in other.scores), column)
    return [] if before is column else differences(before.scores[name], column.scores[name])


def _all_differences(columns: Sequence[Column]) -> list[Differing]:
    """Lists for each run but the first: each difference of protocols once, with the splits and scores that have it."""
    every: dict[tuple[str, str], dict[tuple[str, str, str], list[tuple[str, str]]]] = {}
    counts: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for column in columns:
        if (first := _first(columns, column)) is column:
            continue
        key = f"{first.run.name}{_file_of(first, column)}", f"{column.run.name}{_file_of(column, first)}"
        for name, score in column.scores.items():
            member = (column.file.scores[0].protocol.split or column.where, score.name)
            counts.setdefault(key, set()).add(member)
            for difference in _differing(columns, column, name):
                every.setdefault(key, {}).setdefault(_parts_of(difference), []).append(member)
    return [
        Differing(
            *key,
            [
                [*parts, "all" if set(members) == counts[key] else ", ".join(f"{n} ({s})" for s, n in members)]
                for parts, members in by_parts.items()
            ],
        )
        for key, by_parts in every.items()
    ]


def _file_of(column: Column, other: Column) -> str:
    """Returns the name of the file if both columns are of the same run."""
    return f", {column.file.path.name}" if column.run is other.run else ""


def _parts_of(difference: str) -> tuple[str, str, str]:
    """Splits `guidance: 1.0 / 2.0` into its three parts."""
    key, _, values = difference.partition(": ")
    first, _, second = values.partition(" / ")
    return key, shortened(first), shortened(second)


def shortened(value: object) -> str:
    """Formats a value of a protocol, with digests cut to 12 digits."""
    text = "" if value is None or value == "None" else str(value)
    if text.startswith("{"):  # settings of sampling
        text = text.translate(str.maketrans("", "", '{}"'))
    return f"{text[:12]}..." if len(text) == 64 and text.isalnum() else text


def _protocol(run: ShownRun, file: ScoreFile, several: bool) -> FileProtocol:
    each: list[dict[str, Any]] = [
        asdict(score.protocol) | {"interval_method": score.interval_method} for score in file.scores
    ]
    common = {key: value for key, value in each[0].items() if all(other[key] == value for other in each)}
    libraries = common.get("libraries")
    if isinstance(libraries, Mapping):
        common["libraries"] = ", ".join(f"{name} {version}" for name, version in libraries.items())
    own = [key for key in each[0] if key not in common]
    return FileProtocol(
        f"Protocol of {f'{run.name}: ' if several else ''}{Column(run, 0, file).where}, {file.path.name}",
        {key: shortened(value) for key, value in common.items() if value is not None},
        ["score", *own],
        [[score.name, *(shortened(one[key]) for key in own)] for score, one in zip(file.scores, each, strict=True)],
    )


def headline(run: ShownRun) -> list[Tile]:
    """Returns the headline score of each file of a run: strict faithfulness, or else a CLIP score."""
    tiles = []
    for file in run.scores:
        strict = [score for score in file.scores if score.protocol.metric == f"{FAITHFULNESS}-strict"]
        clip = [score for score in file.scores if score.protocol.metric == "clip"]
        for score in strict or clip[:1]:
            what = "match the whole caption" if strict else score.name.rpartition("@")[0]
            bounds = {"real": "real images", "reconstructed": "reconstructions"}
            beside = [
                f"{words} {score.bounds[key]:.0%}" if strict else f"{words} {rounded(score.bounds[key])}"
                for key, words in bounds.items()
                if key in score.bounds
            ]
            value = f"{score.value:.1%}" if strict else rounded(score.value)
            where = f"{what}, {Column(run, 0, file).where}, N {score.protocol.n_fake:,}"
            tiles.append(Tile(value, where, ", ".join(beside)))
    return tiles
