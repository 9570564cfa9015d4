"""CIDEr-D: how near a caption's words come to those of several people, rare words counting more.

The measure of "CIDEr: Consensus-based Image Description Evaluation" (arXiv 1411.5726) in the variant D that every paper
reports, as computed by pycocoevalcap (cider/cider_scorer.py): n-grams of 1 to 4 words weighted by their rarity over
the photos measured, clipped, with a penalty for another length. A score depends on all photos of a run. Papers print it
times 100.

Not pycocoevalcap itself, whose numbers these are: its words need Java, and it brings 42 MB of Java archives for other measures.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

LONGEST = 4  # words of an n-gram
SIGMA = 6.0  # of the length penalty, in words
Gram = tuple[str, ...]
Grams = Counter[Gram]

# What pycocoevalcap drops of the Penn Treebank tokens (tokenizer/ptbtokenizer.py), as they are written here.
_DROPPED = frozenset(".?!,:;-'`\"") | {"--", "...", "''", "``"}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-"}
_SPLIT_WORDS = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "wanna": "wan na",
    "lemme": "lem me",
    "gimme": "gim me",
}
_ABBREVIATIONS = frozenset("mr. mrs. ms. dr. st. jr. sr. vs. no. co. etc.".split(" "))
_TOKEN = re.compile(
    r"(?:[a-z]\.){2,}"  # u.s.
    r"|[a-z]+\.(?=\s)"  # mr., if it is one
    r"|\d+(?:[.,:/]\d+)+|\d+(?:st|nd|rd|th)s?"
    r"|'(?:s|m|d|re|ve|ll|em|n)(?![a-z])"
    r"|(?:(?!n't)\w)+(?=n't)|n't"
    r"|o'clock|\w+\.(?:com|net|org)\b|\w+(?:[-/]\w+)*"
    r"|\.{3}|--+|\S"
)


def caption_words(text: str) -> list[str]:
    """Words nearly as the Penn Treebank tokenizer splits them: lower case, "isn't" in two, no punctuation."""
    words: list[str] = []
    for token in _TOKEN.findall(text.lower().replace("\u2019", "'")):
        if token.endswith(".") and len(token) > 2 and token.count(".") == 1 and token not in _ABBREVIATIONS:
            token = token[:-1]
        if token not in _DROPPED and not token.startswith("--"):
            words += _SPLIT_WORDS.get(token, _BRACKETS.get(token, token)).split()
    return words


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """A score for each caption (from 0 to 10; good captions have about 1); their mean is the benchmark's number.

    Raises:
        ValueError: A photo has no references.
    """
    if not all(references):
        raise ValueError(f"Photo {[bool(given) for given in references].index(False)} has no captions to compare with.")
    known = [[_grams(reference) for reference in given] for given in references]
    photos_with = Counter(gram for given in known for gram in set().union(*given))
    most = math.log(len(known))
    rarity = {gram: most - math.log(number) for gram, number in photos_with.items()}
    scores = []
    for caption, given in zip(captions, known, strict=True):
        candidate = _grams(caption)
        weights = _weights(candidate, rarity, most)
        near = [_similarity(weights, _weights(grams, rarity, most)) * _penalty(candidate, grams) for grams in given]
        scores.append(10 * sum(near) / len(near))
    return scores


def _grams(text: str) -> Grams:
    words = caption_words(text)
    return Counter(
        tuple(words[start : start + size]) for size in range(1, LONGEST + 1) for start in range(len(words) - size + 1)
    )


def _weights(grams: Grams, rarity: dict[Gram, float], most: float) -> dict[Gram, float]:
    """How often each n-gram occurs, times its rarity; one in no reference at all is as rare as one in a single photo."""
    return {gram: number * rarity.get(gram, most) for gram, number in grams.items()}


def _similarity(candidate: dict[Gram, float], reference: dict[Gram, float]) -> float:
    """Clipped cosine of two captions, a cosine for each n-gram size, their mean."""
    total = 0.0
    for size in range(1, LONGEST + 1):
        ours = {gram: weight for gram, weight in candidate.items() if len(gram) == size}
        theirs = {gram: weight for gram, weight in reference.items() if len(gram) == size}
        common = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in ours.items() if gram in theirs)
        norms = math.hypot(*ours.values()) * math.hypot(*theirs.values())
        total += common / norms if norms else 0.0
    return total / LONGEST


def _penalty(candidate: Grams, reference: Grams) -> float:
    """A Gaussian of the difference in length, which upstream counts in pairs of words."""
    pairs = [sum(number for gram, number in grams.items() if len(gram) == 2) for grams in (candidate, reference)]
    return math.exp(-((pairs[0] - pairs[1]) ** 2) / (2 * SIGMA**2))
