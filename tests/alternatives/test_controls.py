"""The cheap ways to few tokens, and what they cost."""

import copy
from itertools import pairwise
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfvlm.alternatives.controls import Control, LargerPatch, LowerResolution, TokenMerging, make_controls
from sfvlm.alternatives.costs import cost, macs
from sfvlm.alternatives.merging import Schedule, merge, merging_counts
from sfvlm.encoder import roi
from sfvlm.encoder.configuration import SparseFormerConfig
from sfvlm.encoder.sparseformer import SparseFormerModel
from sfvlm.evaluate.encoding import Student
from sfvlm.teachers.inherit import inherit
from sfvlm.teachers.open import DenseTransformer, Teacher
from sfvlm.teachers.student import student_config

KINDS = ["cls", "mean", "attention"]


def dense_teacher(pooling: str = "cls", image_size: int = 32, patch: int = 4, **fields: object) -> DenseTransformer:
    """A tiny teacher whose parameters are all random."""
    grid = image_size // patch
    described = {
        "image_size": image_size,
        "num_tokens": grid**2,
        "teacher_patch_size": patch,
        "teacher_grid": grid,
        "glimpse_size": patch,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "hidden_act": "gelu",
        "pre_norm": pooling == "cls",
        "pooling": pooling,
        "projection_dim": 24 if pooling == "cls" else 0,
        "num_classes": 0 if pooling == "cls" else 7,
    }
    model = DenseTransformer(SparseFormerConfig(**(described | fields)))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model.eval().requires_grad_(False)


def photos(image_size: int = 32, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    return F.interpolate(coarse, size=(image_size, image_size), mode="bicubic")


def image_tokens(model: Control, pixels: Tensor) -> list[int]:
    return [hidden.shape[1] - int(model.has_cls_token) for hidden in model(pixels).hidden_states]


@pytest.mark.parametrize("pooling", KINDS)
def test_every_control_reaches_the_budget_and_returns_what_the_teacher_returns(pooling):
    dense, pixels = dense_teacher(pooling), photos()
    teacher = dense(pixels)
    controls = make_controls(dense, 16, 32)
    assert len(controls) == 5
    for control in controls:
        output = control(pixels)
        assert image_tokens(control, pixels)[-1] == 16, control.name
        assert output.pooled.shape == teacher.pooled.shape
        assert (output.logits is None) == (teacher.logits is None)
        assert control.name
        assert control.citation


@pytest.mark.parametrize("budget", [0, -4])
def test_a_budget_below_one_token_is_refused(budget):
    with pytest.raises(ValueError, match=f"num_tokens is {budget}; a photo needs at least 1 token"):
        make_controls(dense_teacher(), budget, 32)


def test_a_budget_the_teacher_does_not_exceed_has_no_controls():
    assert make_controls(dense_teacher(), 64, 32) == []


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("pooling", KINDS)
def test_merging_no_tokens_is_the_dense_teacher(pooling, schedule):
    dense, pixels = dense_teacher(pooling), photos()
    ours, theirs = TokenMerging(dense, 64, schedule)(pixels), dense(pixels)
    torch.testing.assert_close(ours.pooled, theirs.pooled, rtol=1e-4, atol=1e-5)
    for mine, its in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", KINDS)
def test_merging_equal_tokens_changes_nothing(pooling):
    dense = dense_teacher(pooling)
    torch.nn.init.zeros_(dense.positions)
    pixels = torch.ones(1, 3, 32, 32)  # all patches alike: sizes and proportional attention must make up for the loss
    ours, theirs = TokenMerging(dense, 5, "gradual")(pixels), dense(pixels)
    torch.testing.assert_close(ours.pooled, theirs.pooled, rtol=1e-3, atol=1e-4)


def test_merging_keeps_the_sum_over_patches_and_leaves_the_class_token_alone():
    generator = torch.Generator().manual_seed(3)
    x, size = torch.randn(2, 10, 6, generator=generator), torch.ones(2, 10)
    merged, sizes, _ = merge(x, size, x, remove=4, protected=1)
    assert merged.shape == (2, 6, 6)
    torch.testing.assert_close((merged * sizes[..., None]).sum(1), x.sum(1))
    assert torch.equal(merged[:, 0], x[:, 0])
    assert torch.equal(sizes[:, 0], torch.ones(2))
    assert torch.equal(sizes.sum(1), torch.full((2,), 10.0))


@pytest.mark.parametrize("pooling", KINDS)
def test_merging_in_bfloat16_counts_every_patch(pooling, monkeypatch):
    dense = dense_teacher(pooling, image_size=96, num_hidden_layers=5)
    torch.nn.init.zeros_(dense.positions)
    pixels = torch.ones(1, 3, 96, 96)  # 24 x 24 patches, all alike: most of them gather in one token
    sizes = []

    def noted(*arguments):
        sizes.append(merge(*arguments)[1])
        return merge(*arguments)

    monkeypatch.setattr("sfvlm.alternatives.controls.merge", noted)
    expected = TokenMerging(dense, 18, "early")(pixels).pooled
    found = TokenMerging(copy.deepcopy(dense).bfloat16(), 18, "early")(pixels.bfloat16()).pooled
    patches = sizes[-1][:, int(dense.config.has_cls_token) :]
    assert patches.shape == (1, 18)
    assert patches.max() > 256  # beyond which bfloat16 cannot count
    assert patches.sum() == 576
    assert (found.float() - expected).norm() / expected.norm() < 0.05


def test_the_most_similar_pair_merges_first_and_the_others_keep_their_order():
    x = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.1, 0, 1], [-1, 0, 0], [0, -1, 0]]])
    merged, sizes, _ = merge(x, torch.ones(1, 6), x, remove=1, protected=0)
    wanted = torch.stack([x[0, 0], x[0, 1], (x[0, 2] + x[0, 3]) / 2, x[0, 4], x[0, 5]])
    torch.testing.assert_close(merged[0], wanted)
    assert sizes.tolist() == [[1, 1, 2, 1, 1]]


def test_the_early_schedule_takes_equal_shares_in_a_third_of_the_blocks():
    assert merging_counts(196, 49, 12, "early") == (139, 98, 70, *[49] * 9)
    assert merging_counts(196, 16, 12, "early")[3:] == (16,) * 9
    assert merging_counts(64, 3, 6, "early") == (35, 19, 11, 6, 3, 3)  # a third of the blocks would more than halve
    with pytest.raises(ValueError, match="64 tokens down to 3"):
        merging_counts(64, 3, 4, "early")


def test_the_gradual_schedule_takes_equal_steps_and_the_decreasing_one_falling_ones():
    gradual, decreasing = (merging_counts(196, 49, 12, schedule) for schedule in ("gradual", "decreasing"))
    assert gradual[-1] == decreasing[-1] == 49
    steps, falling = ([a - b for a, b in pairwise((196, *counts))] for counts in (gradual, decreasing))
    assert set(steps) <= {12, 13}
    assert falling[0] in (24, 25) and falling[-1] == 0 and all(a >= b - 1 for a, b in pairwise(falling))
    assert merging_counts(64, 1, 6, "gradual")[-1] == 1  # equal steps would remove all at the end


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize(
    ("tokens", "target", "depth"), [(196, 1, 12), (196, 16, 11), (576, 64, 23), (9, 2, 3), (64, 64, 4)]
)
def test_a_schedule_reaches_its_target_and_never_more_than_halves(tokens, target, depth, schedule):
    counts = (tokens, *merging_counts(tokens, target, depth, schedule))
    assert len(counts) == depth + 1 and counts[-1] == target
    assert all(after <= before <= 2 * after for before, after in pairwise(counts))


def test_what_merging_costs_is_what_its_blocks_see():
    dense = dense_teacher()
    early, decreasing, gradual = (TokenMerging(dense, 16, schedule).cost(32) for schedule in get_args(Schedule))
    assert early.tokens == decreasing.tokens == gradual.tokens == 16
    assert early.mean_tokens == (64 + 32 + 16 + 16) / 4
    assert decreasing.mean_tokens == (64 + 40 + 24 + 16) / 4
    assert gradual.mean_tokens == (64 + 52 + 40 + 28) / 4
    assert early.macs < decreasing.macs < gradual.macs < cost(dense, 32).macs


def test_lower_resolution_is_the_teacher_on_resized_photos():
    dense, pixels = dense_teacher(), photos()
    small = F.interpolate(pixels, size=(16, 16), mode="bilinear", antialias=True)
    assert torch.equal(LowerResolution(dense, 4)(pixels).pooled, dense(small).pooled)


@pytest.mark.parametrize(("image_size", "patch", "budget"), [(32, 4, 16), (32, 8, 4), (48, 8, 16)])
def test_a_larger_patch_is_an_untrained_student_whose_boxes_tile_the_photo(image_size, patch, budget):
    dense, pixels = dense_teacher(image_size=image_size, patch=patch), photos(image_size)
    side = round(budget**0.5)
    config = student_config(
        dense.config, focusing="inherited", num_tokens=budget, coarse_blocks=0, glimpse_size=image_size // side
    )
    student, _ = inherit(Teacher(dense, "a test", ""), config)
    with torch.no_grad():
        student.get_parameter("focusing.token_roi.weight").copy_(roi.tile_layout(side))
        ours = student.eval()(pixels).pooler_output
        theirs = LargerPatch(dense, side, image_size)(pixels).pooled
    assert (ours - theirs).norm() / theirs.norm() < 1e-4


def test_a_larger_patch_leaves_the_teacher_as_it_was():
    dense, pixels = dense_teacher(), photos()
    before = dense(pixels).pooled
    control = LargerPatch(dense, 4, 32)
    control(pixels)
    assert torch.equal(dense(pixels).pooled, before)
    assert control.dense.blocks is dense.blocks


def test_macs_of_a_dense_transformer_are_those_of_the_closed_formula():
    dense = dense_teacher("mean")
    patches, width, hidden, depth, classes = 64, 32, 48, 4, 7
    embedding = patches * width * 3 * 4 * 4
    block = patches * (4 * width * width + 2 * width * hidden) + 2 * patches * patches * width
    assert macs(dense, 32) == embedding + depth * block + width * classes


def test_macs_of_a_sparseformer_grow_with_its_budget():
    dense = dense_teacher()
    spent = []
    for budget in (4, 16):
        config = student_config(dense.config, focusing="inherited", num_tokens=budget)
        spent.append(cost(inherit(Teacher(dense, "a test", ""), config)[0].eval(), 32))
        assert spent[-1].tokens == spent[-1].mean_tokens == budget
    assert 0 < spent[0].macs < spent[1].macs


def test_context_counts_where_it_is_and_is_handed_to_nobody():
    teacher = Teacher(dense_teacher(), "a test", "")
    alone, beside = (
        cost(
            inherit(teacher, student_config(teacher.config, num_tokens=16, focusing="chosen", **changes))[0].eval(), 32
        )
        for changes in ({"context_share": 0.0}, {"context_share": 0.5, "context_blocks": 2})
    )
    depth = teacher.config.num_hidden_layers
    assert alone.tokens == beside.tokens == alone.mean_tokens == 16
    assert beside.mean_tokens == 16 + 8 * 2 / depth
    assert beside.macs > alone.macs
    config = student_config(teacher.config, num_tokens=16, focusing="chosen", context_share=0.5, context_blocks=2)
    at_budget = cost(Student(inherit(teacher, config)[0].eval(), 4), 32)
    assert at_budget.tokens == 4 and at_budget.mean_tokens == 4 + 8 * 2 / depth


def test_counting_macs_leaves_gradients_alone():
    student = SparseFormerModel(student_config(dense_teacher().config, focusing="inherited", num_tokens=4))
    macs(student, 32)
    assert all(parameter.grad is None for parameter in student.parameters())
