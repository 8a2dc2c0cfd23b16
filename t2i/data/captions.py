"""Cleans captions. The same function cleans training captions and prompts, so that equal ones stay equal."""

import ast
import json
import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Any

MAX_CHARACTERS = 4096

# Control characters except white space; bidi marks, embeddings, overrides and isolates; soft hyphen, zero-width space and
# other invisible format characters; lone surrogates; tags. Zero-width joiners stay, as scripts and emoji need them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)

REPLACED = "\ufffd"  # replaces bytes that another program could not decode
# a list or tuple of strings as Python prints it; commas are required, as Python would join the strings otherwise
_STRING = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_LIST = re.compile(rf"[\[(]\s*(?:{_STRING}\s*(?:,\s*{_STRING}\s*)*,?\s*)?[\])]", re.DOTALL)
_ARRAY = re.compile(r"array\((.*?)(?:,\s*dtype=[^()]*)?\)", re.DOTALL)  # as numpy prints it


def captions_of(value: Any) -> list[str]:
    """Returns the cleaned captions in a cell or JSON value: a string, a list of strings, or such a list written as text.

    Empty and repeated captions are dropped; None has no captions.

    Raises:
        ValueError: the value is none of these; the message begins with "must be".
    """
    if isinstance(value, str) and not value.lstrip().startswith(("[", "(", "{", "array(")):
        cleaned = clean_caption(value)
        return [cleaned] if cleaned else []
    values = [] if value is None else value if isinstance(value, list) else [value]
    if len(values) == 1 and isinstance(values[0], str):
        values = _listed(values[0].strip())
    if not all(isinstance(caption, str) for caption in values):
        raise ValueError(f"must be a string or a list of strings, got {str(value)[:60]!r}")
    return list(dict.fromkeys(cleaned for caption in values if (cleaned := clean_caption(caption))))


def _listed(text: str) -> list[Any]:
    """Returns the elements of a list that a table program wrote into a cell; other text unchanged, as one element."""
    if array := _ARRAY.fullmatch(text):
        text = array[1]
    if not text.startswith(("[", "(", "{")):
        return [text]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = ast.literal_eval(text) if _LIST.fullmatch(text) else text
    if isinstance(value, list | tuple):
        return list(value)
    cut = text.startswith(("['", '["')) and (text.endswith("]") or re.search(r"""['"],""", text))
    if cut or isinstance(value, dict) or _is_container(text):
        fix = "write it as JSON, or one row for each caption"
        raise ValueError(f"must be a string or a list of strings, got the text {text[:60]!r}; {fix}")
    return [text]


def _is_container(text: str) -> bool:
    """Returns True for a list, tuple, set or dict as Python prints it, of other elements than strings."""
    try:
        return isinstance(ast.literal_eval(text), list | tuple | set | dict)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False


def clean_caption(text: str) -> str:
    """Removes control and bidi characters, composes (NFC), collapses white space, and keeps 4096 characters; may return "".

    Cleaning a caption again does not change it.
    """
    plain = text.isascii() and text.isprintable()
    if plain and "  " not in text and len(text) < MAX_CHARACTERS:
        return text.strip()
    if not plain:
        text = _INVISIBLE.sub("", text)
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.split())[:MAX_CHARACTERS].rstrip()


def script_of(text: str) -> str:
    """Returns the script of most letters by its Unicode name, e.g. LATIN, CYRILLIC, ARABIC or CJK; "none" without letters."""
    if text.isascii():
        return "LATIN" if any(map(str.isalpha, text)) else "none"
    counts = Counter(_script(letter) for letter in text if letter.isalpha())
    return counts.most_common(1)[0][0] if counts else "none"


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "unknown").partition(" ")[0]
