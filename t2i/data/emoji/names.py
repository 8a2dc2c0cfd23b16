"""Names of emoji: captions of a sequence of code points, and the concept that its variants share.

A key is the code points of an emoji in hex, joined by `-`, without variation selectors: `1F355`, `2764-200D-1F525`.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from t2i.data.captions import clean_caption
from t2i.errors import InputError
from t2i.files import lines_of

TONES = range(0x1F3FB, 0x1F400)
_HAIR = range(0x1F9B0, 0x1F9B4)
_REGIONS = range(0x1F1E6, 0x1F200)
_JOINER, _SELECTOR = 0x200D, 0xFE0F
_GENDERS_AND_TURNS = (0x2640, 0x2642, 0x27A1)
_COUPLE, _KISS, _FAMILY, _HOLDING, _SHAKE, _SANTA = 0x1F491, 0x1F48F, 0x1F46A, 0x1F46D, 0x1F91D, 0x1F385
_PERSON, _CHILD = 0x1F9D1, 0x1F9D2
# code points that differ only in gender, age or hair -> the one in the key of their concept
_SAME: Mapping[int, int] = {
    **dict.fromkeys((0x1F468, 0x1F469, 0x1F471), _PERSON),
    **dict.fromkeys((0x1F466, 0x1F467), _CHILD),
    **dict.fromkeys((0x1F474, 0x1F475), 0x1F9D3),  # older person
    **dict.fromkeys((0x1F478, 0x1F934), 0x1FAC5),  # person with crown
    **dict.fromkeys((0x1FAC3, 0x1FAC4), 0x1F930),  # pregnant person
    **dict.fromkeys((0x1F46B, 0x1F46C), _HOLDING),
    0x1F57A: 0x1F483,  # dancers
    0x1F936: _SANTA,
}
_FLAG = "flag of "
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


class Named(NamedTuple):
    """The names that the `emoji` package has for one key."""

    text: str  # fully qualified
    name: str
    aliases: tuple[str, ...]


def need(module: str, package: str) -> ModuleType:
    """Imports a module of the extra.

    Raises:
        InputError: the module is not installed; the message has the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f"data emoji needs the package {package}; install it: pip install 't2i[emoji]'") from error


def key_of(text: str) -> str:
    """Returns the key of the characters of an emoji."""
    return "-".join(f"{ord(letter):X}" for letter in text if ord(letter) != _SELECTOR)


def codes_of(key: str) -> list[int]:
    """Returns the code points of a key."""
    return [int(code, 16) for code in key.split("-")]


@cache
def names() -> Mapping[str, Named]:
    """Returns the English names of each key in the `emoji` package."""
    result: dict[str, Named] = {}
    data = need("emoji", "emoji").EMOJI_DATA
    for text, entry in sorted(data.items(), key=lambda item: item[1]["status"]):  # fully qualified first
        aliases = tuple(_words(alias) for alias in entry.get("alias", ()))
        result.setdefault(key_of(text), Named(text, _name(text, _words(entry["en"])), aliases))
    return result


def is_name(caption: str) -> bool:
    """Returns True if the words of a caption are the name of an emoji."""
    return frozenset(words_of(caption)) in owners()


def _words(code: str) -> str:
    return clean_caption(code.strip(":").replace("_", " "))


def _name(text: str, name: str) -> str:
    flag = ord(text[0]) in _REGIONS or len(text) > 2 and ord(text[1]) >= 0xE0000
    return f"{_FLAG}{name}" if flag else name


@cache
def _groups() -> list[tuple[int, int, str]]:
    rows = []
    for line in lines_of(Path(__file__).with_name("groups.txt")):
        if not line.startswith("#"):
            word, _, runs = line.partition(": ")
            for run in runs.split():
                first, _, last = run.partition("-")
                rows.append((int(first, 16), int(last or first, 16), word))
    return rows


def _all_names(key: str) -> list[str]:
    """Returns the name, the aliases and the Unicode name of an emoji that has a name."""
    entry, codes = names()[key], codes_of(key)
    unicode_name = _unicode_name(codes[0]) if len(codes) == 1 else ""
    return [entry.name, *(other for other in (*entry.aliases, unicode_name) if _is_informative(other, entry.name))]


@cache
def owners() -> Mapping[frozenset[str], set[str]]:
    """Returns the concepts that each set of words is a name of."""
    result: dict[frozenset[str], set[str]] = defaultdict(set)
    for key in names():
        for caption in _all_names(key):
            result[frozenset(words_of(caption))].add(concept_of(key))
    return dict(result)


def keywords_of(key: str) -> Sequence[str]:
    """Returns related words that are not names of an emoji, such as "puppy" for the face of a dog."""
    return [word for word in _keywords().get(key, ()) if frozenset(words_of(word)) not in owners()]


@cache
def _keywords() -> Mapping[str, Sequence[str]]:
    lines = (
        line.split(": ") for line in lines_of(Path(__file__).with_name("keywords.txt")) if not line.startswith("#")
    )
    return {key: words.split(", ") for key, words in lines}


def with_article(caption: str) -> str:
    """Returns "a slice of pizza" for "slice of pizza", and "" for captions that take no article: plurals, lists, flags."""
    first, last = caption[:1].lower(), caption.split()[-1]
    if (
        "," in caption
        or not caption[:1].islower()
        or last.endswith("s")
        and not last.endswith("ss")
        or _FLAG in caption
    ):
        return ""
    return f"an {caption}" if first in "aeiou" else f"a {caption}"


def group_of(key: str) -> str:
    """Returns the group of an emoji, e.g. `fruit`; "" if it is unknown."""
    first = codes_of(key)[0]
    if first in _REGIONS:
        return "flag"
    return next((word for low, high, word in _groups() if low <= first <= high), "")


def captions_of(key: str) -> list[str]:
    """Returns the captions of an emoji: its name, aliases, the Unicode name, the name with its group; [] without a name.

    Aliases that are also names of another concept are excluded, so that no caption is in two splits.
    """
    entry = names().get(key)
    if entry is None:
        return []
    name, *others = _all_names(key)
    captions = [name, *(other for other in others if owners()[frozenset(words_of(other))] <= {concept_of(key)})]
    group = group_of(key)
    if group and not set(words_of(group)) <= set(words_of(name)):
        captions.append(f"{name}, {group}")
    by_words = {frozenset(words_of(caption)): caption for caption in reversed(captions)}
    return [caption for caption in dict.fromkeys(captions) if by_words[frozenset(words_of(caption))] == caption]


def words_of(caption: str) -> list[str]:
    """Returns the words of a caption in lower case."""
    return _WORD.findall(caption.lower())


def _is_informative(alias: str, name: str) -> bool:
    """Returns False for aliases that are codes such as `fr`, or equal to the name."""
    letters = sum(map(str.isalpha, alias))
    return letters > 2 and not alias.startswith(("flag for ", "emoji modifier")) and alias.lower() != name.lower()


def _unicode_name(code: int) -> str:
    """Returns the name in Unicode, e.g. `slice of pizza`; "" if it may contradict the colour of drawings.

    In Unicode, "black" and "white" mean filled and outlined.
    """
    name = unicodedata.name(chr(code), "").lower()
    return "" if {"black", "white", "heavy", "squared"} & set(name.split()) else name


def toned(key: str) -> bool:
    """Returns True for a variant with a skin tone."""
    codes = codes_of(key)
    return len(codes) > 1 and any(code in TONES for code in codes)


def concept_of(key: str) -> str:
    """Returns the key of a concept, which variants in skin tone, gender, hair or direction share."""
    codes = [_SAME.get(code, code) for code in codes_of(key)]
    parts: list[int] = []
    for code in codes:
        if len(codes) > 1 and (code in TONES or code in _HAIR):
            continue
        if code in _GENDERS_AND_TURNS and parts:
            continue
        parts.append(code)
    members = [code for code in parts if code != _JOINER]
    return "-".join(f"{code:X}" for code in _together(members))


def _together(members: Sequence[int]) -> Sequence[int]:
    """Maps all kissing couples to one sequence, all families to another, and so on; other sequences are unchanged."""
    people = [code for code in members if code in (_PERSON, _CHILD)]
    if 0x1F48B in members and people:
        return [_KISS]
    if 0x2764 in members and people:
        return [_COUPLE]
    if _SHAKE in members and people:
        return [_HOLDING]
    if 0x1FAF1 in members and 0x1FAF2 in members:
        return [_SHAKE]
    if 0x1F384 in members and people:
        return [_SANTA]
    return [_FAMILY] if len(people) > 1 else members
