"""A guide that is trained together with its student: learned, exported beside it, and the same after an interruption."""

from pathlib import Path

import pytest
import torch
from tiny_runs import lines, run, same

from sfvlm.bootstrap.objective import Objective
from sfvlm.dense.guide import Guide, guided_map
from sfvlm.encoder.folder import open_student

DENSE = Objective(pooled=0.0, saliency=0.0, dense=1.0)


@pytest.mark.parametrize("focusing", ["inherited", "chosen", "fresh"])
def test_a_map_is_learned_and_the_guide_lies_beside_the_student(
    clip_folder: Path, photo_folder: Path, tmp_path: Path, focusing: str
):
    weights = run(clip_folder, photo_folder, tmp_path, focusing=focusing, objective=DENSE, budgets=(4, 9))
    assert weights is not None and not any("guide" in name for name in weights)
    trained, guide = open_student(tmp_path), Guide.from_pretrained(tmp_path / "guide")
    first_guess = guide.first_guess.weight
    assert not torch.equal(first_guess, torch.eye(len(first_guess)))
    assert (guide.std > 0).all() and not torch.equal(guide.std, torch.ones_like(guide.std))
    made = guided_map(trained, guide, torch.randn(1, 3, trained.config.image_size, trained.config.image_size))
    assert torch.isfinite(made).all()
    logged = lines(tmp_path)
    assert all("dense" in line for line in logged if "loss" in line)


def test_an_interrupted_run_ends_on_the_same_guide(clip_folder: Path, photo_folder: Path, tmp_path: Path):
    asked = dict(focusing="chosen", objective=Objective(dense=0.5))
    whole = run(clip_folder, photo_folder, tmp_path / "whole", **asked)
    run(clip_folder, photo_folder, tmp_path / "parts", stop_after=3, **asked)
    parts = run(clip_folder, photo_folder, tmp_path / "parts", resume=True, **asked)
    assert whole is not None and parts is not None and same(whole, parts)
    guides = [Guide.from_pretrained(tmp_path / name / "guide").state_dict() for name in ("whole", "parts")]
    assert same(*guides)


def test_views_whose_tokens_are_not_kept_are_refused(clip_folder: Path, photo_folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="of maps and of a host need cached_views 0"):
        run(clip_folder, photo_folder, tmp_path, objective=DENSE, cached_views=2)
