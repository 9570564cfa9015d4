"""Visual question answering: benchmarks, a host's answers to them, and what these are worth.

    benchmark + files or photos -> questions -> ask(host) -> texts -> measure -> Score -> result_row

The benchmarks of LLaVA-1.5's table read their own files (`questions_of`); scenes, pope-like, captions and daquar are made
from photos alone (`made_questions`). Each number carries the rule it was computed by.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from .chat import Host
from .decode import UnreadablePhoto
from .images import Photos
from .results import Row
from .vqa_answers import AnswerFile, Run
from .vqa_formats import gqa, mm_bench, mme, science_qa, text_vqa, viz_wiz, vqa_v2
from .vqa_metrics import (
    Score,
    Scorer,
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
from .vqa_photos import NamedPhotos
from .vqa_questions import Builder, Join, Question, check_unique, read_questions
from .vqa_sources import caption_questions, daquar_questions, pope_questions, scene_questions
from .vqa_statistics import Comparison, mean_interval, paired_comparison

# How right and given answers are compared; the first of a benchmark's rules is its own.
RULES: dict[str, tuple[Scorer, str]] = {
    "official": (
        vqa_score(official_vqa_accuracy),
        "VQA accuracy, leave-one-out over the answers; VQAEval's normaliser, skipped where the answers are unanimous",
    ),
    "m4c": (
        vqa_score(m4c_vqa_accuracy),
        "VQA accuracy, leave-one-out over ten answers; EvalAI's normaliser as in LLaVA's m4c_evaluator, always applied",
    ),
    "gqa": (exact_score(gqa_is_right), "exact match after rstrip('.').lower(), as LLaVA submits to GQA's evaluator"),
    "sqa": (exact_score(science_qa_is_right), "letter by LLaVA's eval_science_qa: 'B', 'B. ...', 'The answer is B.'"),
    "pope": (pope_score, "POPE's evaluate.py: no where the first sentence has No, not or no, otherwise yes"),
    "mme": (mme_score, "MME's eval_tool: yes or no in the first four letters; 100 acc + 100 acc+ a category"),
    "mmbench": (mm_bench_score, "CircularEval over all rotations; letter or option text, no judge (VLMEvalKit)"),
    "daquar": (daquar_score, "exact match of the set of things listed, lower case"),
    "cider_d": (caption_score, "CIDEr-D as pycocoevalcap's Cider; Penn Treebank words without punctuation"),
    "scenes": (exact_score(scene_is_right), "the answer's very words, or the only answer of its kind that is named"),
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
    shown: tuple[str, ...] = field(default=())  # numbers in the table, beside the headline


BENCHMARKS: dict[str, Benchmark] = {
    "vqav2": Benchmark(("official", "m4c"), vqa_v2),
    "okvqa": Benchmark(("official", "m4c"), vqa_v2),
    "textvqa": Benchmark(("m4c", "official"), text_vqa, join="words", repeats_ids=True),
    "vizwiz": Benchmark(("m4c", "official"), viz_wiz, join="photo"),
    "gqa": Benchmark(("gqa",), gqa, shown=("accuracy/binary", "accuracy/open")),
    "scienceqa": Benchmark(("sqa",), science_qa, max_new_tokens=1024, shown=("accuracy/IMG",)),
    "pope": Benchmark(("pope",), join="words", shown=("mean_f1", "precision", "recall", "yes_rate")),
    "mme": Benchmark(("mme",), mme, join="words", repeats_ids=True, shown=("perception", "cognition")),
    "mmbench": Benchmark(("mmbench",), mm_bench, repeats_ids=True, max_new_tokens=1024, shown=("single_pass",)),
    "daquar": Benchmark(("daquar",), make=daquar_questions, max_new_tokens=24, shown=("best_constant",)),
    "captions": Benchmark(("cider_d",), make=caption_questions, max_new_tokens=64),
    "scenes": Benchmark(("scenes",), make=scene_questions, max_new_tokens=16),
    "pope-like": Benchmark(("pope",), make=pope_questions, max_new_tokens=16, shown=("f1", "yes_rate")),
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


def made_questions(name: str, photos: Photos, **options: Any) -> list[Question]:
    """A benchmark's questions from photos alone.

    Raises:
        ValueError: This benchmark comes in files, or the photos have nothing to ask about.
    """
    make = benchmark_named(name).make
    if make is None:
        raise ValueError(f"The questions of {name} come in files: give --questions.")
    questions = make(photos, **options)
    check_unique(questions, ", ".join(photos.origins))
    return questions


def ask(
    host: Host,
    questions: Sequence[Question],
    photos: NamedPhotos,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    path: Path | None = None,
    model_id: str | None = None,
) -> list[str]:
    """A host's greedy answers, in the order of the questions; a broken photo is answered by nothing.

    Args:
        host: Asked in batches.
        questions: About photos, or about none.
        photos: Where they are.
        max_new_tokens: The longest answer.
        batch_size: Questions at once.
        path: Answer file, continued if it is there.
        model_id: What the host is called in it.

    Raises:
        ValueError: The answer file is damaged or belongs to another run.
    """
    kept = path is not None
    run = Run(
        model_id or host.source,
        host.fingerprint if kept else "",
        max_new_tokens,
        host.settings_fingerprint if kept else "",
    )
    file = AnswerFile(path, run, questions) if path is not None else None
    answers = file.answers if file is not None else {}
    open_questions = [item for item in questions if item.key not in answers]
    with tqdm(total=len(questions), initial=len(questions) - len(open_questions), desc=run.model_id, unit="q") as bar:
        for batch, images, problems in _loaded(open_questions, photos, batch_size):
            good = [number for number, problem in enumerate(problems) if problem is None]
            said = host.answer(
                [images[number] for number in good],
                [batch[number].text for number in good],
                max_new_tokens=max_new_tokens,
            )
            texts = [""] * len(batch)
            for number, text in zip(good, said, strict=True):
                texts[number] = text
            if file is not None:
                file.append(batch, texts, problems)
            answers.update({item.key: text for item, text in zip(batch, texts, strict=True)})
            bar.update(len(batch))
    return [answers[item.key] for item in questions]


Loaded = tuple[Sequence[Question], list[Image.Image | None], list[str | None]]


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
    opened: dict[str, Image.Image | UnreadablePhoto] = {}
    for name in {item.image for item in batch if item.image is not None}:
        try:
            opened[name] = photos.open(name)
        except UnreadablePhoto as error:
            opened[name] = error
    found = [None if item.image is None else opened[item.image] for item in batch]
    images = [None if isinstance(image, UnreadablePhoto) else image for image in found]
    return batch, images, [str(image) if isinstance(image, UnreadablePhoto) else None for image in found]


def measure(name: str, questions: Sequence[Question], texts: Sequence[str], rule: str | None = None) -> Score:
    """A benchmark's numbers; `rule` defaults to the benchmark's own.

    Raises:
        ValueError: The benchmark has no such rule.
    """
    return RULES[rule_of(name, rule)][0](questions, texts)


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
        **score.numbers,
        f"{score.headline}_low": interval.low,
        f"{score.headline}_high": interval.high,
        "questions": len(score.units),
        "photos": len(set(score.photos)),
        **(facts or {}),
    }
    for what in ("difference", "retained"):
        found = getattr(comparison, what, None)
        if found is not None:
            metrics |= {what: found.value, f"{what}_low": found.low, f"{what}_high": found.high}
    if comparison is not None:
        metrics |= {"better": comparison.better, "worse": comparison.worse}
    return {
        "dataset": name,
        "model": model,
        "pretrained": pretrained,
        "task": "visual_question_answering",
        "metrics": metrics,
        "language": "en",
        "rule": RULES[rule_of(name, rule)][1],
    }
