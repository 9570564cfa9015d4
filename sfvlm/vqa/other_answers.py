"""Answers in the files of other programs: LLaVA's lines, VQA's and GQA's results, lmms-eval's samples, VLMEvalKit's tables.

    file -> rows, each an object -> which question, asked how, answered how

Where a row does not say clearly which of these is which, it is refused, with the fields it has.
"""

import csv
import io
import json
import math
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from ..util.errors import reason
from ..util.files import decoded, read_text
from .questions import question_words

Row = dict[str, Any]
_IDS = ("question_id", "questionId", "qid", "id", "index")
_PROMPTS = ("prompt", "question", "input")
# The first that a row has is its answer. Beside a question in `text`, or what is plainly right, `answer` is no model's.
_TEXTS = ("text", "prediction", "pred", "response", "output", "filtered_resps", "resps", "answer")
_RIGHT_ANSWERS = ("answers", "label", "target", "gt", "gt_answer", "ground_truth", "reference", "captions")


class Said(NamedTuple):
    """One answer.

    Attributes:
        where: Line or row and file, for people.
        question_id: As text; empty where the question is known by its photo.
        image: The photo, in that case.
        prompt: How the question was put; empty where that is not said.
        text: The answer.
        row: All that is said.
    """

    where: str
    question_id: str
    image: str
    prompt: str
    text: str
    row: Row


def read_said(path: Path, prompts: Sequence[str] = ()) -> list[Said]:
    """The answers in a file.

    Args:
        path: JSON lines, one JSON document, or a table in .tsv, .csv or .xlsx.
        prompts: What was asked; a field that holds nothing but these does not hold the answers.

    Raises:
        ValueError: The file is missing or damaged, or it is not clear what it says.
    """
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{path} holds no answers.")
    asked = set(map(question_words, prompts))
    texts = [name for name in _TEXTS if not asked or not _all_asked([row.get(name) for _, row in rows], asked)]
    return [_said(where, row, texts, path.suffix.lower() in _TABLES) for where, row in rows]


def read_rows(path: Path) -> list[tuple[str, Row]]:
    """The objects in a file, each with where it stands.

    Raises:
        ValueError: The file is missing or damaged, or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"The file {path} {'is a folder' if path.is_dir() else 'does not exist'}.")
    read = _TABLES.get(path.suffix.lower())
    if read is not None:
        return [(f"Row {number} of {path}", row) for number, row in enumerate(read(path), start=1)]
    text = read_text(path)
    try:
        document = json.loads(text)
    except ValueError:
        return _lines(text, path)
    return _document(document, path)


def _all_asked(values: Sequence[Any], asked: Set[str]) -> bool:
    return all(isinstance(value, str) and question_words(value.replace("<image>", "")) in asked for value in values)


def plain(prompt: str) -> str:
    """A prompt without white space and marks of photos."""
    return "".join(prompt.replace("<image>", "").split())


def _lines(text: str, path: Path) -> list[tuple[str, Row]]:
    """JSON lines; a last one that was cut off is left out."""
    found: list[tuple[str, Row]] = []
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            if number == len(lines):
                break
            raise ValueError(f"Line {number} of {path} is not an answer: remove it, or the file.")
        found.append((f"Line {number} of {path}", row))
    return found


def _document(document: Any, path: Path) -> list[tuple[str, Row]]:
    """A list of objects, lmms-eval's older file of one task, or answers by question."""
    if isinstance(document, dict) and not any(name in document for name in (*_IDS, "doc", "image")):
        logs = document.get("logs")
        if isinstance(logs, list):
            document = logs
        elif document and all(isinstance(value, str | int | float | list) for value in document.values()):
            document = [{"question_id": name, "text": value} for name, value in document.items()]
        else:
            raise ValueError(f"{path} is no list of answers; its fields are {_listed(document)}.")
    rows = [document] if isinstance(document, dict) else document
    if not isinstance(rows, list):
        raise ValueError(f"{path} is no list of answers.")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"Row {number} of {path} is not an answer: it is {json.dumps(row)[:80]}.")
    return [
        (f"Row {number} of {path}" if len(rows) > 1 else f"Line 1 of {path}", row) for number, row in enumerate(rows, 1)
    ]


def _delimited(path: Path) -> list[Row]:
    csv.field_size_limit(2**31 - 1)  # photos may be in it
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        return list(csv.DictReader(io.StringIO(decoded(path.read_bytes(), path), newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise ValueError(f"{path} is no table: {error}.") from error


def _workbook(path: Path) -> list[Row]:
    """The first sheet of a workbook, as VLMEvalKit writes its predictions."""
    try:
        import openpyxl
    except ImportError as error:
        raise ValueError(
            f"Reading {path} needs the package openpyxl: pip install openpyxl, or save it as .tsv."
        ) from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        names, *rows = book.worksheets[0].iter_rows(values_only=True)
    except Exception as error:  # a damaged file raises those of archives, of XML and of the package itself
        raise ValueError(f"{path} cannot be read as a workbook: {reason(error)}") from error
    return [dict(zip(map(str, names), row, strict=False)) for row in rows if any(cell is not None for cell in row)]


_TABLES = {".tsv": _delimited, ".csv": _delimited, ".xlsx": _workbook}


def _said(where: str, row: Row, texts: Sequence[str], is_table: bool) -> Said:
    document = row["doc"] if isinstance(row.get("doc"), dict) else {}
    question_id = next((each[name] for each in (row, document) for name in _IDS if each.get(name) is not None), None)
    image = row.get("image")
    if question_id is None and not isinstance(image, str):
        raise ValueError(f"{where} is not an answer: it names no question; its fields are {_listed(row)}.")
    name = next((name for name in texts if name in row), None)
    if name is None or (name == "answer" and any(other in row for other in ("text", *_RIGHT_ANSWERS))):
        raise ValueError(f"{where} is not an answer: it is not clear which field is; its fields are {_listed(row)}.")
    value = "" if is_table and row[name] is None else row[name]
    prompt = next((str(row[name]) for name in _PROMPTS if isinstance(row.get(name), str) or row.get("prompt")), "")
    return Said(
        where,
        "" if question_id is None else _text(question_id, where, "question id"),
        "" if question_id is not None else str(image),
        prompt or str(document.get("question") or ""),
        _text(value, where, name),
        row,
    )


def _text(value: Any, where: str, name: str) -> str:
    """What a value says: a text, a number, or a list of one of them."""
    if isinstance(value, list | tuple) and len(value) == 1:
        return _text(value[0], where, name)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    number = f"a list of {len(value)}" if isinstance(value, list | tuple) else json.dumps(value, default=str)[:80]
    raise ValueError(f"{where} is not an answer: its {name} is {number}, and one text is needed.")


def _listed(row: Row) -> str:
    return ", ".join(map(str, row))[:200]
