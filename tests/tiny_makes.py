"""Whole runs of `sfvlm make` on a tiny LLaVA, short enough for tests."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from sfvlm.make.bench import DENSE, SPARSE
from sfvlm.make.recipe import Recipe
from sfvlm.make.ways import Way, Ways
from sfvlm.util.statistics import Interval

FARTHER, ALIKE, NEARER = (0.01, 0.02), (-0.01, 0.01), (-0.03, -0.01)  # how another way stands to the tower made here


def recipe(host: Path, photos: Path, **changes: Any) -> Recipe:
    """Four tokens, four steps, two alternatives."""
    fields: dict[str, Any] = dict(
        host=str(host), photos=[str(photos)], num_tokens=4, steps=4, batch_size=4, held_back=4, alternatives=["stride", "average"],
        workers=0, cpu=True,
    )  # fmt: skip
    return Recipe(**(fields | changes))


def in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few repeats, few words, two photos shown."""
    for name, value in {
        "measures.REPEATS": 1, "measures.NEW_TOKENS": 2, "measures.TURNS": 2, "examples.SHOWN": 2, "examples.LONGEST_ANSWER": 3,
    }.items():  # fmt: skip
        monkeypatch.setattr(f"sfvlm.make.{name}", value)


def marks(out: Path) -> dict[str, Any]:
    return json.loads((out / "make.json").read_text())["steps"]


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "tower" / "model.safetensors")


def near(out: Path) -> list[dict[str, float]]:
    return [row["metrics"] for row in json.loads((out / "fidelity.json").read_text())["results"]]


def way(
    name: str,
    nats: float | None,
    *,
    macs: float = 1e9,
    sooner: float = 1.8,
    difference: tuple[float, float] | None = None,
) -> Way:
    """Its distance, and between what its distance from the tower made here lies."""
    fields: dict[str, Any] = {}
    if nats is not None:
        fields = {"divergence": Interval(nats, 0.9 * nats, 1.1 * nats), "same_words": Interval(0.93, 0.9, 0.95)}
    if difference is not None:
        fields["difference"] = Interval(sum(difference) / 2, *difference)
    return Way(name, 196 if name == DENSE else 49, macs, 1 / sooner, sooner, 1e6, **fields)


def ways(nats: float, *others: Way, sooner: float = 1.8) -> Ways:
    return Ways(way(DENSE, None, sooner=1.0), way(SPARSE, nats, macs=0.35e9, sooner=sooner), others)
