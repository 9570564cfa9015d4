"""Whether to use it, in one sentence, by rule from what was measured; and where an alternative is better, that one.

The rule, in this order:

1. The first word comes less than `SOONER` times sooner: no, for there is little to gain.
2. A cheap way is nearer beyond chance, and its first word comes as soon: take that one, though its tower may do more work.
3. Farther from the dense LLaVA than `FAR` nats a word: not yet. Up to `NEAR`: yes. Between: perhaps.

The two bounds were set for the shipped LLaVA. They are a guide and no promise for another one.
"""

from dataclasses import dataclass
from typing import Literal

from .ways import Way, Ways, share

SOONER = 1.1
NEAR, FAR = 0.1, 0.2  # nats a word
AS_SOON = 1.05  # times the time that counts as the same

Advice = Literal["yes", "perhaps", "not yet", "no", "another"]
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Verdict:
    """What to do, and why."""

    advice: Advice
    sentence: str


def judge(ways: Ways) -> Verdict:
    """The rule at the head of this module."""
    dense, sparse = ways.dense, ways.sparse
    assert sparse.divergence is not None and sparse.same_words is not None
    gain = (
        f"{sparse.tokens:.0f} tokens instead of {dense.tokens:.0f}, the first word {_times(sparse.sooner)} sooner for "
        f"{share(sparse.macs / dense.macs)} of the tower's work"
    )
    kept = f"{100 * sparse.same_words.value:.0f} of 100 words as your LLaVA says them ({sparse.divergence.value:.3f} nats a word away)"
    beside = _beside(ways)
    if sparse.sooner < SOONER:
        when = f"only {_times(sparse.sooner)} sooner" if sparse.sooner > 1 else "no sooner"
        return Verdict(
            "no",
            f"Little to gain here: with {sparse.tokens:.0f} tokens instead of {dense.tokens:.0f} the first word comes {when}, and {kept} "
            f"remain; {beside}.",
        )
    better = next((way for way in ways.others if way.is_nearer and _is_as_soon(way, sparse)), None)
    if better is not None:
        assert better.divergence is not None
        return Verdict(
            "another",
            f"Take {better.name} instead ({better.about}): its first word comes as soon, {_times(better.sooner)} sooner than now, and it "
            f"is nearer to your LLaVA, {better.divergence.value:.3f} nats a word instead of {sparse.divergence.value:.3f}; "
            "it needs no training, though longer learning may turn that round.",
        )
    if sparse.divergence.value <= NEAR:
        return Verdict("yes", f"Yes: {gain}, and {kept}; {beside}.")
    if sparse.divergence.value <= FAR:
        return Verdict(
            "perhaps", f"Perhaps: {gain}, but only {kept}; {beside}; longer training or more photos bring it nearer."
        )
    return Verdict("not yet", f"Not yet: {gain}, but only {kept}; {beside}; train longer, or on more photos.")


def _is_as_soon(way: Way, than: Way) -> bool:
    return way.sooner * AS_SOON >= than.sooner


def _beside(ways: Ways) -> str:
    """How the alternatives stand to the tower made here, in a clause."""
    others, sparse = ways.others, ways.sparse
    if not others:
        return "no cheap way was measured beside it"
    nearer = [way for way in others if way.is_nearer]
    if nearer:
        best = nearer[0]
        assert best.divergence is not None
        more = {1: "", 2: ", and so is one more"}.get(len(nearer), f", and so are {_count(len(nearer) - 1)} more")
        later = sparse.sooner / best.sooner
        when = f"{_times(later)} later" if later > AS_SOON else "as soon"
        price = f"{_times(best.macs / sparse.macs)} the tower's work and a first word {when}"
        return f"{best.name} is nearer ({best.divergence.value:.3f}) for {price}{more}"
    if len(others) == 1:
        return f"{others[0].name} is {'farther' if others[0].is_farther else 'no nearer'}"
    if all(way.is_farther for way in others):
        return f"all {_count(len(others))} cheap ways are farther"
    return f"none of the {_count(len(others))} cheap ways is nearer"


def _times(factor: float) -> str:
    return f"{factor:.2g} times" if factor < 10 else f"{factor:.0f} times"


def _count(number: int) -> str:
    return NUMBERS[number] if number < len(NUMBERS) else str(number)
