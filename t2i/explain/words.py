"""Finds the words of a prompt that can affect an image, and replacements for each of them."""

import re
from functools import cache
from typing import NamedTuple

from t2i.data.shapes.captions import OPPOSITE, SYNONYMS
from t2i.data.shapes.vocabulary import BACKGROUNDS, COLORS, SHAPES, SIZES
from t2i.errors import InputError

_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
# words that do not describe anything visible
JOINING = frozenset(
    "a an the of to and or in on at is are it its this that there them both with by picture background".split()
)


class Word(NamedTuple):
    """A word of a prompt."""

    text: str
    start: int  # position in the prompt
    end: int
    others: tuple[str, ...]  # replacements of the same kind, if the kind is known; "" removes the word


def words_of(prompt: str, most: int = 7) -> list[Word]:
    """Returns the words that can affect an image, in order.

    Args:
        most: most replacements of each word; words of the prompt are no replacements.

    Raises:
        InputError: there are no such words.
    """
    matches = [match for match in _WORD.finditer(prompt) if match[0].lower() not in JOINING]
    if not matches:
        raise InputError(f"the prompt {prompt[:40]!r} has no word for anything visible; name a thing")
    in_prompt = {match[0].lower() for match in matches}
    words = []
    for match in matches:
        others = [word for word in _kin().get(match[0].lower(), ()) if word not in in_prompt]
        words.append(Word(match[0], match.start(), match.end(), tuple(others[:most]) or ("",)))
    return words


def without(prompt: str, word: Word) -> list[str]:
    """Returns the prompt with each replacement of the word."""
    return [
        " ".join(f"{prompt[: word.start]}{other}{prompt[word.end :]}".split()).replace(" ,", ",")
        for other in word.others
    ]


@cache
def _kin() -> dict[str, tuple[str, ...]]:
    """Maps each word of the embedded data to the other words of its kind."""
    kin: dict[str, tuple[str, ...]] = {}
    for kind in (COLORS, SHAPES, SIZES, BACKGROUNDS):
        for name in kind:
            kin |= dict.fromkeys(SYNONYMS[name], tuple(other for other in kind if other != name))
    for name, other in OPPOSITE.items():  # only the first word of `left of` matters
        kin |= {word.split()[0]: (other.split()[0],) for word in SYNONYMS[name] if word.split()[0] != "to"}
    return kin


def edited(prompt: str, edit: str) -> tuple[str, str]:
    """Returns the prompt before and after an edit `old -> new`.

    Raises:
        InputError: the edit has another form or changes nothing, or the prompt does not have the old words exactly once.
    """
    old, arrow, new = (part.strip() for part in edit.partition("->"))
    if not arrow or not old or not new or old == new:
        raise InputError(f"--edit {edit!r} changes nothing; write it as 'red -> blue'")
    places = list(re.finditer(rf"(?<!\w){re.escape(old)}(?!\w)", prompt, re.IGNORECASE))
    if len(places) != 1:
        fix = "add words next to it" if places else "name words of the prompt"
        raise InputError(f"--edit {edit!r}: {old!r} is {len(places)} times in the prompt {prompt[:80]!r}; {fix}")
    return prompt, prompt[: places[0].start()] + new + prompt[places[0].end() :]
