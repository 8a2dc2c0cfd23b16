"""Hard negatives from the captions themselves: two like words of one caption swapped (NegCLIP, Yuksekgonul et al. 2023).

"a red circle left of a blue square" -> "a blue circle left of a red square". Which words are alike is read off the training
captions: words that often stand between the same two neighbours. No tagger, no language, so it works on any captions.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from numpy.typing import NDArray

_WORD = re.compile(r"\w+|[^\w\s]")
FREQUENT, SHARED_CONTEXTS = 512, 8  # words looked at; contexts two words must share to be alike


class LikeWords:
    """Which frequent words may stand for each other."""

    def __init__(self, alike: dict[str, frozenset[str]]) -> None:
        self.alike = alike

    @classmethod
    def fit(cls, captions: Sequence[str]) -> "LikeWords":
        """Words that share at least 8 (left, right) neighbour pairs, and at least a fifth of the rarer word's."""
        contexts: dict[str, set[tuple[str, str]]] = defaultdict(set)
        counts: Counter[str] = Counter()
        for caption in captions:
            words = ["", *_WORD.findall(caption.lower()), ""]
            counts.update(words[1:-1])
            for left, word, right in zip(words, words[1:], words[2:], strict=False):
                contexts[word].add((left, right))
        frequent = [word for word, _ in counts.most_common(FREQUENT)]
        alike: dict[str, set[str]] = defaultdict(set)
        for i, a in enumerate(frequent):
            for b in frequent[:i]:
                shared = len(contexts[a] & contexts[b])
                if shared >= max(SHARED_CONTEXTS, 0.2 * min(len(contexts[a]), len(contexts[b]))):
                    alike[a].add(b)
                    alike[b].add(a)
        return cls({word: frozenset(others) for word, others in alike.items()})

    def swap(self, captions: Sequence[str], draws: NDArray) -> list[str]:
        """For each caption with two like words, the caption with such a pair swapped; others give none.

        Args:
            captions: B captions.
            draws: [B, 8] uniforms that choose the pairs.
        """
        out = []
        for caption, u in zip(captions, draws.tolist(), strict=True):
            words = _WORD.findall(caption.lower())
            pairs = [
                (i, j) for j, b in enumerate(words) for i, a in enumerate(words[:j]) if a != b and b in self.alike.get(a, ())
            ]
            if pairs:
                i, j = pairs[int(u[0] * len(pairs))]
                words[i], words[j] = words[j], words[i]
                out.append(" ".join(words).replace(" ,", ","))
        return out
