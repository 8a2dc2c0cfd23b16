"""Prompts as people write them: one by one, or in a file. Imports no torch, so that a mistake is told at once."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from t2i.data.captions import MAX_CHARACTERS, clean_caption
from t2i.errors import InputError
from t2i.seeding import derive

MAX_BYTES = 64 * 1024 * 1024
OWN_SEED = 2**32  # smaller ones are what people choose; derived ones have 63 bits


COLUMNS = ("prompt", "text", "caption")


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
        raise InputError(f"the prompt {prompt[:40]!r} is empty; say what to draw, as in 'a small red circle'")
    return cleaned


def read_prompts(path: Path) -> list[str]:
    """The cleaned prompts of a file, in order.

    Args:
        path: `.txt` or no suffix: one prompt a line, blank lines skipped. `.jsonl`: one object a line. `.tsv`: a header
            and rows, as PartiPrompts.tsv has them. The key or column is called prompt, text or caption, in any case; of
            several captions in a list the first is taken.

    Raises:
        InputError: no such file, another kind of file, no prompts, or a bad line; the message names it.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"prompts file {path} is no {', '.join(filter(None, READERS))} file; make one prompt a line")
    prompts: list[str] = []
    for number, prompt in reader(_lines(path), str(path)):
        try:
            prompts.append(clean_prompt(prompt))
        except InputError as error:
            raise InputError(f"{path} line {number}: {error}") from None
    if not prompts:
        raise InputError(f"prompts file {path} holds no prompt; write one a line")
    return prompts


def _lines(path: Path) -> list[str]:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InputError(f"prompts file {path} has more than {MAX_BYTES:,} bytes; split it")
        # not splitlines: U+2028, form feeds and the like are part of a prompt
        return data.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"prompts file {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"cannot read prompts file {path}: {error.strerror or error}; name a text file") from error


Numbered = Iterator[tuple[int, str]]


def _from_text(lines: list[str], _: str) -> Numbered:
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _from_jsonl(lines: list[str], name: str) -> Numbered:
    for number, line in _from_text(lines, name):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{name} line {number} is not JSON; write one object a line") from None
        fields = {key.lower(): value for key, value in row.items()} if isinstance(row, dict) else {}
        found = next((fields[key] for key in COLUMNS if key in fields), None)
        first: Any = found[0] if isinstance(found, list) and found else found
        if not isinstance(first, str):
            raise InputError(f'{name} line {number} has no text under {", ".join(COLUMNS)}; write {{"prompt": "..."}}')
        yield number, first


def _from_tsv(lines: list[str], name: str) -> Numbered:
    header = [cell.strip().lower() for cell in lines[0].split("\t")]
    column = next((header.index(key) for key in COLUMNS if key in header), None)
    if column is None:
        raise InputError(f"{name} has no column {', '.join(COLUMNS)} in its first line; add a header")
    for number, line in _from_text(lines, name):
        cells = line.split("\t")  # cells are not quoted: prompts hold quotation marks
        if number > 1:
            yield number, cells[column] if column < len(cells) else ""


READERS: dict[str, Callable[[list[str], str], Numbered]] = {
    "": _from_text,
    ".txt": _from_text,
    ".jsonl": _from_jsonl,
    ".tsv": _from_tsv,
}


def image_seed(seed: int, prompt: str, k: int) -> int:
    """The seed of image k of a cleaned prompt; what else is sampled beside it has no part in it.

    A seed of `OWN_SEED` or more is already that of one image, as outputs and manifests tell it: image 0 has that seed.
    """
    return seed if k == 0 and seed >= OWN_SEED else derive(seed, prompt, k)
