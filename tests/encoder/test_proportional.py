"""Claims about `ProportionalAttention`: some patches attend to each other as all of them would."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_config, tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel

from sfvlm.bootstrap.optimization import parameter_groups
from sfvlm.bootstrap.options import BootstrapOptions
from sfvlm.encoder.blocks import Attention, ProportionalAttention
from sfvlm.encoder.sparseformer import SparseFormerModel
from sfvlm.photos.sources import open_photos
from sfvlm.photos.views import tower_pixels
from sfvlm.teachers.inherit import inherit
from sfvlm.teachers.open import open_teacher
from sfvlm.teachers.student import student_config

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def untrained(**overrides: object) -> ProportionalAttention:
    part = ProportionalAttention(tiny_config("chosen", **overrides))
    torch.nn.init.zeros_(part.query)
    torch.nn.init.ones_(part.power)
    return part


def test_a_patch_attends_to_as_many_as_there_are_whatever_is_seen_of_them():
    part = untrained(teacher_grid=14)
    for seen in (16, 49, 196):
        proportion = part([1 + seen])[0]
        bias = torch.zeros(2, 1 + seen, 1 + seen) if proportion is None else proportion.bias[0]
        weights = bias.exp()[0]
        torch.testing.assert_close(weights[1:].sum(1), torch.full((seen,), 197.0))  # all patches and the class token
        assert torch.equal(weights.diagonal(), torch.ones(1 + seen))  # itself once
        assert torch.equal(weights[:, 0], torch.ones(1 + seen))  # and the class token once
        assert torch.equal(bias, bias[:1].expand_as(bias))


def test_without_a_class_token_all_keys_are_patches():
    part = untrained(teacher_grid=14, pooling="mean", projection_dim=0)
    weights = part([49])[0].bias.exp()[0, 0]
    torch.testing.assert_close(weights.sum(1), torch.full((49,), 196.0))


@torch.no_grad()
def test_attention_among_some_is_that_among_all_where_the_others_are_like_the_seen():
    torch.manual_seed(0)
    attention, part = Attention(64, 2), untrained(teacher_grid=9)  # 81 patches
    class_token, patch, others = torch.randn(3, 4, 64).unbind()
    class_token, patch = class_token[:1], patch[:1]
    some = torch.cat([class_token, patch, others])[None]
    everything = torch.cat([class_token, patch, others.repeat(20, 1)])[None]  # 80 others, each 20 times
    among_all = attention(everything)[0, 1]
    torch.testing.assert_close(attention(some, part([6])[0])[0, 1], among_all)
    assert not torch.allclose(attention(some)[0, 1], among_all, atol=1e-2)


@torch.no_grad()
def test_what_is_added_leaves_attention_fused():
    attention, part = Attention(64, 2), untrained(teacher_grid=14)
    tokens, proportion = torch.randn(2, 50, 64), part([50])[0]
    expected = attention(tokens, proportion)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where it cannot be used
        torch.testing.assert_close(attention(tokens, proportion), expected)


def test_with_all_patches_nothing_is_added_even_after_training():
    part = ProportionalAttention(tiny_config("chosen"))
    torch.nn.init.normal_(part.query)
    torch.nn.init.normal_(part.power)
    assert part([17, 17, 17]) == [None] * 3
    assert part([1 + 20]) == [None]  # a rectangle beside the whole photo
    (one,) = part([1 + 1])
    assert one.bias.isfinite().all() and one.query.any()


def test_the_query_is_added_in_proportion_to_what_is_not_seen():
    part = ProportionalAttention(tiny_config("chosen"))
    torch.nn.init.normal_(part.query)
    torch.nn.init.ones_(part.power)
    half, few = part([1 + 8, 1 + 8])[1].query, part([1 + 8, 1 + 4])[1].query
    torch.testing.assert_close(half.flatten(), math.log(15 / 7) * part.query[1])
    torch.testing.assert_close(few, half * math.log(15 / 3) / math.log(15 / 7))


def test_its_few_numbers_alone_bring_a_student_nearer_to_its_teacher():
    teacher = open_teacher("clip-tiny")
    student = inherit(teacher, student_config(teacher.config, for_host=True))[0].eval()
    student.requires_grad_(False)
    student.proportional.requires_grad_(True)
    optimizer = torch.optim.Adam(student.proportional.parameters(), lr=0.1)

    def error(pixels: torch.Tensor) -> torch.Tensor:
        output = student(pixels, num_tokens=16, output_hidden_states=True)
        with torch.no_grad():
            wanted = teacher.model(pixels).hidden_states[-2][:, 1:]
        cells = output.cells[:, :, None].expand(-1, -1, wanted.shape[2])
        return F.mse_loss(output.hidden_states[-2][:, 1:], wanted.gather(1, cells))

    def scenes(name: str) -> torch.Tensor:
        photos = open_photos([name])
        return tower_pixels([photos[number].image for number in range(len(photos))], teacher.config, torch.zeros(1))

    seen, unseen = scenes("scenes:6:4"), scenes("scenes:6:5")
    before = error(unseen).item()
    for _ in range(15):
        optimizer.zero_grad()
        error(seen).backward()
        optimizer.step()
    assert error(unseen).item() < 0.9 * before


@torch.no_grad()
def test_it_travels_with_the_weights_and_only_where_patches_are_chosen(tmp_path: Path):
    model = tiny_model("chosen")
    torch.nn.init.normal_(model.proportional.query)
    model.save_pretrained(tmp_path)
    again = SparseFormerModel.from_pretrained(tmp_path)
    assert torch.equal(again.proportional.query, model.proportional.query)
    torch.testing.assert_close(again(PIXELS).pooler_output, model(PIXELS).pooler_output)
    assert tiny_model("chosen", proportional_attention=False).proportional is None
    assert tiny_model("inherited").proportional is None and tiny_model("fresh").proportional is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_its_numbers_take_the_type_of_the_tokens(dtype: torch.dtype):
    model = tiny_model("chosen").to(dtype)
    assert model(PIXELS.to(dtype)).pooler_output.dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert tiny_model("chosen")(PIXELS).pooler_output.isfinite().all()


def test_it_learns_at_a_rate_of_its_own_and_without_decay():
    options = BootstrapOptions(proportion_learning_rate=0.25)
    model = tiny_model("chosen")
    groups = [group for group in parameter_groups(model, "chosen", options) if group["lr"] == 0.25]
    assert [group["weight_decay"] for group in groups] == [0.0]
    assert {id(each) for each in groups[0]["params"]} == {id(each) for each in model.proportional.parameters()}
    model.train()(PIXELS).pooler_output.square().sum().backward()
    assert model.proportional.query.grad.any() and model.proportional.power.grad.any()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_are_the_same(reentrant: bool):
    model = tiny_model("chosen").train()
    torch.nn.init.normal_(model.proportional.query)
    model(PIXELS).pooler_output.square().sum().backward()
    plain = model.proportional.query.grad.clone()
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model(PIXELS).pooler_output.square().sum().backward()
    torch.testing.assert_close(model.proportional.query.grad, plain)
