from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model
from tiny_hosts import opened
from tiny_runs import TURNS, photos_of

from sfvlm.bootstrap.alignment import (
    Target,
    align,
    anchor_targets,
    anchored_tokens,
    answer_divergence,
    for_host,
    pooled_cosine,
)
from sfvlm.bootstrap.objective import Objective
from sfvlm.bootstrap.targets.conversations import Conversations
from sfvlm.bootstrap.targets.teacher import TeacherTargets
from sfvlm.encoder.sparseformer import SparseFormerOutput
from sfvlm.hosts.reader import HostReader
from sfvlm.photos.batches import ViewDataset, collate_views
from sfvlm.photos.views import normalize
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


@pytest.mark.parametrize(
    ("focusing", "anchor"), [("inherited", "average"), ("inherited", "nearest"), ("chosen", "average")]
)
def test_at_the_full_grid_an_untrained_student_is_told_nothing_new(
    focusing: Any, anchor: Any, llava: Path, photo_folder: Path
) -> None:
    model, processor = opened(llava)
    reader, teacher = HostReader(model, processor), open_teacher(llava)
    config = student_config(teacher.config, num_tokens=16, focusing=focusing, for_host=True)
    student, _ = inherit(teacher, config)
    objective = for_host(Objective(anchor=anchor), -2)
    targets = TeacherTargets(teacher.model, config, objective, None, reader)
    views = ViewDataset(photos_of(photo_folder, 2), 56, training=False, seed=0)
    batch = collate_views([views[0, 0], views[0, 1]])
    pixels = normalize(batch["pixels"], teacher.config.image_mean, teacher.config.image_std)
    target = targets(batch, pixels, Conversations(processor, [TURNS, TURNS], seed=0))
    with torch.no_grad():
        total, parts = align(student(pixels, output_hidden_states=True), target, objective, reader)
        _, fewer = align(student(pixels, 4, output_hidden_states=True), target, objective, reader)
    assert parts.keys() == {"tokens", "projected", "answers"} | ({"saliency"} if focusing == "chosen" else set())
    assert parts["tokens"] + parts["projected"] + parts["answers"] == pytest.approx(0, abs=1e-6)
    assert total == pytest.approx(sum(parts.values()).item())
    assert fewer["projected"] > 1e-3
    assert fewer["answers"] > 1e-6


def test_divergence_is_that_of_torch_averaged_over_answers(llava: Path) -> None:
    texts = Conversations(opened(llava)[1], [TURNS], seed=0).batch(torch.tensor([0]), torch.tensor([0]))
    ours, theirs = torch.randn(2, len(texts.row), 11)
    each = torch.nn.functional.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), reduction="none", log_target=True)
    longer = (texts.weight < texts.weight.max()).nonzero()[:, 0]
    shorter = (texts.weight == texts.weight.max()).nonzero()[:, 0]
    expected = (each.sum(-1)[longer].mean() + each.sum(-1)[shorter].mean()) / 2
    found = answer_divergence(ours, Target(ours, texts=texts, logits=theirs))
    torch.testing.assert_close(found, expected)


def test_the_nearest_anchor_is_a_token_of_the_teacher() -> None:
    tokens = torch.arange(36.0)[None, :, None]  # 6 x 6
    assert anchor_targets(tokens, 9, "nearest")[0, :, 0].tolist() == [7, 9, 11, 19, 21, 23, 31, 33, 35]
    assert anchor_targets(tokens, 9)[0, 0, 0].item() == (0 + 1 + 6 + 7) / 4
