from pathlib import Path

import pytest
import torch
from tiny import tiny_model

from sfvlm.bootstrap.alignment import Target, align, anchor_targets, anchored_tokens, for_host, pooled_cosine
from sfvlm.bootstrap.objective import Objective
from sfvlm.bootstrap.targets import TeacherTargets
from sfvlm.encoder.sparseformer import SparseFormerOutput
from sfvlm.teachers.inherit import inherit
from sfvlm.teachers.open import open_teacher
from sfvlm.teachers.student import student_config


def output(pooled: torch.Tensor, tokens: torch.Tensor | None = None, count: int = 4) -> SparseFormerOutput:
    boxes = torch.zeros(len(pooled), count, 4)
    hidden = None if tokens is None else (tokens, tokens, tokens)
    return SparseFormerOutput(pooler_output=pooled, hidden_states=hidden, token_rois=(boxes,))


def test_the_pooled_cosine_is_zero_for_the_same_direction_and_two_for_the_opposite() -> None:
    vector = torch.randn(3, 8)
    assert pooled_cosine(output(vector * 5), Target(vector)).item() == pytest.approx(0, abs=1e-6)
    assert pooled_cosine(output(-vector), Target(vector)).item() == pytest.approx(2, abs=1e-6)


def test_token_anchors_are_means_over_fixed_cells() -> None:
    tokens = torch.arange(16.0).reshape(1, 16, 1)  # a 4 x 4 grid
    assert anchor_targets(tokens, 4).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(anchor_targets(tokens, 16), tokens)
    with pytest.raises(ValueError, match="try 4 or 9"):
        anchor_targets(tokens, 5)


def test_matching_tokens_have_no_loss_whatever_the_boxes_do() -> None:
    teacher = torch.randn(2, 16, 8)
    matching = torch.cat([torch.randn(2, 1, 8), anchor_targets(teacher, 4)], dim=1)
    target = Target(torch.randn(2, 8), teacher)
    loss = anchored_tokens(output(torch.randn(2, 8), matching), target, -2)
    assert loss.item() == pytest.approx(0, abs=1e-6)


@torch.no_grad()
def test_token_targets_have_every_patch_of_a_larger_photo(clip_folder: Path) -> None:
    teacher = open_teacher(clip_folder)
    config = student_config(teacher.config, focusing="inherited", num_tokens=36, image_size=48)
    student, _ = inherit(teacher, config)
    objective, pixels = Objective(tokens=1.0), torch.randn(2, 3, 48, 48)
    target = TeacherTargets(teacher.model, config, objective, None)({}, pixels)  # type: ignore[typeddict-item]
    assert target.tokens is not None and target.tokens.shape == (2, 36, 64)
    _, parts = align(student(pixels, output_hidden_states=True), target, objective)
    assert parts["tokens"].item() == pytest.approx(0, abs=1e-6)  # a token a patch, untrained: nothing to learn


def test_collapsed_boxes_do_not_satisfy_the_token_objective() -> None:
    teacher = Target(torch.randn(2, 24), torch.randn(2, 16, 64))
    model = tiny_model()
    everywhere = model.focusing.token_roi.weight
    with torch.no_grad():
        everywhere.copy_(torch.tensor([-5.0, -5.0, 6.0, 6.0]).expand(4, 4))
    collapsed = model(torch.randn(2, 3, 32, 32), output_hidden_states=True)
    assert anchored_tokens(collapsed, teacher, -2) > 0.5


def test_parts_are_weighted_and_reported_unweighted() -> None:
    student = output(torch.randn(2, 8), torch.randn(2, 5, 8))
    target = Target(torch.randn(2, 8), torch.randn(2, 16, 8))
    total, parts = align(student, target, Objective(pooled=2.0, tokens=0.5))
    assert total.item() == pytest.approx(2 * parts["pooled"].item() + 0.5 * parts["tokens"].item(), rel=1e-5)
    assert align(student, target, Objective())[1].keys() == {"pooled"}
    with pytest.raises(ValueError, match="nothing to match"):
        align(student, target, Objective(pooled=0.0))


def test_for_a_host_what_was_asked_for_stands_but_its_words_count() -> None:
    assert for_host(Objective(), -3) == Objective(pooled=0.0, tokens=1.0, layer=-3, projected=1.0, answers=1.0)
    asked = for_host(Objective(pooled=0.5, tokens=0.2, layer=-1, saliency=0.3, anchor="nearest"), -3)
    assert asked == Objective(0.5, 0.2, -1, projected=1.0, answers=1.0, saliency=0.3, anchor="nearest")
