"""The words of a prompt that can have a part in an image, and what takes the place of each."""

import re
from functools import cache
from typing import NamedTuple

from t2i.data.shapes.captions import OPPOSITE, SYNONYMS
from t2i.data.shapes.vocabulary import BACKGROUNDS, COLORS, SHAPES, SIZES
from t2i.errors import InputError

_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
# words that join others and show nothing themselves
JOINING = frozenset(
    "a an the of to and or in on at is are it its this that there them both with by picture background".split()
)


class Word(NamedTuple):
    """A word of a prompt."""

    text: str
    start: int  # its place in the prompt
    end: int
    others: tuple[str, ...]  # of its kind, as far as the kind is known; "" leaves it out


def words_of(prompt: str, most: int = 7) -> list[Word]:
    """The words that can show, in order.

    Args:
        most: replacements of each, of those that the prompt has not itself.

    Raises:
        InputError: there is none.
    """
    found = [match for match in _WORD.finditer(prompt) if match[0].lower() not in JOINING]
    if not found:
        raise InputError(f"the prompt {prompt[:40]!r} has no word that could show; name a thing")
    own = {match[0].lower() for match in found}
    words = []
    for match in found:
        others = [word for word in _kin().get(match[0].lower(), ()) if word not in own]
        words.append(Word(match[0], match.start(), match.end(), tuple(others[:most]) or ("",)))
    return words


def without(prompt: str, word: Word) -> list[str]:
    """The prompt with each of the word's replacements."""
    return [
        " ".join(f"{prompt[: word.start]}{other}{prompt[word.end :]}".split()).replace(" ,", ",")
        for other in word.others
    ]


@cache
def _kin() -> dict[str, tuple[str, ...]]:
    """A word of the embedded data -> the other words of its kind."""
    found: dict[str, tuple[str, ...]] = {}
    for kind in (COLORS, SHAPES, SIZES, BACKGROUNDS):
        for name in kind:
            found |= dict.fromkeys(SYNONYMS[name], tuple(other for other in kind if other != name))
    for name, other in OPPOSITE.items():  # `left of` in prompts is two words, of which one tells
        found |= {word.split()[0]: (other.split()[0],) for word in SYNONYMS[name] if word.split()[0] != "to"}
    return found


def edited(prompt: str, edit: str) -> tuple[str, str]:
    """(the prompt, the prompt after an edit `old -> new`).

    Raises:
        InputError: it is no edit, changes nothing, or the prompt has the old words not once.
    """
    old, arrow, new = (part.strip() for part in edit.partition("->"))
    if not arrow or not old or not new or old == new:
        raise InputError(f"--edit {edit!r} changes nothing; write it as 'red -> blue'")
    places = list(re.finditer(rf"(?<!\w){re.escape(old)}(?!\w)", prompt, re.IGNORECASE))
    if len(places) != 1:
        fix = "give more of its words" if places else "name words of it"
        raise InputError(f"--edit {edit!r}: {old!r} is {len(places)} times in the prompt {prompt[:80]!r}; {fix}")
    return prompt, prompt[: places[0].start()] + new + prompt[places[0].end() :]
