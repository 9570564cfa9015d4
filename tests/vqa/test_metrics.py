"""The benchmarks' numbers, against the official evaluators.

The golden numbers were printed by VQAEval (github.com/GT-Vision-Lab/VQA @ a013f00, two print statements made calls),
LLaVA's m4c_evaluator and eval_science_qa (@ c121f04), POPE's evaluate.py (@ 08d957b), GQA's eval.py and pycocoevalcap 1.2
with its Java tokenizer, on the very questions and answers built here. Tests marked `reference` run again what package indexes
have: m4c_evaluator and eval_pope (by POPE's rules) of the installed llava package, and pycocoevalcap. VQAEval is on none: the
environment variable VQA_EVAL names its file.
"""

import importlib.util
import json
import os
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from sfvlm.photos.scenes import render_scene
from sfvlm.util.statistics import mean_interval, paired_comparison
from sfvlm.vqa.captions import caption_words, cider_d
from sfvlm.vqa.formats import ROTATION_STEP
from sfvlm.vqa.metrics import (
    best_constant,
    caption_score,
    daquar_score,
    exact_score,
    gqa_is_right,
    m4c_vqa_accuracy,
    mm_bench_score,
    mme_score,
    official_vqa_accuracy,
    pope_score,
    scene_is_right,
    science_qa_is_right,
    vqa_score,
)
from sfvlm.vqa.questions import LETTERS, Question
from sfvlm.vqa.text import (
    m4c_normalize,
    mme_answer,
    official_normalize,
    option_letter,
    scene_match,
    science_qa_letter,
)

OFFICIAL_VQA = {
    "accuracy": 59.67,
    "accuracy/yes/no": 58.0,
    "accuracy/number": 57.0,
    "accuracy/other": 64.0,
    "accuracy/type:is the": 58.0,
    "accuracy/type:how many": 57.0,
    "accuracy/type:what": 64.0,
}
M4C_ACCURACY = 0.6466666666666667
POPE = {
    "accuracy": 0.475,
    "precision": 0.6,
    "recall": 0.5769230769230769,
    "f1": 0.5882352941176471,
    "yes_rate": 0.625,
}
GQA = {"accuracy": 60.0, "accuracy/binary": 66.67, "accuracy/open": 50.0}
CIDER_D = [3.3557226647517497, 0.8860954504629088, 2.771977660882312, 0.0, 2.2170577351086824]

WORDS = ("yes", "Yes.", "no", "two", "2", "a cat", "the cat", "black/white", "dont know", "1,000", "it's red", "U.S.A.")
TYPES = (("yes/no", "is the"), ("number", "how many"), ("other", "what"))


def mixed_vqa() -> list[Question]:
    """Sixty questions with ten answers each, some unanimous, most not."""
    questions = []
    for number in range(60):
        first = WORDS[number * 5 % len(WORDS)]
        others = [WORDS[(number * 7 + place * place) % len(WORDS)] for place in range(10)]
        agreeing = number % 11
        answers = tuple(first if place < agreeing else others[place] for place in range(10))
        kind, question_type = TYPES[number % 3]
        questions.append(Question(number, f"{number // 2}.jpg", "?", answers, kind, question_type=question_type))
    return questions


def mixed_texts(questions: Sequence[Question]) -> list[str]:
    """Right, wrong, and written otherwise."""
    said = [item.answers[number % 10] for number, item in enumerate(questions)]
    forms: tuple[Callable[[str], str], ...] = (str, str.upper, lambda text: f"{text}.", lambda text: f"the {text}\n")
    return [forms[number % 4](text) if number % 7 else "nothing" for number, text in enumerate(said)]


NORMALIZED = [
    ("Yes.", "yes", "yes"),
    ("a cat", "cat", "cat"),
    ("The Dog's house", "dog's house", "dog 's house"),
    ("two", "2", "2"),
    ("dont know", "don't know", "don't know"),
    ("1,000 dollars", "1000 dollars", "1000 dollars"),
    ("3.5", "3.5", "3.5"),
    ("U.S.A.", "usa", "usa"),
    ("it's red", "it's red", "it 's red"),
    ("black/white", "black white", "black white"),
    ("t-shirt", "t shirt", "t shirt"),
    ("10:30 am", "10:30 am", "10:30 am"),
    ("none", "0", "0"),
    ("none of the above", "0 of above", "0 of above"),
    ("A", "", ""),
    ('"stop"', "stop", "stop"),
    ("no, thanks", "no thanks", "no thanks"),
    ("$5", "$5", "$5"),
    ("100%", "100%", "100%"),
    ("he's", "he's", "he 's"),
    ("oclock", "o'clock", "o'clock"),
    ("e.g. x", "eg x", "eg x"),
    ("left-hand side", "left hand side", "left hand side"),
    ("wi-fi.", "wi fi", "wi fi"),
    ("somebody'd", "somebodyd", "somebodyd"),
    ("couldn'tve", "couldn't've", "couldn't've"),
    ("he'll", "he'll", "he'll"),
    ("a.b." * 20, "ab" * 16 + "a.b." * 4, "ab" * 16 + "a.b." * 4),  # a slip of theirs: 32 periods go at most
]


@pytest.mark.parametrize(("text", "official", "m4c"), NORMALIZED)
def test_normalisers_say_what_the_official_ones_say(text: str, official: str, m4c: str) -> None:
    assert official_normalize(text) == official
    assert m4c_normalize(text) == m4c


@pytest.mark.parametrize(("matching", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_vqa_accuracy_leaves_each_person_out(matching: int, accuracy: float) -> None:
    answers = ["dog"] * matching + [f"other {place}" for place in range(10 - matching)]
    assert official_vqa_accuracy("dog", answers) == pytest.approx(accuracy)
    assert m4c_vqa_accuracy("Dog.", answers) == pytest.approx(accuracy)


def test_official_accuracy_compares_unanimous_answers_as_they_are() -> None:
    assert official_vqa_accuracy("Yes.", ["yes"] * 10) == 0
    assert official_vqa_accuracy("yes", ["yes"] * 10) == 1
    assert official_vqa_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1
    assert m4c_vqa_accuracy("Yes.", ["yes"] * 10) == 1


def test_m4c_accuracy_refuses_another_number_of_answers() -> None:
    with pytest.raises(ValueError, match="10 answers, not for 3"):
        m4c_vqa_accuracy("yes", ["yes"] * 3)
    with pytest.raises(ValueError, match="at least 4 people answered, mostly 10, and there are 3"):
        official_vqa_accuracy("yes", ["yes"] * 3)


def test_right_answers_that_are_neither_yes_nor_no_are_refused() -> None:
    for label in ("No", "False"):
        with pytest.raises(ValueError, match=f"The right answer to question 1 is '{label}'; it is yes or no"):
            pope_score([Question("1", "a.jpg", "Is there a dog?", (label,))], ["No"])


def test_vqa_scores_are_those_of_the_official_evaluators() -> None:
    questions = mixed_vqa()
    official = vqa_score(official_vqa_accuracy)(questions, mixed_texts(questions)).numbers
    assert {name: round(100 * value, 2) for name, value in official.items()} == OFFICIAL_VQA
    m4c = vqa_score(m4c_vqa_accuracy)(questions, mixed_texts(questions)).numbers
    assert m4c["accuracy"] == pytest.approx(M4C_ACCURACY, abs=1e-12)


@pytest.mark.network  # GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py, is on no package index
def test_vqa_scores_equal_vqa_eval_run_again() -> None:
    numbers = run_vqa_eval(Path(needed("VQA_EVAL")))
    assert numbers == OFFICIAL_VQA


@pytest.mark.reference
def test_m4c_accuracy_equals_llavas_evaluator_run_again() -> None:
    assert run_m4c(of_llava("m4c_evaluator.py")) == pytest.approx(M4C_ACCURACY, abs=1e-12)


def run_vqa_eval(path: Path) -> dict[str, float]:
    """What vqaEval.py says of the mixed questions."""
    source = path.read_text().replace('print "computing accuracy"', "").replace('print "Done computing accuracy"', "")
    module = types.ModuleType("vqaEval")
    exec(compile(source, str(path), "exec"), module.__dict__)
    questions = mixed_vqa()
    known = {
        item.question_id: {
            "answers": [{"answer": answer, "answer_id": place} for place, answer in enumerate(item.answers)],
            "question_type": item.question_type,
            "answer_type": item.category,
        }
        for item in questions
    }
    given = {item.question_id: {"answer": text} for item, text in zip(questions, mixed_texts(questions), strict=True)}
    evaluator = module.VQAEval(
        types.SimpleNamespace(qa=known, getQuesIds=lambda: list(known)), types.SimpleNamespace(qa=given)
    )
    evaluator.updateProgress = lambda progress: None
    evaluator.evaluate()
    found = evaluator.accuracy
    return {
        "accuracy": found["overall"],
        **{f"accuracy/{name}": value for name, value in found["perAnswerType"].items()},
        **{f"accuracy/type:{name}": value for name, value in found["perQuestionType"].items()},
    }


def module_at(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_m4c(path: Path) -> float:
    questions = mixed_vqa()
    pairs = zip(questions, mixed_texts(questions), strict=True)
    entries = [{"pred_answer": text, "gt_answers": list(item.answers)} for item, text in pairs]
    return module_at(path).TextVQAAccuracyEvaluator().eval_pred_list(entries)


def needed(name: str) -> str:
    """The file that an environment variable names, or no test."""
    path = os.environ.get(name)
    if path is None:
        pytest.skip(f"{name} does not name the official evaluator's file")
    return path


def of_llava(name: str) -> Path:
    """A file of the llava package's evaluation, which runs without the rest of the package."""
    spec = importlib.util.find_spec("llava")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("could not import 'llava'")
    return Path(spec.submodule_search_locations[0]) / "eval" / name


POPE_TEXTS = (
    "Yes",
    "No",
    "no, there is none",
    "There is not a dog. Yes.",
    "Yes, there is no doubt",
    "Yes. No dog",
    "NO",
    "Not here",
    "I see",
    "nothing",
    "",
)


def pope_file() -> tuple[list[Question], list[str]]:
    labels = ["yes" if number % 3 else "no" for number in range(40)]
    questions = [Question(number, "a.jpg", f"{number}?", (label,)) for number, label in enumerate(labels)]
    return questions, [POPE_TEXTS[number * 3 % len(POPE_TEXTS)] for number in range(40)]


def test_pope_numbers_are_those_of_its_evaluator() -> None:
    numbers = pope_score(*pope_file()).numbers
    assert {name: numbers[name] for name in POPE} == pytest.approx(POPE, abs=1e-12)


@pytest.mark.reference
def test_pope_numbers_equal_its_evaluator_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_pope(of_llava("eval_pope.py"), tmp_path, capsys) == pytest.approx(POPE, abs=1e-12)


def run_pope(path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    questions, texts = pope_file()
    labels = folder / "labels.json"
    labels.write_text("".join(json.dumps({"label": item.answers[0]}) + "\n" for item in questions))
    module_at(path).eval_pope([{"text": text} for text in texts], labels)
    printed = dict(line.split(": ") for line in capsys.readouterr().out.splitlines() if ": " in line)
    names = ("accuracy", "precision", "recall", "f1", "yes_rate")
    titles = ("Accuracy", "Precision", "Recall", "F1 score", "Yes ratio")
    return {name: float(printed[title]) for name, title in zip(names, titles, strict=True)}


def test_pope_without_a_yes_divides_by_nothing() -> None:
    numbers = pope_score([Question(1, "a.jpg", "?", ("yes",))], ["no"]).numbers
    assert numbers["precision"] == numbers["f1"] == 0


def test_pope_headline_of_llava_is_the_mean_f1_of_the_categories() -> None:
    questions = [
        Question(number, "a.jpg", "?", (label,), category)
        for number, (label, category) in enumerate([("yes", "random"), ("no", "random"), ("yes", "popular")])
    ]
    numbers = pope_score(questions, ["Yes", "Yes", "No"]).numbers
    assert numbers["f1/random"] == pytest.approx(2 / 3)
    assert numbers["f1/popular"] == 0
    assert numbers["mean_f1"] == pytest.approx(1 / 3)


def gqa_file() -> tuple[list[Question], list[str]]:
    answers = ("yes", "no", "left", "table", "light blue")
    texts = ("Yes", "no.", "Left.", "the table", "light blue", "no", "No", "LEFT ", "Table", "light  blue")
    questions = [
        Question(str(number), "1.jpg", "?", (answers[number % 5],), "open" if number % 5 > 2 else "binary")
        for number in range(40)
    ]
    return questions, [texts[number % 10] for number in range(40)]


def test_gqa_accuracy_is_that_of_its_evaluator() -> None:
    numbers = exact_score(gqa_is_right)(*gqa_file()).numbers
    assert {name: round(100 * value, 2) for name, value in numbers.items()} == GQA


def test_gqa_compares_as_llava_submits() -> None:
    assert gqa_is_right(Question(1, None, "?", ("left",)), "Left..")
    assert not gqa_is_right(Question(1, None, "?", ("left",)), "left .")


@pytest.mark.parametrize(
    ("text", "choices", "letter"),
    [
        ("B", 3, "B"),
        ("B. a dog", 3, "B"),
        ("B.", 3, None),
        ("b", 3, None),
        ("The answer is C.", 3, "C"),
        ("The answer is C. The answer is D.", 4, None),
        ("D", 3, None),
        ("", 3, None),
        ("It is B", 3, None),
    ],
)
def test_science_qa_letters_are_those_of_llavas_evaluator(text: str, choices: int, letter: str | None) -> None:
    assert science_qa_letter(text, choices) == letter


def test_science_qa_counts_an_unreadable_letter_as_wrong() -> None:
    question = Question("7", None, "?", ("B",), "text", ("x", "y"))
    assert science_qa_is_right(question, "B. y")
    assert not science_qa_is_right(question, "y")


@pytest.mark.parametrize(
    ("text", "answer"),
    [("Yes", "yes"), ("no.", "no"), (" Yes, it is", "yes"), ("It is", "other"), ("now", "no"), ("I say yes", "other")],
)
def test_mme_reads_the_first_four_letters(text: str, answer: str) -> None:
    assert mme_answer(text) == answer


def test_mme_points_are_accuracy_and_accuracy_of_photos_for_each_category() -> None:
    photos = [("existence", "existence/1"), ("existence", "existence/2"), ("code_reasoning", "code_reasoning/1")]
    questions = [
        Question(image, image, f"{answer}?", (answer,), category)
        for category, image in photos
        for answer in ("yes", "no")
    ]
    texts = ["Yes", "No", "Yes", "Yes", "Yes", "No"]
    score = mme_score(questions, texts)
    # existence: 3 of 4 right, 1 of 2 photos; code reasoning: all right.
    assert score.numbers["points/existence"] == 75 + 50
    assert score.numbers["cognition"] == 200
    assert score.value == score.numbers["perception"] + 200 == 325
    assert np.mean(score.units) == pytest.approx(score.value)


def test_mme_refuses_a_photo_with_one_question() -> None:
    with pytest.raises(ValueError, match="two questions a photo; there are 1 about"):
        mme_score([Question(1, "existence/1", "?", ("yes",), "existence")], ["Yes"])


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("The answer is B.", "B"),
        ("a red dog", "A"),
        ("B because the picture shows a large animal", None),
        ("A or B", None),
        ("Neither", None),
        ("red dog, blue cat", None),
    ],
)
def test_option_letters_are_read_without_a_judge(text: str, letter: str | None) -> None:
    assert option_letter(text, ["red dog", "blue cat"]) == letter


def test_mm_bench_counts_a_question_that_is_right_in_all_rotations() -> None:
    options = ("x1", "y1")
    questions = [
        Question(5, "5", "q A x1 B y1", ("A",), "logic", options, extra={"round_id": 0}),
        Question(5, "5", "q A y1 B x1", ("B",), "logic", options[::-1], extra={"round_id": 1}),
        Question(ROTATION_STEP + 6, "6", "r A y1 B x1", ("B",), "logic", options[::-1]),
        Question(6, "6", "r A x1 B y1", ("A",), "logic", options),
    ]
    numbers = mm_bench_score(questions, ["A", "A", "B", "A"]).numbers
    assert numbers["circular"] == 0.5
    assert numbers["single_pass"] == 1.0
    assert LETTERS.index(questions[1].answers[0]) == 1


def test_daquar_lists_match_in_any_order_and_have_a_constant_to_beat() -> None:
    questions = [
        Question(1, "1", "?", ("garbage bin, table",), "object"),
        Question(2, "1", "?", ("table",), "object"),
        Question(3, "2", "?", ("2",), "number"),
        Question(4, "2", "?", ("3",), "number"),
        Question(5, "2", "?", ("3",), "number"),
    ]
    numbers = daquar_score(questions, ["Table, garbage_bin.", "tables", "2", "two", "4"]).numbers
    assert numbers["accuracy"] == pytest.approx(2 / 5)
    assert numbers["best_constant"] == pytest.approx((1 + 2) / 5)
    assert best_constant(questions)["best_constant/number"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "answer", "kind", "is_right"),
    [
        ("Red.", "red", "color", True),
        ("The circle is red", "red", "color", True),
        ("red or blue", "red", "color", False),
        ("three", "3", "count", True),
        ("There are two", "3", "count", False),
        ("A", "a", "read", True),
        ("it is a B", "b", "read", True),
        ("the red circle", "red circle", "size", True),
        ("the circle", "red circle", "size", False),
        ("No, to the left", "no", "position", False),
        ("", "yes", "exists", False),
        ("Red.", "red", "default", True),  # of a kind that is unknown, the very words
        ("It is red", "red", "default", False),
    ],
)
def test_scene_answers_may_be_sentences_that_name_one_answer(text: str, answer: str, kind: str, is_right: bool) -> None:
    assert scene_match(text, answer, kind) is is_right


def test_every_scene_answer_is_right_by_its_own_rule() -> None:
    for index in range(12):
        for item in render_scene(3, index, 32).questions:
            question = Question(1, None, item.question, (item.answer,), item.kind)
            assert scene_is_right(question, item.answer.capitalize() + ".")


CAPTIONS = (
    "A man in a red hat isn't riding his bike.",
    "Two dogs play with a ball in the t-shirt shop, don't they?",
    "a girl",
    "",
    "The quick (brown) fox's 1,000 friends cannot jump over 3.5 lazy dogs at 10:30",
)
REFERENCES = (
    ("A man in a red hat rides a bike.", "A man with a hat isn't riding his bicycle", "Someone rides a bike."),
    ("Two dogs are playing with a ball.", "Dogs play.", "a t-shirt shop with two dogs"),
    ("A girl and a boy", "a little girl smiles at the camera", "A girl."),
    ("A house on a hill.", "a red house"),
    ("the fox and 1,000 friends jump over dogs", "a quick brown fox's friends can not jump over 3.5 lazy dogs"),
)


def test_cider_d_is_that_of_pycocoevalcap() -> None:
    assert cider_d(CAPTIONS, REFERENCES) == pytest.approx(CIDER_D, abs=1e-9)
    questions = [Question(number, str(number), "?", known) for number, known in enumerate(REFERENCES)]
    score = caption_score(questions, CAPTIONS)
    assert score.value == pytest.approx(sum(CIDER_D) / len(CIDER_D))


@pytest.mark.reference
def test_cider_d_equals_pycocoevalcap_run_again() -> None:
    pytest.importorskip("pycocoevalcap")
    assert run_cider() == pytest.approx(CIDER_D, abs=1e-9)


def run_cider() -> list[float]:
    from pycocoevalcap.cider.cider import Cider  # pyright: ignore[reportMissingImports]
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer  # pyright: ignore[reportMissingImports]

    tokenizer = PTBTokenizer()
    known = {number: [{"caption": text} for text in given] for number, given in enumerate(REFERENCES)}
    given = {number: [{"caption": text}] for number, text in enumerate(CAPTIONS)}
    return [float(score) for score in Cider().compute_score(tokenizer.tokenize(known), tokenizer.tokenize(given))[1]]


def test_caption_words_are_those_of_the_penn_treebank() -> None:
    words = caption_words("He isn't at the U.S. shop: \"it's 5 o'clock\", they cannot (really) pay $5 at&t ...")
    assert (
        " ".join(words) == "he is n't at the u.s. shop it 's 5 o'clock they can not -lrb- really -rrb- pay $ 5 at & t"
    )


def test_cider_d_refuses_a_photo_without_captions() -> None:
    with pytest.raises(ValueError, match="Photo 1 has no captions"):
        cider_d(["a", "b"], [["a"], []])


def test_intervals_draw_photos_and_not_questions() -> None:
    rng = np.random.default_rng(0)
    easy = rng.random(50) < 0.6
    scores = np.repeat(easy, 6).astype(float)  # six questions a photo, all right or all wrong
    photos = np.repeat(np.arange(50), 6).tolist()
    by_photo, by_question = mean_interval(scores, photos), mean_interval(scores, list(range(300)))
    assert by_photo.low < by_photo.value < by_photo.high
    assert by_photo.high - by_photo.low > 2 * (by_question.high - by_question.low)
    # The binomial's own interval, for 50 photos.
    width = 2 * 1.96 * np.sqrt(by_photo.value * (1 - by_photo.value) / 50)
    assert by_photo.high - by_photo.low == pytest.approx(width, rel=0.15)


def test_photos_are_drawn_within_strata_and_without_them_from_all() -> None:
    right = np.arange(50) < 20
    drawn = np.random.default_rng(0).integers(50, size=(2000, 50))
    expected = np.percentile(right[drawn].mean(axis=1), [2.5, 97.5])
    names = list(range(50))
    for strata in ((), ["one"] * 50):
        found = mean_interval(right.astype(float), names, strata=strata)
        assert (found.low, found.high) == pytest.approx(tuple(expected))
    found = mean_interval(right.astype(float), names, strata=right.tolist())
    assert found.low == found.high == pytest.approx(0.4)  # each stratum all right or all wrong


def test_paired_differences_are_surer_than_the_scores_they_are_of() -> None:
    rng = np.random.default_rng(0)
    first = (rng.random(400) < 0.7).astype(float)
    second = np.where(rng.random(400) < 0.95, first, 0.0)
    found = paired_comparison(first, second, list(range(400)))
    alone = mean_interval(first, list(range(400)))
    assert found.difference.value == pytest.approx(second.mean() - first.mean())
    assert found.difference.high < 0 and found.better == 0 and found.worse == (first > second).sum()
    assert found.difference.high - found.difference.low < 0.8 * (alone.high - alone.low)
    retained = found.retained
    assert retained is not None and retained.low < retained.value < retained.high
    assert retained.value == pytest.approx(second.mean() / first.mean())


def test_a_model_equals_itself() -> None:
    found = paired_comparison([1.0, 0.0, 1.0], [1.0, 0.0, 1.0], ["a", "a", "b"])
    assert (found.difference.low, found.difference.value, found.difference.high) == (0, 0, 0)
    assert found.better == found.worse == 0
    assert paired_comparison([0.0, 0.0], [1.0, 0.0], ["a", "b"]).retained is None
