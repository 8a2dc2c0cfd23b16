"""Reads and cleans prompts and files of prompts. Imports no torch, so that mistakes are reported quickly."""

import csv
import io
import json
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from t2i.data.captions import MAX_CHARACTERS, captions_of, clean_caption
from t2i.errors import InputError
from t2i.files import read_regular
from t2i.names import counted, shown, some, verb
from t2i.seeding import derive
from t2i.text import TextEncoder

MAX_BYTES = 64 * 1024 * 1024
COLUMNS = ("prompt", "text", "caption", "prompts", "texts", "captions")
IMAGE_SEED = 2**32  # seeds from here on belong to a single image: derived seeds have 63 bits, people choose small ones

Numbered = Iterator[tuple[int, str]]  # line or position in the file, prompt


def clean_prompt(prompt: str) -> str:
    """Cleans a prompt like a training caption.

    Raises:
        InputError: the prompt is not text, too long, or empty.
    """
    if not isinstance(prompt, str):
        raise InputError(f"a prompt must be text, got {type(prompt).__name__} {repr(prompt)[:40]}")
    if len(prompt) > MAX_CHARACTERS:
        raise InputError(
            f"the prompt {prompt[:40]!r}... has {len(prompt):,} characters; shorten it to at most {MAX_CHARACTERS:,}"
        )
    cleaned = clean_caption(prompt)
    if not cleaned:
        raise InputError(f"the prompt {prompt[:40]!r} is empty; describe an image, as in 'a small red circle'")
    return cleaned


def image_seed(seed: int, prompt: str, k: int) -> int:
    """Returns the seed of image k of a cleaned prompt. It does not depend on the other images that are sampled.

    A seed of `IMAGE_SEED` or more, as outputs and manifests hold it, already belongs to one image, which is image 0.
    """
    return seed if k == 0 and seed >= IMAGE_SEED else derive(seed, prompt, k)


def read_prompts(path: Path) -> list[str]:
    """Reads and cleans the prompts of a file, in order.

    Args:
        path: a file in UTF-8, or in UTF-16 with a byte order mark. `.txt` or no suffix: one prompt per line, blank lines are
            skipped. `.jsonl`: one object per line (GenEval). `.json`: a list of texts or objects, or an object that holds
            such a list. `.tsv`, `.csv`: a header and rows (PartiPrompts, DrawBench, pandas). The key or column is named
            prompt, text or caption, or a plural of these, in any case; the first of several captions in a list is used.

    Raises:
        InputError: the file does not exist, is of another kind, or holds no prompts or an invalid line, which is named.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"prompts file {path} is not a {', '.join(filter(None, READERS))} file; write a .txt file with one prompt per line"
        )
    prompts: list[str] = []
    for number, prompt in reader(_text(path), shown(path)):
        try:
            prompts.append(clean_prompt(prompt))
        except InputError as error:
            raise InputError(f"{path} line {number}: {error}") from None
    if not prompts:
        raise InputError(f"prompts file {path} holds no prompt; write one prompt per line")
    return prompts


def _text(path: Path) -> str:
    """Reads the text of a file and normalises its line ends."""
    try:
        data = read_regular(path, MAX_BYTES)
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"prompts file {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"cannot read prompts file {path}: {error.strerror or error}; name a text file") from error


def _lines(text: str) -> Numbered:
    # not splitlines: U+2028, form feeds and the like are part of a prompt
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _from_text(text: str, _: str) -> Numbered:
    return _lines(text)


def _from_jsonl(text: str, name: str) -> Numbered:
    for number, line in _lines(text):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{name} line {number} is not JSON; write one object per line") from None
        yield number, _prompt_of(row, f"{name} line {number}")


def _from_json(text: str, name: str) -> Numbered:
    try:
        tree = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as error:
        place = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{name} is not JSON{place}; write a list of prompts, or one per line as .txt") from None
    while isinstance(tree, dict):
        named = next((value for value in (_field(tree), tree.get("annotations")) if value is not None), None)
        values = list(tree.values())
        # a single value under any name, or prompts by id
        inner = values[0] if len(values) == 1 and _are_rows(values[0]) else values
        tree = inner if named is None else named
    for number, row in enumerate([tree] if isinstance(tree, str) else tree if isinstance(tree, list) else [], 1):
        yield number, row if isinstance(row, str) else _prompt_of(row, f"{name} entry {number}")


def _are_rows(value: Any) -> bool:
    return isinstance(value, dict) or isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _field(row: dict[str, Any]) -> Any:
    fields = {key.lower(): value for key, value in row.items()}
    return next((fields[key] for key in COLUMNS if key in fields), None)


def _first_of(cell: str, where: str) -> str:
    """Returns the first caption of a list that a table program wrote into a cell."""
    try:
        return next(iter(captions_of(cell)), "")
    except ValueError as error:
        raise InputError(f"{where} {error}") from None


def _prompt_of(row: Any, where: str) -> str:
    value = _field(row) if isinstance(row, dict) else None
    if isinstance(value, list) and len(value) > 1 and _field({key: row[key] for key in row if "prompt" in key.lower()}):
        raise InputError(f"{where} has {len(value)} prompts; write one prompt in each entry")
    first = value[0] if isinstance(value, list) and value else value  # of the captions of an image
    if not isinstance(first, str):
        raise InputError(f'{where} has no text under {", ".join(COLUMNS[:3])}; write {{"prompt": "..."}}')
    return first


def _from_table(text: str, name: str) -> Numbered:
    header, *_ = text.split("\n", 1)
    tabs = header.count("\t") > 0 and header.count("\t") >= header.count(",")
    delimiter = "\t" if tabs else ";" if header.count(";") > header.count(",") else ","
    yield from _cells(_quoted(text, delimiter, name), name)


def _from_tsv(text: str, name: str) -> Numbered:
    plain = ((number, line.split("\t")) for number, line in _lines(text))
    yield from _cells(_quoted(text, "\t", name) if _pandas_wrote(text) else plain, name)


def _pandas_wrote(text: str) -> bool:
    """Returns True if quotes delimit cells, False if they belong to prompts, as in PartiPrompts."""
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True))
    except csv.Error:  # text follows the closing quotation mark of a cell
        return False
    lines = [line.split("\t") for _, line in _lines(text)][1:]
    columns = zip(*lines, strict=False) if len(lines) > 1 else ()
    whole = any(all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in column) for column in columns)
    marks = text.startswith('"') or '""' in text or whole
    return marks or any("\n" in cell or "\t" in cell for row in rows for cell in row)


def _quoted(text: str, delimiter: str, name: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    before = 0
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield before + 1, row
            before = reader.line_num
    except csv.Error as error:
        raise InputError(
            f"{name} line {before + 1} is not a row of a table ({error}); put quotes around its cells"
        ) from None


def _cells(rows: Iterator[tuple[int, list[str]]], name: str) -> Numbered:
    header = [cell.strip().lower() for cell in next(rows, (1, [""]))[1]]
    column = next((header.index(key) for key in COLUMNS if key in header), None)
    if column is None:
        raise InputError(f"{name} has no column {', '.join(COLUMNS[:3])} in its first line; add a header")
    for number, cells in rows:
        if any(cell.strip() for cell in cells[len(header) :]):
            counts = f"{counted(len(cells), 'cell')} but the first line has {len(header)}"
            raise InputError(f"{name} line {number} has {counts}; put quotes around a prompt with a comma")
        cell = cells[column] if column < len(cells) else ""
        yield number, _first_of(cell, f"{name} line {number}") if cell.lstrip().startswith("[") else cell


READERS: dict[str, Callable[[str, str], Numbered]] = {
    "": _from_text,
    ".txt": _from_text,
    ".jsonl": _from_jsonl,
    ".json": _from_json,
    ".tsv": _from_tsv,
    ".csv": _from_table,
}


def warn_of_unknown_words(encoder: TextEncoder, prompts: Sequence[str], data: str, known: Collection[str]) -> set[str]:
    """Warns of words that are missing from the vocabulary of the text encoder, if it has one; returns these words.

    Args:
        data: address of the model's training data.
        known: words without a warning.
    """
    unknown = getattr(encoder, "unknown_words", None)
    words = [] if unknown is None else [word for word in unknown(prompts) if word not in known]
    if words:
        learned = "rendered shapes" if data.startswith("shapes-") else f"the captions of {Path(data).name}"
        listed = some([repr(word[:40]) for word in words])
        warnings.warn(f"this model knows {learned}; {listed} {verb(len(words))} not among its words", stacklevel=4)
    return set(words)
