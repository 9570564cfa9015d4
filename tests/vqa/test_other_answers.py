"""Answers in the files of other programs: taken where it is clear what they say, refused otherwise."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_questions import write_json, write_lines

from sfvlm.cli import main
from sfvlm.vqa.answers import answer_names, read_answers, run_of
from sfvlm.vqa.ask import measure, questions_of
from sfvlm.vqa.questions import SHORT_ANSWER, Question

ASKED = [
    Question(1, "val/1.jpg", "Is there a dog?" + SHORT_ANSWER, ("no",)),
    Question(2, "val/2.jpg", "Is there a cat?" + SHORT_ANSWER, ("yes",)),
]
WORDS = ["Is there a dog?", "Is there a cat?"]


def rows(**fields: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]


@pytest.mark.parametrize(
    "said",
    [
        rows(question_id=[1, 2], text=["No", "Yes"]),
        rows(question_id=["2", "1"], text=["Yes", "No"]),
        rows(question_id=[1, 2], text=[["No"], ["Yes"]]),
        rows(question_id=[1, 2], answer=["No", "Yes"]),  # VQA's results
        rows(questionId=["1", "2"], prediction=["No", "Yes"]),  # GQA's
        rows(image=["1.jpg", "val/2.jpg"], answer=["No", "Yes"]),  # VizWiz's
        rows(question_id=[1.0, 2.0], text=["No", "Yes"]),  # of a table that pandas read
        rows(
            index=[1, 2], question=WORDS, answer=["A", "A"], prediction=["No", "Yes"]
        ),  # VLMEvalKit's, with right answers
        rows(
            doc_id=[0, 1], doc=rows(question_id=[1, 2]), target=["A", "A"], resps=[[["No"]], [["Yes"]]]
        ),  # lmms-eval's
        rows(doc=rows(question_id=[1, 2]), resps=[[["No."]], [["Yes."]]], filtered_resps=[["No"], ["Yes"]]),
        rows(question_id=[1, 2], image=["a", "b"], text=[item.text for item in ASKED], response=["No", "Yes"]),
    ],
)
@pytest.mark.parametrize("form", ["lines", "blank lines", "Windows", "array", "pretty", "logs"])
def test_answers_are_taken_from_what_each_program_calls_them(said: list[Any], form: str, tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    lines = [json.dumps(row) for row in said]
    contents = {
        "lines": "\n".join(lines).encode(),
        "blank lines": ("\n\n".join(["", *lines, ""])).encode(),
        "Windows": "\r\n".join([*lines, ""]).encode("utf-16"),
        "array": json.dumps(said).encode("utf-8-sig"),
        "pretty": json.dumps(said, indent=2).encode(),
        "logs": json.dumps({"args": {}, "logs": said}).encode(),
    }
    path.write_bytes(contents[form])
    assert read_answers(path, ASKED) == ["No", "Yes"]
    assert run_of(path) is not None
    assert answer_names([path], "pope") == ["answers.json"]


def test_answers_may_be_an_object_by_question(tmp_path: Path) -> None:
    assert read_answers(write_json(tmp_path / "a.json", {"2": "Yes", "1": ["No"]}), ASKED) == ["No", "Yes"]


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_tables_are_taken_and_an_empty_cell_is_an_empty_answer(suffix: str, tmp_path: Path) -> None:
    mark = {".tsv": "\t", ".csv": ","}[suffix]
    table = [
        ["index", "question", "answer", "prediction"],
        ["1", WORDS[0], "Yes", "No\nway"],
        ["2", WORDS[1], "Yes", ""],
    ]
    text = "\r\n".join(mark.join(f'"{cell}"' for cell in row) for row in table)
    (tmp_path / f"a{suffix}").write_bytes(text.encode("utf-8-sig"))
    assert read_answers(tmp_path / f"a{suffix}", ASKED) == ["No\nway", ""]


def test_a_workbook_is_taken(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["index", "question", "answer", "prediction"], [1, WORDS[0], "A", "No"], [2, WORDS[1], "A", None]):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    assert read_answers(tmp_path / "a.xlsx", ASKED) == ["No", ""]
    (tmp_path / "broken.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"broken\.xlsx cannot be read as a workbook"):
        read_answers(tmp_path / "broken.xlsx", ASKED)


def test_numbers_are_answers(tmp_path: Path) -> None:
    asked = [Question(number, "a.jpg", "How many?", ("2",) * 10) for number in range(3)]
    path = write_json(tmp_path / "a.json", rows(question_id=[0, 1, 2], answer=[2, 2.0, 2.5]))
    assert read_answers(path, asked) == ["2", "2", "2.5"]
    assert measure("vqav2", asked, read_answers(path, asked)).units == (1, 1, 0)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            rows(question_id=[1, 2], text=[["No", "Yes"], ["No"]]),
            r"Line 1 of .* its text is a list of 2, and one text is",
        ),
        (rows(question_id=[1, 2], text=["No", []]), r"Line 2 of .* is not an answer: its text is a list of 0"),
        (rows(question_id=[1, 2], text=["No", True]), r"Line 2 of .* its text is true"),
        (rows(question_id=[1, 2], text=["No", math.nan]), r"Line 2 of .* its text is NaN"),
        (rows(question_id=[1, 2], text=["No", None]), r"Line 2 of .* its text is null"),
        (rows(question_id=[1, 2], text=["No", {"a": 1}]), r"Line 2 of .* its text is \{\"a\": 1\}"),
        (rows(question_id=[1, 2], said=["No", "Yes"]), r"not clear which field is; its fields are question_id, said\."),
        (rows(doc_id=[0, 1], resps=[["No"], ["Yes"]]), r"names no question; its fields are doc_id, resps\."),
        (rows(question_id=[1, 2], answer=["no", "yes"], label=["no", "yes"]), "not clear which field is"),
        (rows(question_id=[1, 2], text=[item.text for item in ASKED]), "not clear which field is"),  # the questions
        (
            rows(question_id=[1, 2], text=[item.text for item in ASKED], answer=["no", "yes"]),
            "not clear which field is",
        ),
        (
            rows(index=[1, 2], question=WORDS[::-1], prediction=["No", "Yes"]),
            "of another run: it answers 'Is there a cat",
        ),
        (rows(image=["train/1.jpg", "val/2.jpg"], answer=["No", "Yes"]), "answers 1 of 2 questions; .* missing is 1"),
        (rows(question_id=[1, 2, 2], text=["No", "Yes", "Yes"]), "the question 2 is answered twice"),
        ([], "holds no answers"),
    ],
)
def test_what_is_not_clear_is_refused_with_what_there_is(said: list[Any], words: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", said)
    if not said:
        path.write_text("\n")
    with pytest.raises(ValueError, match=words):
        read_answers(path, ASKED)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[1, 2]", r"Row 1 of .* is not an answer: it is 1\."),
        (b'"No"', "is no list of answers"),
        (b'{"results": {"1": "No"}, "count": 2}', "is no list of answers; its fields are results, count"),
        (b'{"question_id": 1,\n "text"', "Line 1 of .* is not an answer"),
        (b"\xff\xfe\x00", "is no UTF-8 text"),
        (
            '{"question_id": 1, "text": "No"}'.encode("utf-16-le"),
            "is no text, or UTF-16 without its mark: save it as UTF-8",
        ),
        ('{"question_id": 1, "text": "N\u00f3"}'.encode("cp1252"), r"a\.jsonl is no UTF-8 text"),
    ],
)
def test_a_file_that_holds_no_answers_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_answers(tmp_path / "a.jsonl", ASKED)


def test_the_command_measures_vqas_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = rows(question_id=[1, 2], image=["1.jpg", "2.jpg"], text=WORDS, label=["no", "yes"])
    questions = write_lines(tmp_path / "q.jsonl", asked)
    path = write_json(tmp_path / "a.json", rows(question_id=[2, 1], answer=["Yes", ["No"]]))
    assert len(questions_of("pope", [questions])) == 2
    main(["vqa", "--benchmark", "pope", "--questions", str(questions), "--answers", str(path)])
    assert "a.json" in (printed := capsys.readouterr().out) and "100.0%" in printed
    with pytest.raises(SystemExit) as stopped:  # the questions themselves
        main(["vqa", "--benchmark", "pope", "--questions", str(questions), "--answers", str(questions)])
    assert stopped.value.code == 2 and "not clear which field is" in capsys.readouterr().err
