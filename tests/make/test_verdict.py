"""The sentence at the head of a report: what it says of which measurements."""

import pytest
from tiny_makes import ALIKE, FARTHER, NEARER, way, ways

from sfvlm.make.verdict import FAR, NEAR, judge


@pytest.mark.parametrize(
    ("nats", "advice"),
    [
        (0.0, "yes"),
        (NEAR, "yes"),
        (NEAR + 0.001, "perhaps"),
        (FAR, "perhaps"),
        (FAR + 0.001, "not yet"),
        (3.0, "not yet"),
    ],
)
def test_advice_goes_by_distance(nats: float, advice: str) -> None:
    verdict = judge(ways(nats, way("stride", 0.3, difference=FARTHER)))
    assert verdict.advice == advice
    assert verdict.sentence.startswith(advice.capitalize()) and verdict.sentence.count(". ") == 0
    assert f"({nats:.3f} nats a word away)" in verdict.sentence and "93 of 100 words" in verdict.sentence


def test_what_is_gained_is_said_with_its_numbers() -> None:
    assert judge(ways(0.05)).sentence == (
        "Yes: 49 tokens instead of 196, the first word 1.8 times sooner for 35 % of the tower's work, and 93 of 100 words as your LLaVA "
        "says them (0.050 nats a word away); no cheap way was measured beside it."
    )


def test_little_to_gain_is_no_whatever_the_distance() -> None:
    slow = judge(ways(0.01, sooner=1.05))
    assert (slow.advice == "no" and "only 1.1 times sooner" in slow.sentence) or "only 1 times sooner" in slow.sentence
    assert "no sooner" in judge(ways(0.01, sooner=0.9)).sentence


def test_a_nearer_way_that_is_as_soon_is_recommended_instead() -> None:
    verdict = judge(ways(0.05, way("stride", 0.03, sooner=1.75, difference=NEARER)))
    assert verdict.advice == "another" and verdict.sentence.startswith("Take stride instead (evenly spaced tokens")
    assert "0.030 nats a word instead of 0.050" in verdict.sentence


def test_a_nearer_way_that_is_later_is_named_with_its_price() -> None:
    later = [way(name, 0.03, sooner=1.2, difference=NEARER) for name in ("stride", "average", "diversity")]
    verdict = judge(ways(0.05, *later))
    assert verdict.advice == "yes"
    assert (
        "stride is nearer (0.030) for 2.9 times the tower's work and a first word 1.5 times later, and so are two more"
        in verdict.sentence
    )
    assert ", and so is one more" in judge(ways(0.05, *later[:2])).sentence
    assert "later." in judge(ways(0.05, *later[:1])).sentence


@pytest.mark.parametrize(
    ("differences", "clause"),
    [
        ([FARTHER, FARTHER], "all two cheap ways are farther"),
        ([FARTHER, ALIKE], "none of the two cheap ways is nearer"),
        ([FARTHER], "a is farther"),
        ([ALIKE], "a is no nearer"),
    ],
)
def test_how_the_others_stand_is_said_as_far_as_it_is_beyond_chance(
    differences: list[tuple[float, float]], clause: str
) -> None:
    others = [way(name, 0.06, difference=each) for name, each in zip("abcdefghijkl", differences, strict=False)]
    assert clause in judge(ways(0.05, *others)).sentence
