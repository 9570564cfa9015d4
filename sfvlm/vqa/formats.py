"""The benchmarks' own files to questions with right answers, and prompts as LLaVA-1.5's question files have them.

Each function reads one file (MME: a folder) that the benchmark's authors publish. No OCR words are added to TextVQA's
prompts, which LLaVA's own file has.
"""

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..util.files import decoded, read_any_json, read_text
from .questions import LETTERS, OPTION_LETTER, SHORT_ANSWER, UNANSWERABLE, Question

ROTATION_STEP = 1_000_000  # by which MMBench's files number rotated copies of a question


def vqa_v2(path: Path) -> list[Question]:
    """VQAv2 and OK-VQA: the questions, or the annotations with ten answers a question."""
    document = read_any_json(path)
    if isinstance(document, dict) and "annotations" in document:
        return [
            Question(
                question_id=row["question_id"],
                image=None,
                text="",
                answers=_answers(row),
                category=row.get("answer_type", ""),
                question_type=row.get("question_type", ""),
            )
            for row in _rows(document["annotations"], path, "question_id", "answers")
        ]
    if not (isinstance(document, dict) and "questions" in document):
        raise ValueError(f"{path} has neither questions nor annotations of VQAv2's format.")
    subset = str(document.get("data_subtype", "val2014")).replace("test-dev", "test")
    return [
        Question(
            row["question_id"],
            f"COCO_{subset}_{_number(row['image_id'], path):012d}.jpg",
            row["question"] + SHORT_ANSWER,
        )
        for row in _rows(document["questions"], path, "question_id", "image_id", "question")
    ]


def text_vqa(path: Path) -> list[Question]:
    """TextVQA_0.5.1_val.json."""
    document = read_any_json(path)
    rows = document.get("data") if isinstance(document, dict) else None
    return [
        Question(
            question_id=row["question_id"],
            image=f"{row['image_id']}.jpg",
            text=row["question"] + SHORT_ANSWER,
            answers=tuple(row.get("answers", ())),
        )
        for row in _rows(rows, path, "question_id", "image_id", "question")
    ]


def viz_wiz(path: Path) -> list[Question]:
    """VizWiz's val.json; one question a photo."""
    return [
        Question(
            question_id=number,
            image=row["image"],
            text=row["question"] + UNANSWERABLE + SHORT_ANSWER,
            answers=_answers(row),
            category=row.get("answer_type", ""),
        )
        for number, row in enumerate(_rows(read_any_json(path), path, "image", "question"))
    ]


def gqa(path: Path) -> list[Question]:
    """testdev_balanced_questions.json and its like; accuracy is over the balanced questions alone."""
    document = read_any_json(path)
    rows = document.values() if isinstance(document, dict) else None
    return [
        Question(
            question_id=question_id,
            image=f"{row['imageId']}.jpg",
            text=row["question"] + SHORT_ANSWER,
            answers=() if row.get("answer") is None else (row["answer"],),
            category="open" if row.get("types", {}).get("structural") == "query" else "binary",
        )
        for question_id, row in zip(document, _rows(rows, path, "imageId", "question"), strict=True)
        if row.get("isBalanced", True)
    ]


def science_qa(path: Path) -> list[Question]:
    """problems.json (its test questions), or the list that LLaVA makes of it, without right answers."""
    document = read_any_json(path)
    if isinstance(document, list):
        return [
            Question(
                question_id=row["id"],
                image=row.get("image"),
                text=row["conversations"][0]["value"].replace("<image>", "").strip() + OPTION_LETTER,
                category="IMG" if row.get("image") else "text",
            )
            for row in _rows(document, path, "id", "conversations")
        ]
    questions = []
    for number, row in zip(document, _rows(document.values(), path, "question", "choices", "answer"), strict=True):
        if row.get("split", "test") != "test":
            continue
        context = f"Context: {row['hint']}\n" if row.get("hint") else ""
        questions.append(
            Question(
                question_id=number,
                image=f"{number}/{row['image']}" if row.get("image") else None,
                text=_with_options(context + row["question"], row["choices"]),
                answers=(_letter(row, number, path),),
                category="IMG" if row.get("image") else "text",
                options=tuple(row["choices"]),
            )
        )
    return questions


def mme(path: Path) -> list[Question]:
    """A folder of MME's 14 category files, such as `existence.txt`: photo, question and answer, tabs between them."""
    if not path.is_dir():
        raise ValueError(f"{path} is no folder with MME's category files, existence.txt and so on.")
    questions = []
    for file in sorted(path.glob("*.txt")):
        for number, line in enumerate(read_text(file).split("\n"), start=1):
            if not line.strip():
                continue
            parts = line.split("\t")
            if len(parts) < 3:
                raise ValueError(f"Line {number} of {file} has {len(parts)} columns; MME's have at least 3.")
            image = f"{file.stem}/{parts[0]}"
            words = parts[1].replace("Please answer yes or no.", "").strip()
            questions.append(
                Question(image, image, words + SHORT_ANSWER, (parts[2].strip().lower(),), category=file.stem)
            )
    return questions


def mm_bench(path: Path) -> list[Question]:
    """MMBench's table. Without rotated copies in the file, every question gets as many as it has options."""
    rows = list(_table(path, "index", "question", "A", "B"))
    rotated = any(_number(row["index"], path) >= ROTATION_STEP for row in rows)
    questions = []
    for row in rows:
        options = [row[letter] for letter in LETTERS if not _is_empty(row.get(letter))]
        known = list(LETTERS[: len(options)])
        answer = (row.get("answer") or "").strip()  # test tables have none
        right = None
        if not _is_empty(answer):
            if answer not in known:
                raise ValueError(
                    f"Question {row['index']} of {path} has the answer {answer!r} and {len(options)} options."
                )
            right = known.index(answer)
        words = row["question"] if _is_empty(row.get("hint")) else f"{row['hint']}\n{row['question']}"
        for turn in range(1 if rotated else len(options)):
            turned, letters = (items[turn:] + items[:turn] for items in (options, known))
            questions.append(
                Question(
                    question_id=_number(row["index"], path),
                    image=row["index"],
                    text=_with_options(words, turned),
                    answers=() if right is None else (known[(right - turn) % len(options)],),
                    category=row.get("category") or "",
                    options=tuple(turned),
                    extra={"round_id": turn, "options": turned, "option_char": letters},
                )
            )
    return questions


def mm_bench_photos(path: Path) -> dict[str, str]:
    """The photos in MMBench's table as base64, by the index of their row; a rotated copy may refer to another row's."""
    images = {row["index"]: row["image"] or "" for row in _table(path, "index", "image")}
    return {index: images.get(image, image) for index, image in images.items()}


def _table(path: Path, *needed: str) -> Iterator[dict[str, str]]:
    if not path.is_file():
        raise ValueError(f"The file {path} does not exist.")
    csv.field_size_limit(sys.maxsize)  # photos are in it
    # Line ends inside quotes belong to the text.
    reader = csv.DictReader(io.StringIO(decoded(path.read_bytes(), path), newline=""), delimiter="\t")
    _need(reader.fieldnames or (), needed, path)
    yield from reader


def _is_empty(value: str | None) -> bool:
    return value is None or value.strip().lower() in ("", "nan", "none")


def _with_options(words: str, options: Sequence[str]) -> str:
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([words, *lines]) + OPTION_LETTER


def _letter(row: dict[str, Any], number: str, path: Path) -> str:
    """The right answer of a ScienceQA problem."""
    count = min(len(row["choices"]), len(LETTERS))
    if row["answer"] not in range(count):
        raise ValueError(f"Question {number} of {path} has the answer {row['answer']!r} and {count} options.")
    return LETTERS[row["answer"]]


def _number(value: Any, path: Path) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{path} does not have this benchmark's format: {value!r} should be a number.") from None


def _answers(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(item["answer"]) for item in row.get("answers", ()))


def _rows(rows: Iterable[Any] | None, path: Path, *needed: str) -> list[dict[str, Any]]:
    """Rows that all have what is needed.

    Raises:
        ValueError: There are no rows, or one lacks something.
    """
    if not isinstance(rows, Iterable) or isinstance(rows, str):
        raise ValueError(f"{path} does not have this benchmark's format.")
    listed = list(rows)
    for row in listed:
        if not isinstance(row, dict):
            raise ValueError(f"{path} does not have this benchmark's format.")
        _need(row, needed, path)
    return listed


def _need(names: Iterable[str], needed: Sequence[str], path: Path) -> None:
    present = list(names)
    missing = [name for name in needed if name not in present]
    if missing:
        raise ValueError(f"A row of {path} has no {missing[0]!r}, only {', '.join(map(str, present))[:200]}.")
