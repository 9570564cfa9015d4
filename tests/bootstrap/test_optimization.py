import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import QUICK, run

from sfvlm.bootstrap.alignment import for_host
from sfvlm.bootstrap.objective import Objective
from sfvlm.bootstrap.optimization import rate_at
from sfvlm.bootstrap.options import BootstrapOptions
from sfvlm.bootstrap.run import bootstrap
from sfvlm.hosts.host import open_host
from sfvlm.photos.sources import open_photos
from sfvlm.teachers.inherit import inherit
from sfvlm.teachers.open import open_teacher
from sfvlm.teachers.student import student_config


def test_rates_rise_and_then_fall_to_zero() -> None:
    options = BootstrapOptions(steps=100, warmup=0.1)
    rates = [rate_at(step, options) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


@pytest.fixture
def without_gradient(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of what the optimizer holds and no step's loss depended on."""
    found: list[torch.Size] = []

    class Watching(torch.optim.AdamW):
        def step(self, closure: object = None) -> None:
            found.extend(each.shape for group in self.param_groups for each in group["params"] if each.grad is None)
            super().step(closure)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim, "AdamW", Watching)
    return found


@pytest.mark.parametrize("focusing", ["inherited", "chosen"])
def test_what_a_host_does_not_read_is_not_trained(
    focusing: Any, hosts: dict[str, Path], photo_folder: Path, tmp_path: Path, without_gradient: list[torch.Size]
) -> None:
    teacher = open_teacher(hosts["llava"])
    depth = teacher.config.num_hidden_layers
    config = student_config(teacher.config, focusing=focusing, num_tokens=4, coarse_blocks=1)
    student, report = inherit(teacher, config, depth)
    objective = for_host(Objective(saliency=0.0), -2)
    options = BootstrapOptions(**(QUICK | dict(steps=1, eval_every=0, host_turns=1, objective=objective)))
    host = open_host(hosts["llava"], device="cpu")
    bootstrap(teacher, student, report, open_photos(photo_folder), tmp_path / "out", options, host=host)
    assert without_gradient == []
    trained = {
        name[:8] for name, each in student.named_parameters() if each.requires_grad and name.startswith("blocks.")
    }
    assert trained == {f"blocks.{number}" for number in range(depth - 1)}  # the host reads layer -2


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize(
    ("focusing", "objective", "frozen"),
    [
        ("chosen", Objective(saliency=0.0), {"focusing.saliency", "focusing.saliency_norm"}),
        ("chosen", Objective(pooled=0.0, tokens=1.0), {"blocks.3"}),
        ("inherited", Objective(pooled=0.0, tokens=1.0), {"blocks.3"}),
        ("inherited", Objective(pooled=0.0, tokens=1.0, layer=1), {"blocks.2", "blocks.3"}),  # the first look has two
        ("fresh", Objective(pooled=0.0, tokens=1.0, layer=-3), {"blocks.1", "blocks.2"}),
        ("inherited", Objective(tokens=1.0), set()),
    ],
)
def test_everything_that_is_trained_gets_a_gradient(
    focusing: str,
    objective: Objective,
    frozen: set[str],
    tune: str,
    clip_folder: Path,
    photo_folder: Path,
    tmp_path: Path,
    without_gradient: list[torch.Size],
) -> None:
    run(
        clip_folder, photo_folder, tmp_path / "out", focusing=focusing, tuned_blocks=3 if focusing == "fresh" else 4,
        objective=objective, tune=tune, steps=1, eval_every=0,
    )  # fmt: skip
    assert without_gradient == []
    rows = json.loads((tmp_path / "out" / "inheritance.json").read_text())["rows"]
    parts = {True: set(), False: set()}
    for row in rows:
        parts[row["trained"]].add(".".join(row["student"].split(".")[:2]))
    assert frozen <= parts[False] - parts[True]
    assert {name for name in parts[False] if name.startswith(("blocks.", "focusing."))} == frozen
