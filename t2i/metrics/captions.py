"""Agreement of captions with references: corpus BLEU (Papineni et al., 2002) and CIDEr-D (Vedantam et al., 2015).

Both count n-grams of up to 4 tokens. Tokens are lower case, with contractions split and punctuation dropped, like those of the
Penn Treebank tokenizer of the COCO evaluation for plain captions. BLEU counts over all captions. CIDEr-D is a mean over
captions, from 0 to 10, with a larger weight for n-grams that fewer images have in their references.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from t2i.metrics.intervals import Estimate, mean_estimate

N_GRAMS = 4
SIGMA = 6.0  # of the penalty on a different length
# words, numbers and hyphenated words; ends of contractions: n't, 's, 'll
_TOKEN = re.compile(r"n't|'(?:s|m|d|re|ve|ll)\b|\w+?(?=n't\b)|\w+(?:[-.]\w+)*")

Ngrams = Counter[tuple[str, ...]]


def tokens(caption: str) -> list[str]:
    """Splits a caption: `The dog's T-shirt isn't red.` -> the dog 's t-shirt is n't red."""
    return _TOKEN.findall(caption.lower().replace("\u2019", "'"))


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Computes corpus BLEU-4 in [0, 1], without smoothing; the length penalty uses the reference nearest in length.

    Raises:
        ValueError: there are not as many lists of references as candidates, or a list is empty.
    """
    from torchmetrics.functional.text import bleu_score

    _check(candidates, references)
    # shortest first: of two references equally near in length torchmetrics takes the first, but the shorter should count
    split = [[" ".join(words) for words in sorted(map(tokens, several), key=len)] for several in references]
    return float(bleu_score([" ".join(tokens(one)) for one in candidates], split, n_gram=N_GRAMS))


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Estimate:
    """Computes the mean CIDEr-D over captions. Document frequencies are those of the references of this call.

    Raises:
        ValueError: as in `bleu`.
    """
    _check(candidates, references)
    counted = [[ngrams(one) for one in several] for several in references]
    frequency = Counter(gram for several in counted for gram in set().union(*several))
    scores = []
    for candidate, several in zip(candidates, counted, strict=True):
        grams = ngrams(candidate)
        scores.append(10.0 * sum(_similarity(grams, one, frequency, len(counted)) for one in several) / len(several))
    return mean_estimate(scores)


def ngrams(caption: str) -> Ngrams:
    """Counts each n-gram of 1 to 4 tokens."""
    words = tokens(caption)
    return Counter(tuple(words[i : i + n]) for n in range(1, N_GRAMS + 1) for i in range(len(words) - n + 1))


def _similarity(candidate: Ngrams, reference: Ngrams, frequency: Counter[tuple[str, ...]], images: int) -> float:
    """Computes the mean over n of the cosine of TF-IDF vectors, with clipped counts and a penalty on the length."""
    total = 0.0
    for n in range(1, N_GRAMS + 1):
        a, b = (
            {g: k * (math.log(images) - math.log(max(1, frequency[g]))) for g, k in x.items() if len(g) == n}
            for x in (candidate, reference)
        )
        norms = math.sqrt(sum(v * v for v in a.values())) * math.sqrt(sum(v * v for v in b.values()))
        if norms:
            total += sum(min(v, b[g]) * b[g] for g, v in a.items() if g in b) / norms
    difference = _length(candidate) - _length(reference)
    return total / N_GRAMS * math.exp(-(difference**2) / (2 * SIGMA**2))


def _length(counted: Ngrams) -> int:
    return sum(times for gram, times in counted.items() if len(gram) == 1)


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(candidates) != len(references) or not candidates or not all(references):
        raise ValueError(
            f"{len(candidates)} candidates and {len(references)} lists of references: numbers differ, or a list is empty"
        )
