"""Agreement of written captions with references: corpus BLEU (Papineni et al., 2002), CIDEr-D (Vedantam et al., 2015).

Both count n-grams of up to 4 tokens, so the tokens decide: lower case, contractions split, punctuation dropped, as the
Penn Treebank tokenizer of the COCO evaluation does with plain captions. BLEU counts over all captions; CIDEr-D is a mean
over captions, on a scale of 0 to 10, with n-grams weighted by how few images' references have them.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from t2i.metrics.intervals import Estimate, mean_estimate

N_GRAMS = 4
SIGMA = 6.0  # of the penalty on another length
# words, numbers and hyphenated words; the ends that contractions leave: n't, 's, 'll
_TOKEN = re.compile(r"n't|'(?:s|m|d|re|ve|ll)\b|\w+?(?=n't\b)|\w+(?:[-.]\w+)*")

Ngrams = Counter[tuple[str, ...]]


def tokens(caption: str) -> list[str]:
    """`The dog's T-shirt isn't red.` -> the dog 's t-shirt is n't red."""
    return _TOKEN.findall(caption.lower().replace("\u2019", "'"))


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-4 in [0, 1], without smoothing; its length is held against the reference nearest in length.

    Raises:
        ValueError: not as many lists of references as candidates, or a candidate without any.
    """
    from torchmetrics.functional.text import bleu_score

    _check(candidates, references)
    # the shortest first: of two equally near in length the shorter counts, and torchmetrics takes the first
    split = [[" ".join(words) for words in sorted(map(tokens, several), key=len)] for several in references]
    return float(bleu_score([" ".join(tokens(one)) for one in candidates], split, n_gram=N_GRAMS))


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Estimate:
    """Mean CIDEr-D over captions. How rare an n-gram is, all references of this very call decide.

    Raises:
        ValueError: as `bleu`.
    """
    _check(candidates, references)
    counted = [[ngrams(one) for one in several] for several in references]
    found_in = Counter(gram for several in counted for gram in set().union(*several))
    scores = []
    for candidate, several in zip(candidates, counted, strict=True):
        own = ngrams(candidate)
        scores.append(10.0 * sum(_similarity(own, one, found_in, len(counted)) for one in several) / len(several))
    return mean_estimate(scores)


def ngrams(caption: str) -> Ngrams:
    """Counts each n-gram of 1 to 4 tokens."""
    words = tokens(caption)
    return Counter(tuple(words[i : i + n]) for n in range(1, N_GRAMS + 1) for i in range(len(words) - n + 1))


def _similarity(candidate: Ngrams, reference: Ngrams, found_in: Counter[tuple[str, ...]], images: int) -> float:
    """Mean over n of the cosine between TF-IDF vectors, counts clipped at the reference's, less for another length."""
    total = 0.0
    for n in range(1, N_GRAMS + 1):
        ours, theirs = (
            {g: k * (math.log(images) - math.log(max(1, found_in[g]))) for g, k in x.items() if len(g) == n}
            for x in (candidate, reference)
        )
        norms = math.sqrt(sum(v * v for v in ours.values())) * math.sqrt(sum(v * v for v in theirs.values()))
        if norms:
            total += sum(min(v, theirs[g]) * theirs[g] for g, v in ours.items() if g in theirs) / norms
    apart = _length(candidate) - _length(reference)
    return total / N_GRAMS * math.exp(-(apart**2) / (2 * SIGMA**2))


def _length(counted: Ngrams) -> int:
    return sum(times for gram, times in counted.items() if len(gram) == 1)


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(candidates) != len(references) or not candidates or not all(references):
        raise ValueError(f"{len(candidates)} candidates, {len(references)} lists of references: one to one, none empty")
