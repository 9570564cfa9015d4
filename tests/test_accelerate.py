"""Acceleration changes how fast an output comes, not the output, within what is stated."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import randomize, tiny_model
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sfvlm import accelerate as module
from sfvlm.accelerate import PackedLinear, accelerate, check_possible, difference_of
from sfvlm.sparseformer import SparseFormerOutput
from sfvlm.teachers import open_teacher

CPU = torch.device("cpu")
needs_packing = pytest.mark.skipif(not module._can_pack(), reason="this torch has no oneMKL")
needs_int8 = pytest.mark.skipif(not module._int8_engines(), reason="this torch has no engine for 8 bits")


def moved_model(focusing: str, **overrides: object):
    return randomize(tiny_model(focusing, hidden_act="quick_gelu", **overrides), scale=0.02).eval()


def photos(count: int = 2, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def clip() -> CLIPVisionModelWithProjection:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    return CLIPVisionModelWithProjection(config).eval()


@needs_packing
@torch.no_grad()
@pytest.mark.parametrize("focusing", ["inherited", "chosen", "fresh"])
def test_a_packed_model_gives_the_same_on_other_photos_batches_sizes_and_budgets(focusing: str):
    model = moved_model(focusing)
    packed = model.accelerate("packed", pixels=photos(2))
    assert type(packed) is type(model)
    assert any(isinstance(layer, PackedLinear) for layer in packed.modules())
    for pixels, budget in ((photos(2, seed=1), 4), (photos(3), 4), (photos(2, 48), 4), (photos(1), 9)):
        expected, found = (each(pixels, num_tokens=budget, output_hidden_states=True) for each in (model, packed))
        torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.hidden_states[-2], expected.hidden_states[-2], rtol=1e-4, atol=1e-5)


@needs_packing
@torch.no_grad()
def test_only_the_sizes_asked_for_are_packed():
    packed = moved_model("inherited").accelerate("packed", pixels=photos(2))
    layers = [layer for layer in packed.modules() if isinstance(layer, PackedLinear)]
    before = [set(layer.packs) for layer in layers]
    packed(photos(5))
    assert [set(layer.packs) for layer in layers] == before
    assert {2 * 5} in before  # two photos of four tokens and the class token


@needs_packing
def test_the_original_is_untouched_and_its_weights_are_shared():
    model = moved_model("inherited")
    before = copy.deepcopy(model.state_dict())
    packed = model.accelerate("packed")
    assert not any(isinstance(layer, PackedLinear) for layer in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    saved = packed.state_dict()
    assert saved.keys() == before.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert saved[name].data_ptr() == tensor.data_ptr(), name


@needs_packing
def test_what_was_accelerated_saves_as_the_original(tmp_path):
    model = moved_model("fresh")
    model.accelerate("packed").save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


@torch.no_grad()
@pytest.mark.parametrize("how", [pytest.param("packed", marks=needs_packing), pytest.param("int8", marks=needs_int8)])
def test_a_dense_clip_is_accelerated_by_the_same_means(how: str):
    dense = clip()
    pixels = photos()
    fast = accelerate(dense, how, pixels)
    assert fast.acceleration.how == how
    assert difference_of(fast(pixels), dense(pixels)) <= fast.acceleration.tolerance
    assert any(isinstance(layer, nn.SiLU) for layer in fast.modules()), (
        "CLIP's activation was not taken into its layers"
    )


@needs_int8
@torch.no_grad()
@pytest.mark.parametrize("focusing", ["inherited", "chosen", "fresh"])
def test_eight_bits_stay_close_and_leave_what_decides_where_to_look(focusing: str):
    model = moved_model(focusing)
    fast = model.accelerate("int8", pixels=photos(2))
    exact = [name for name, layer in fast.named_modules() if type(layer) is nn.Linear]
    if focusing == "chosen":
        assert "focusing.saliency" in exact
    else:
        assert "focusing.refiner.fc1" in exact
    pixels = photos(4, seed=3)
    found, expected = fast(pixels), model(pixels)
    assert 0 < difference_of(found, expected) < 0.1  # rounding shows, and little of it


@needs_int8
@torch.no_grad()
def test_a_few_huge_features_do_not_take_the_bits_of_the_others(monkeypatch: pytest.MonkeyPatch):
    model = moved_model("inherited")
    for block in model.blocks:
        block.mlp.fc1.bias[:3] += 200.0
        block.mlp.fc2.weight[:, :3] *= 0.005
    pixels = photos(2)
    kept = model.accelerate("int8", pixels=pixels).acceleration.difference
    monkeypatch.setattr(module, "_large_features", lambda model, call: {})
    monkeypatch.setitem(module.TOLERANCES, "int8", 9.0)
    lost = model.accelerate("int8", pixels=pixels).acceleration.difference
    assert kept < lost / 3


@needs_int8
def test_an_output_that_differs_too_much_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(module.TOLERANCES, "int8", 1e-9)
    with pytest.raises(ValueError, match=r"differs by .* of its length, and 1e-09 is allowed"):
        moved_model("inherited").accelerate("int8")


def test_an_output_that_is_no_number_is_infinitely_far(monkeypatch: pytest.MonkeyPatch):
    def spoil(module: nn.Module, inputs: object, output: SparseFormerOutput) -> None:
        output.pooler_output.fill_(float("nan"))

    def spoilt(model: nn.Module, call: object) -> nn.Module:
        model.register_forward_hook(spoil)
        return model

    monkeypatch.setitem(module.MAKERS, "compile", spoilt)
    with pytest.raises(ValueError, match="differs by inf"):
        moved_model("inherited").accelerate("compile")


@torch.no_grad()
def test_vectors_of_dense_transformers_and_plain_tensors_are_compared(clip_folder: Path):
    output = open_teacher(clip_folder).model(photos())
    other = replace(output, pooled=1.5 * output.pooled)
    assert difference_of(output, output) == difference_of(output.pooled, output.pooled) == 0
    assert difference_of(other, output) == pytest.approx(0.5)
    assert difference_of(other.pooled, output.pooled) == pytest.approx(0.5)


def test_an_output_with_nothing_to_compare_is_refused():
    vectors = (torch.zeros(2, 4),)
    with pytest.raises(ValueError, match="of type tuple has none of pooler_output, "):
        difference_of(vectors, vectors)


def test_a_choice_that_falls_the_other_way_counts_for_the_pooled_vector_alone():
    model = moved_model("chosen", num_tokens=4)
    with torch.no_grad():
        output = model(photos(2))
    other = copy.copy(output)
    other.cells = output.cells.clone()
    other.cells[0] += 1
    other.last_hidden_state = output.last_hidden_state.clone()
    other.last_hidden_state[0] += 1
    assert difference_of(other, output) == 0
    other.last_hidden_state[1] += 1
    assert difference_of(other, output) > 0.1


def test_another_context_is_another_choice():
    model = moved_model("chosen", num_tokens=4, context_share=0.5)
    with torch.no_grad():
        output = model(photos(2))
    other = copy.copy(output)
    other.last_hidden_state = output.last_hidden_state.clone()
    other.last_hidden_state[0] += 1
    assert difference_of(other, output) > 0.1
    other.context_rois = output.context_rois.clone()
    other.context_rois[0, 0] += 0.25
    assert difference_of(other, output) == 0


@pytest.mark.parametrize(
    ("how", "reason"),
    [("faster", "There is no acceleration 'faster'"), ("graph", "needs a CUDA device; this is cpu")],
)
def test_what_a_machine_cannot_do_is_said(how: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        check_possible(how, CPU)


def test_a_model_in_training_is_refused():
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        moved_model("inherited").train().accelerate("compile")


@torch.no_grad()
def test_bfloat16_takes_float32_photos_and_keeps_boxes_exact():
    model = moved_model("inherited")
    lower = module._bfloat16(module._sharing(model), lambda model: None)
    output = lower(photos())
    assert output.pooler_output.dtype == torch.bfloat16
    assert output.token_rois[-1].dtype == torch.float32
    assert lower.focusing.token_roi.weight.equal(model.focusing.token_roi.weight)
    assert model.dtype == torch.float32
    assert difference_of(output, model(photos())) < 0.05


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("focusing", ["inherited", "chosen", "fresh"])
def test_a_compiled_model_gives_the_same(focusing: str):
    model = moved_model(focusing)
    compiled = model.accelerate("compile")
    assert difference_of(compiled(photos(1, seed=2)), model(photos(1, seed=2))) < 1e-4


@pytest.mark.gpu
@torch.no_grad()
def test_a_replayed_graph_gives_the_same():
    model = moved_model("inherited").cuda()
    graph = model.accelerate("graph")
    pixels = photos(1, seed=2).cuda()
    assert difference_of(graph(pixels), model(pixels)) < 1e-3
