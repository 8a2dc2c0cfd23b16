"""What a caption may hold. Training captions and sampling prompts pass through one function, so they can be equal."""

import re
import unicodedata
from collections import Counter
from functools import lru_cache

MAX_CHARACTERS = 4096

# Control characters but white space; bidi marks, embeddings, overrides and isolates; soft hyphen, zero-width space and
# other invisible format characters; lone surrogates; tags. The zero-width joiners stay: scripts and emoji need them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def clean_caption(text: str) -> str:
    """Strips control and bidi characters, composes (NFC), collapses white space, keeps 4096 characters. May return "".

    Cleaning twice changes nothing.
    """
    text = _INVISIBLE.sub("", text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.split())[:MAX_CHARACTERS].rstrip()


def script_of(text: str) -> str:
    """The script that most letters are of, as Unicode names it: LATIN, CYRILLIC, ARABIC, CJK, ...; "none" without letters."""
    if text.isascii():
        return "LATIN" if any(map(str.isalpha, text)) else "none"
    counts = Counter(_script(letter) for letter in text if letter.isalpha())
    return counts.most_common(1)[0][0] if counts else "none"


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "unknown").partition(" ")[0]
