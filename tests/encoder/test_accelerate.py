"""Acceleration changes how fast an output comes, not the output, within what is stated."""

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import randomize, tiny_model
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sfvlm.encoder import accelerate as module
from sfvlm.encoder import compiling, fast_layers, replacing
from sfvlm.encoder.accelerate import accelerate, check_possible, difference_of
from sfvlm.encoder.fast_layers import Int8Linear, PackedLinear, Packing
from sfvlm.encoder.sparseformer import SparseFormerOutput
from sfvlm.teachers.open import open_teacher

CPU = torch.device("cpu")
needs_packing = pytest.mark.skipif(not module.packings(), reason="this torch has neither oneDNN nor oneMKL")
needs_int8 = pytest.mark.skipif(not module.int8_engines(), reason="this torch has no engine for 8 bits")


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
@torch.no_grad()
@pytest.mark.parametrize("packing", fast_layers.packings())
def test_either_library_packs_alone(packing: Packing, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fast_layers, "packings", lambda: [packing])
    linear, inputs = nn.Linear(24, 40), torch.randn(3, 5, 24)
    packed = PackedLinear(linear, gain=2.0, bias_gain=3.0)
    expected = 2 * F.linear(inputs, linear.weight) + 3 * linear.bias
    torch.testing.assert_close(packed(inputs), expected)
    assert packed.packs[15][0] is packing
    monkeypatch.setattr(linear, "bias", None)
    torch.testing.assert_close(PackedLinear(linear)(inputs), linear(inputs))


@torch.no_grad()
def test_a_layer_keeps_the_packing_that_multiplies_faster(monkeypatch: pytest.MonkeyPatch):
    def packing(seconds: float) -> Packing:
        def multiply(input: Any, pack: Any, weight: Any, bias: Any, rows: int) -> torch.Tensor:
            time.sleep(seconds)
            return F.linear(input, weight, bias)

        return Packing(lambda weight, rows: weight, multiply)

    slow, fast = packing(0.01), packing(0.0)
    monkeypatch.setattr(fast_layers, "packings", lambda: [slow, fast, slow])
    packed = PackedLinear(nn.Linear(4, 4))
    packed(torch.randn(2, 4))
    assert packed.packs[2][0] is fast


@needs_packing
@torch.no_grad()
def test_a_copy_of_a_packed_model_shares_its_packs():
    packed = moved_model("inherited").accelerate("packed", pixels=photos(2))
    twin = copy.deepcopy(packed)
    assert torch.equal(twin(photos(2)).pooler_output, packed(photos(2)).pooler_output)
    layer, other = (each.blocks[0].attn.qkv for each in (packed, twin))
    assert other is not layer and other.packs is not layer.packs
    assert all(other.packs[rows][1] is layer.packs[rows][1] for rows in layer.packs)


@needs_int8
@torch.no_grad()
def test_a_copy_of_an_8_bit_model_gives_the_same():
    fast = moved_model("inherited").accelerate("int8", pixels=photos(2))
    assert torch.equal(copy.deepcopy(fast)(photos(2)).pooler_output, fast(photos(2)).pooler_output)


@needs_packing
@torch.no_grad()
def test_what_is_accelerated_is_not_accelerated_again():
    packed = moved_model("inherited").accelerate("packed")
    lower = module._to_bfloat16(module._sharing(moved_model("inherited")), lambda model: None)
    lower.acceleration = packed.acceleration._replace(how="bfloat16")
    for model in (packed, nn.Sequential(packed), packed.blocks[0], lower):
        with pytest.raises(ValueError, match=r"accelerated already: give the one that it was made from\."):
            accelerate(model, "compile", photos(1))


@needs_packing
@pytest.mark.parametrize("how", ["packed", pytest.param("int8", marks=needs_int8)])
def test_a_way_that_would_replace_nothing_says_so(how: str):
    with pytest.raises(ValueError, match=r"SparseFormerModel holds bfloat16 weights; call model\.float\(\) first\."):
        moved_model("inherited").bfloat16().accelerate(how)
    with pytest.raises(ValueError, match=r"Conv2d has no linear layer of \d+ features or more"):
        accelerate(nn.Conv2d(3, 2, 8).eval(), how, photos(1))


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
    exact = [name for name, layer in fast.named_modules() if isinstance(layer, PackedLinear)]
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
    monkeypatch.setattr(replacing, "_large_features", lambda model, call: {})
    monkeypatch.setitem(module.TOLERANCES, "int8", 9.0)
    lost = model.accelerate("int8", pixels=pixels).acceleration.difference
    assert kept < lost / 3


@needs_int8
@torch.no_grad()
def test_large_features_are_added_to_the_8_bit_product():
    linear, inputs = nn.Linear(96, 64), torch.randn(2, 25, 96)
    large = torch.tensor([3, 90, 17])
    layer = Int8Linear(linear, module.int8_engines()[0], large)
    small = Int8Linear(linear, module.int8_engines()[0])
    small.packed = layer.packed
    expected = small(inputs.index_fill(-1, large, 0)) + inputs[..., large] @ layer.large_weight
    assert torch.equal(layer(inputs), expected)


@needs_int8
@torch.no_grad()
def test_only_what_an_activation_made_is_overwritten():
    class Beside(nn.Module):
        """Two layers that both read the input, which is read once more."""

        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(64, 96), nn.Linear(64, 96)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.fc1(inputs) * self.fc2(inputs), inputs], dim=-1)

    model, inputs = Beside().eval(), torch.randn(5, 64)
    before = inputs.clone()
    fast = accelerate(model, "int8", inputs)
    assert isinstance(fast.fc2, Int8Linear)
    assert torch.equal(fast(inputs)[:, 96:], before) and torch.equal(inputs, before)


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
    lower = module._to_bfloat16(module._sharing(model), lambda model: None)
    output = lower(photos())
    assert output.pooler_output.dtype == torch.bfloat16
    assert output.token_rois[-1].dtype == torch.float32
    assert lower.focusing.token_roi.weight.equal(model.focusing.token_roi.weight)
    assert model.dtype == torch.float32
    assert difference_of(output, model(photos())) < 0.05


def compile_by(backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch.compile's own backend were this one: (graph, inputs, mode) -> what is run."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(module, "check_possible", lambda how, device: None)  # "graph" needs a GPU otherwise


class Counting:
    """Runs graphs as they are, and counts them."""

    graphs = 0

    def __call__(self, graph: Any, inputs: Any, **_: Any) -> Any:
        self.graphs += 1
        return graph.forward


@torch.no_grad()
@pytest.mark.usefixtures("one_form_kept")
def test_a_compiled_model_takes_more_budgets_than_torch_keeps_by_default(monkeypatch: pytest.MonkeyPatch):
    counting = Counting()
    compile_by(counting, monkeypatch)
    model = moved_model("chosen", coarse_blocks=1, num_hidden_layers=1, context_blocks=0)
    compiled = model.accelerate("compile")
    for count in (5, 6, 5):
        expected = model(photos(1), num_tokens=count).pooler_output
        torch.testing.assert_close(compiled(photos(1), num_tokens=count).pooler_output, expected)
    assert counting.graphs == 1 + 2


@torch.no_grad()
@pytest.mark.usefixtures("one_form_kept")
def test_more_models_are_compiled_than_torch_keeps_of_a_class(monkeypatch: pytest.MonkeyPatch):
    counting = Counting()
    compile_by(counting, monkeypatch)
    for width in (2, 3, 4):
        accelerate(nn.Linear(4, width).eval(), "compile", torch.ones(2, 4))
    assert counting.graphs == 3


@torch.no_grad()
@pytest.mark.parametrize("focusing", ["inherited", "chosen", "fresh"])
def test_a_compiled_model_is_sent_into_a_rectangle(focusing: str, monkeypatch: pytest.MonkeyPatch):
    compile_by(Counting(), monkeypatch)
    model = moved_model(focusing, coarse_blocks=1, num_hidden_layers=1, context_blocks=1, num_focusing_steps=1)
    arguments: dict[str, Any] = dict(num_tokens=9, focus=torch.tensor([[0.25, 0.25, 0.75, 1.0]]), focus_share=0.5)
    compiled = accelerate(model, "compile", photos(2), **arguments)
    found, expected = (each(photos(2, seed=1), **arguments) for each in (compiled, model))
    torch.testing.assert_close(found.pooler_output, expected.pooler_output)
    torch.testing.assert_close(found.token_rois[-1], expected.token_rois[-1])


@pytest.mark.parametrize("how", ["compile", "graph"])
def test_what_the_compiler_cannot_take_is_refused_with_its_reason(how: str, monkeypatch: pytest.MonkeyPatch):
    def failing(graph: Any, inputs: Any, **_: Any) -> Any:
        raise RuntimeError("there is no C++ compiler\nand a long story")

    compile_by(failing, monkeypatch)
    with pytest.raises(ValueError, match=r"^torch\.compile cannot take the Linear: there is no C\+\+ compiler$"):
        accelerate(nn.Linear(4, 4).eval(), how, torch.ones(2, 4))

    class Asking(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels * 2 if pixels.sum().item() > 0 else pixels

    compile_by(Counting(), monkeypatch)
    with pytest.raises(ValueError, match=r"^torch\.compile cannot take the Asking: [^\n]+$"):
        accelerate(Asking().eval(), how, photos(1))


class Replaying:
    """As a CUDA graph: from its second call on it writes to the outputs of the first.

    Args:
        factor: What outputs are multiplied with then.
    """

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def __call__(self, graph: Any, inputs: Any, mode: str) -> Any:
        assert mode == "reduce-overhead"
        kept: list[Any] = []

        def run(*inputs: Any) -> Any:
            outputs = graph(*inputs)
            if not kept:
                kept.append(outputs)
                return outputs
            for own, new in zip(kept[0], outputs, strict=True):
                if isinstance(own, torch.Tensor):
                    own.copy_(new * self.factor if new.is_floating_point() else new)
            return kept[0]

        return run


class Wrapped(nn.Module):
    """A linear model whose output is of another kind."""

    def __init__(self, wrap: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.wrap = nn.Linear(4, 4), wrap

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.wrap(self.linear(inputs))


@torch.no_grad()
def test_what_a_graph_gave_stays_when_it_is_replayed(clip_folder: Path, monkeypatch: pytest.MonkeyPatch):
    compile_by(Replaying(), monkeypatch)
    dense = open_teacher(clip_folder).model
    dense.blocks = dense.blocks[:1]
    for model in (moved_model("chosen", coarse_blocks=1, num_hidden_layers=1, context_blocks=1), clip(), dense):
        first, second = (photos(1, seed=seed) for seed in (1, 2))
        graph = accelerate(model, "graph", first)
        found, _ = graph(first), graph(second)
        assert difference_of(found, model(first)) < 1e-5, type(model).__name__
    for wrap in (lambda x: x, lambda x: (x, None), lambda x: [x], lambda x: {"a": x}, lambda x: Packing(x, x)):
        graph = compiling.to_graph(Wrapped(wrap).eval(), lambda model: model(torch.ones(4)))
        found = graph(torch.ones(4))
        before = copy.deepcopy(found)
        graph(torch.zeros(4))
        assert type(found) is type(before)
        torch.testing.assert_close(found, before, rtol=0, atol=0)


def test_a_graph_is_compared_when_it_is_replayed(monkeypatch: pytest.MonkeyPatch):
    compile_by(Replaying(factor=1.5), monkeypatch)
    with pytest.raises(ValueError, match=r"by 'graph', the output .* differs by 0\.5"):
        accelerate(nn.Linear(4, 4).eval(), "graph", torch.ones(2, 4))


def test_a_model_of_which_no_graph_is_recorded_is_refused(monkeypatch: pytest.MonkeyPatch):
    torch._dynamo.reset()
    monkeypatch.setattr(module, "check_possible", lambda how, device: None)
    with pytest.raises(ValueError, match=r"^torch can record no CUDA graph of the Linear, .* use 'compile'\.$"):
        accelerate(nn.Linear(4, 4).eval(), "graph", torch.ones(2, 4))  # torch records none on a CPU


@torch.no_grad()
@pytest.mark.parametrize("how", ["compile", "graph"])
def test_a_compiled_model_of_16_bits_may_round_less_often(how: str, monkeypatch: pytest.MonkeyPatch):
    def exact(graph: Any, inputs: Any, **_: Any) -> Any:
        """As torch's compiler fuses: sums stay float32 from layer to layer."""
        return lambda *inputs: [each.bfloat16() for each in graph.float()(*(x.float() for x in inputs))]

    compile_by(exact, monkeypatch)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4))).eval().bfloat16()
    fast = accelerate(model, how, torch.randn(2, 64).bfloat16())
    assert 1e-3 < fast.acceleration.difference < fast.acceleration.tolerance == 0.1


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
