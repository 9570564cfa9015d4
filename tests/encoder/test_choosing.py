"""Where patches are chosen: by what the first look guesses, never by a gradient, and some from every region."""

import json
from pathlib import Path

import pytest
import torch
from tiny import randomize, tiny_config, tiny_model

from sfvlm import SparseFormerModel
from sfvlm.alternatives.towers import reduce
from sfvlm.bootstrap.alignment import Target, align, anchor_targets, saliency_error
from sfvlm.bootstrap.objective import Objective
from sfvlm.encoder.blocks import attention_received
from sfvlm.encoder.focusing import ChosenFocusing
from sfvlm.teachers.inherit import inherit
from sfvlm.teachers.open import DenseTransformer, Teacher, open_teacher
from sfvlm.teachers.student import student_config

PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def stage(**changes: object) -> ChosenFocusing:
    focusing = tiny_model("chosen", **changes).focusing
    assert isinstance(focusing, ChosenFocusing)
    return focusing


def test_the_patches_most_worth_a_look_are_taken_in_the_order_of_the_photo():
    focusing = stage(teacher_grid=4, even_share=0.0)
    saliency = torch.arange(16.0).flip(0)[None]
    assert focusing.choose(saliency, 5).tolist() == [[0, 1, 2, 3, 4]]
    saliency[0, 13] = 99
    assert focusing.choose(saliency, 5).tolist() == [[0, 1, 2, 3, 13]]
    assert focusing.choose(saliency, 16).tolist() == [list(range(16))]
    with pytest.raises(ValueError, match="num_tokens is 17, and there are 16 patches"):
        focusing.choose(saliency, 17)


def test_a_share_of_the_tokens_goes_to_the_best_of_each_region():
    focusing = stage(teacher_grid=4, even_share=0.5)
    rising = torch.arange(16.0)
    chosen = focusing.choose(torch.stack([rising, rising.flip(0)]), 8)
    assert chosen[0].tolist() == [5, 7, 10, 11, 12, 13, 14, 15]  # of four quarters 5, 7, 13 and 15; then what is left
    assert chosen[1].tolist() == [0, 1, 2, 3, 4, 5, 8, 10]
    assert focusing.choose(rising[None], 1).tolist() == [[15]]  # too few for regions


def test_the_best_of_the_rest_are_context():
    focusing = stage(num_tokens=4, teacher_grid=4, even_share=1.0, context_share=0.5)
    saliency = torch.arange(16.0)[None]
    cells = focusing.choose(saliency, 4)
    assert cells.tolist() == [[5, 7, 13, 15]]  # the best of each quarter
    assert focusing.choose_context(saliency, cells).tolist() == [[12, 14]]
    few = focusing.choose(saliency, 1)
    assert focusing.choose_context(saliency, few).tolist() == [[13, 14]]  # as many for one token as for four
    most = focusing.choose(saliency, 14)
    assert sorted(torch.cat([most, focusing.choose_context(saliency, most)], dim=1)[0].tolist()) == list(range(16))
    assert stage(teacher_grid=4, context_share=0.0).choose_context(saliency, cells).shape == (1, 0)


@torch.no_grad()
def test_context_is_read_by_the_leading_blocks_and_handed_to_nobody():
    model = tiny_model("chosen", teacher_grid=4, num_tokens=4, context_share=0.5, context_blocks=1)
    output = model(PIXELS, num_tokens=6, output_hidden_states=True)
    assert output.context_rois.shape == (2, 2, 4)
    assert {tuple(state.shape[:2]) for state in output.hidden_states} == {(2, 7)}
    # By hand: the context beside the tokens in the first block, and then no more.
    focused = model.focusing(PIXELS, 6, model._first_blocks)
    hidden = torch.cat([output.hidden_states[0], model.pre_norm(focused.context)], dim=1)
    proportions = model.proportional([9, 7, 7])
    for number, block in enumerate(model.blocks):
        hidden = block(hidden if number < 1 else hidden[:, :7], proportions[number])
        torch.testing.assert_close(output.hidden_states[number + 1], hidden[:, :7])
    torch.testing.assert_close(output.last_hidden_state, hidden)
    model.config.context_blocks = 0
    alone = model(PIXELS, num_tokens=6).last_hidden_state
    model.config.context_share = 0.0
    torch.testing.assert_close(alone, model(PIXELS, num_tokens=6).last_hidden_state)
    assert not torch.allclose(alone, output.last_hidden_state, atol=1e-3)


@torch.no_grad()
def test_guesses_of_tiles_stand_where_their_patches_are():
    focusing = stage(num_tokens=4, teacher_grid=4)
    focusing.saliency.weight.zero_()
    focusing.saliency.bias.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))  # the four patches of each of four tiles
    expected = torch.tensor([[1.0, 2, 1, 2], [3, 4, 3, 4], [1, 2, 1, 2], [3, 4, 3, 4]])
    width = focusing.config.hidden_size
    assert torch.equal(focusing._guess(torch.randn(1, 4, width)).view(4, 4), expected)


@torch.no_grad()
def test_a_token_says_what_it_is_and_where_it_stands():
    model = tiny_model("chosen", teacher_grid=4, num_tokens=4)
    output = model(PIXELS, num_tokens=6)
    assert output.cells.shape == (2, 6) and (output.cells.diff(dim=1) > 0).all()
    boxes = output.token_rois[-1]
    torch.testing.assert_close(boxes[..., 0], (output.cells % 4) / 4)
    torch.testing.assert_close(boxes[..., 3], (output.cells // 4 + 1) / 4)
    assert output.saliency.shape == (2, 16)


def test_choosing_has_no_gradient_and_guessing_has_its_own():
    model = tiny_model("chosen", teacher_grid=4, num_tokens=4)
    model(PIXELS, num_tokens=6).last_hidden_state.square().sum().backward()
    assert isinstance(model.focusing, ChosenFocusing)
    assert model.focusing.saliency.weight.grad is None
    output = model(PIXELS)
    attended = torch.rand(2, 16)
    loss, parts = align(output, Target(output.pooler_output.detach(), saliency=attended), Objective())
    assert parts.keys() == {"pooled", "saliency"}
    loss.backward()
    assert model.focusing.saliency.weight.grad.abs().sum() > 0


def test_the_saliency_loss_is_zero_where_the_guess_is_right_and_positive_elsewhere():
    attended = torch.rand(3, 16) + 0.1
    target = Target(torch.empty(0), saliency=attended)
    assert saliency_error(attended.log() + 5, target).item() == pytest.approx(0, abs=1e-6)
    assert saliency_error(torch.zeros(3, 16), target) > 0.01


def test_a_chosen_patch_is_held_to_its_own_token():
    tokens = torch.arange(16.0)[None, :, None]
    assert anchor_targets(tokens, 3, cells=torch.tensor([[2, 7, 15]])).flatten().tolist() == [2, 7, 15]


@torch.no_grad()
def test_what_is_guessed_is_what_the_cheap_alternative_selects_by(clip_folder: Path):
    teacher = open_teacher(clip_folder)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    states = teacher.model(pixels).hidden_states
    block = teacher.model.blocks[-2]
    received = attention_received(*block.attn.heads(block.norm1(states[-3]))[:2], 1)
    kept = reduce(teacher, "cls-attention", 2, read_layer=-2)(pixels, output_hidden_states=True).hidden_states[-2][
        :, 1:
    ]
    best = received.topk(2, dim=1).indices.sort(dim=1).values
    torch.testing.assert_close(kept, states[-2][:, 1:].gather(1, best[..., None].expand(-1, -1, kept.shape[-1])))


@torch.no_grad()
def test_a_focus_on_the_whole_photo_changes_nothing_and_a_share_goes_into_the_rectangle():
    model, whole = tiny_model("chosen", teacher_grid=4, num_tokens=4), torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    plain, same = model(PIXELS, num_tokens=6), model(PIXELS, num_tokens=6, focus=whole)
    assert torch.equal(plain.last_hidden_state, same.last_hidden_state)
    corner = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    assert (model(PIXELS, num_tokens=6, focus=corner).token_rois[-1] >= 0.5).all()
    boxes = model(PIXELS, num_tokens=8, focus=corner, focus_share=0.5).token_rois[-1]
    inside = (boxes >= 0.5).all(-1)
    assert boxes.shape == (2, 8, 4) and inside[:, -4:].all()
    assert torch.equal(boxes[:, :4], model(PIXELS, num_tokens=4).token_rois[-1])


@torch.no_grad()
def test_context_is_looked_at_inside_a_rectangle_too():
    model = tiny_model("chosen", teacher_grid=4, num_tokens=4, context_share=0.5)
    corner = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    assert (model(PIXELS, num_tokens=6, focus=corner).context_rois >= 0.5).all()
    shared = model(PIXELS, num_tokens=8, focus=corner, focus_share=0.5).context_rois
    assert shared.shape == (2, 4, 4) and (shared[:, 2:] >= 0.5).all() and not (shared[:, :2] >= 0.5).all()


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 4, 11, 15, 16])
def test_context_is_never_more_than_there_is(count: int):
    model = tiny_model("chosen", teacher_grid=4, num_tokens=4, context_share=0.5).half()
    output = model(PIXELS.half(), num_tokens=count)
    assert output.last_hidden_state.shape[1] == 1 + count and output.last_hidden_state.dtype == torch.float16
    left = min(2, 16 - count)
    assert (0 if output.context_rois is None else output.context_rois.shape[1]) == left
    if left:
        assert output.context_rois.dtype == torch.float32
        both = torch.cat([output.token_rois[-1], output.context_rois], dim=1)
        assert all(len({tuple(box) for box in boxes.tolist()}) == count + left for boxes in both)


def test_a_folder_that_says_nothing_of_context_has_none(tmp_path: Path):
    model = tiny_model("chosen", teacher_grid=4, num_tokens=4)
    model.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    del described["context_share"], described["context_blocks"]
    (tmp_path / "config.json").write_text(json.dumps(described))
    again = SparseFormerModel.from_pretrained(tmp_path)
    assert again(PIXELS).context_rois is None
    torch.testing.assert_close(again(PIXELS).pooler_output, model(PIXELS).pooler_output)


def test_a_student_has_context_for_two_thirds_of_its_blocks_and_for_a_host_less_of_it(clip_folder: Path):
    teacher = open_teacher(clip_folder).config
    own, hosts = student_config(teacher, num_tokens=4), student_config(teacher, num_tokens=4, for_host=True)
    assert own.focusing == hosts.focusing == "chosen"
    assert (own.even_share, own.context_share) == (0.2, 1.0)
    assert (hosts.even_share, hosts.context_share) == (1.0, 0.5)
    assert own.context_blocks == hosts.context_blocks == round(own.num_hidden_layers * 2 / 3)
    assert (own.context_size(4), hosts.context_size(2), own.context_size(16)) == (4, 2, 0)
    assert student_config(teacher, focusing="inherited", num_tokens=4).context_size(4) == 0


def test_patches_cannot_be_chosen_without_a_first_look(clip_folder: Path):
    with pytest.raises(ValueError, match="coarse_blocks is 0"):
        tiny_config("chosen", coarse_blocks=0)
    teacher = open_teacher(clip_folder)
    with pytest.raises(ValueError, match="chosen focusing starts from a square grid"):
        inherit(teacher, student_config(teacher.config, focusing="chosen", num_tokens=5))


@pytest.mark.parametrize(("name", "value"), [("even_share", 1.5), ("context_share", -0.5), ("context_blocks", 99)])
def test_a_share_is_one(name: str, value: float):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        tiny_config("chosen", **{name: value})


def test_with_all_patches_as_tokens_or_context_these_are_the_teachers_own_until_the_context_leaves():
    dense = randomize(DenseTransformer(tiny_config("chosen"))).eval()
    config = tiny_config("chosen", glimpse_size=8, context_share=3.0, context_blocks=2)
    student, _ = inherit(Teacher(dense, "tiny", ""), config)
    pixels = PIXELS[:, :, :32, :32]
    with torch.no_grad():
        output, theirs = student.eval()(pixels, output_hidden_states=True), dense(pixels).hidden_states[2][:, 1:]
    corners = (output.context_rois[..., :2] * 4).round().long()
    places = corners[..., 1] * 4 + corners[..., 0]  # (B, 12)
    for cells, tokens in ((places, output.context_tokens), (output.cells, output.hidden_states[2][:, 1:])):
        torch.testing.assert_close(tokens, anchor_targets(theirs, cells.shape[1], cells=cells), atol=1e-4, rtol=1e-4)
    assert output.coarse_tokens.shape == (2, 4, 64) and output.token_rois[0].shape == (2, 4, 4)


def test_without_context_or_a_first_look_there_are_none_of_their_tokens():
    assert tiny_model("chosen", context_share=0.0)(PIXELS).context_tokens is None
    assert tiny_model("fresh")(PIXELS).coarse_tokens is None
    assert tiny_model("inherited", coarse_blocks=0)(PIXELS).coarse_tokens is None
