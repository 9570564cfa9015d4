"""Right answers and given ones to a benchmark's numbers, as its authors compute them; all shares are from 0 to 1.

Every function takes questions and the answers' texts in the same order, and returns a `Score`: the numbers by name, and
what each unit (a question, a photo of MME, a question of MMBench in all its rotations) adds to the headline, from which
intervals and differences between models follow.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from .captions import cider_d
from .formats import ROTATION_STEP
from .questions import Question
from .text import (
    daquar_answer,
    gqa_answer,
    m4c_normalize,
    mme_answer,
    official_normalize,
    one_line,
    option_letter,
    pope_answer,
    scene_match,
    science_qa_letter,
)

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)


@dataclass(frozen=True)
class Score:
    """A benchmark's numbers for one model."""

    headline: str  # the number that is the mean of `units`
    numbers: dict[str, float]
    units: tuple[float, ...]
    photos: tuple[Hashable, ...]  # of each unit
    strata: tuple[Hashable, ...] = ()  # of each unit, where the headline is a sum of means over them

    @property
    def value(self) -> float:
        return self.numbers[self.headline]


Scorer = Callable[[Sequence[Question], Sequence[str]], Score]


def official_vqa_accuracy(text: str, answers: Sequence[str]) -> float:
    """VQAv2's accuracy of one answer. Where all people said the same, word for word, nothing is normalised."""
    if len(answers) < 4:
        raise ValueError(
            f"VQA accuracy is of what at least 4 people answered, mostly 10, and there are {len(answers)}."
        )
    given, known = one_line(text), [one_line(answer) for answer in answers]
    if len(set(known)) > 1:
        given, known = official_normalize(given), [official_normalize(answer) for answer in known]
    return _agreement(given, known)


def m4c_vqa_accuracy(text: str, answers: Sequence[str]) -> float:
    """TextVQA's accuracy of one answer; everything is normalised.

    Raises:
        ValueError: There are not ten people's answers.
    """
    if len(answers) != 10:
        raise ValueError(f"TextVQA's accuracy is defined for 10 answers, not for {len(answers)}.")
    return _agreement(m4c_normalize(text), [m4c_normalize(answer) for answer in answers])


def _agreement(given: str, known: Sequence[str]) -> float:
    """Mean over the people left out, one at a time, of how many others said so: a third each, at most all."""
    same = [answer == given for answer in known]
    return sum(min(1.0, (sum(same) - mine) / 3) for mine in same) / len(same)


def vqa_score(accuracy: Callable[[str, Sequence[str]], float]) -> Scorer:
    """Accuracy against ten people's answers, by answer type and question type too."""

    def score(questions: Sequence[Question], texts: Sequence[str]) -> Score:
        return _mean_score(
            questions, [accuracy(text, item.answers) for item, text in zip(questions, texts, strict=True)]
        )

    return score


def exact_score(is_right: Callable[[Question, str], bool]) -> Scorer:
    """Share of right answers, by category too."""

    def score(questions: Sequence[Question], texts: Sequence[str]) -> Score:
        return _mean_score(
            questions, [float(is_right(item, text)) for item, text in zip(questions, texts, strict=True)]
        )

    return score


def gqa_is_right(question: Question, text: str) -> bool:
    return gqa_answer(text) == question.answers[0]


def science_qa_is_right(question: Question, text: str) -> bool:
    return science_qa_letter(text, len(question.options) or 5) == question.answers[0]


def scene_is_right(question: Question, text: str) -> bool:
    return scene_match(text, question.answers[0], question.category)


def daquar_score(questions: Sequence[Question], texts: Sequence[str]) -> Score:
    """Exact match, and what answering each type of question with its most frequent right answer would reach."""
    score = exact_score(lambda item, text: daquar_answer(text) == daquar_answer(item.answers[0]))(questions, texts)
    return Score(score.headline, score.numbers | best_constant(questions), score.units, score.photos)


def best_constant(questions: Sequence[Question]) -> dict[str, float]:
    """Accuracy of the best single answer to all questions of a category, chosen with the right answers known."""
    counts: dict[str, Counter[frozenset[str]]] = defaultdict(Counter)
    for item in questions:
        counts[item.category][daquar_answer(item.answers[0])] += 1
    best = {name: max(counter.values()) for name, counter in counts.items()}
    shares = {f"best_constant/{name}": best[name] / counts[name].total() for name in sorted(best)}
    return {"best_constant": sum(best.values()) / len(questions), **shares}


def pope_score(questions: Sequence[Question], texts: Sequence[str]) -> Score:
    """POPE's numbers over all questions, and over each category; `mean_f1` of the categories is LLaVA's headline."""
    says = np.array([pope_answer(text) == "yes" for text in texts])
    for item in questions:
        if item.answers[0] not in ("yes", "no"):
            raise ValueError(
                f"The right answer to question {item.question_id} is {item.answers[0]!r}; it is yes or no."
            )
    truth = np.array([item.answers[0] == "yes" for item in questions])
    numbers = pope_numbers(says, truth)
    categories = np.array([item.category for item in questions])
    names = sorted({item.category for item in questions})
    for name in names if len(names) > 1 else ():
        chosen = categories == name
        numbers |= {f"{key}/{name}": value for key, value in pope_numbers(says[chosen], truth[chosen]).items()}
    f1 = [numbers.get(f"f1/{name}", numbers["f1"]) for name in names]
    numbers["mean_f1"] = sum(f1) / len(f1)
    return Score("accuracy", numbers, tuple((says == truth).astype(float).tolist()), _photos(questions))


def pope_numbers(says: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Yes answers (N,) and whether yes is right (N,); a quotient by none is 0."""
    right_yes = float((says & truth).sum())
    precision, recall = right_yes / max(says.sum(), 1), right_yes / max(truth.sum(), 1)
    return {
        "accuracy": float((says == truth).mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(2 * precision * recall / (precision + recall)) if right_yes else 0.0,
        "yes_rate": float(says.mean()),
    }


def mme_score(questions: Sequence[Question], texts: Sequence[str]) -> Score:
    """MME's points: for each category 100 a share of right answers and 100 a share of photos with both right.

    Raises:
        ValueError: A photo has not two questions.
    """
    right: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for item, text in zip(questions, texts, strict=True):
        right[mme_photo(item)].append(mme_answer(text) == item.answers[0])
    odd = [photo for photo, answers in right.items() if len(answers) != 2]
    if odd:
        raise ValueError(f"MME asks two questions a photo; there are {len(right[odd[0]])} about {odd[0][1]}.")
    sizes = Counter(category for category, _ in right)
    points = {photo: 100 * (sum(answers) / 2 + all(answers)) for photo, answers in right.items()}
    numbers = {
        f"points/{name}": sum(points[photo] for photo in points if photo[0] == name) / sizes[name]
        for name in sorted(sizes)
    }
    perception = [value for name, value in numbers.items() if name.partition("/")[2] in PERCEPTION]
    numbers = {"points": sum(numbers.values()), "perception": sum(perception), **numbers}
    numbers["cognition"] = numbers["points"] - numbers["perception"]
    # Weighted so that their mean is the sum of the categories' means.
    units = [value * len(points) / sizes[photo[0]] for photo, value in points.items()]
    return Score("points", numbers, tuple(units), tuple(points), tuple(category for category, _ in points))


def mme_photo(question: Question) -> tuple[str, str]:
    """Category and photo, which two questions of MME share."""
    return question.category, str(question.image)


def mm_bench_index(question: Question) -> int:
    """The number of a question in MMBench's table; copies with turned options differ by multiples of `ROTATION_STEP`.

    Raises:
        ValueError: Its id is no number.
    """
    number = str(question.question_id).rpartition("/")[2]
    if not number.isdecimal():
        raise ValueError(f"MMBench numbers its questions; {question.question_id!r} is no number.")
    return int(number)


def mm_bench_number(question: Question) -> int:
    """The number that all rotations of a question of MMBench share.

    Raises:
        ValueError: Its id is no number.
    """
    return mm_bench_index(question) % ROTATION_STEP


def mm_bench_score(questions: Sequence[Question], texts: Sequence[str]) -> Score:
    """A question counts where it is answered right in all rotations of its options; `single_pass` in the first.

    Raises:
        ValueError: An id is no number.
    """
    right: dict[int, list[bool]] = defaultdict(list)
    category: dict[int, str] = {}
    first: dict[int, bool] = {}
    for item, text in zip(questions, texts, strict=True):
        index, number = mm_bench_index(item), mm_bench_number(item)
        right[number].append(option_letter(text, item.options) == item.answers[0])
        category[number] = item.category
        if index == number and item.extra.get("round_id", 0) == 0:
            first[number] = right[number][-1]
    units = {number: float(all(answers)) for number, answers in right.items()}
    numbers = {
        "circular": _mean(list(units.values())),
        "single_pass": _mean([float(value) for value in first.values()]),
    }
    for name in sorted(set(category.values())):
        numbers[f"circular/{name}"] = _mean([units[number] for number in units if category[number] == name])
    return Score("circular", numbers, tuple(units.values()), tuple(units))


def caption_score(questions: Sequence[Question], texts: Sequence[str]) -> Score:
    """CIDEr-D; papers print it times 100."""
    scores = cider_d(texts, [item.answers for item in questions])
    return Score("cider_d", {"cider_d": _mean(scores)}, tuple(scores), _photos(questions))


def _mean_score(questions: Sequence[Question], units: Sequence[float]) -> Score:
    numbers = {"accuracy": _mean(units)}
    for kind, names in (
        ("", [item.category for item in questions]),
        ("type:", [item.question_type for item in questions]),
    ):
        for name in sorted(set(names) - {""}):
            numbers[f"accuracy/{kind}{name}"] = _mean(
                [unit for unit, its in zip(units, names, strict=True) if its == name]
            )
    return Score("accuracy", numbers, tuple(units), _photos(questions))


def _photos(questions: Sequence[Question]) -> tuple[Hashable, ...]:
    """The photo of each question; one without a photo stands for itself."""
    return tuple(item.image if item.image is not None else item.key for item in questions)


def _mean(values: Sequence[float]) -> float:
    return float(sum(values)) / len(values) if values else 0.0
