"""Emoji as a dataset: `emoji`, `emoji:/path/NotoColorEmoji.ttf`, `emoji:openmoji,/path/NotoColorEmoji.ttf`.

Splits are by concept: the variants of one design, and different emoji that are drawn alike, are on one side in every style.
docs/emoji.md tells what is held out.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from t2i import seeding
from t2i.data import View
from t2i.data.emoji.drawings import png_of
from t2i.data.emoji.names import captions_of, concept_of, group_of, keywords_of, toned, with_article
from t2i.data.emoji.styles import open_styles
from t2i.data.emoji.tints import NONE, tint, tinted, tints_of
from t2i.data.encoded import EncodedImages
from t2i.data.packed.dataset import file_of
from t2i.data.phash import Signatures, near_duplicates
from t2i.data.splits import SPLITS, assign_splits
from t2i.errors import InputError
from t2i.files import lines_of
from t2i.images import decode
from t2i.names import counted, shown

if TYPE_CHECKING:
    import pyarrow as pa

ALL = "all"  # for a scorer, which must know what a generator is asked for, in another style
UNNAMED = "emoji"  # the caption of a drawing without a name
EQUAL_BITS, EQUAL_LEVELS = 2, 1.0  # what may differ between drawings that are taken for equal: flags, for the most part


class Row(NamedTuple):
    """One drawing: its style, its row in the style's table, the concept it shows, and the colour it is turned into."""

    style: int
    row: int
    key: str
    concept: str
    tint: str = ""


class EmojiDataset(EncodedImages):
    """One split of one or several styles; `broken` names the drawings that do not render, each with the reason."""

    def __init__(
        self,
        address: str,
        split: str,
        view: View,
        tables: Mapping[str, "pa.Table"],
        rows: Sequence[Row],
        broken: Sequence[tuple[str, str]],
    ) -> None:
        import pyarrow as pa

        self.styles = list(tables)
        captions = [_captions(row, self.styles, split) for row in rows]
        super().__init__(address, split, view, [_name(row, self.styles) for row in rows], captions)
        self.broken = list(broken)
        self._rows, self._tables = rows, list(tables.values())
        self._files = [pa.memory_map(file_of(table)).read_buffer() for table in self._tables]

    def source(self, i: int) -> bytes:
        """Returns row i as PNG."""
        style, row, *_, colour = self._rows[i]
        table = self._tables[style]
        offset, size = table["offset"][row].as_py(), table["size"][row].as_py()
        data = self._files[style].slice(offset, size).to_pybytes()
        return png_of(tint(np.asarray(decode(data)), table["hue"][row].as_py(), colour)) if colour else data

    def contents(self, lasting: bool = False) -> Iterable[Any]:
        """sha256 of what each drawing was made from, and the colour it is turned into."""
        made_from = (self._tables[row.style]["sha256"][row.row].as_py().hex() for row in self._rows)
        return ([one, row.tint] if row.tint else one for one, row in zip(made_from, self._rows, strict=True))


def open_emoji(
    place: str, split: str, view: View, *, tones: bool = False, unnamed: bool = False, tints: int = 0
) -> EmojiDataset:
    """Opens one split of the drawings of one or several styles.

    Args:
        tones: variants with a skin tone are rows too.
        unnamed: drawings without a name are rows too, captioned `emoji`, for a tokenizer.
        tints: training drawings of one colour are rows in so many others too, with captions that say so.

    Raises:
        InputError: the extra is not installed, a style is not there or has no colour, more than half do not render, or
            there is no such split.
    """
    if split not in (*SPLITS, ALL):
        raise InputError(f"data emoji has no split {split!r}: choose one of {', '.join(SPLITS)}, {ALL}")
    styles = open_styles(place)
    tables = {style.name: style.index(view.resolution, tones) for style in styles}
    every, broken = _rows(tables, f"emoji:{place}")
    own = _splits(every, tables, view.seed)
    rows = [row for row in every if unnamed or captions_of(row.key)]
    # not by code point, so that the first rows are a fair sample of all
    chosen = sorted(
        (row for row in rows if split in (own[row.concept], ALL)),
        key=lambda row: (seeding.key_of(row.concept), row.key, row.style),
    )
    if split in ("train", ALL) and tints:
        chosen = [own for row in chosen for own in (row, *_tinted(row, tables, tints))]
    if not chosen:
        raise InputError(
            f"data emoji:{place}: the draw by name gave split {split} none of {counted(len(rows), 'drawing')}; add drawings, or "
            "take another data.split_seed"
        )
    return EmojiDataset(f"emoji:{place}", split, view, tables, chosen[: view.limit], broken)


def _rows(tables: Mapping[str, "pa.Table"], address: str) -> tuple[list[Row], list[tuple[str, str]]]:
    """Returns the drawings that render, and the names of the others, each with the reason."""
    rows: list[Row] = []
    broken: list[tuple[str, str]] = []
    for k, (style, table) in enumerate(tables.items()):
        for i, (key, reason) in enumerate(zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True)):
            if reason:
                broken.append((f"{style}/{key}", reason))
            else:
                rows.append(Row(k, i, key, concept_of(key)))
    if broken:
        told = "; ".join(f"{shown(name)}: {reason}" for name, reason in broken[:3])
        more = f" and {len(broken) - 3:,} more" if len(broken) > 3 else ""
        what = f"{counted(len(broken), 'drawing')} that cannot be rendered: {told}{more}"
        if len(broken) > len(rows):
            raise InputError(f"data {address}: left out {what}; that is more than half, replace them")
        warnings.warn(f"data {address}: left out {what}", stacklevel=4)
    return rows, broken


def _tinted(row: Row, tables: Mapping[str, "pa.Table"], count: int) -> list[Row]:
    """Returns the rows of a drawing of one colour in others; flags have none."""
    hue = list(tables.values())[row.style]["hue"][row.row].as_py()
    if hue == NONE or group_of(row.key) == "flag":
        return []
    own = captions_of(row.key)
    return [row._replace(tint=colour) for colour in tints_of(row.concept, hue, count) if tinted(own, colour)]


def _name(row: Row, styles: Sequence[str]) -> str:
    return f"{styles[row.style]}/{row.key}{'/' * bool(row.tint)}{row.tint}"


def _splits(rows: Sequence[Row], tables: Mapping[str, "pa.Table"], seed: int) -> dict[str, str]:
    """Returns the split of each concept; concepts that are drawn alike in a style share one, whatever rows are asked for."""
    concepts = sorted({row.concept for row in rows})
    first = {concept: concept for concept in concepts}  # a forest: each points to one that comes before it

    def root(concept: str) -> str:
        while first[concept] != concept:
            concept = first[concept]
        return concept

    for k, table in enumerate(tables.values()):
        own = [row for row in rows if row.style == k and not toned(row.key)]
        for a, b in equal_drawings([table["signature"][row.row].as_py() for row in own]):
            one, other = sorted((root(own[a].concept), root(own[b].concept)))
            first[other] = one
    roots = [root(concept) for concept in concepts]
    held = {root(concept) for concept in concepts if concept in held_out()}
    drawn = assign_splits([f"emoji/{its}" for its in roots], seed)
    return {
        concept: "heldout" if its in held else split for concept, its, split in zip(concepts, roots, drawn, strict=True)
    }


def equal_drawings(packed: Sequence[bytes]) -> list[tuple[int, int]]:
    """Returns pairs of numbers of drawings that are equal but for a line or two, given their signatures."""
    numbers = np.frombuffer(b"".join(packed), np.uint8).reshape(len(packed), -1)
    found = Signatures(np.ascontiguousarray(numbers[:, :8]).view(np.uint64)[:, 0], numbers[:, 8:])
    return [(int(a), int(b)) for a, b in near_duplicates(found, None, EQUAL_BITS, EQUAL_LEVELS)]


@cache
def held_out() -> frozenset[str]:
    """Returns the concepts of split `heldout`, whose words all are in other names."""
    lines = lines_of(Path(__file__).with_name("heldout.txt"))
    return frozenset(line.split()[0] for line in lines if not line.startswith("#"))


def _captions(row: Row, styles: Sequence[str], split: str) -> list[str]:
    """Returns the captions of a drawing, with and without an article, in training its keywords too; of several styles each is
    also named."""
    own = captions_of(row.key) or [UNNAMED]
    own = tinted(own, row.tint) if row.tint else own
    own = [*own, *(said for caption in own if (said := with_article(caption)))]
    if split in ("train", ALL) and not row.tint:
        own += keywords_of(row.key)
    return own if len(styles) == 1 else [*own, *(f"{caption}, in the style of {styles[row.style]}" for caption in own)]
