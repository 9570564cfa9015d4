import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import randomize, tiny_config, tiny_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModel, initialization, pipeline

import sfvlm
from sfvlm import SparseFormerConfig, SparseFormerModel, preset
from sfvlm.encoder import roi, sparseformer
from sfvlm.encoder.configuration import PRESETS
from sfvlm.encoder.folder import image_processor
from sfvlm.encoder.fresh import FreshFocusing
from sfvlm.teachers.kernels import resample_kernel

KINDS = ["inherited", "chosen", "fresh"]
MOVING = ["inherited", "fresh"]  # their boxes


@pytest.mark.parametrize("focusing", KINDS)
@pytest.mark.parametrize("count", [1, 4, 7, 9, 16])
def test_the_budget_is_a_call_time_argument(focusing: str, count: int) -> None:
    output = tiny_model(focusing)(torch.randn(2, 3, 32, 32), num_tokens=count, output_hidden_states=True)
    assert output.pooler_output.shape == (2, 24)
    assert [tuple(hidden.shape) for hidden in output.hidden_states] == [(2, 1 + count, 64)] * 4
    assert all(boxes.dtype == torch.float32 for boxes in output.token_rois)
    assert output.token_rois[-1].shape == (2, count, 4)


@pytest.mark.parametrize("focusing", KINDS)
@pytest.mark.parametrize("size", [(32, 32), (64, 48), (33, 71), (16, 100)])
def test_any_size_and_aspect_ratio_is_encoded(focusing: str, size: tuple[int, int]) -> None:
    output = tiny_model(focusing)(torch.randn(1, 3, *size))
    assert output.pooler_output.isfinite().all()


@pytest.mark.parametrize("focusing", MOVING)
def test_every_parameter_gets_a_gradient(focusing: str) -> None:
    model = randomize(tiny_model(focusing, num_classes=5), scale=0.02)
    output = model(torch.randn(2, 3, 32, 32))
    (output.logits.square().sum() + output.last_hidden_state.square().sum()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("focusing", KINDS)
def test_photos_of_a_batch_do_not_see_each_other(focusing: str) -> None:
    model = randomize(tiny_model(focusing), scale=0.02)
    pixels = torch.randn(3, 3, 32, 32)
    together = model(pixels).pooler_output
    alone = torch.cat([model(photo[None]).pooler_output for photo in pixels])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("focusing", KINDS)
def test_saving_and_loading_gives_the_same_bits(focusing: str, tmp_path: Path) -> None:
    model = randomize(tiny_model(focusing))
    model.save_pretrained(tmp_path)
    pixels, tensors = torch.randn(1, 3, 32, 32), model.state_dict()
    for loaded in (SparseFormerModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is SparseFormerModel
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in loaded.state_dict().items())
        # Loaded weights are mapped from the file, and a product rounds by where its factors lie: a copy lies where others do.
        assert torch.equal(copy.deepcopy(loaded)(pixels).pooler_output, model(pixels).pooler_output)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), SparseFormerConfig)


@pytest.mark.parametrize("focusing", MOVING)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_and_keeps_boxes_exact(focusing: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = randomize(tiny_model(focusing), scale=0.02)
    boxes = model.focusing.token_roi.weight.detach().clone()
    pixels = torch.randn(2, 3, 32, 32)
    exact = model(pixels).pooler_output
    half = copy.deepcopy(model).to(dtype)
    assert torch.equal(half.focusing.token_roi.weight, boxes)
    output = half(pixels)
    assert output.pooler_output.dtype == dtype
    assert output.token_rois[-1].dtype == torch.float32
    assert torch.cosine_similarity(output.pooler_output.float(), exact).min() > 0.99
    half.save_pretrained(tmp_path)
    loaded = SparseFormerModel.from_pretrained(tmp_path, dtype=dtype)
    assert torch.equal(loaded.focusing.token_roi.weight, boxes)


@pytest.mark.parametrize("focusing", KINDS)
def test_a_model_built_on_the_meta_device_and_loaded_is_the_same(focusing: str, tmp_path: Path) -> None:
    model = randomize(tiny_model(focusing))
    model.save_pretrained(tmp_path)
    loaded = SparseFormerModel.from_pretrained(tmp_path)
    for (name, ours), (_, theirs) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert not list(loaded.named_buffers())


@pytest.mark.parametrize("focusing", KINDS)
def test_initialisation_survives_switched_off_torch_defaults(focusing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (torch.nn.Linear, torch.nn.LayerNorm, torch.nn.Conv2d):
        monkeypatch.setattr(kind, "reset_parameters", lambda self: self.weight.data.fill_(float("nan")))
    model = SparseFormerModel(tiny_config(focusing))
    assert [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()] == []


@pytest.mark.parametrize("focusing", MOVING)
def test_a_new_model_moves_no_box(focusing: str) -> None:
    rois = tiny_model(focusing)(torch.randn(2, 3, 32, 32)).token_rois
    for boxes in rois[1:]:
        torch.testing.assert_close(boxes, rois[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("focusing", KINDS)
def test_refinement_moves_boxes_photo_by_photo(focusing: str) -> None:
    rois = randomize(tiny_model(focusing), scale=0.3)(torch.randn(2, 3, 32, 32)).token_rois
    assert (rois[-1][0] - rois[-1][1]).abs().max() > 1e-3


@pytest.mark.parametrize("focusing", KINDS)
def test_the_compiled_model_has_no_graph_break_and_agrees(focusing: str) -> None:
    model = randomize(tiny_model(focusing), scale=0.02)
    pixels = torch.randn(2, 3, 32, 32)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for count in (4, 9):
        torch.testing.assert_close(
            compiled(pixels, num_tokens=count).pooler_output,
            model(pixels, num_tokens=count).pooler_output,
            atol=1e-5,
            rtol=1e-5,
        )


class NotedOnCpu(TorchDispatchMode):
    """Notes every operation that takes or gives a tensor on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.found.add(str(func))
        return output


@pytest.mark.parametrize("focusing", KINDS)
def test_a_model_is_built_on_a_gpu_and_copies_nothing_to_it(focusing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch's own reads values, which tensors without memory do not have.
    monkeypatch.setitem(initialization.TORCH_INIT_FUNCTIONS, "trunc_normal_", lambda tensor, **_: tensor)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # nor can they say whether a rectangle is one
    with FakeTensorMode(), torch.device("cuda"):
        model = tiny_model(focusing, context_share=0.5)
        focus = torch.empty(2, 4)
        for size in ((32, 32), (128, 96)):
            for count, focused in ((4, {}), (7, {}), (7, {"focus": focus}), (7, {"focus": focus, "focus_share": 0.5})):
                pixels = torch.empty(2, 3, *size)
                with NotedOnCpu() as noted:
                    output = model(pixels, num_tokens=count, **focused)
                assert output.token_rois[-1].device.type == output.pooler_output.device.type == "cuda"
                assert noted.found == set(), (size, count, focused)


@pytest.mark.parametrize("focusing", KINDS)
def test_an_exported_program_takes_any_number_of_photos(focusing: str) -> None:
    model, shapes = tiny_model(focusing), {"pixel_values": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=shapes).module()
    for count in (1, 5):
        pixels = torch.randn(count, 3, 32, 32)
        torch.testing.assert_close(program(pixels).pooler_output, model(pixels).pooler_output)


@pytest.mark.parametrize("focusing", KINDS)
def test_gradient_checkpointing_changes_no_gradient(focusing: str) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    gradients = []
    for checkpointing in (False, True):
        model = randomize(tiny_model(focusing), scale=0.02).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(pixels).pooler_output.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_hidden_states_are_returned_for_a_layer_number_too() -> None:
    model = tiny_model()
    pixels = torch.randn(1, 3, 32, 32)
    assert model(pixels).hidden_states is None
    for asked in (True, -2, 0):
        assert len(model(pixels, output_hidden_states=asked).hidden_states) == 4


def test_a_plain_tuple_begins_with_tokens_and_vector_as_of_any_vision_model() -> None:
    model, pixels = tiny_model(), torch.randn(1, 3, 32, 32)
    output, found = model(pixels), model(pixels, return_dict=False)
    assert isinstance(found, tuple)
    assert torch.equal(found[0], output.last_hidden_state) and torch.equal(found[1], output.pooler_output)
    model.config.return_dict = False
    assert isinstance(model(pixels), tuple) and not isinstance(model(pixels, return_dict=True), tuple)


def test_a_pipeline_gives_tokens_and_asked_to_pool_the_vector(tmp_path: Path) -> None:
    model, photo = tiny_model(), Image.new("RGB", (40, 32), "red")
    model.save_pretrained(tmp_path)
    image_processor(model.config).save_pretrained(tmp_path)
    extract = pipeline("image-feature-extraction", model=str(tmp_path))
    assert torch.tensor(extract(photo)).shape == (1, 5, 64)
    assert torch.tensor(extract(photo, pool=True)).shape == (1, 24)


@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_towers_without_a_class_token_pool_their_tokens(pooling: str) -> None:
    model = tiny_model(pooling=pooling, projection_dim=0, pre_norm=False)
    output = model(torch.randn(2, 3, 32, 32), output_hidden_states=True)
    assert output.pooler_output.shape == (2, 64)
    assert output.hidden_states[0].shape == (2, 4, 64)


@pytest.mark.parametrize("sides", [(8, 16), (16, 8), (7, 16), (16, 14)])
def test_a_resampled_kernel_answers_a_resampled_picture_as_before(sides: tuple[int, int]) -> None:
    old, new = sides
    small = torch.randn(1, 3, min(sides), min(sides))
    large = torch.nn.functional.interpolate(small, size=max(sides), mode="bilinear")
    kernel = torch.randn(5, 3, old, old)
    pictures = {min(sides): small, max(sides): large}
    if new < old:  # exact only for what came from a smaller kernel
        kernel = resample_kernel(torch.randn(5, 3, new, new), old)
    before = torch.einsum("dcij,bcij->bd", kernel, pictures[old])
    after = torch.einsum("dcij,bcij->bd", resample_kernel(kernel, new), pictures[new])
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)


def shape_column(config: SparseFormerConfig) -> dict[str, str]:
    """The rows of the shape table, recomputed on the meta device: B is 3."""
    with torch.device("meta"):
        model = SparseFormerModel(config)
    found: dict[str, str] = {}

    def note(name: str, tensor: torch.Tensor) -> None:
        found[name] = " x ".join(["B", *map(str, tensor.shape[1:])])

    if isinstance(model.focusing, FreshFocusing):
        model.focusing.early_conv.register_forward_hook(lambda _m, _i, out: note("early_conv", out))
        model.focusing.block.register_forward_hook(lambda _m, _i, out: note("focusing block (x 4)", out))
        assert config.num_focusing_steps == 4
    model.focusing.register_forward_hook(lambda _m, _i, out: note("focusing", out.tokens))
    pixels = torch.empty(3, 3, config.image_size, config.image_size, device="meta")
    output = model(pixels, output_hidden_states=True)
    note("pixel_values", pixels)
    for name in ("token_rois", "sampling_points", "hidden_states"):
        note(f"{name}[-1]", getattr(output, name)[-1])
    note("hidden_states[0]", output.hidden_states[0])
    note("pooler_output", output.pooler_output)
    found["blocks"] = str(len(model.blocks))
    if config.focusing == "inherited":
        side = config.glimpse_size
        note("glimpses", roi.sample_glimpses(pixels, output.token_rois[-1], side))
    return found


def test_the_shape_table_at_the_head_of_the_file_is_true() -> None:
    rows = [line.strip("| ").split("|") for line in (sparseformer.__doc__ or "").splitlines() if line.startswith("| ")]
    table = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows[1:] if "---" not in row[0]}
    clip_large = tiny_config(
        image_size=336, num_tokens=49, teacher_patch_size=14, teacher_grid=24, glimpse_size=14, coarse_blocks=2,
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, projection_dim=768,
    )  # fmt: skip
    for column, config in enumerate([clip_large, preset("sparseformer-clip-base")]):
        stated = {name: cells[column] for name, cells in table.items() if len(cells) > column and cells[column]}
        assert int(stated.pop("tokens the teacher would have used")) == [24**2 + 1, 14**2 + 1][column]
        assert shape_column(config) == stated


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_have_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = SparseFormerModel(preset(name))
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx({"base": 64.0, "large": 212.3}[name.rsplit("-", 1)[1]], abs=0.3)


def test_bad_configurations_name_the_numbers_that_disagree() -> None:
    with pytest.raises(ValueError, match=r"hidden_size 70 .* num_attention_heads 4"):
        tiny_config(hidden_size=70, num_attention_heads=4)
    with pytest.raises(ValueError, match="focusing is 'dense'"):
        tiny_config("dense")
    with pytest.raises(ValueError, match=r"hidden_act is 'gelux'; transformers knows gelu, "):
        tiny_config(hidden_act="gelux")
    for name, value, what in (
        ("image_size", "224", "a whole number"),
        ("num_tokens", 4.0, "a whole number"),
        ("default_budget", "49", "a whole number"),
        ("num_attention_heads", 0, "at least 1"),
        ("box_zoom", None, "a number"),
        ("context_share", math.nan, "a number"),
        ("proportional_attention", "no", "true or false"),
        ("squash", 1, "true or false"),
        ("pooling", None, "a text"),
        ("image_mean", [0.5], "three numbers"),
        ("image_std", "abc", "three numbers"),
        ("aligned_layers", "-2", "a list of whole numbers"),
        ("aligned_layers", -2, "a list of whole numbers"),
        ("aligned_layers", [-2, "last"], "a list of whole numbers"),
        ("default_budget", 0, "at least 1"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}; it is {what}")):
            tiny_config(**{name: value})
    assert tiny_config(box_zoom=1).box_zoom == 1
    with pytest.raises(ValueError, match="coarse_blocks 9 exceeds the 3"):
        tiny_config(coarse_blocks=9)
    with pytest.raises(ValueError, match="num_tokens is 50; inherited focusing starts from a square grid"):
        tiny_config(num_tokens=50)
    with pytest.raises(ValueError, match="presets are sparseformer-augreg-base"):
        preset("sparseformer-huge")


def test_bad_calls_name_the_shape_and_the_budget() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=r"\(3, 32, 32\)"):
        model(torch.randn(3, 32, 32))
    with pytest.raises(ValueError, match="num_tokens is 0"):
        model(torch.randn(1, 3, 32, 32), num_tokens=0)


def test_importing_registers_and_names_what_is_public() -> None:
    assert AutoModel.from_config(tiny_config()).__class__ is SparseFormerModel
    assert all(hasattr(sfvlm, name) for name in sfvlm.__all__)
