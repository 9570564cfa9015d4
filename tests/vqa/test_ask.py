"""Questions, photos and answers of visual question answering: files, joins, resuming, shards, and the command."""

import base64
import gc
import json
import re
import weakref
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_hosts import tiny_tower
from tiny_llava import tiny_llava
from tiny_photos import write_tar
from tiny_questions import jpeg, write_json, write_lines, write_shard

from sfvlm.cli import run
from sfvlm.commands.options.vqa import VqaCommand
from sfvlm.commands.vqa import vqa_command
from sfvlm.hosts.host import open_host
from sfvlm.photos.caption_objects import objects_possible, times_shown
from sfvlm.photos.decode import UnreadablePhoto
from sfvlm.photos.scenes import render_scene
from sfvlm.photos.sources import open_photos
from sfvlm.vqa.answers import AnswerFile, Run, Shard, answer_names, merge_shards, read_answers, run_of
from sfvlm.vqa.ask import (
    BENCHMARKS,
    RULES,
    ask,
    compare,
    limited,
    made_questions,
    measure,
    questions_of,
    result_row,
    rule_of,
)
from sfvlm.vqa.photos import SourcePhotos, TablePhotos, check_photos
from sfvlm.vqa.questions import OPTION_LETTER, SHORT_ANSWER, UNANSWERABLE, Question
from sfvlm.vqa.retained import read_scores
from sfvlm.vqa.sources import (
    caption_questions,
    daquar_questions,
    photo_split,
    pope_caption_questions,
    pope_questions,
    scene_questions,
)

RUN = Run("echo", "0123456789ab", 8, "ba9876543210")
MM_BENCH = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image")


class Echo:
    """Stands in for a host: answers with the photo's width and the first word of the prompt."""

    source, fingerprint, settings_fingerprint = "echo", RUN.fingerprint, RUN.settings_fingerprint

    def __init__(self, fails_after: int | None = None) -> None:
        self.fails_after, self.asked = fails_after, 0

    def answer(self, images: Sequence[Any], prompts: Sequence[str], *, max_new_tokens: int) -> list[str]:
        if self.fails_after is not None and self.asked >= self.fails_after:
            raise KeyboardInterrupt
        self.asked += len(prompts)
        return [
            f"{0 if image is None else image.width} {prompt.split()[0]}"
            for image, prompt in zip(images, prompts, strict=True)
        ]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> SourcePhotos:
    folder = tmp_path_factory.mktemp("coco")
    for number in range(10):
        (folder / f"{number}.jpg").write_bytes(jpeg(8 + number))
    return SourcePhotos(open_photos(folder))


@pytest.fixture
def questions() -> list[Question]:
    return [Question(number, f"{number}.jpg", f"q{number} what?", ("yes",), "kind") for number in range(10)]


# Question files


def test_llavas_question_file_is_read_as_it_is(tmp_path: Path) -> None:
    rows = [
        {"question_id": 7, "image": "a.jpg", "text": "Is it?" + SHORT_ANSWER, "category": "random", "label": "yes"},
        {
            "question_id": "8",
            "image": "b.jpg",
            "text": "<image>\nHow many?",
            "answers": [{"answer": "2"}, {"answer": "3"}],
        },
    ]
    first, second = questions_of("vqav2", [write_lines(tmp_path / "q.jsonl", rows)])
    assert first == Question(7, "a.jpg", "Is it?" + SHORT_ANSWER, ("yes",), "random")
    assert second == Question("8", "b.jpg", "How many?", ("2", "3"))


def test_vqa_v2_joins_its_two_files_by_id(tmp_path: Path) -> None:
    asked = {"data_subtype": "val2014", "questions": [{"question_id": 1, "image_id": 42, "question": "Is it?"}]}
    answers = [{"answer": text, "answer_id": number} for number, text in enumerate(["yes"] * 9 + ["no"])]
    known = {"annotations": [{"question_id": 1, "answer_type": "yes/no", "question_type": "is it", "answers": answers}]}
    (question,) = questions_of(
        "vqav2", [write_json(tmp_path / "q.json", asked)], [write_json(tmp_path / "a.json", known)]
    )
    assert question.image == "COCO_val2014_000000000042.jpg"
    assert question.text == "Is it?" + SHORT_ANSWER
    assert question.answers == ("yes",) * 9 + ("no",)
    score = measure("vqav2", [question], ["Yes."])
    assert score.numbers == {"accuracy": 1.0, "accuracy/yes/no": 1.0, "accuracy/type:is it": 1.0}


def test_text_vqa_joins_by_photo_and_words_whatever_ocr_stands_between(tmp_path: Path) -> None:
    data = [
        {"image_id": "x", "question_id": 1, "question": "What brand?", "answers": ["nokia"] * 10},
        {"image_id": "x", "question_id": 2, "question": "What time?", "answers": ["10:30"] * 10},
    ]
    rows = [
        {"question_id": "x", "image": "x.jpg", "text": "What time?\nReference OCR token: NOKIA" + SHORT_ANSWER},
        {"question_id": "x", "image": "x.jpg", "text": "Reference OCR token: NOKIA\nWhat brand?" + SHORT_ANSWER},
        {"question_id": "x", "image": "x.jpg", "text": "OCR tokens: NOKIA. Question: What time? Short answer:"},
    ]
    known = write_json(tmp_path / "TextVQA.json", {"data": data})
    found = questions_of("textvqa", [write_lines(tmp_path / "q.jsonl", rows)], [known])
    assert [item.answers[0] for item in found] == ["10:30", "nokia", "10:30"]
    assert [item.text for item in questions_of("textvqa", [known])] == [row["question"] + SHORT_ANSWER for row in data]


def test_pope_reads_its_three_files_and_llavas_one(tmp_path: Path) -> None:
    row = {"question_id": 1, "image": "COCO_val2014_01.jpg", "text": "Is there a dog in the image?", "label": "no"}
    files = [write_lines(tmp_path / f"coco_pope_{name}.json", [row]) for name in ("random", "popular")]
    found = questions_of("pope", files)
    assert [item.category for item in found] == ["random", "popular"]
    assert len({item.question_id for item in found}) == 2
    assert {item.text for item in found} == {row["text"] + SHORT_ANSWER}  # as LLaVA's file asks the same
    llavas = {"question_id": 0, "image": row["image"], "text": row["text"] + SHORT_ANSWER, "category": "random"}
    (joined,) = questions_of("pope", [write_lines(tmp_path / "llava_pope_test.jsonl", [llavas])], files[:1])
    assert joined.answers == ("no",) and joined.text == found[0].text


def test_viz_wiz_gqa_and_science_qa_read_their_own_files(tmp_path: Path) -> None:
    answers = [{"answer": "unanswerable", "answer_confidence": "yes"}] * 10
    row = {"image": "v.jpg", "question": "What?", "answers": answers, "answer_type": "unanswerable", "answerable": 0}
    (viz,) = questions_of("vizwiz", [write_json(tmp_path / "val.json", [row])])
    assert viz.text == "What?" + UNANSWERABLE + SHORT_ANSWER and viz.answers[0] == "unanswerable"

    rows = {
        "17": {
            "imageId": "n1",
            "question": "Left?",
            "answer": "yes",
            "isBalanced": True,
            "types": {"structural": "verify"},
        },
        "18": {"imageId": "n1", "question": "Right?", "answer": "no", "isBalanced": False, "types": {}},
    }
    (balanced,) = questions_of("gqa", [write_json(tmp_path / "testdev.json", rows)])
    assert (balanced.question_id, balanced.image, balanced.category) == ("17", "n1.jpg", "binary")

    problem = {"question": "Which?", "choices": ["x", "y"], "answer": 1, "hint": "Look.", "image": "image.png"}
    problems = {"3": problem | {"split": "test"}, "4": problem | {"split": "train"}}
    path = write_json(tmp_path / "problems.json", problems)
    (science,) = questions_of("scienceqa", [path])
    assert science.text == "Context: Look.\nWhich?\nA. x\nB. y" + OPTION_LETTER
    assert (science.answers, science.image, science.category) == (("B",), "3/image.png", "IMG")
    llavas = [
        {"id": "3", "image": "3/image.png", "conversations": [{"from": "human", "value": "Which?\nA. x\n<image>"}]}
    ]
    (joined,) = questions_of("scienceqa", [write_json(tmp_path / "llava.json", llavas)], [path])
    assert joined.answers == ("B",) and "<image>" not in joined.text and joined.text.endswith(OPTION_LETTER)


def test_llavas_category_default_is_none(tmp_path: Path) -> None:
    rows = [{"question_id": "17", "image": "n1.jpg", "text": "Left?" + SHORT_ANSWER, "category": "default"}]
    known = {"17": {"imageId": "n1", "question": "Left?", "answer": "yes", "types": {"structural": "verify"}}}
    found = questions_of("gqa", [write_lines(tmp_path / "q.jsonl", rows)], [write_json(tmp_path / "gqa.json", known)])
    assert measure("gqa", found, ["Yes"]).numbers == {"accuracy": 1.0, "accuracy/binary": 1.0}


def test_mme_reads_its_folder_and_llavas_file(tmp_path: Path) -> None:
    lines = [
        f"1.jpg\tIs {what} red? Please answer yes or no.\t{answer}" for what, answer in (("it", "Yes"), ("he", "No"))
    ]
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "color.txt").write_text("\n".join(lines))
    found = questions_of("mme", [tmp_path / "tool"])
    assert [item.answers[0] for item in found] == ["yes", "no"]
    assert {item.image for item in found} == {"color/1.jpg"}
    rows = [
        {"question_id": "color/1.jpg", "image": "color/1.jpg", "text": item.text, "category": "color"} for item in found
    ]
    llavas = questions_of("mme", [write_lines(tmp_path / "mme.jsonl", rows[::-1])], [tmp_path / "tool"])
    assert measure("mme", llavas, ["No", "Yes"]).value == 200


def mm_bench_table(path: Path, rows: Sequence[Sequence[str]], names: Sequence[str] = MM_BENCH) -> Path:
    path.write_text("\n".join("\t".join(row) for row in [names, *rows]))
    return path


def test_mm_bench_turns_the_options_and_holds_its_photos(tmp_path: Path) -> None:
    image = base64.b64encode(jpeg(30)).decode()
    path = mm_bench_table(tmp_path / "mmbench.tsv", [["3", "Which?", "nan", "x", "y", "z", "", "B", "logic", image]])
    found = questions_of("mmbench", [path])
    assert [item.answers[0] for item in found] == ["B", "A", "C"]
    assert found[1].text == "Which?\nA. y\nB. z\nC. x" + OPTION_LETTER
    assert found[1].extra["option_char"] == ["B", "C", "A"]
    turned = mm_bench_table(
        tmp_path / "turned.tsv",
        [
            ["3", "Which?", "", "x", "y", "", "", "B", "l", image],
            ["1000003", "Which?", "", "y", "x", "", "", "A", "l", "3"],
        ],
    )
    assert [item.question_id for item in questions_of("mmbench", [turned])] == [3, 1000003]


def test_mm_bench_without_answers_is_only_asked(tmp_path: Path) -> None:
    names = [name for name in MM_BENCH if name != "answer"]
    path = mm_bench_table(tmp_path / "test.tsv", [["3", "Which?", "", "x", "y", "z", "", "logic", "3"]], names)
    assert [item.answers for item in questions_of("mmbench", [path], needs_answers=False)] == [()] * 3
    with pytest.raises(ValueError, match="3 of 3 questions have no right answer"):
        questions_of("mmbench", [path])


@pytest.mark.parametrize("answer", ["D", "BC", "b"])
def test_mm_bench_answers_that_are_no_option_are_refused(answer: str, tmp_path: Path) -> None:
    path = mm_bench_table(tmp_path / "mmbench.tsv", [["3", "Which?", "", "x", "y", "z", "", answer, "logic", "3"]])
    with pytest.raises(ValueError, match=rf"Question 3 of .*mmbench\.tsv has the answer '{answer}' and 3 options"):
        questions_of("mmbench", [path])


def test_bad_question_files_get_one_sentence(tmp_path: Path) -> None:
    good = {"question_id": 1, "image": "a.jpg", "text": "What?", "label": "yes"}
    cases = [
        ([good, good], "1 question ids are there twice .* the first of them 1"),
        ([good, {"question_id": 2}], "has no 'text'"),
        ([{"question_id": 1, "image": "a.jpg", "text": "What?"}], "1 of 1 questions have no right answer"),
        ([], "There are no questions"),
    ]
    for rows, words in cases:
        path = write_lines(tmp_path / "q.jsonl", rows)
        with pytest.raises(ValueError, match=words):
            questions_of("pope", [path])
    (tmp_path / "torn.jsonl").write_text(json.dumps(good) + '\n{"question_id": 2, "te')
    with pytest.raises(ValueError, match=r"Line 2 of .*torn\.jsonl is not a JSON object"):
        questions_of("pope", [tmp_path / "torn.jsonl"])
    with pytest.raises(ValueError, match="does not exist"):
        questions_of("gqa", [tmp_path / "nothing.json"])
    with pytest.raises(ValueError, match="neither questions nor annotations"):
        questions_of("vqav2", [write_json(tmp_path / "q.json", {"rows": []})])
    path, other = (write_lines(tmp_path / f"{name}.jsonl", [good | {"image": f"{name}.jpg"}]) for name in "ab")
    with pytest.raises(ValueError, match="1 of 1 questions are not in the annotations, the first of them 1"):
        questions_of("pope", [path], [other])
    with pytest.raises(ValueError, match="There is no benchmark 'pop'"):
        questions_of("pop", [])


@pytest.mark.parametrize(
    ("benchmark", "content"),
    [
        ("vqav2", {"annotations": [{"question_id": 1, "answers": [{"text": "yes"}]}]}),
        ("vqav2", {"annotations": [{"question_id": 1, "answers": ["yes"] * 10}]}),
        ("vqav2", {"questions": [{"question_id": 1, "image_id": "first", "question": "?"}]}),
        ("textvqa", {"data": [{"image_id": "x", "question_id": 1, "question": "?", "answers": None}]}),
        ("textvqa", {"data": [{"image_id": "x", "question_id": 1, "question": None, "answers": ["a"]}]}),
        ("gqa", {"1": {"imageId": "n1", "question": "?", "answer": "yes", "types": None}}),
        ("vizwiz", [{"image": "a.jpg", "question": "?", "answers": [3]}]),
        ("scienceqa", [{"id": "1", "conversations": []}]),
        ("scienceqa", {"1": {"question": "?", "choices": None, "answer": 0}}),
    ],
)
def test_a_file_of_another_format_is_named(benchmark: str, content: Any, tmp_path: Path) -> None:
    path = write_json(tmp_path / "file.json", content)
    for files in ([path], []), ([], [path]):
        with pytest.raises(ValueError, match=r"^.*file\.json does not have this benchmark's format"):
            questions_of(benchmark, *files)


@pytest.mark.parametrize("answer", [99, 2, -1, "B", None])
def test_science_qa_answers_that_are_no_option_are_refused(answer: Any, tmp_path: Path) -> None:
    path = write_json(tmp_path / "problems.json", {"7": {"question": "?", "choices": ["x", "y"], "answer": answer}})
    with pytest.raises(ValueError, match=rf"Question 7 of .*problems\.json has the answer {answer!r} and 2 options"):
        questions_of("scienceqa", [path])


def test_what_is_null_is_missing(tmp_path: Path) -> None:
    good = {"question_id": 1, "image": "a.jpg", "text": "What?", "category": None, "label": "yes"}
    (question,) = questions_of("pope", [write_lines(tmp_path / "q.jsonl", [good])])
    assert question.category == ""
    for name, words in (("text", "has no 'text', only question_id, image, label"), ("label", "have no right answer")):
        with pytest.raises(ValueError, match=words):
            questions_of("pope", [write_lines(tmp_path / "q.jsonl", [good | {name: None}])])


@pytest.mark.parametrize("mark", ["\u2028", "\u0085"])  # JSON has these unescaped, and str.splitlines parts lines there
def test_lines_end_at_line_feeds_alone(mark: str, tmp_path: Path) -> None:
    row = {"question_id": 1, "image": "a.jpg", "text": f"What{mark}is it?{SHORT_ANSWER}", "label": "yes"}
    lines = [json.dumps(row | {"question_id": number}, ensure_ascii=False) for number in range(2)]
    for end in ("\n", "\r\n"):
        (tmp_path / "q.json").write_bytes(end.join([*lines, ""]).encode())
        assert [item.text for item in questions_of("pope", [tmp_path / "q.json"])] == [row["text"]] * 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_windows_programs_are_read(encoding: str, tmp_path: Path) -> None:
    row = json.dumps({"question_id": 1, "image": "a.jpg", "text": "caf\u00e9?", "label": "yes"}, ensure_ascii=False)
    (tmp_path / "q.jsonl").write_bytes(f"{row}\r\n".encode(encoding))
    assert questions_of("pope", [tmp_path / "q.jsonl"])[0].text.startswith("caf\u00e9?")
    table = 'index\tquestion\tA\tB\tanswer\timage\r\n3\t"caf\u00e9\r\nand?"\tx\ty\tA\tQUJD\r\n'
    (tmp_path / "m.tsv").write_bytes(table.encode(encoding))
    assert questions_of("mmbench", [tmp_path / "m.tsv"])[0].text.startswith("caf\u00e9\r\nand?\nA. x")
    assert TablePhotos(tmp_path / "m.tsv").find("3") == "3"
    (tmp_path / "mme").mkdir()
    (tmp_path / "mme" / "color.txt").write_bytes("1.jpg\tIs it?\tYes\r\n1.jpg\tIs he?\tNo\r\n".encode(encoding))
    assert {item.image for item in questions_of("mme", [tmp_path / "mme"])} == {"color/1.jpg"}
    known = {"17": {"imageId": "n1", "question": "Left?", "answer": "yes", "types": {}}}
    (tmp_path / "gqa.json").write_bytes(json.dumps(known).encode(encoding))
    assert questions_of("gqa", [tmp_path / "gqa.json"])[0].image == "n1.jpg"


def test_an_answer_file_that_an_editor_saved_is_continued(tmp_path: Path, photos: Any, questions: Any) -> None:
    path = tmp_path / "a.jsonl"
    answer(path, questions[:4], photos)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    host = Echo()
    assert len(answer(path, questions, photos, host)) == 10 and host.asked == 6
    assert len(answer(path, questions, photos, Echo(fails_after=0))) == 10
    path.write_bytes(path.read_bytes().decode("utf-8-sig").encode("utf-16"))
    with pytest.raises(ValueError, match="was saved as UTF-16"):
        answer(path, questions, photos)


# Photos


def test_a_photo_is_found_by_key_name_and_folder(tmp_path: Path) -> None:
    for name in ("existence/1.jpg", "color/images/1.jpg", "color/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (len(name), 8)).save(tmp_path / name)
    photos = SourcePhotos(open_photos(tmp_path))
    for name in (f"{tmp_path.name}/color/2.png", "2.png", "2", "val2014/../2.png"):
        assert photos.open(name).width == len("color/2.png")
    assert photos.open("color/1.jpg").width == len("color/images/1.jpg")
    assert photos.open("existence/1.jpg").width == len("existence/1.jpg")
    with pytest.raises(ValueError, match="could be any of 2"):
        photos.open("1.jpg")
    shard = write_shard(tmp_path / "shard-000.tar", [{}, {}])
    assert SourcePhotos(open_photos(shard)).open("000000000001.jpg").width == 9


def test_missing_photos_are_refused_before_anything_is_asked(photos: SourcePhotos, questions: list[Question]) -> None:
    check_photos(questions, photos, "here")
    lost = [*questions, Question("x", "lost.jpg", "What?"), Question("y", None, "What?")]
    with pytest.raises(ValueError, match=r"1 of 12 questions are about photos .* here, .* lost\.jpg \(question x\)"):
        check_photos(lost, photos, "here")


def test_a_name_of_several_photos_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    folders = [tmp_path / part / "val" for part in "ab"]
    for width, folder in enumerate(folders, start=8):
        folder.mkdir(parents=True)
        (folder / "1.jpg").write_bytes(jpeg(width))
    photos = SourcePhotos(open_photos(folders))
    for name in ("1.jpg", "val/1.jpg"):  # by its file name, and by its key
        with pytest.raises(ValueError, match=rf"1 of 1 .* {name} \(question 7\)\. .* could be any of 2 in .*: val/1"):
            check_photos([Question(7, name, "What?")], photos, "here")
        with pytest.raises(ValueError, match="could be any of 2"):
            photos.open(name)


def test_a_photo_in_mm_benchs_table_that_is_none_is_a_broken_photo(tmp_path: Path) -> None:
    path = mm_bench_table(tmp_path / "m.tsv", [["3", "Which?", "", "x", "y", "", "", "B", "l", "not base 64"]])
    photos = TablePhotos(path)
    check_photos(questions_of("mmbench", [path]), photos, "here")
    with pytest.raises(UnreadablePhoto, match=r"m\.tsv:3"):
        photos.open("3")
    with pytest.raises(ValueError, match=r"The photo 4 is not in .*m\.tsv"):
        photos.open("4")


def test_a_broken_photo_is_answered_by_nothing_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "b.jpg").write_bytes(jpeg()[:60])
    asked = [Question(name, f"{name}.jpg", "what?") for name in "ab"]
    path = tmp_path / "answers.jsonl"
    texts = ask(Echo(), asked, SourcePhotos(open_photos(tmp_path)), path=path)  # type: ignore[arg-type]
    assert texts == ["8 what?", ""]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert "problem" not in rows[0]["metadata"] and "b.jpg" in rows[1]["metadata"]["problem"]


@pytest.mark.parametrize("size", [(3000, 2), (1, 5000), (20_001, 400)])
def test_a_strip_is_answered_by_nothing_and_named_with_its_size(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("L", size).save(tmp_path / "b.png")
    (tmp_path / "a.jpg").write_bytes(jpeg())
    asked, problems = [Question(name, name, "what?") for name in ("a", "b")], dict[str, str]()
    photos = SourcePhotos(open_photos(tmp_path))
    assert ask(Echo(), asked, photos, problems=problems) == ["8 what?", ""]  # type: ignore[arg-type]
    sentence = rf"b\.png: it has {size[0]} x {size[1]} pixels, and at most 20000 a side and 678 times as many"
    assert list(problems) == ["b"] and re.search(sentence, problems["b"])
    image = base64.b64encode((tmp_path / "b.png").read_bytes()).decode()
    table = TablePhotos(mm_bench_table(tmp_path / "m.tsv", [["3", "?", "", "x", "y", "", "", "B", "l", image]]))
    with pytest.raises(UnreadablePhoto, match=f"has {size[0]} x {size[1]} pixels"):
        table.open("3")


def test_a_photo_just_long_enough_is_shown(tmp_path: Path) -> None:
    Image.new("L", (640, 10)).save(tmp_path / "a.png")
    assert SourcePhotos(open_photos(tmp_path)).open("a").size == (640, 10)


def test_a_line_of_text_is_shown_where_memory_holds_it(tmp_path: Path) -> None:
    Image.new("L", (5000, 40)).save(tmp_path / "line.png")
    assert SourcePhotos(open_photos(tmp_path)).open("line").size == (5000, 40)


# Answer files


def answer(
    path: Path, asked: Sequence[Question], photos: SourcePhotos, host: Any = None, batch_size: int = 3
) -> list[str]:
    return ask(host or Echo(), asked, photos, path=path, max_new_tokens=8, batch_size=batch_size)


def test_answers_are_written_in_llavas_format(tmp_path: Path, photos: Any, questions: list[Question]) -> None:
    answer(tmp_path / "a.jsonl", questions, photos)
    row = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[2])
    assert list(row) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert (row["question_id"], row["prompt"], row["text"], row["model_id"]) == (2, "q2 what?", "10 q2", "echo")
    assert read_answers(tmp_path / "a.jsonl", questions)[2] == "10 q2"


def test_an_interrupted_run_ends_on_the_same_bytes(tmp_path: Path, photos: Any, questions: list[Question]) -> None:
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    expected = answer(whole, questions, photos)
    with pytest.raises(KeyboardInterrupt):
        answer(resumed, questions, photos, Echo(fails_after=6))
    with resumed.open("ab") as file:  # a line that was being written when the power went
        file.write(b'{"question_id": 6, "prompt": "q6 wh')
    host = Echo()
    assert answer(resumed, questions, photos, host, batch_size=2) == expected
    assert host.asked == 4
    assert resumed.read_bytes() == whole.read_bytes()
    assert answer(resumed, questions, photos, Echo(fails_after=0)) == expected


def test_a_last_line_without_its_end_is_kept_if_it_is_whole(tmp_path: Path, photos: Any, questions: Any) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    answer(whole, questions, photos)
    lines = whole.read_bytes().splitlines()
    cut.write_bytes(b"\n".join(lines[:4]))
    answer(cut, questions, photos)
    assert cut.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("run_", "change", "words"),
    [
        (replace(RUN, model_id="other"), {}, "its model_id is 'echo', this run's 'other'"),
        (replace(RUN, fingerprint="ffffffffffff"), {}, "its fingerprint is '0123456789ab', this run's 'ffffffffffff'"),
        (replace(RUN, max_new_tokens=9), {}, "its max_new_tokens is 8, this run's 9"),
        (RUN, {"text": "other words?"}, "question 0 is not asked here, or in other words"),
    ],
)
def test_answers_of_another_run_are_refused(
    run_: Run, change: dict[str, Any], words: str, tmp_path: Path, photos: Any, questions: list[Question]
) -> None:
    path = tmp_path / "a.jsonl"
    answer(path, questions[:3], photos)
    before = path.read_bytes()
    changed = [Question(item.question_id, item.image, change.get("text", item.text)) for item in questions]
    with pytest.raises(ValueError, match=words):
        AnswerFile(path, run_, changed)
    assert path.read_bytes() == before


def test_a_host_of_the_same_weights_with_other_settings_is_another_run(
    tmp_path: Path, photos: Any, questions: list[Question]
) -> None:
    path, other = tmp_path / "a.jsonl", Echo()
    answer(path, questions[:3], photos)
    other.settings_fingerprint = "ffffffffffff"
    with pytest.raises(ValueError, match="its settings_fingerprint is 'ba9876543210', this run's 'ffffffffffff'"):
        answer(path, questions, photos, other)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        del row["metadata"]["settings_fingerprint"]  # as files were when weights alone were kept
    write_lines(path, rows)
    with pytest.raises(
        ValueError, match=r"another run \(its settings_fingerprint is '', this run's 'ba98.*'\): remove the file, or"
    ):
        answer(path, questions, photos)
    assert other.asked == 0


def test_a_damaged_answer_file_is_refused(tmp_path: Path, photos: Any, questions: list[Question]) -> None:
    path = tmp_path / "a.jsonl"
    answer(path, questions[:3], photos)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "broken\n" + lines[2])
    with pytest.raises(ValueError, match=r"Line 2 of .* is not an answer"):
        AnswerFile(path, RUN, questions)
    path.write_text(lines[0] + lines[0])
    with pytest.raises(ValueError, match="answers question 0 twice"):
        AnswerFile(path, RUN, questions)


def test_answers_about_other_photos_of_the_same_names_are_refused(tmp_path: Path) -> None:
    sources = []
    for seed, version in enumerate(("v1", "v2")):
        (tmp_path / version / "val").mkdir(parents=True)
        for number in range(4):
            render_scene(seed, number, 32).image.save(tmp_path / version / "val" / f"{number}.png")
        sources.append(SourcePhotos(open_photos(tmp_path / version / "val")))
    asked = [Question(number, f"val/{number}.png", "What?") for number in range(4)]
    path, host = tmp_path / "a.jsonl", Echo()
    answer(path, asked[:3], sources[0])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"are about other photos, val/0\.png among them: remove the file, or give"):
        answer(path, asked, sources[1], host)
    assert host.asked == 0 and path.read_bytes() == before
    assert answer(path, asked, sources[0], host) and host.asked == 1


def test_a_repaired_photo_is_asked_about(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(jpeg())
    (tmp_path / "b.jpg").write_bytes(jpeg()[:60])
    asked = [Question(name, f"{name}.jpg", "what?") for name in "bac"] + [Question("d", None, "what?")]
    (tmp_path / "c.jpg").write_bytes(jpeg(9))
    path, photos, host = tmp_path / "out" / "answers.jsonl", SourcePhotos(open_photos(tmp_path)), Echo()
    expected = ["", "8 what?", "9 what?", "0 what?"]
    assert answer(path, asked, photos, host) == expected
    assert answer(path, asked, photos, Echo(fails_after=1)) == expected  # broken still
    (tmp_path / "b.jpg").write_bytes(jpeg(20))
    assert answer(path, asked, photos, host) == ["20 what?", *expected[1:]]
    assert host.asked == 4 and len(path.read_text().splitlines()) == 4
    assert answer(path, asked, photos, Echo(fails_after=0)) == ["20 what?", *expected[1:]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metadata": "x"}, "its fingerprint is '', this run's"),
        ({"metadata": {"max_new_tokens": "many"}}, "its fingerprint is '', this run's"),
        ({"prompt": ["q0 what?"]}, "question 0 is not asked here"),
        ({"text": None}, "Line 1 of .* is not an answer"),
        ({"question_id": None}, "Line 1 of .* is not an answer"),
    ],
)
def test_an_answer_file_that_others_wrote_over_is_refused(
    change: dict[str, Any], words: str, tmp_path: Path, photos: Any, questions: list[Question]
) -> None:
    path = tmp_path / "a.jsonl"
    answer(path, questions[:1], photos)
    row = json.loads(path.read_text()) | change
    with pytest.raises(ValueError, match=words):
        AnswerFile(write_lines(path, [row]), RUN, questions)


# Shards


@pytest.mark.parametrize("count", [1, 3, 4, 12])
def test_joined_shards_are_the_file_of_one_process(count: int, tmp_path: Path, photos: Any, questions: Any) -> None:
    whole, joined = tmp_path / "one" / "a.jsonl", tmp_path / "many" / "a.jsonl"
    expected = answer(whole, questions, photos)
    for number in range(1, count + 1):
        shard = Shard(number, count)
        if shard.of(questions):
            answer(shard.path(joined), shard.of(questions), photos)
    assert merge_shards(joined, questions) is (count > 1)
    assert joined.read_bytes() == whole.read_bytes()
    assert [path.name for path in joined.parent.iterdir()] == ["a.jsonl"]
    assert answer(joined, questions, photos, Echo(fails_after=0)) == expected


def test_shards_that_do_not_make_a_whole_are_refused(tmp_path: Path, photos: Any, questions: list[Question]) -> None:
    path = tmp_path / "a.jsonl"
    parts = [Shard(number, 3) for number in (1, 2, 3)]
    for part in parts[:2]:
        answer(part.path(path), part.of(questions), photos)
    with pytest.raises(ValueError, match=r"2 of 3 shards of .* are there; 3 missing"):
        merge_shards(path, questions)
    answer(parts[2].path(path), parts[2].of(questions)[:1], photos)
    with pytest.raises(ValueError, match="has 1 of 3 answers: finish it first"):
        merge_shards(path, questions)
    rows = [json.loads(line) for line in parts[1].path(path).read_text().splitlines()]
    answer(parts[2].path(path), parts[2].of(questions), photos)
    write_lines(parts[1].path(path), [row | {"model_id": "other"} for row in rows])
    with pytest.raises(ValueError, match="of another run"):
        merge_shards(path, questions)
    assert not path.exists()


def test_shards_that_a_stopped_process_had_joined_are_removed(
    tmp_path: Path, photos: Any, questions: list[Question]
) -> None:
    path, parts = tmp_path / "a.jsonl", [Shard(number, 3) for number in (1, 2, 3)]
    for part in parts:
        answer(part.path(path), part.of(questions), photos)
    left = parts[1].path(path).read_bytes()
    merge_shards(path, questions)
    whole = path.read_bytes()
    parts[1].path(path).write_bytes(left)
    assert merge_shards(path, questions)
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"] and path.read_bytes() == whole
    parts[1].path(path).write_bytes(left.replace(b'"text": "', b'"text": "another '))  # of another run, perhaps
    with pytest.raises(ValueError, match=r"1 of 3 shards of .* are there; 1, 3 missing"):
        merge_shards(path, questions)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_shard_with_a_broken_photo_is_whole(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(jpeg())
    (tmp_path / "b.jpg").write_bytes(jpeg()[:60])
    photos, path = SourcePhotos(open_photos(tmp_path)), tmp_path / "out" / "a.jsonl"
    asked, parts = [Question(name, f"{name}.jpg", "what?") for name in "abc"], [Shard(1, 2), Shard(2, 2)]
    for part in parts[1:]:
        answer(part.path(path), part.of(asked), photos)
    for _ in range(2):
        with pytest.raises(ValueError, match="1 of 2 shards"):
            merge_shards(path, asked)
    answer(parts[0].path(path), parts[0].of(asked)[:1], photos)
    for _ in range(2):
        with pytest.raises(ValueError, match="has 1 of 2 answers"):
            merge_shards(path, asked)
    answer(parts[0].path(path), parts[0].of(asked), photos)
    assert merge_shards(path, asked)
    assert read_answers(path, asked) == ["8 what?", "", "8 what?"]


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"one of 1/N \.\.\. N/N"):
        Shard.parse(text)
    assert Shard.parse("2/8") == Shard(2, 8)


# Answers of other programs


def test_answers_of_other_programs_are_joined_by_id_and_prompt(tmp_path: Path) -> None:
    asked = [
        Question("x", "x.jpg", "What time?\nReference OCR token: A" + SHORT_ANSWER),
        Question("x", "x.jpg", "What brand?\nReference OCR token: A" + SHORT_ANSWER),
    ]
    rows = [
        {"question_id": "x", "prompt": asked[1].text, "text": "nokia"},
        {"question_id": "x", "prompt": "<image>\nWhat time?\nReference OCR token: A", "text": "10:30"},
    ]
    assert read_answers(write_lines(tmp_path / "a.jsonl", rows), asked) == ["10:30", "nokia"]


def test_answers_that_do_not_fit_are_refused(tmp_path: Path, questions: list[Question]) -> None:
    rows = [{"question_id": item.question_id, "prompt": item.text, "text": "a"} for item in questions]
    path = tmp_path / "a.jsonl"
    for changed, words in (
        (rows[:4], "answers 4 of 10 questions; the first that is missing is 4"),
        ([*rows, rows[3]], "11 answers to 10 questions: the question 3 is answered twice"),
        (
            [*rows[:-1], rows[-1] | {"prompt": "something else"}],
            "of another run: it answers 'something else' as question 9",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            read_answers(write_lines(path, changed), questions)


def test_a_null_is_no_answer(tmp_path: Path, questions: list[Question]) -> None:
    rows = [{"question_id": item.question_id, "prompt": item.text, "text": "a"} for item in questions]
    path = write_lines(tmp_path / "a.jsonl", [*rows[:-1], rows[-1] | {"text": None}])
    with pytest.raises(ValueError, match=r"Line 10 of .* is not an answer"):
        read_answers(path, questions)


def test_models_of_answer_files_are_called_as_they_say(tmp_path: Path, photos: Any, questions: Any) -> None:
    paths = [tmp_path / f"{name}.jsonl" for name in ("scenes.reduce-average-4", "scenes.sf49")]
    for path, name in zip(paths, ("reduce:average@4", "sf49"), strict=True):
        ask(Echo(), questions, photos, path=path, model_id=name)  # type: ignore[arg-type]
    assert answer_names(paths, "scenes") == ["reduce:average@4", "sf49"]
    assert run_of(paths[1]) == Run("sf49", RUN.fingerprint, 64, RUN.settings_fingerprint)
    others = [write_lines(tmp_path / f"{name}.jsonl", [{"question_id": 1, "text": "a"}]) for name in ("a", "scenes.b")]
    assert answer_names(others, "scenes") == ["a", "b"]
    assert answer_names([paths[1], paths[1]], "scenes") == [str(tmp_path / "sf49")] * 2


# Questions made from photos


def test_a_photos_side_depends_on_its_name_alone() -> None:
    names = [f"{number:012d}" for number in range(2000)]
    for every in (4, 5):
        sides = [photo_split(name, every) for name in names]
        assert sides.count("test") == pytest.approx(2000 / every, abs=60)
        assert [photo_split(f"some-shard.tar:{name}", every) for name in names] == sides
        assert [photo_split(f"folder/sub/{name}.jpg", every) for name in names] == sides


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    kitchen, street, rare = ["person", "oven", "sink"], ["person", "car", "bus"], ["zebra", "person"]
    metas = []
    for number in range(60):
        labels = [kitchen, street, rare, ["car", "bus"], ["oven"], ["sink", "oven"]][number % 6]
        metas.append({"boxes": [[label, 0, 0, 4, 4] for label in labels]})
    return open_photos(write_shard(tmp_path_factory.mktemp("boxes") / "boxes-000.tar", metas))


@pytest.mark.parametrize("negatives", ["matched", "random", "popular", "adversarial"])
def test_pope_questions_are_balanced_and_true(negatives: Any, boxes: Any) -> None:
    found = pope_questions(boxes, seed=1, negatives=negatives)
    assert Counter(item.answers[0] for item in found).total() == len(found)
    present = {photo.key: {box[0] for box in photo.meta["boxes"]} for photo in (boxes[i] for i in range(len(boxes)))}
    words = defaultdict(list)
    for item in found:
        label = item.text.split("there a", 1)[1].removeprefix("n").split(" in the")[0].strip()
        assert (label in present[item.image]) == (item.answers[0] == "yes")
        words[item.image].append(item.text)
    assert all(len(set(asked)) == len(asked) for asked in words.values())
    counts = Counter(item.answers[0] for item in found)
    assert counts["no"] == pytest.approx(counts["yes"], abs=0.2 * counts["yes"])
    assert pope_questions(boxes, seed=1, negatives=negatives) == found
    assert pope_questions(boxes, seed=2, negatives=negatives) != found


def test_matched_negatives_leave_nothing_to_guess_from_the_name(boxes: Any) -> None:
    answers = defaultdict(Counter)
    for item in pope_questions(boxes):
        answers[item.text][item.answers[0]] += 1
    guessed = sum(max(counter.values()) for counter in answers.values())
    assert guessed == sum(counter.total() for counter in answers.values()) / 2


def test_matched_negatives_are_things_one_would_expect(boxes: Any) -> None:
    absent = [item for seed in range(5) for item in pope_questions(boxes, seed) if item.answers[0] == "no"]
    sinks = [item for item in absent if " sink " in item.text]
    # A quarter of the photos without a sink show cars and buses alone, which never come with one.
    at_the_road = [item for item in sinks if int(item.image.split(":")[1]) % 6 == 3]
    assert len(at_the_road) < 0.15 * len(sinks)
    most = Counter(item.image for item in absent).most_common(1)[0][1]
    assert most <= 5 * 5


def test_pope_negatives_follow_popes_rules(boxes: Any) -> None:
    popular = [item.text for item in pope_questions(boxes, negatives="popular") if item.answers[0] == "no"]
    assert sum("a person" in text for text in popular) == 30  # in every photo without one
    adversarial = pope_questions(boxes, negatives="adversarial")
    lone_oven = [item for item in adversarial if int(item.image.split(":")[1]) % 6 == 4 and item.answers[0] == "no"]
    assert all("a sink" in item.text for item in lone_oven)  # what an oven comes with most


def test_what_is_on_nearly_every_photo_is_asked_for_as_often_as_it_can_be_absent(tmp_path: Path) -> None:
    metas = [
        {"boxes": [[label, 0, 0, 4, 4] for label in labels]}
        for labels in (["person", "car"], ["person"], ["person", "dog"])
    ]
    others = {("car", "yes"): 1, ("car", "no"): 1, ("dog", "yes"): 1, ("dog", "no"): 1}
    found = pope_questions(open_photos(write_shard(tmp_path / "people.tar", metas)))
    assert Counter((item.text.split()[3], item.answers[0]) for item in found) == others
    found = pope_questions(open_photos(write_shard(tmp_path / "and-a-boat.tar", [*metas, {"boxes": [["boat"]]}])))
    once = {("person", "yes"): 1, ("person", "no"): 1, ("boat", "yes"): 1, ("boat", "no"): 1}
    assert Counter((item.text.split()[3], item.answers[0]) for item in found) == others | once
    with pytest.raises(ValueError, match=r"people-0\.tar show the same objects: there is nothing to ask for"):
        pope_questions(open_photos(write_shard(tmp_path / "people-0.tar", metas[1:2])))


def test_the_sides_of_a_split_share_no_photo(boxes: Any) -> None:
    sides = [{item.image for item in pope_questions(boxes, split=side)} for side in ("train", "test")]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 60
    with pytest.raises(ValueError, match="have no boxes"):
        pope_questions(open_photos("scenes:2"))


def captioned(folder: Path, *captions: list[str]) -> Any:
    return open_photos(write_shard(folder / "captioned-000.tar", [{"captions": list(texts)} for texts in captions]))


def test_pope_asks_for_what_two_captions_name_and_for_what_none_does(tmp_path: Path) -> None:
    photos = captioned(
        tmp_path,
        ["A puppy runs .", "Two Dogs", "a cat sleeps on a bed"],
        ["A lady on a bike", "a woman cycling", "the people and their dog"],
        ["Trees", "the bicycle", "bicycles"],
        ["nothing to see", "grass"],
    )
    asked = [item for seed in range(8) for item in pope_caption_questions(photos, seed)]
    found = {(item.image.split(":")[-1][-1], item.text.split()[3], item.answers[0]) for item in asked}
    assert found == {
        ("0", "dog", "yes"), ("1", "person", "yes"), ("2", "bicycle", "yes"),
        ("0", "person", "no"), ("2", "person", "no"), ("0", "bicycle", "no"), ("2", "dog", "no"),
    }  # fmt: skip
    assert {item.category for item in asked} == {"matched"}
    for negatives in ("random", "popular", "adversarial"):
        no = {
            (item.image.split(":")[-1][-1], item.text.split()[3])
            for seed in range(8)
            for item in pope_caption_questions(photos, seed, "all", negatives)
            if item.answers == ("no",)
        }
        assert no <= {("0", "person"), ("0", "bicycle"), ("2", "dog"), ("2", "person")}
        assert {photo for photo, _ in no} == {"0", "2"}


def test_an_object_is_shown_by_its_own_words_alone() -> None:
    captions = ["A hot dog and oranges .", "An orange truck", "tie-dyed buses, a wine glass; sunglasses", ""]
    assert times_shown(captions) == {"hot dog": 1, "orange": 1, "truck": 1, "bus": 1, "wine glass": 1}
    assert times_shown(["a tree", "trees"], ("tree", "rock")) == {"tree": 2}
    assert times_shown(["a puppy", "Dogs and dogs"]) == {"dog": 2}
    assert times_shown(["a surfer in the surf", "an ice-skater"]) == {"person": 2, "surfboard": 1}


def test_words_of_two_meanings_show_nothing_and_exclude_nothing() -> None:
    assert times_shown(["a bike", "two dirt bikes", "a mountain bike"]) == {"motorcycle": 1, "bicycle": 1}
    assert objects_possible(["a bike"]) == {"bicycle", "motorcycle"}
    assert objects_possible(["two dirt bikes"]) == {"motorcycle"}
    assert objects_possible(["an orange plane"]) == {"orange", "airplane"}
    assert objects_possible(["a pup", "a hot dog"], ("dog", "cat", "tree")) == {"dog"}


def test_captions_that_agree_on_nothing_are_no_questions(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"captioned-000\.tar have no two captions that show the same object"):
        pope_caption_questions(captioned(tmp_path, ["a dog", "a cat"]))
    with pytest.raises(ValueError, match="no two captions"):
        pope_caption_questions(open_photos("scenes:2"))


def test_daquar_questions_read_well(tmp_path: Path) -> None:
    qa = [
        ["how many chairs are in the image3", "2"],
        ["what is the colour of the image3 ?", "red, white"],
        ["what is it", "garbage_bin"],
    ]
    found = daquar_questions(open_photos(write_shard(tmp_path / "d.tar", [{"qa": qa}])))
    assert [item.text for item in found] == [
        "How many chairs are in the image?" + SHORT_ANSWER,
        "What is the colour of the image?" + SHORT_ANSWER,
        "What is it?" + SHORT_ANSWER,
    ]
    assert [item.category for item in found] == ["number", "color", "object"]
    assert found[2].answers == ("garbage bin",)


def test_caption_and_scene_questions_carry_what_the_source_says(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "c.tar", [{"captions": ["a", "b"]}, {"captions": []}, {}])
    (captioned,) = caption_questions(open_photos(shard))
    assert captioned.answers == ("a", "b")
    found = scene_questions(open_photos("scenes:3:7"))
    expected = [item for index in range(3) for item in render_scene(7, index).questions]
    assert [(item.text, item.answers, item.category) for item in found] == [
        (item.question + SHORT_ANSWER, (item.answer,), item.kind) for item in expected
    ]
    with pytest.raises(ValueError, match="come in files"):
        made_questions("gqa", open_photos("scenes:1"))
    with pytest.raises(ValueError, match=r"There are no questions in .*c\.tar"):
        made_questions(
            "captions", open_photos(shard), split="train" if photo_split("000000000000") == "test" else "test"
        )


# Numbers and the command


def test_every_rule_is_told_beside_its_number() -> None:
    assert {rule for benchmark in BENCHMARKS.values() for rule in benchmark.rules} == set(RULES)
    question = Question(1, "a", "?", ("yes",) * 10)
    row = result_row("vqav2", "m", "m", measure("vqav2", [question], ["Yes."]))
    other = result_row("vqav2", "m", "m", measure("vqav2", [question], ["Yes."], "m4c"), rule="m4c")
    assert (row["metrics"]["accuracy"], other["metrics"]["accuracy"]) == (0, 1)
    assert "VQAEval" in row["rule"] and "EvalAI" in other["rule"]
    with pytest.raises(ValueError, match="judged by official or m4c, not by 'gqa'"):
        rule_of("vqav2", "gqa")


def test_a_limit_is_spread_evenly() -> None:
    asked = [Question(number, "a.jpg", "?", ("yes",)) for number in range(100)]
    assert [item.question_id for item in limited("pope", asked, 4)] == [0, 25, 50, 75]
    assert limited("pope", asked, None) == limited("pope", asked, 1000) == asked
    for limit in (0, -3):
        with pytest.raises(ValueError, match=f"--limit is {limit}; it must be at least 1"):
            limited("pope", asked, limit)


@pytest.mark.parametrize("limit", [4, 5, 9, 30, 39])
def test_a_limit_keeps_all_rotations_of_a_question(limit: int, tmp_path: Path) -> None:
    names = "ABCD"
    rows = []
    for number in range(10):
        options = ["w", "x", "y", "z"] if number % 3 else ["w", "x", "", ""]
        rows.append([str(number), f"q{number}?", "", *options, names[number % 2], "l", "0"])
    asked = questions_of("mmbench", [mm_bench_table(tmp_path / "m.tsv", rows)])
    assert len(asked) == 6 * 4 + 4 * 2
    few = limited("mmbench", asked, limit)
    chosen = {item.question_id for item in few}
    assert 0 < len(few) <= limit and few == [item for item in asked if item.question_id in chosen]
    assert measure("mmbench", few, ["A"] * len(few)).value == 0  # who always says A is never right in all of them


def test_a_limit_keeps_rotations_that_stand_apart_in_the_file(tmp_path: Path) -> None:
    rows = [
        [str(1_000_000 * turn + number), f"q{number}?", "", *"xyxy"[turn : turn + 2], "", "", "AB"[turn], "l", "0"]
        for turn in range(2)
        for number in range(10)
    ]
    asked = questions_of("mmbench", [mm_bench_table(tmp_path / "m.tsv", rows)])
    assert [item.question_id for item in limited("mmbench", asked, 4)] == [0, 5, 1000000, 1000005]


def test_a_limit_keeps_both_questions_about_a_photo_of_mme() -> None:
    asked = [
        Question(f"color/{number}", f"color/{number}", f"{right}?", (right,), "color")
        for number in range(9)
        for right in ("yes", "no")
    ]
    few = limited("mme", asked, 7)
    assert len(few) == 6 and measure("mme", few, [item.answers[0] for item in few]).value == 200
    with pytest.raises(ValueError, match="--limit is 1; it must be at least 2, as many questions as count together"):
        limited("mme", asked, 1)


def test_two_models_are_compared_on_the_same_questions() -> None:
    asked = [Question(number, str(number), "?", ("yes",)) for number in range(40)]
    first = measure("pope", asked, ["yes"] * 36 + ["no"] * 4)
    second = measure("pope", asked, ["yes"] * 30 + ["no"] * 10)
    metrics = result_row("pope", "m", "m", second, comparison=compare(first, second))["metrics"]
    assert metrics["difference"] == pytest.approx(-0.15) and metrics["retained"] == pytest.approx(30 / 36)
    assert metrics["worse"] == 6 and metrics["better"] == 0
    assert metrics["difference_low"] < -0.15 < metrics["difference_high"] < 0


def test_mmes_intervals_draw_photos_within_categories() -> None:
    asked = [
        Question(f"{category}/{number}", f"{category}/{number}", "?", (right,), category)
        for category, count in (("existence", 2), ("OCR", 8))
        for number in range(count)
        for right in ("yes", "no")
    ]
    good = measure("mme", asked, [item.answers[0] for item in asked])
    metrics = result_row("mme", "m", "m", good)["metrics"]
    assert metrics["points_low"] == metrics["points"] == metrics["points_high"] == 400
    reader = measure("mme", asked, [item.answers[0] if item.category == "OCR" else "perhaps" for item in asked])
    metrics = result_row("mme", "m", "m", reader, comparison=compare(good, reader))["metrics"]
    assert metrics["difference_low"] == metrics["difference"] == metrics["difference_high"] == -200
    assert metrics["retained_low"] == metrics["retained"] == metrics["retained_high"] == 0.5


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [str(tiny_llava(tmp_path_factory.mktemp(f"host{seed}"), seed)) for seed in (0, 1)]


def test_the_command_measures_hosts_and_continues(hosts: list[str], tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "results.json"
    options = ["--benchmark", "scenes", "--photos", "scenes:3:5", "--out", str(out), "--device", "cpu", "--limit", "9"]
    models = ["--model", *hosts]
    for number in ("1/2", "2/2"):
        run(vqa_command, VqaCommand, [*options, *models, "--shard", number])
    assert not out.exists()
    run(vqa_command, VqaCommand, [*options, *models])
    printed = capsys.readouterr().out
    assert "Joined the shards" in printed and "9 questions, 3 photos; the answer's very words" in printed
    content = json.loads(out.read_text())
    first, second = content["results"]
    assert first["metrics"]["tokens"] == 16 and "difference" not in first["metrics"]
    assert {"accuracy", "accuracy_low", "difference", "difference_high"} <= set(second["metrics"])
    assert set(first) == {"dataset", "model", "pretrained", "task", "metrics", "language", "rule"}
    files = sorted((tmp_path / "results" / "answers").iterdir())
    assert len(files) == 2

    scored = tmp_path / "scored.json"
    again = ["--benchmark", "scenes", "--photos", "scenes:3:5", "--limit", "9", "--out", str(scored)]
    run(vqa_command, VqaCommand, [*again, "--answers", *map(str, files)])
    metrics = [row["metrics"]["accuracy"] for row in json.loads(scored.read_text())["results"]]
    assert sorted(metrics) == sorted(row["metrics"]["accuracy"] for row in content["results"])


def test_a_host_is_opened_once_and_measured_with_other_towers_in_its_place(
    hosts: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    opened: list[Any] = []

    def open_alone(*arguments: Any, **options: Any) -> Any:
        gc.collect()
        assert all(model() is None for model in opened)  # one in memory at a time
        host = open_host(*arguments, **options)
        opened.append(weakref.ref(host.model))
        return host

    monkeypatch.setattr("sfvlm.commands.vqa.open_host", open_alone)
    tower = tmp_path / "sf"
    tiny_tower().save_pretrained(tower)
    out = tmp_path / "results.json"
    options = ["--benchmark", "scenes", "--photos", "scenes:2:5", "--limit", "4", "--device", "cpu", "--out", str(out)]
    towers = [str(tower), f"{tower}@4", "reduce:average@4", "reduce:stride@16"]
    run(vqa_command, VqaCommand, [*options, "--model", *hosts, "--tower", *towers])
    rows = json.loads(out.read_text())["results"]
    asked = [hosts[0], *(f"{hosts[0]} with {tower}" for tower in towers), hosts[1]]
    assert [row["pretrained"] for row in rows] == asked and len(opened) == len(hosts)
    assert [row["metrics"]["tokens"] for row in rows] == [16, 49, 4, 4, 16, 16]
    files = list((tmp_path / "results" / "answers").iterdir())
    assert len(files) == len(asked)
    answers = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    texts = {row["model"]: [each["text"] for each in answers if each["model_id"] == row["model"]] for row in rows}
    assert texts[hosts[0]] == texts["reduce:stride@16"]  # every token of the dense tower is the dense tower


def test_a_tower_that_does_not_fit_is_refused_before_anything_is_asked(
    hosts: list[str], capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("sfvlm.commands.vqa.ask", lambda *_, **__: pytest.fail("a host was asked"))
    options = [*"--benchmark scenes --photos scenes:1:5 --limit 1 --device cpu --model".split(), hosts[0]]
    for more, words in (
        (["--tower", "reduce:stride@4", "reduce:average@5"], "gives a square grid of tokens, and 5 is no square"),
        (["--tower", "reduce:stride@4", "reduce:stride@4"], "reduce:stride@4 is given 2 times: once is enough"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0; it must be at least 1"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(vqa_command, VqaCommand, [*options, *more])
        assert stopped.value.code == 2 and words in capsys.readouterr().err


def write_mme(folder: Path) -> Path:
    (folder / "tool").mkdir()
    (folder / "tool" / "color.txt").write_text("1.jpg\tIs it red?\tYes\n2.jpg\tIs it red?\tYes\n2.jpg\tIs it?\tNo")
    return folder / "tool"


def test_what_cannot_be_measured_is_refused_before_anything_is_asked(
    hosts: list[str], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("sfvlm.commands.vqa.open_host", lambda *_, **__: pytest.fail("a host was opened"))
    for name in ("color/1.jpg", "color/2.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(jpeg())
    row = {"question_id": "x", "image": "color/1.jpg", "text": "?", "answers": ["a"] * 3}
    chosen = row | {"answers": ["A"], "options": ["x", "y"]}
    for benchmark, questions, words in (
        ("mme", write_mme(tmp_path), "two questions a photo; there are 1 about color/1.jpg"),
        ("textvqa", write_lines(tmp_path / "text.jsonl", [row]), "10 answers, not for 3"),
        ("mmbench", write_lines(tmp_path / "mm.jsonl", [chosen]), "MMBench numbers its questions; 'x' is no number."),
    ):
        options = ["--benchmark", benchmark, "--questions", str(questions), "--photos", str(tmp_path / "photos")]
        for shard in ([], ["--shard", "1/2"]):
            with pytest.raises(SystemExit) as stopped:
                run(vqa_command, VqaCommand, [*options, *shard, "--model", hosts[0], "--out", str(tmp_path / "o.json")])
            assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_results_of_hosts_and_of_their_answers_are_of_the_same_models(
    hosts: list[str], tmp_path: Path, capsys: Any
) -> None:
    asked, scored = tmp_path / "asked.json", tmp_path / "scored.json"
    options = ["--benchmark", "scenes", "--photos", "scenes:2:5", "--limit", "4", "--device", "cpu"]
    run(vqa_command, VqaCommand, [*options, "--model", hosts[0], "--tower", "reduce:average@4", "--out", str(asked)])
    files = sorted((tmp_path / "asked" / "answers").iterdir())
    run(vqa_command, VqaCommand, [*options, "--answers", *map(str, files), "--out", str(scored)])
    first, second = (read_scores(path) for path in (asked, scored))
    assert list(first.models) == list(second.models) == ["llava", "reduce:average@4"]
    assert first.fingerprints == second.fingerprints
    facts = {
        name: json.loads(path.read_text().splitlines()[0])["metadata"]
        for name, path in zip(first.models, files, strict=True)
    }
    assert first.fingerprints == {
        name: {kind: its[kind] for kind in ("fingerprint", "settings_fingerprint")} for name, its in facts.items()
    }


def test_ctrl_c_says_how_to_continue(hosts: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("sfvlm.hosts.host.Host.answer", Echo(fails_after=0).answer)
    options = [
        "--benchmark",
        "scenes",
        "--photos",
        "scenes:1:5",
        "--model",
        hosts[0],
        "--out",
        str(tmp_path / "o.json"),
    ]
    with pytest.raises(SystemExit) as stopped:
        run(vqa_command, VqaCommand, options)
    assert stopped.value.code == 130
    assert "Interrupted; the same command continues." in capsys.readouterr().err


def test_questions_without_public_answers_are_only_asked(hosts: list[str], tmp_path: Path, capsys: Any) -> None:
    asked = write_lines(tmp_path / "q.jsonl", [{"question_id": 1, "image": "b.jpg", "text": "What?"}])
    (tmp_path / "b.jpg").write_bytes(jpeg())
    options = ["--benchmark", "vqav2", "--questions", str(asked), "--photos", str(tmp_path), "--max-new-tokens", "2"]
    run(vqa_command, VqaCommand, [*options, "--model", hosts[0], "--only-ask", "--out", str(tmp_path / "o.json")])
    assert not (tmp_path / "o.json").exists()
    (path,) = (tmp_path / "o" / "answers").iterdir()
    assert json.loads(path.read_text())["question_id"] == 1


def test_photos_that_are_assumed_or_cannot_be_shown_are_said(hosts: list[str], tmp_path: Path, capsys: Any) -> None:
    rows = [{"question_id": name, "image": f"coco/{name}.png", "text": "What?", "answers": ["x"] * 10} for name in "ab"]
    asked = write_lines(tmp_path / "q.jsonl", rows)
    (tmp_path / "my photos").mkdir()
    for name, size in (("a", (8, 8)), ("b", (3000, 2))):
        Image.new("RGB", size).save(tmp_path / "my photos" / f"{name}.png")
    options = [
        "--benchmark",
        "vqav2",
        "--questions",
        str(asked),
        "--photos",
        str(tmp_path / "my photos"),
        "--device",
        "cpu",
    ]
    run(vqa_command, VqaCommand, [*options, "--max-new-tokens", "2", "--model", hosts[0]])
    printed = capsys.readouterr().out
    assert "2 photos lie in none of the folders that their names speak of: coco/" in printed
    assert "1 photos could not be shown to llava, so that no question about them is answered" in printed
    assert "my photos/b.png: it has 3000 x 2 pixels" in printed


def test_bad_input_ends_with_one_sentence_and_exit_code_2(hosts: list[str], tmp_path: Path, capsys: Any) -> None:
    good = write_lines(tmp_path / "q.jsonl", [{"question_id": 1, "image": "a.jpg", "text": "?", "label": "no"}])
    other = write_lines(tmp_path / "other.jsonl", [{"question_id": 2, "prompt": "?", "text": "yes"}])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "b.jpg").write_bytes(jpeg())
    out = tmp_path / "out.json"
    pope = ["--benchmark", "pope", "--questions", str(good)]
    for arguments, words in (
        ([*pope, "--model", hosts[0], "--photos", str(tmp_path / "photos")], "1 of 1 questions are about photos"),
        ([*pope, "--model", hosts[0]], "The photos of pope are missing"),
        (["--benchmark", "scenes", "--model", hosts[0], str(tmp_path), "--photos", "scenes:1"], "is no host"),
        (["--benchmark", "nothing", "--model", hosts[0]], "There is no benchmark 'nothing'"),
        ([*pope], "Give --model for hosts"),
        ([*pope, "--model", hosts[0], "--shard", "9/8"], "--shard is '9/8'"),
        ([*pope, "--model", hosts[0], "--batch-size", "0"], "--batch-size is 0; it must be at least 1."),
        ([*pope, "--model", hosts[0], "--device", "gpu"], "The device 'gpu' cannot be used"),
        (["--benchmark", "gqa", "--model", hosts[0]], "The questions of gqa come in files: give --questions."),
        ([*pope, "--answers", str(other), "--tower", "sf"], "give the host by --model"),
        (["--benchmark", "scenes", "--model", hosts[0], "--tower", "reduce:magic@4"], "There is no method 'magic'"),
        (["--benchmark", "scenes", "--model", hosts[0], "--tower", "reduce:average"], "as in reduce:average@49"),
        (["--benchmark", "scenes", "--model", hosts[0], "--tower", "sf@many"], "asks for 'many' tokens"),
        (["--benchmark", "gqa", "--rule", "m4c", "--model", hosts[0]], "judged by gqa"),
        ([*pope, "--answers", str(other)], "answers 0 of 1 questions"),
        ([*pope, "--answers", str(other), "--limit", "0"], "--limit is 0; it must be at least 1"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(vqa_command, VqaCommand, [*arguments, "--out", str(out)])
        error = capsys.readouterr().err
        assert stopped.value.code == 2
        assert words in error and error.splitlines()[-1].startswith("error: ")
        assert not out.exists() and not out.with_suffix("").exists()


def test_photos_that_cannot_be_read_have_no_questions_and_are_counted(tmp_path: Path) -> None:
    members = {
        "a.jpg": jpeg(),
        "a.txt": b"a dog",
        "b.jpg": jpeg()[:60],
        "b.txt": b"a cat",
        "c.jpg": jpeg(),
        "c.json": b"{",
    }
    problems: dict[str, str] = {}
    photos = open_photos(write_tar(tmp_path / "a.tar", members))
    assert [item.image for item in made_questions("captions", photos, problems)] == ["a.tar:a"]
    assert [*problems] == ["a.tar:b", "a.tar:c"] and "its .json is no JSON" in problems["a.tar:c"]


@pytest.mark.parametrize(
    ("benchmark", "field", "value"),
    [
        ("pope-like", "boxes", [[12.0, 3.0, 40.0, 20.0]]),
        ("pope-like", "boxes", [{"label": "dog"}]),
        ("daquar", "qa", [["what?", "chair", "brown"]]),
        ("daquar", "qa", {"question": ["what?"], "answer": ["chair"]}),
        ("scenes", "questions", ["what?"]),
    ],
)
def test_fields_of_another_form_are_refused_and_not_asked_about(
    benchmark: str, field: str, value: Any, tmp_path: Path
) -> None:
    photos = open_photos(
        write_tar(tmp_path / "a.tar", {"a.jpg": jpeg(), "a.json": json.dumps({field: value}).encode()})
    )
    with pytest.raises(ValueError, match=rf"The photo a\.tar:a has '{field}' of another form: .* is no "):
        made_questions(benchmark, photos)
