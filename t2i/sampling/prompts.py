"""Prompts as people write them: one by one, or in a file. Imports no torch, so that a mistake is reported at once."""

import csv
import io
import json
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from t2i.data.captions import MAX_CHARACTERS, clean_caption
from t2i.errors import InputError
from t2i.files import read_regular
from t2i.names import shown, some
from t2i.seeding import derive
from t2i.text import TextEncoder

MAX_BYTES = 64 * 1024 * 1024
COLUMNS = ("prompt", "text", "caption", "prompts", "texts", "captions")
OWN_SEED = 2**32  # smaller ones are what people choose; derived ones have 63 bits

Numbered = Iterator[tuple[int, str]]  # line or place in the file, prompt


def clean_prompt(prompt: str) -> str:
    """The prompt as `clean_caption` leaves it, which is how training captions are read.

    Raises:
        InputError: it is no text, too long, or nothing is left of it.
    """
    if not isinstance(prompt, str):
        raise InputError(f"a prompt must be text, got {type(prompt).__name__} {repr(prompt)[:40]}")
    if len(prompt) > MAX_CHARACTERS:
        raise InputError(
            f"the prompt {prompt[:40]!r}... has {len(prompt):,} characters; shorten it to at most {MAX_CHARACTERS:,}"
        )
    cleaned = clean_caption(prompt)
    if not cleaned:
        raise InputError(f"the prompt {prompt[:40]!r} is empty; say what to sample, as in 'a small red circle'")
    return cleaned


def image_seed(seed: int, prompt: str, k: int) -> int:
    """The seed of image k of a cleaned prompt; what else is sampled beside it has no part in it.

    A seed of `OWN_SEED` or more is already that of one image, as outputs and manifests tell it: image 0 has that seed.
    """
    return seed if k == 0 and seed >= OWN_SEED else derive(seed, prompt, k)


def read_prompts(path: Path) -> list[str]:
    """The cleaned prompts of a file, in order.

    Args:
        path: in UTF-8, or UTF-16 with its mark. `.txt` or no suffix: one prompt a line, blank lines skipped. `.jsonl`: one
            object a line, as GenEval has them. `.json`: a list of texts or objects, or an object that holds or is one.
            `.tsv`, `.csv`: a header and rows, as PartiPrompts, DrawBench and pandas have them. The key or column is called
            prompt, text or caption, or their plural, in any case; of several captions in a list the first is taken.

    Raises:
        InputError: no such file, another kind of file, no prompts, or a bad line; the message names it.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"prompts file {path} is no {', '.join(filter(None, READERS))} file; make one prompt a line")
    prompts: list[str] = []
    for number, prompt in reader(_text(path), shown(path)):
        try:
            prompts.append(clean_prompt(prompt))
        except InputError as error:
            raise InputError(f"{path} line {number}: {error}") from None
    if not prompts:
        raise InputError(f"prompts file {path} holds no prompt; write one a line")
    return prompts


def _text(path: Path) -> str:
    """The text of a file with line ends of one kind."""
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
            raise InputError(f"{name} line {number} is not JSON; write one object a line") from None
        yield number, _prompt_of(row, f"{name} line {number}")


def _from_json(text: str, name: str) -> Numbered:
    try:
        found = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as error:
        place = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{name} is not JSON{place}; write a list of prompts, or one a line as .txt") from None
    while isinstance(found, dict):
        held = next((value for value in (_field(found), found.get("annotations")) if value is not None), None)
        values = list(found.values())
        inner = values[0] if len(values) == 1 and _are_rows(values[0]) else values  # all under another name, or by id
        found = inner if held is None else held
    for number, row in enumerate([found] if isinstance(found, str) else found if isinstance(found, list) else [], 1):
        yield number, row if isinstance(row, str) else _prompt_of(row, f"{name} entry {number}")


def _are_rows(value: Any) -> bool:
    return isinstance(value, dict) or isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _field(row: dict[str, Any]) -> Any:
    fields = {key.lower(): value for key, value in row.items()}
    return next((fields[key] for key in COLUMNS if key in fields), None)


def _prompt_of(row: Any, where: str) -> str:
    found = _field(row) if isinstance(row, dict) else None
    if isinstance(found, list) and len(found) > 1 and _field({key: row[key] for key in row if "prompt" in key.lower()}):
        raise InputError(f"{where} has {len(found)} prompts; write each in an entry of its own")
    first = found[0] if isinstance(found, list) and found else found  # of the captions of an image
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
    """True where quotes mark cells; false where they are part of prompts, as in PartiPrompts."""
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True))
    except csv.Error:  # a cell that begins with a quotation mark and goes on behind the next
        return False
    return text.startswith('"') or '""' in text or any("\n" in cell or "\t" in cell for row in rows for cell in row)


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
            f"{name} line {before + 1} is no row of a table ({error}); put quotes around its cells"
        ) from None


def _cells(rows: Iterator[tuple[int, list[str]]], name: str) -> Numbered:
    header = [cell.strip().lower() for cell in next(rows, (1, [""]))[1]]
    column = next((header.index(key) for key in COLUMNS if key in header), None)
    if column is None:
        raise InputError(f"{name} has no column {', '.join(COLUMNS[:3])} in its first line; add a header")
    for number, cells in rows:
        if any(cell.strip() for cell in cells[len(header) :]):
            counts = f"{len(cells)} cells and the first line {len(header)}"
            raise InputError(f"{name} line {number} has {counts}; put quotes around a prompt with a comma")
        yield number, cells[column] if column < len(cells) else ""


READERS: dict[str, Callable[[str, str], Numbered]] = {
    "": _from_text,
    ".txt": _from_text,
    ".jsonl": _from_jsonl,
    ".json": _from_json,
    ".tsv": _from_tsv,
    ".csv": _from_table,
}


def warn_of_unknown_words(encoder: TextEncoder, prompts: Sequence[str], data: str, named: Collection[str]) -> set[str]:
    """Warns of words that a model has never seen, where its text encoder has a vocabulary; returns them.

    Args:
        data: address of what the model was trained on.
        named: words that were warned of before.
    """
    unknown = getattr(encoder, "unknown_words", None)
    words = [] if unknown is None else [word for word in unknown(prompts) if word not in named]
    if words:
        learned = "rendered shapes" if data.startswith("shapes-") else f"what {Path(data).name} shows"
        are = "is" if len(words) == 1 else "are"
        listed = some([repr(word[:40]) for word in words])
        warnings.warn(f"this model knows {learned}; {listed} {are} not among its words", stacklevel=4)
    return set(words)
