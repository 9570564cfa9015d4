"""What several benchmarks say together: how much of the first model's score each other one retains.

    one file of scores a benchmark -> shares of the first model's score -> their mean over benchmarks, and who is ahead

The scores are those of `eval/vqa.py --out`: one a question and model. Models are joined by name, and those of one name must be
the same. All models are drawn together, photo by photo, so that the interval of a lead is a paired one; benchmarks are drawn
independently.
"""

import json
import shlex
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..util.files import read_any_json, write_text
from ..util.statistics import RESAMPLES, Interval, Values, interval, resampled_means
from .answers import Run
from .metrics import Score

SCORES = ".scores.json"
FINGERPRINTS = ("fingerprint", "settings_fingerprint")  # of a `Run`: by these a model is the same


@dataclass(frozen=True)
class BenchmarkScores:
    """The scores of models on a benchmark's questions, each with its photo and, where a benchmark has them, its stratum."""

    benchmark: str
    photos: tuple[Hashable, ...]  # (N,)
    strata: tuple[Hashable, ...]  # (N,) or none
    models: Mapping[str, Sequence[float]]  # name -> (N,), the first one's first
    fingerprints: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # name -> FINGERPRINTS, where known


@dataclass(frozen=True)
class Retained:
    """One model's shares of the first one's scores."""

    model: str
    shares: tuple[Interval, ...]  # a benchmark each
    mean: Interval
    lead: Interval | None  # of the model asked about, over this one; None for itself
    leads: tuple[Interval, ...]  # the same a benchmark; none for itself


def write_scores(results: Path, benchmark: str, scores: Mapping[str, Score], runs: Mapping[str, Run | None]) -> None:
    """Writes the scores of models on the same questions, by name, and what is known of their runs, beside a results file."""
    first = next(iter(scores.values()))
    content = {
        "benchmark": benchmark,
        "photos": _numbered(first.photos),
        "strata": _numbered(first.strata),
        "models": {name: [float(unit) for unit in score.units] for name, score in scores.items()},
        "fingerprints": {
            name: {kind: getattr(run, kind) for kind in FINGERPRINTS} for name, run in runs.items() if run is not None
        },
    }
    write_text(_beside(results), json.dumps(content) + "\n")


def read_scores(results: Path) -> BenchmarkScores:
    """The scores that belong to a results file of `eval/vqa.py`.

    Raises:
        ValueError: There are none, or the file is damaged.
    """
    path = _beside(results)
    if not results.is_file() or not path.is_file():
        raise ValueError(
            f"{results} is no results file with scores beside it ({path}): write both by eval/vqa.py --out."
        )
    try:
        content = read_any_json(path)
        return BenchmarkScores(
            content["benchmark"],
            tuple(content["photos"]),
            tuple(content["strata"]),
            content["models"],
            {name: dict(each) for name, each in content.get("fingerprints", {}).items()},
        )
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): write it again by eval/vqa.py --out {shlex.quote(str(results))}."
        ) from error


def retained(files: Sequence[BenchmarkScores], of: str | None = None, resamples: int = RESAMPLES) -> list[Retained]:
    """How much of the first model's score the others retain, a benchmark each and on average.

    Args:
        files: The benchmarks, each once. Models that are not in all of them are left out: `left_out`.
        of: The model whose lead over each other one is asked for; default the second.
        resamples: Drawings of photos.

    Raises:
        ValueError: Nothing can be compared, a benchmark is there twice, one name stands for several models, or the first model
            scores nothing in one of the benchmarks.
    """
    benchmark, times = Counter(each.benchmark for each in files).most_common(1)[0]
    if times > 1:
        raise ValueError(f"The results of {benchmark} are given {times} times: give each benchmark once.")
    names = [name for name in files[0].models if all(name in each.models for each in files)]
    firsts = {next(iter(each.models)) for each in files}
    if len(firsts) > 1 or len(names) < 2:
        raise ValueError(
            f"The results have {len(names)} models in common, and the first of each is {' or '.join(sorted(firsts))}: "
            "measure the same first model and at least one other on every benchmark."
        )
    for name in names:
        _check_same(name, files)
    of = of or names[1]
    if of not in names:
        raise ValueError(f"{of!r} is not in all results; there are {', '.join(names)}.")
    shares = [_shares(each, names, resamples, seed) for seed, each in enumerate(files)]
    value, drawn = (np.mean([each[part] for each in shares], axis=0) for part in (0, 1))  # (M,), (M, R)
    asked = names.index(of)
    return [
        Retained(
            name,
            tuple(interval(each[number], draws[number]) for each, draws in shares),
            interval(value[number], drawn[number]),
            None if number == asked else interval(value[asked] - value[number], drawn[asked] - drawn[number]),
            tuple(
                interval(each[asked] - each[number], draws[asked] - draws[number])
                for each, draws in shares
                if number != asked
            ),
        )
        for number, name in enumerate(names)
    ]


def left_out(files: Sequence[BenchmarkScores]) -> dict[str, list[str]]:
    """Models that `retained` leaves out, each with the benchmarks that lack it."""
    names = dict.fromkeys(name for each in files for name in each.models)
    lacking = {name: [each.benchmark for each in files if name not in each.models] for name in names}
    return {name: benchmarks for name, benchmarks in lacking.items() if benchmarks}


def _check_same(name: str, files: Sequence[BenchmarkScores]) -> None:
    """Raises ValueError if two files know a model of this name by different fingerprints."""
    for kind in FINGERPRINTS:
        found = {each.benchmark: each.fingerprints.get(name, {}).get(kind) for each in files}
        known = {benchmark: value for benchmark, value in found.items() if value}
        if len(set(known.values())) > 1:
            listed = ", ".join(f"{value} in {benchmark}" for benchmark, value in known.items())
            raise ValueError(f"{name} is not the same model in all results: its {kind} is {listed}.")


def _shares(scores: BenchmarkScores, names: Sequence[str], resamples: int, seed: int) -> tuple[Values, Values]:
    """Of the first model's mean score: those of all M (M,), and of R drawings (M, R)."""
    means, drawn = resampled_means(
        [scores.models[name] for name in names], scores.photos, resamples, seed, scores.strata
    )
    if min(means[0], drawn[0].min()) <= 0:
        raise ValueError(f"{names[0]} scores next to nothing on {scores.benchmark}, so there is no share to retain.")
    return means / means[0], drawn / drawn[0]


def is_scores(path: Path) -> bool:
    """Whether a file is called as those that lie beside results: a pattern for these meets both."""
    return path.name.endswith(SCORES)


def _beside(results: Path) -> Path:
    return results.with_suffix(SCORES)


def _numbered(labels: Sequence[Hashable]) -> list[int]:
    """Each label as the number of its first appearance: JSON has no tuples."""
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return [numbers[label] for label in labels]
