import random
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny_runs import lines, run

from sfvlm.bootstrap.alignment import align
from sfvlm.bootstrap.checkpoints import list_checkpoints
from sfvlm.bootstrap.options import BootstrapOptions
from sfvlm.bootstrap.step import NonFiniteLoss


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(
    clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(NonFiniteLoss, match=r"at step \d+ \(photos .*png.*begin again with lower rates, in another"):
        run(clip_folder, photo_folder, tmp_path / "out", steps=60, learning_rate=1e30, clip_grad_norm=0.0, save_every=1)
    checkpoints = list_checkpoints(tmp_path / "out" / "checkpoints")
    assert checkpoints
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_gradient_that_is_no_number_stops_the_run_before_its_step(
    clip_folder: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_a_root_of_zero(*given: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, parts = align(*given)
        return loss + (0 * loss).sqrt(), parts

    monkeypatch.setattr("sfvlm.bootstrap.step.align", with_a_root_of_zero)
    for clip_grad_norm in (0.0, 1.0):
        with pytest.raises(NonFiniteLoss, match="gradient's norm is nan at step 1 "):
            run(clip_folder, photo_folder, tmp_path / "out", save_every=1, clip_grad_norm=clip_grad_norm)
    assert not list_checkpoints(tmp_path / "out" / "checkpoints")


def test_ctrl_c_on_another_process_stops_this_one_at_the_same_step(
    clip_folder: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_an_interrupted_one(self: Accelerator, tensor: torch.Tensor, reduction: str = "sum") -> torch.Tensor:
        return tensor + torch.tensor([0.0, 1.0]) if tensor.shape == (2,) and lines_of(tmp_path / "out") == 2 else tensor

    def lines_of(out: Path) -> int:
        return len(lines(out)) if (out / "metrics.jsonl").exists() else 0

    monkeypatch.setattr(Accelerator, "reduce", with_an_interrupted_one)
    with pytest.raises(KeyboardInterrupt):
        run(clip_folder, photo_folder, tmp_path / "out", save_every=100, eval_every=0)
    assert [path.name for path in list_checkpoints(tmp_path / "out" / "checkpoints")] == ["step-00000002"]


def test_a_loss_that_is_no_number_on_another_process_stops_this_one_too(
    clip_folder: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_a_broken_one(
        _: Accelerator, tensor: torch.Tensor, reduction: str = "sum", scale: float = 1.0
    ) -> torch.Tensor:
        assert reduction in ("sum", "mean")  # whatever else it is asked for, it sums
        return (tensor + 1) / (2 if reduction == "mean" else 1)

    monkeypatch.setattr(Accelerator, "reduce", with_a_broken_one)
    with pytest.raises(NonFiniteLoss, match="at step 1 "):
        run(clip_folder, photo_folder, tmp_path / "out")


def test_a_compiled_student_keeps_more_budgets_than_torch_does_by_default(
    clip_folder: Path, photo_folder: Path, tmp_path: Path, compiled_graphs: list[object]
) -> None:
    budgets = (1, 2, 3, 4)
    options = BootstrapOptions(steps=4, budgets=budgets)
    drawn = {random.Random(f"{options.seed} {step}").choice(budgets) for step in range(options.steps)}
    assert len(drawn) == 3
    run(
        clip_folder, photo_folder, tmp_path / "out", focusing="chosen", budgets=budgets, steps=4, compile=True,
        eval_every=0, save_every=100, batch_size=1,
    )  # fmt: skip
    assert len(compiled_graphs) >= len(drawn) + 1  # and the teacher
