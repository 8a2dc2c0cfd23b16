"""Emoji as a dataset: `emoji`, `emoji:/path/NotoColorEmoji.ttf`, `emoji:openmoji,/path/NotoColorEmoji.ttf`.

The variants of a design, and different emoji that look the same, form one concept and are in the same split in all styles.
docs/emoji.md describes the held-out concepts.
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
from t2i.data.phash import near_duplicates, unpack
from t2i.data.splits import SPLITS, assign_splits
from t2i.errors import InputError
from t2i.files import lines_of
from t2i.images import decode
from t2i.names import counted, shown

if TYPE_CHECKING:
    import pyarrow as pa

ALL = "all"  # all splits, to train a scorer that knows every prompt, on another style than the generator's
UNNAMED = "emoji"  # caption of a drawing without a name
EQUAL_BITS, EQUAL_LEVELS = 2, 1.0  # largest differences of drawings that count as equal, most of them flags


class Row(NamedTuple):
    """One drawing: its style, its row in the style's table, its key and concept, and the colour that it is tinted with."""

    style: int
    row: int
    key: str
    concept: str
    tint: str = ""


class EmojiDataset(EncodedImages):
    """One split of one or several styles; `broken` holds the names of drawings that cannot be rendered, with the reasons."""

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
        """Yields the sha256 of each drawing's source, and the tint if there is one."""
        hashes = (self._tables[row.style]["sha256"][row.row].as_py().hex() for row in self._rows)
        return ([one, row.tint] if row.tint else one for one, row in zip(hashes, self._rows, strict=True))


class EmojiOptions(NamedTuple):
    """Options of emoji."""

    tones: bool = False  # add variants with a skin tone
    unnamed: bool = False  # add drawings without a name, captioned `emoji`, to train a tokenizer
    tints: int = 0  # number of further colours of each training drawing with one colour; the captions name the colour


def open_emoji(place: str, split: str, view: View, options: EmojiOptions) -> EmojiDataset:
    """Opens one split of the drawings of one or several styles."""
    if split not in (*SPLITS, ALL):
        raise InputError(f"data emoji has no split {split!r}: choose one of {', '.join(SPLITS)}, {ALL}")
    styles = open_styles(place)
    tables = {style.name: style.index(view.resolution, options.tones) for style in styles}
    every, broken = _rows(tables, f"emoji:{place}")
    split_of = _splits(every, tables, view.seed)
    rows = [row for row in every if options.unnamed or captions_of(row.key)]
    if not rows:
        raise InputError(
            f"data emoji:{place}: {counted(len(every), 'drawing')}, and no code point has a name; name a folder of emoji, or set "
            "the option unnamed=true to train a tokenizer"
        )
    # in random order, so that the first rows are a fair sample of all
    chosen = sorted(
        (row for row in rows if split in (split_of[row.concept], ALL)),
        key=lambda row: (seeding.key_of(row.concept), row.key, row.style),
    )
    if split in ("train", ALL) and options.tints:
        chosen = [variant for row in chosen for variant in (row, *_tinted(row, tables, options.tints))]
    if not chosen:
        raise InputError(
            f"data emoji:{place}: none of {counted(len(rows), 'drawing')} is in split {split}; add drawings, or change "
            "data.split_seed"
        )
    return EmojiDataset(f"emoji:{place}", split, view, tables, chosen[: view.limit], broken)


def _rows(tables: Mapping[str, "pa.Table"], address: str) -> tuple[list[Row], list[tuple[str, str]]]:
    """Returns the rendered drawings, and the names of the others with the reasons."""
    rows: list[Row] = []
    broken: list[tuple[str, str]] = []
    for k, (style, table) in enumerate(tables.items()):
        for i, (key, reason) in enumerate(zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True)):
            if reason:
                broken.append((f"{style}/{key}", reason))
            else:
                rows.append(Row(k, i, key, concept_of(key)))
    if broken:
        reasons = "; ".join(f"{shown(name)}: {reason}" for name, reason in broken[:3])
        more = f" and {len(broken) - 3:,} more" if len(broken) > 3 else ""
        message = f"data {address}: skipped {counted(len(broken), 'drawing')} that cannot be rendered: {reasons}{more}"
        if len(broken) > len(rows):
            raise InputError(f"{message}; that is more than half, replace them")
        warnings.warn(message, stacklevel=4)
    return rows, broken


def _tinted(row: Row, tables: Mapping[str, "pa.Table"], count: int) -> list[Row]:
    """Returns rows of a drawing in other colours; none for flags and drawings of several colours."""
    hue = list(tables.values())[row.style]["hue"][row.row].as_py()
    if hue == NONE or group_of(row.key) == "flag":
        return []
    captions = captions_of(row.key)
    return [row._replace(tint=colour) for colour in tints_of(row.concept, hue, count) if tinted(captions, colour)]


def _name(row: Row, styles: Sequence[str]) -> str:
    return f"{styles[row.style]}/{row.key}{'/' * bool(row.tint)}{row.tint}"


def _splits(rows: Sequence[Row], tables: Mapping[str, "pa.Table"], seed: int) -> dict[str, str]:
    """Returns the split of each concept; concepts whose drawings are equal in a style share a split."""
    concepts = sorted({row.concept for row in rows})
    first = {concept: concept for concept in concepts}  # union-find: each concept points to an earlier one or to itself

    def root(concept: str) -> str:
        while first[concept] != concept:
            concept = first[concept]
        return concept

    for k, table in enumerate(tables.values()):
        members = [row for row in rows if row.style == k and not toned(row.key)]
        for a, b in equal_drawings([table["signature"][row.row].as_py() for row in members]):
            one, other = sorted((root(members[a].concept), root(members[b].concept)))
            first[other] = one
    roots = [root(concept) for concept in concepts]
    held = {root(concept) for concept in concepts if concept in held_out()}
    splits = assign_splits([f"emoji/{top}" for top in roots], seed)
    return {
        concept: "heldout" if top in held else split
        for concept, top, split in zip(concepts, roots, splits, strict=True)
    }


def equal_drawings(packed: Sequence[bytes]) -> list[tuple[int, int]]:
    """Returns the index pairs of drawings that differ in a line or two at most, from their signatures."""
    return [(int(a), int(b)) for a, b in near_duplicates(unpack(packed), None, EQUAL_BITS, EQUAL_LEVELS)]


@cache
def held_out() -> frozenset[str]:
    """Returns the concepts of split `heldout`; all words of their names are also in names of other concepts."""
    lines = lines_of(Path(__file__).with_name("heldout.txt"))
    return frozenset(line.split()[0] for line in lines if not line.startswith("#"))


def _captions(row: Row, styles: Sequence[str], split: str) -> list[str]:
    """Returns the captions of a drawing with and without an article, and its keywords in training.

    With several styles, each caption also occurs with the name of the style.
    """
    captions = captions_of(row.key) or [UNNAMED]
    captions = tinted(captions, row.tint) if row.tint else captions
    captions = [*captions, *filter(None, map(with_article, captions))]
    if split in ("train", ALL) and not row.tint:
        captions += keywords_of(row.key)
    if len(styles) > 1:
        captions += [f"{caption}, in the style of {styles[row.style]}" for caption in captions]
    return captions
