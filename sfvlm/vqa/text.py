"""What an answer says: normalisers and parsers of the benchmarks' own evaluators, text to text.

Two normalisers are in use and give different accuracies; a number should say which one it used.

    official_normalize   VQAEval of github.com/GT-Vision-Lab/VQA (vqaEvaluation/vqaEval.py): VQAv2, OK-VQA
    m4c_normalize        EvalAI's processor in LLaVA (llava/eval/m4c_evaluator.py): TextVQA, and LLaVA's submissions
"""

import itertools
import re
from collections.abc import Sequence

from ..photos.scene_texts import CLASS_NAMES, COLORS, SHAPES

PUNCTUATION = tuple(';/[]"{}()=+\\_-><@`,?!')
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(number) for number, word in enumerate(NUMBER_WORDS)} | {"none": "0"}
ARTICLES = ("a", "an", "the")
# Words that are repaired where one apostrophe is missing. The evaluators' tables hold these and no others: "he'll" and
# "she'd", for example, are not repaired.
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all
y'all'll y'all'd've you'd you'd've you'll you're you've
"""
REPAIRS = {
    word[:place] + word[place + 1 :]: word
    for word in CONTRACTIONS.split()
    for place in range(len(word))
    if word[place] == "'"
} | {"somebody'd": "somebodyd"}  # the tables' own slip, which parity needs
# A digit may follow a period that stays. The evaluators pass a flag where the count belongs: 32 periods go at most.
_PERIOD, _PERIODS_REMOVED = re.compile(r"\.(?!\d)"), 32
_DIGIT_COMMA = re.compile(r"\d,\d")


def official_normalize(text: str) -> str:
    """VQAEval's clean-up: white space, punctuation, number words, articles, contractions."""
    return _plain_words(_strip_punctuation(one_line(text)))


def m4c_normalize(text: str) -> str:
    """EvalAI's clean-up: as the official one, but commas and question marks go first, and `'s` becomes a word."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _plain_words(_strip_punctuation(one_line(text)))


def one_line(text: str) -> str:
    """White space as the official evaluator evens it before any comparison."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def _strip_punctuation(text: str) -> str:
    joined = _DIGIT_COMMA.search(text) is not None
    stripped = text
    for mark in PUNCTUATION:
        at_edge = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if joined or at_edge else " ")
    return _PERIOD.sub("", stripped, count=_PERIODS_REMOVED)


def _plain_words(text: str) -> str:
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(REPAIRS.get(word, word) for word in words if word not in ARTICLES)


def pope_answer(text: str) -> str:
    """POPE's reading (evaluate.py of github.com/AoiDragon/POPE): no if the first sentence says so, otherwise yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"}.intersection(words) else "yes"


def gqa_answer(text: str) -> str:
    """What LLaVA submits to GQA's evaluator (scripts/convert_gqa_for_eval.py), which compares strings as they are."""
    return text.rstrip(".").lower()


def mme_answer(text: str) -> str:
    """MME's reading of a lower-cased answer: yes or no as a whole or in its first four letters, else "other"."""
    start = text.lower().strip()[:4]
    return next((word for word in ("yes", "no") if word in start), "other")


def science_qa_letter(text: str, choices: int) -> str | None:
    """The letter LLaVA's eval_science_qa.py reads: "B", "B. ..." or one single "The answer is B."; None is wrong."""
    letters = "ABCDE"
    if len(text) == 1 and text in letters:
        letter = text
    elif text[:1] in letters and text[1:3] == ". ":
        letter = text[0]
    else:
        found = re.findall(r"The answer is ([A-Z]).", text)
        letter = found[0] if len(found) == 1 else ""
    return letter if letter and letter in letters[:choices] else None


def option_letter(text: str, options: Sequence[str]) -> str | None:
    """The option an answer names, without a judge, as VLMEvalKit's exact matching does (utils/matching_util.py).

    One letter that stands alone near the end, or the text of just one option; None is wrong.
    """
    letters = "ABCDEFGHIJ"[: len(options)]
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    named = [letter for letter in letters if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    lowered = text.lower()
    if len(lowered) > 2 * sum(map(len, options)):
        return None
    said = [letter for letter, option in zip(letters, options, strict=True) if option.lower() in lowered]
    return said[0] if len(said) == 1 else None


def daquar_answer(text: str) -> frozenset[str]:
    """The things an answer of DAQUAR lists, in any order: lower case, underscores as spaces, no final period."""
    parts = text.lower().replace("_", " ").strip().rstrip(".").split(",")
    return frozenset(" ".join(part.split()) for part in parts)


SCENE_WORDS: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": (*SHAPES, "digit", "letter"),
    "count": tuple("0123456"),
    "position": ("yes", "no", "left", "right", "top", "bottom"),
    "exists": ("yes", "no"),
    "size": ("small", "medium", "large", *CLASS_NAMES),
    "read": tuple("abcdefghijklmnopqrstuvwxyz0123456789"),
}


def scene_match(text: str, answer: str, kind: str) -> bool:
    """Whether an answer about a rendered scene is right: the very words, or the only answer of that kind it names.

    "Red.", "it is red" and "The circle is red" all answer "red"; "red or blue" does not.
    """
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    words = [NUMBERS.get(word, word) for word in words] if kind == "count" else words
    if " ".join(words) == answer:
        return True
    if kind == "read" and len(words) > 1:
        words = [word for word in words if word not in ARTICLES]  # "a B"
    phrases = {*words, *map(" ".join, itertools.pairwise(words))}
    return phrases.intersection(SCENE_WORDS.get(kind, ())) == {answer}
