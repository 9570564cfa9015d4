"""Visual question answering: benchmarks, a host's answers to them, and what these are worth.

    benchmark + files or photos -> questions -> ask(host) -> texts -> measure -> Score -> result_row

The benchmarks of LLaVA-1.5's table read their own files (`questions_of`); scenes, pope-like, captions and daquar are made
from photos alone (`made_questions`). Each number carries the rule it was computed by.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image
from tqdm import tqdm

from ..hosts.host import Host
from ..photos.decode import UnreadablePhoto
from ..photos.sources import Photos
from ..util.results import Row
from ..util.statistics import Comparison, mean_interval, paired_comparison
from ..util.subsets import spread_groups
from .answers import AnswerFile, Run
from .formats import gqa, mm_bench, mme, science_qa, text_vqa, viz_wiz, vqa_v2
from .metrics import (
    Score,
    Scorer,
    caption_score,
    daquar_score,
    exact_score,
    gqa_is_right,
    m4c_vqa_accuracy,
    mm_bench_number,
    mm_bench_score,
    mme_photo,
    mme_score,
    official_vqa_accuracy,
    pope_score,
    scene_is_right,
    science_qa_is_right,
    vqa_score,
)
from .photos import NamedPhotos, changed_photo, photo_fingerprint
from .questions import Builder, Join, Question, check_unique, read_questions
from .sources import (
    NotedPhotos,
    caption_questions,
    daquar_questions,
    pope_caption_questions,
    pope_questions,
    scene_questions,
)


class Answerer(Protocol):
    """Whom `ask` asks, if not a host in this process: a server."""

    @property
    def source(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def settings_fingerprint(self) -> str: ...

    def answer(
        self, images: Sequence[Image.Image | None], prompts: Sequence[str], *, max_new_tokens: int = 64
    ) -> list[str]: ...


class Unanswered(str):
    """An empty answer of one who would not say anything, and why; the question is asked again by the next call."""

    why: str

    def __new__(cls, why: str) -> "Unanswered":
        made = super().__new__(cls, "")
        made.why = why
        return made


class Rule(NamedTuple):
    """How right and given answers are compared, and how that is said."""

    score: Scorer
    words: str


# The first of a benchmark's rules is its own.
RULES: dict[str, Rule] = {
    "official": Rule(
        vqa_score(official_vqa_accuracy),
        "VQA accuracy, leave-one-out over the answers; VQAEval's normaliser, skipped where the answers are unanimous",
    ),
    "m4c": Rule(
        vqa_score(m4c_vqa_accuracy),
        "VQA accuracy, leave-one-out over ten answers; EvalAI's normaliser as in LLaVA's m4c_evaluator, always applied",
    ),
    "gqa": Rule(
        exact_score(gqa_is_right), "exact match after rstrip('.').lower(), as LLaVA submits to GQA's evaluator"
    ),
    "sqa": Rule(
        exact_score(science_qa_is_right), "letter by LLaVA's eval_science_qa: 'B', 'B. ...', 'The answer is B.'"
    ),
    "pope": Rule(pope_score, "POPE's evaluate.py: no where the first sentence has No, not or no, otherwise yes"),
    "mme": Rule(mme_score, "MME's eval_tool: yes or no in the first four letters; 100 acc + 100 acc+ a category"),
    "mmbench": Rule(mm_bench_score, "CircularEval over all rotations; letter or option text, no judge (VLMEvalKit)"),
    "daquar": Rule(daquar_score, "exact match of the set of things listed, lower case"),
    "cider_d": Rule(caption_score, "CIDEr-D as pycocoevalcap's Cider; Penn Treebank words without punctuation"),
    "scenes": Rule(
        exact_score(scene_is_right), "the answer's very words, or the only answer of its kind that is named"
    ),
}


@dataclass(frozen=True)
class Benchmark:
    """How one benchmark's questions come, and how its answers are judged."""

    rules: tuple[str, ...]  # names in RULES
    build: Builder | None = None  # reads the benchmark's own files
    join: Join = "id"
    repeats_ids: bool = False
    make: Callable[..., list[Question]] | None = None  # from photos alone
    max_new_tokens: int = 128  # LLaVA's, for files of its own
    shown: tuple[str, ...] = ()  # numbers in the table, beside the headline
    group: Callable[[Question], Hashable] = lambda question: question.key  # questions of one group count together


BENCHMARKS: dict[str, Benchmark] = {
    "vqav2": Benchmark(("official", "m4c"), vqa_v2),
    "okvqa": Benchmark(("official", "m4c"), vqa_v2),
    "textvqa": Benchmark(("m4c", "official"), text_vqa, join="words", repeats_ids=True),
    "vizwiz": Benchmark(("m4c", "official"), viz_wiz, join="photo"),
    "gqa": Benchmark(("gqa",), gqa, shown=("accuracy/binary", "accuracy/open")),
    "scienceqa": Benchmark(("sqa",), science_qa, max_new_tokens=1024, shown=("accuracy/IMG",)),
    "pope": Benchmark(("pope",), join="words", shown=("mean_f1", "precision", "recall", "yes_rate")),
    "mme": Benchmark(("mme",), mme, join="words", repeats_ids=True, shown=("perception", "cognition"), group=mme_photo),
    "mmbench": Benchmark(
        ("mmbench",), mm_bench, repeats_ids=True, max_new_tokens=1024, shown=("single_pass",), group=mm_bench_number
    ),
    "daquar": Benchmark(("daquar",), make=daquar_questions, max_new_tokens=24, shown=("best_constant",)),
    "captions": Benchmark(("cider_d",), make=caption_questions, max_new_tokens=64),
    "scenes": Benchmark(("scenes",), make=scene_questions, max_new_tokens=16),
    "pope-like": Benchmark(("pope",), make=pope_questions, max_new_tokens=16, shown=("f1", "yes_rate")),
    "pope-captions": Benchmark(("pope",), make=pope_caption_questions, max_new_tokens=16, shown=("f1", "yes_rate")),
}


def benchmark_named(name: str) -> Benchmark:
    """A benchmark by its name.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"There is no benchmark {name!r}; they are {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


def questions_of(
    name: str, paths: Sequence[Path], annotations: Sequence[Path] = (), needs_answers: bool = True
) -> list[Question]:
    """A benchmark's questions from files, LLaVA's or its own.

    Raises:
        ValueError: A file is missing, damaged, or has an id twice; or a question has no right answer.
    """
    benchmark = benchmark_named(name)
    return read_questions(
        paths,
        annotations,
        build=benchmark.build,
        join=benchmark.join,
        repeats_ids=benchmark.repeats_ids,
        needs_answers=needs_answers,
    )


def limited(name: str, questions: Sequence[Question], limit: int | None) -> list[Question]:
    """At most so many of a benchmark's questions, spread evenly over all; those that count together stay together.

    Raises:
        ValueError: There would be none.
    """
    group = benchmark_named(name).group
    chosen = spread_groups(questions, limit, group)
    if not chosen:
        together = sum(group(item) == group(questions[0]) for item in questions)
        raise ValueError(f"--limit is {limit}; it must be at least {together}, as many questions as count together.")
    return chosen


def made_questions(name: str, photos: Photos, problems: dict[str, str] | None = None, **options: Any) -> list[Question]:
    """A benchmark's questions from photos alone.

    Args:
        name: Of the benchmark.
        photos: Asked about.
        problems: Takes up the photos that have no questions because they or what is said of them cannot be read, by key, with
            the reason.
        options: As the maker takes them.

    Raises:
        ValueError: This benchmark comes in files, or the photos have nothing to ask about.
    """
    make = benchmark_named(name).make
    if make is None:
        raise ValueError(f"The questions of {name} come in files: give --questions.")
    noted = NotedPhotos(photos, {})
    questions = make(noted, **options)
    check_unique(questions, ", ".join(photos.origins))
    asked = {item.image for item in questions}
    if problems is not None:
        problems |= {key: why for key, why in noted.problems.items() if key not in asked}
    return questions


def ask(
    host: Host | Answerer,
    questions: Sequence[Question],
    photos: NamedPhotos,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    path: Path | None = None,
    model_id: str | None = None,
    problems: dict[str, str] | None = None,
) -> list[str]:
    """A host's greedy answers, in the order of the questions; a broken photo is answered by nothing, until it is repaired.

    Args:
        host: Asked in batches.
        questions: About photos, or about none.
        photos: Where they are.
        max_new_tokens: The longest answer.
        batch_size: Questions at once.
        path: Answer file, continued if it is there.
        model_id: What the host is called in it.
        problems: Takes up the photos that could not be shown, by name, with the reason, and the questions that were refused.

    Raises:
        ValueError: The answer file is damaged, or belongs to another run or to other photos.
    """
    model_id = model_id or host.source
    run = Run(model_id, "", max_new_tokens) if path is None else run_by(host, model_id, max_new_tokens)
    file = AnswerFile(path, run, questions) if path is not None else None
    if file is not None:
        _check_same_photos(file, questions, photos)
    answers = file.answers if file is not None else {}
    open_questions = [item for item in questions if item.key not in answers]
    with tqdm(total=len(questions), initial=len(questions) - len(open_questions), desc=run.model_id, unit="q") as bar:
        for batch, images, facts in _loaded(open_questions, photos, batch_size):
            good = [number for number, its in enumerate(facts) if "problem" not in its]
            if problems is not None:
                pairs = zip(batch, facts, strict=True)
                problems |= {str(item.image): its["problem"] for item, its in pairs if "problem" in its}
            said = host.answer(
                [images[number] for number in good],
                [batch[number].text for number in good],
                max_new_tokens=max_new_tokens,
            )
            texts = [""] * len(batch)
            for number, text in zip(good, said, strict=True):
                texts[number] = text
                if isinstance(text, Unanswered):
                    facts[number] = facts[number] | {"problem": text.why}
                    if problems is not None:
                        problems[str(batch[number].image)] = text.why
            if file is not None:
                file.append(batch, texts, facts)
            answers.update({item.key: text for item, text in zip(batch, texts, strict=True)})
            bar.update(len(batch))
    return [answers[item.key] for item in questions]


def run_by(host: Host | Answerer, model_id: str, max_new_tokens: int) -> Run:
    """What answers of this host belong to."""
    return Run(model_id, host.fingerprint, max_new_tokens, host.settings_fingerprint)


def _check_same_photos(file: AnswerFile, questions: Sequence[Question], photos: NamedPhotos) -> None:
    asked = [(item.image, item.key) for item in questions if item.key in file.photos]
    name = changed_photo({image: file.photos[key] for image, key in asked if image is not None}, photos.open)
    if name is not None:
        raise ValueError(
            f"The answers in {file.path} are about other photos, {name} among them: remove the file, or give another --out."
        )


# A batch with its photos, and of each what its answer's line says: the photo's fingerprint, or why it cannot be shown.
Loaded = tuple[Sequence[Question], list[Image.Image | None], list[dict[str, str]]]


def _loaded(questions: Sequence[Question], photos: NamedPhotos, batch_size: int) -> Iterator[Loaded]:
    """Batches with their photos, the next of which is read while one is answered."""
    batches = [questions[start : start + batch_size] for start in range(0, len(questions), batch_size)]
    with ThreadPoolExecutor(1) as reader:
        coming: Future[Loaded] | None = None
        for batch in [*batches, None]:
            ready, coming = coming, None if batch is None else reader.submit(_load, batch, photos)
            if ready is not None:
                yield ready.result()


def _load(batch: Sequence[Question], photos: NamedPhotos) -> Loaded:
    opened: dict[str | None, tuple[Image.Image | None, dict[str, str]]] = {None: (None, {})}
    for name in {item.image for item in batch if item.image is not None}:
        try:
            image = photos.open(name)
            opened[name] = image, {"photo": photo_fingerprint(image)}
        except UnreadablePhoto as error:
            opened[name] = None, {"problem": str(error)}
    found = [opened[item.image] for item in batch]
    return batch, [image for image, _ in found], [facts for _, facts in found]


def measure(name: str, questions: Sequence[Question], texts: Sequence[str], rule: str | None = None) -> Score:
    """A benchmark's numbers; `rule` defaults to the benchmark's own.

    Raises:
        ValueError: The benchmark has no such rule, or the rule is not defined for these questions.
    """
    return RULES[rule_of(name, rule)].score(questions, texts)


def rule_of(name: str, rule: str | None = None) -> str:
    """The rule's name, checked."""
    rules = benchmark_named(name).rules
    if rule is not None and rule not in rules:
        raise ValueError(f"The answers of {name} are judged by {' or '.join(rules)}, not by {rule!r}.")
    return rule or rules[0]


def compare(first: Score, second: Score) -> Comparison:
    """The second model against the first on the same questions."""
    return paired_comparison(first.units, second.units, first.photos, strata=first.strata)


def result_row(
    name: str,
    model: str,
    pretrained: str,
    score: Score,
    *,
    rule: str | None = None,
    comparison: Comparison | None = None,
    facts: dict[str, Any] | None = None,
) -> Row:
    """CLIP_benchmark's six keys, and `rule`. Metrics: all numbers, the headline's interval, and what is compared."""
    interval = mean_interval(score.units, score.photos, strata=score.strata)
    metrics: dict[str, Any] = {
        **interval.metrics(score.headline),
        **score.numbers,
        "questions": len(score.units),
        "photos": len(set(score.photos)),
        **(facts or {}),
    }
    for what in ("difference", "retained"):
        found = getattr(comparison, what, None)
        if found is not None:
            metrics |= found.metrics(what)
    if comparison is not None:
        metrics |= {"better": comparison.better, "worse": comparison.worse}
    return {
        "dataset": name,
        "model": model,
        "pretrained": pretrained,
        "task": "visual_question_answering",
        "metrics": metrics,
        "language": "en",
        "rule": RULES[rule_of(name, rule)].words,
    }
