"""Questions about photos, and the files they come in: LLaVA's JSON lines and the benchmarks' own annotations.

LLaVA's question file has one object a line, {question_id, image, text[, category]}; `text` is the whole prompt. Right
answers stand beside them (`label`, `answer`, `answers` or `captions`), or in a second file, the benchmark's annotations.
A benchmark's own annotations can also be the question file: then the prompt is built here as LLaVA-1.5's files have it.
"""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..photos.names import closest, photo_name
from ..util.files import read_text

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
OPTION_LETTER = "\nAnswer with the option's letter from the given choices directly."
LETTERS = "ABCDEFGHIJ"

# How a question of one file finds its annotation in another: by its id, its photo and words, or its photo alone.
Join = Literal["id", "words", "photo"]


@dataclass(frozen=True)
class Question:
    """A question about one photo, or about none, and what is known of the right answer."""

    question_id: str | int
    image: str | None  # what its source calls the photo
    text: str  # the whole prompt
    answers: tuple[str, ...] = ()  # one right answer, ten people's answers, or captions
    category: str = ""  # numbers are also given for each
    options: tuple[str, ...] = ()  # of a multiple choice
    question_type: str = ""  # VQAv2's "how many", ...
    extra: dict[str, Any] = field(default_factory=dict, compare=False)  # goes into the answer's line

    @property
    def key(self) -> tuple[str, str]:
        """What an answer is joined on. Ids alone do not do: TextVQA's and MME's files use one for several questions."""
        return str(self.question_id), self.text


Builder = Callable[[Path], list[Question]]  # from a file or folder in a benchmark's own format


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON lines file.

    Raises:
        ValueError: The file does not exist, or a line is no object.
    """
    for number, line in enumerate(
        read_text(path).split("\n"), start=1
    ):  # splitlines ends them inside texts too, at U+2028
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise ValueError(f"Line {number} of {path} is not a JSON object.")
            yield row


def read_questions(
    paths: Sequence[Path],
    annotations: Sequence[Path] = (),
    *,
    build: Builder | None = None,
    join: Join = "id",
    repeats_ids: bool = False,
    needs_answers: bool = True,
) -> list[Question]:
    """All questions of one or several files, each with its right answers.

    Args:
        paths: LLaVA's question files, or the benchmark's own, which `build` reads.
        annotations: The benchmark's own files, where the question files have no answers.
        build: From one file of the benchmark's own format to questions; None if there is no such format.
        join: How a question finds its annotation.
        repeats_ids: Whether one id may stand for several questions.
        needs_answers: Whether to refuse questions without right answers.

    Raises:
        ValueError: A file is missing or damaged, an id is there twice, or a question has no answer.
    """
    annotated = [item for path in annotations for item in _read_one(path, build)]
    questions: list[Question] = []
    for path in paths:
        found = _read_one(path, build)
        found = join_annotations(found, annotated, join) if annotations else found
        questions += _distinct(found, path) if len(paths) > 1 else found
    check_unique(questions, ", ".join(map(str, paths)), repeats_ids)
    unanswered = [question for question in questions if not question.answers]
    if unanswered and needs_answers:
        raise ValueError(
            f"{len(unanswered)} of {len(questions)} questions have no right answer, the first of them "
            f"{unanswered[0].question_id}: give the benchmark's own file with --annotations."
        )
    return questions


def join_annotations(questions: Sequence[Question], annotated: Sequence[Question], join: Join) -> list[Question]:
    """Questions with the answers that the annotations have for them.

    Raises:
        ValueError: A question is not among the annotations, or is there with different answers; what is said of a photo in
            another folder is not of this one.
    """
    key = JOINS[join]
    known: dict[Hashable, list[Question]] = defaultdict(list)
    for item in annotated:
        same = known[key(item)]
        if any(other.answers != item.answers for other in same if join == "id" or other.image == item.image):
            raise ValueError(_in_two_ways(item))
        same.append(item)
    joined, missing = [], []
    for question in questions:
        found = known.get(key(question), [])
        if join != "id":
            chosen = closest(photo_name(question.image or ""), [photo_name(item.image or "") for item in found])
            found = [found[number] for number in chosen]
        if not found:
            missing.append(question)
            continue
        if any(item.answers != found[0].answers for item in found):
            raise ValueError(_in_two_ways(found[0]))
        joined.append(_annotated(question, found[0]))
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(questions)} questions are not in the annotations, the first of them "
            f"{missing[0].question_id}."
        )
    return joined


def _in_two_ways(item: Question) -> str:
    return f"The annotations answer {item.text or item.question_id!r} ({item.image}) in two ways."


def _annotated(question: Question, known: Question) -> Question:
    return replace(
        question,
        answers=known.answers,
        category=question.category or known.category,
        options=question.options or known.options,
        question_type=known.question_type,
    )


def question_words(prompt: str) -> str:
    """The question alone, in lower case: without the instruction below it, OCR words, or MME's last sentence."""
    if prompt.startswith("OCR tokens: ") and "Question: " in prompt:  # an older form of LLaVA's TextVQA file
        prompt = prompt.partition("Question: ")[2].partition(" Short answer:")[0]
    lines = [line for line in prompt.strip().splitlines() if not line.startswith("Reference OCR token:")]
    words = " ".join(lines[0].lower().split()) if lines else ""
    return words.removesuffix("please answer yes or no.").strip()


def photo_stem(image: str | None) -> str:
    """A photo's name without folder and suffix."""
    return "" if image is None else photo_name(image).stem


JOINS: dict[Join, Callable[[Question], Hashable]] = {
    "id": lambda question: str(question.question_id),
    "photo": lambda question: photo_stem(question.image),
    "words": lambda question: (photo_stem(question.image), question_words(question.text)),
}


def check_unique(questions: Sequence[Question], where: str, repeats_ids: bool = False) -> None:
    """Refuses questions that could not be told apart.

    Raises:
        ValueError: There are none, or an id (with `repeats_ids`: an id with the same prompt) is there twice.
    """
    if not questions:
        raise ValueError(f"There are no questions in {where}.")
    keys: Counter[Any] = Counter(item.key if repeats_ids else item.key[0] for item in questions)
    twice = [key for key, number in keys.items() if number > 1]
    if twice:
        shown = twice[0][0] if repeats_ids else twice[0]
        raise ValueError(f"{len(twice)} question ids are there twice in {where}, the first of them {shown}.")


def _distinct(questions: Sequence[Question], path: Path) -> list[Question]:
    """Several files, as POPE's three, may each count from 1, and be named for a category."""
    category = path.stem.rpartition("_")[2]
    return [
        replace(item, question_id=f"{path.stem}/{item.question_id}", category=item.category or category)
        for item in questions
    ]


def _read_one(path: Path, build: Builder | None) -> list[Question]:
    try:
        if path.is_dir() or path.suffix == ".tsv" or _is_document(path):
            if build is None:
                raise ValueError(f"{path} does not hold JSON lines, which is how this benchmark's questions come.")
            return build(path)
        return [_llava_question(row, path) for row in read_lines(path)]
    except (LookupError, TypeError, AttributeError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} does not have this benchmark's format ({error!r}).") from error


def _is_document(path: Path) -> bool:
    """Whether the file is one JSON document: its first line is not a question by itself."""
    if path.suffix == ".jsonl":
        return False
    first = next((line for line in read_text(path).split("\n") if line.strip()), "")
    try:
        row = json.loads(first)
    except ValueError:
        return path.suffix == ".json"
    return not (isinstance(row, dict) and "question_id" in row)


def _llava_question(row: dict[str, Any], path: Path) -> Question:
    missing = [name for name in ("question_id", "text") if row.get(name) is None]
    if missing:
        given = ", ".join(name for name, value in row.items() if value is not None)
        raise ValueError(f"A question of {path} has no {missing[0]!r}, only {given}.")
    image, category = row.get("image"), row.get("category")
    text = str(row["text"]).replace("<image>", "").strip("\n")
    if "label" in row and SHORT_ANSWER.strip() not in text:  # POPE's own files, which hold the question alone
        text += SHORT_ANSWER
    return Question(
        question_id=row["question_id"],
        image=None if image is None else str(image),
        text=text,
        answers=_given(row),
        category="" if category in (None, "default") else str(category),  # LLaVA's word for none
        options=tuple(row.get("options", ())),
    )


def _given(row: dict[str, Any]) -> tuple[str, ...]:
    """The right answers of a row, whatever they are called; VQA's lists hold objects."""
    for name in ("answers", "captions", "label", "answer", "caption"):
        value = row.get(name)
        if value is not None:
            listed = value if isinstance(value, list | tuple) else [value]
            return tuple(str(item["answer"] if isinstance(item, dict) else item) for item in listed)
    return ()
