"""Boxes alone to a map: exact where the answer is known, for every focusing stage and every way to few tokens."""

import pytest
import torch
from tiny import tiny_config, tiny_model

from sfvlm.alternatives.towers import METHODS, reduce
from sfvlm.dense.maps import coverage, dense_map, patch_map, placed_map, reduced_map, teacher_map
from sfvlm.teachers.inherit import inherit
from sfvlm.teachers.open import DenseTransformer, Teacher

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
GRID = (4, 4)


def dense_tower() -> DenseTransformer:
    torch.manual_seed(0)
    dense = DenseTransformer(tiny_config("chosen"))
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return dense.eval()


def test_a_box_covers_a_cell_by_the_share_of_it_that_it_overlaps():
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.25, 0.0, 1.0, 0.25], [0.9, 0.9, 0.7, 0.7]]])
    cover = coverage(boxes, (2, 2))[0]
    assert cover[:, 0].tolist() == [1, 0, 0, 0]
    assert cover[:, 1].tolist() == pytest.approx([0.25, 0.5, 0, 0])
    assert cover[:, 2].tolist() == pytest.approx([0, 0, 0, 0.16], abs=1e-6)  # corners may be swapped


def test_a_cell_is_the_mean_of_the_tokens_that_cover_it_and_any_other_the_nearest():
    output = tiny_model("inherited")(PIXELS)
    output.token_rois = (torch.tensor([[0.0, 0.0, 0.5, 1.0]] * 2 + [[0.5, 0.0, 1.0, 0.5]] * 2).expand(2, -1, -1),)
    tokens = output.last_hidden_state[:, 1:]
    made = dense_map(output, (2, 2))
    torch.testing.assert_close(made[:, :, 0, 0], tokens[:, :2].mean(dim=1))
    torch.testing.assert_close(made[:, :, 1, 0], tokens[:, :2].mean(dim=1))
    torch.testing.assert_close(made[:, :, 0, 1], tokens[:, 2:].mean(dim=1))
    uncovered = made[:, :, 1, 1] - tokens[:, 2:].mean(dim=1)
    assert uncovered.abs().max() < (made[:, :, 1, 1] - tokens[:, :2].mean(dim=1)).abs().max()


@pytest.mark.parametrize("focusing", ["inherited", "chosen", "fresh"])
@pytest.mark.parametrize("budget", [4, 9, 16])
def test_every_stage_and_budget_gives_a_map_of_the_asked_size(focusing: str, budget: int):
    model = tiny_model(focusing)
    made = dense_map(model(PIXELS, num_tokens=budget), (5, 7), norm=model.head.norm)
    assert made.shape == (2, 64, 5, 7) and torch.isfinite(made).all()


def test_with_a_token_a_patch_the_map_is_the_teachers_own():
    dense = dense_tower()
    student, _ = inherit(Teacher(dense, "tiny", ""), tiny_config("chosen", num_tokens=16, glimpse_size=8))
    with torch.no_grad():
        ours = dense_map(student.eval()(PIXELS), GRID, norm=student.head.norm)
        torch.testing.assert_close(ours, teacher_map(dense, PIXELS), atol=1e-4, rtol=1e-4)


def test_tokens_in_a_rectangle_give_the_map_of_that_rectangle():
    model = tiny_model("chosen", even_share=1.0)
    corner = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    with torch.no_grad():
        output = model(PIXELS, num_tokens=16, focus=corner)
    made = dense_map(output, GRID, region=corner)
    torch.testing.assert_close(made.flatten(2).transpose(1, 2), output.last_hidden_state[:, 1:], atol=1e-5, rtol=1e-5)


def test_the_coarse_look_stands_behind_the_tokens_where_there_was_one():
    model = tiny_model("chosen")
    output = model(PIXELS, num_tokens=4)
    output.token_rois = (output.token_rois[0], torch.tensor([0.0, 0.0, 0.5, 1.0]).expand(2, 4, 4))
    made = dense_map(output, (2, 2), behind="coarse")
    torch.testing.assert_close(made[:, :, 0, 1], output.coarse_tokens[:, 1], atol=0.2, rtol=0)
    with pytest.raises(ValueError, match="no coarse look"):
        dense_map(tiny_model("fresh")(PIXELS), (2, 2), behind="coarse")


@pytest.mark.parametrize("method", METHODS)
def test_every_cheap_way_gives_a_map(method: str):
    tower = reduce(dense_tower(), method, 4, read_layer=-1)
    with torch.no_grad():
        made = reduced_map(tower, PIXELS, GRID)
    assert made.shape == (2, 64, 4, 4) and torch.isfinite(made).all()


def test_a_patch_gets_the_token_it_became_a_part_of_or_the_nearest():
    tokens = torch.tensor([[[1.0], [2.0]]])
    assert placed_map(tokens, torch.tensor([[0, 1, 1, 0]]), (2, 2)).flatten().tolist() == [1, 2, 2, 1]
    dropped = placed_map(tokens, torch.tensor([[0, -1, -1, -1, -1, 1]]), (1, 6)).flatten()
    assert dropped[0] == 1 and dropped[5] == 2 and dropped[1] < 1.5 < dropped[4]


@pytest.mark.parametrize("method", ["merging", "merging-gradual", "cls-attention"])
def test_merged_patches_are_where_their_tokens_say(method: str):
    """With as many tokens as patches nothing merges, and the map is the dense one."""
    dense = dense_tower()
    with torch.no_grad():
        every = reduced_map(reduce(dense, method, 16, read_layer=-1), PIXELS, GRID)
        few = reduce(dense, method, 6, read_layer=-1)(PIXELS).places
    if method != "cls-attention":  # which averages some in any case
        torch.testing.assert_close(every, teacher_map(dense, PIXELS), atol=1e-4, rtol=1e-4)
    assert sorted(few[0].unique().tolist()) == list(range(6))


def test_a_map_of_no_cells_and_a_grid_of_other_tokens_are_refused():
    output = tiny_model("chosen")(PIXELS)
    with pytest.raises(ValueError, match="at least 1 each"):
        dense_map(output, (0, 4))
    with pytest.raises(ValueError, match="There are 15 tokens, and a map of 4 x 4 has 16"):
        patch_map(torch.zeros(1, 16, 8), GRID, 1)
