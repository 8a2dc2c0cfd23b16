"""What emoji are called: captions of a sequence of code points, and the concept that its variants share.

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
# what is the same concept with another gender, age or hair
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
        InputError: it is not installed; the message says which command installs it.
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
    """Returns what the `emoji` package calls each key, in English."""
    found: dict[str, Named] = {}
    data = need("emoji", "emoji").EMOJI_DATA
    for text, entry in sorted(data.items(), key=lambda item: item[1]["status"]):  # fully qualified ones first
        aliases = tuple(_words(alias) for alias in entry.get("alias", ()))
        found.setdefault(key_of(text), Named(text, _name(text, _words(entry["en"])), aliases))
    return found


def is_called(caption: str) -> bool:
    """Returns True where some emoji is called by the words of a caption."""
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


def _called(key: str) -> list[str]:
    """Returns name, aliases and the name in Unicode of an emoji that has a name."""
    own, codes = names()[key], codes_of(key)
    formal = _formal(codes[0]) if len(codes) == 1 else ""
    return [own.name, *(other for other in (*own.aliases, formal) if _tells(other, own.name))]


@cache
def owners() -> Mapping[frozenset[str], set[str]]:
    """Returns the concepts that are called by these words."""
    found: dict[frozenset[str], set[str]] = defaultdict(set)
    for key in names():
        for caption in _called(key):
            found[frozenset(words_of(caption))].add(concept_of(key))
    return dict(found)


def keywords_of(key: str) -> Sequence[str]:
    """Returns words that go with an emoji beside its names, as "puppy" with the face of a dog."""
    return [word for word in _keywords().get(key, ()) if frozenset(words_of(word)) not in owners()]


@cache
def _keywords() -> Mapping[str, Sequence[str]]:
    lines = (
        line.split(": ") for line in lines_of(Path(__file__).with_name("keywords.txt")) if not line.startswith("#")
    )
    return {key: words.split(", ") for key, words in lines}


def with_article(caption: str) -> str:
    """Returns "a slice of pizza" of "slice of pizza"; "" where a caption takes no article: a plural, a list, a flag."""
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
    """Returns what an emoji is a kind of, as `fruit`; "" where that is not known."""
    first = codes_of(key)[0]
    if first in _REGIONS:
        return "flag"
    return next((word for low, high, word in _groups() if low <= first <= high), "")


def captions_of(key: str) -> list[str]:
    """Returns the captions of an emoji, its name first: name, aliases, the name in Unicode, the name with its group.

    [] for one without a name. What another concept is called too is left out, so that no caption is on two sides.
    """
    own = names().get(key)
    if own is None:
        return []
    told = _called(key)
    told = [told[0], *(caption for caption in told[1:] if owners()[frozenset(words_of(caption))] <= {concept_of(key)})]
    group = group_of(key)
    if group and not set(words_of(group)) <= set(words_of(own.name)):
        told.append(f"{own.name}, {group}")
    by_words = {frozenset(words_of(caption)): caption for caption in reversed(told)}
    return [caption for caption in dict.fromkeys(told) if by_words[frozenset(words_of(caption))] == caption]


def words_of(caption: str) -> list[str]:
    """Returns the words of a caption in lower case."""
    return _WORD.findall(caption.lower())


def _tells(alias: str, name: str) -> bool:
    """Returns True unless an alias is a code such as `fr`, or says the same as the name."""
    letters = sum(map(str.isalpha, alias))
    return letters > 2 and not alias.startswith(("flag for ", "emoji modifier")) and alias.lower() != name.lower()


def _formal(code: int) -> str:
    """Returns the name in Unicode, as `slice of pizza`; "" where it speaks of another colour than is drawn.

    "Black" and "white" mean filled and outlined there.
    """
    formal = unicodedata.name(chr(code), "").lower()
    return "" if {"black", "white", "heavy", "squared"} & set(formal.split()) else formal


def toned(key: str) -> bool:
    """Returns True for a variant with a skin tone."""
    codes = codes_of(key)
    return len(codes) > 1 and any(code in TONES for code in codes)


def concept_of(key: str) -> str:
    """Returns the key that the variants of one concept share, whatever their skin tone, gender, hair or direction."""
    kept = [_SAME.get(code, code) for code in codes_of(key)]
    parts: list[int] = []
    for code in kept:
        if code in TONES and len(kept) > 1 or code in _HAIR and len(kept) > 1:
            continue
        if code in _GENDERS_AND_TURNS and parts:
            continue
        parts.append(code)
    members = [code for code in parts if code != _JOINER]
    return "-".join(f"{code:X}" for code in _together(members))


def _together(members: Sequence[int]) -> Sequence[int]:
    """Returns one sequence for all couples that kiss, for all families, and so on."""
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
