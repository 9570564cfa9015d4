import shutil
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import load_file, save_file
from tiny_hosts import KINDS, PROMPT, logits, opened, photo, tiny_tower
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    TextIteratorStreamer,
    pipeline,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sfvlm import SparseFormerModel
from sfvlm.encoder.configuration import CLIP_MEAN, CLIP_STD
from sfvlm.hosts.folders import swap_folder
from sfvlm.hosts.swap import swap
from sfvlm.hosts.weights import bytes_hash
from sfvlm.teachers.inherit import inherit
from sfvlm.teachers.open import open_teacher
from sfvlm.teachers.student import student_config


@pytest.mark.parametrize("kind", ["llava", "llava_next", "llava_onevision"])
def test_an_untrained_tower_at_the_full_budget_gives_the_dense_hosts_logits(
    kind: str, hosts: dict[str, Path], tmp_path: Path
) -> None:
    teacher = open_teacher(hosts[kind])
    config = student_config(
        teacher.config, focusing="inherited", num_tokens=teacher.config.num_tokens, coarse_blocks=0, box_zoom=1.0
    )
    tower, _ = inherit(teacher, config)
    dense = logits(*opened(hosts[kind]), photos=(photo(0, (100, 40)),))
    model, processor = opened(hosts[kind])
    swapped = swap(model, processor, tower.eval())
    assert swapped.plan.host.tokens == swapped.plan.tokens == 16
    torch.testing.assert_close(logits(model, processor, photos=(photo(0, (100, 40)),)), dense, atol=1e-4, rtol=0)
    tower.save_pretrained(tmp_path / "tower")
    swap_folder(hosts[kind], tmp_path / "tower", tmp_path / "out")
    torch.testing.assert_close(
        logits(*opened(tmp_path / "out"), photos=(photo(0, (100, 40)),)), dense, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [49, 64])
@torch.no_grad()
def test_placeholders_and_features_agree_for_any_photo(kind: str, budget: int, hosts: dict[str, Path]) -> None:
    model, processor = opened(hosts[kind])
    swap(model, processor, tiny_tower(kind=kind), budget)
    for size in ((64, 64), (100, 40), (57, 200)):
        inputs = processor(text=[PROMPT], images=[photo(0, size)], return_tensors="pt")
        placeholders = int((inputs["input_ids"] == model.config.image_token_id).sum())
        extra = {name: inputs[name] for name in ("image_sizes",) if name in inputs}
        features = model.get_image_features(inputs["pixel_values"], **extra).pooler_output
        assert [len(feature) for feature in features] == [placeholders]
        assert model(**inputs).logits.isfinite().all()
        stated = processor._get_num_multimodal_tokens(image_sizes=[(size[1], size[0])])["num_image_tokens"]
        assert stated == [placeholders]
        if kind == "llava":
            assert placeholders == budget


@torch.no_grad()
def test_videos_of_onevision_are_counted_too(hosts: dict[str, Path]) -> None:
    model, processor = opened(hosts["llava_onevision"])
    swap(model, processor, tiny_tower(kind="llava_onevision"))
    frames = torch.randint(0, 255, (3, 3, 56, 56), dtype=torch.uint8)
    inputs = processor(text=["<video> hi"], videos=[frames], return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.video_token_id).sum()) == 3 * 16 + 1  # 7 x 7 pooled to 4 x 4
    assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("budget", [1, 7, 48, 50])
def test_a_plain_llava_takes_any_number_of_tokens(budget: int, hosts: dict[str, Path]) -> None:
    model, processor = opened(hosts["llava"])
    swap(model, processor, tiny_tower(), budget)
    assert logits(model, processor).shape[1] == logits(*opened(hosts["llava"])).shape[1] - 16 + budget


@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision"])
def test_tiles_need_a_square_grid(kind: str, hosts: dict[str, Path]) -> None:
    model, processor = opened(hosts[kind])
    with pytest.raises(ValueError, match=r"50 tokens on 56 pixels.*try 49 or 64"):
        swap(model, processor, tiny_tower(kind=kind), 50)
    with pytest.raises(ValueError, match="100 tokens on 56 pixels"):  # a cell of 5.6 pixels: 56 // 5 is 11, and not 10
        swap(model, processor, tiny_tower(kind=kind), 100)


def test_a_tower_without_class_token_loses_no_token_to_the_default_strategy(hosts: dict[str, Path]) -> None:
    model, processor = opened(hosts["llava"])
    swap(model, processor, tiny_tower(pooling="mean"))
    assert model.config.vision_feature_select_strategy == processor.vision_feature_select_strategy == "full"
    inputs = processor(text=[PROMPT], images=[photo()], return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 49
    assert len(model.get_image_features(inputs["pixel_values"]).pooler_output[0]) == 49


@pytest.mark.parametrize("kind", ["llava", "llava_onevision"])
def test_a_class_token_reaches_a_host_exactly_if_it_read_one(kind: str, hosts: dict[str, Path]) -> None:
    model, processor = opened(hosts[kind])
    fits = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3) if kind == "llava_onevision" else {}
    if kind == "llava":  # a LLaVA that reads the class token beside the patches
        model.config.vision_feature_select_strategy = processor.vision_feature_select_strategy = "full"
    swapped = swap(model, processor, tiny_tower(**fits))
    assert (swapped.plan.host.tokens, swapped.plan.tokens) == ((17, 50) if kind == "llava" else (16, 49))
    assert logits(model, processor).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_of_another_image_size_brings_its_own_tiles(kind: str, hosts: dict[str, Path], tmp_path: Path) -> None:
    tower = tiny_tower(kind=kind, image_size=42)
    model, processor = opened(hosts[kind])
    swapped = swap(model, processor, tower)
    pixels = processor(text=[PROMPT], images=[photo(0, (100, 40))], return_tensors="pt")["pixel_values"]
    assert pixels.shape[-2:] == (42, 42)
    in_memory = logits(model, processor, photos=(photo(0, (100, 40)),))
    swapped.undo()
    swap_folder(hosts[kind], tower, tmp_path / "out")
    assert torch.equal(logits(*opened(tmp_path / "out"), photos=(photo(0, (100, 40)),)), in_memory)
    if kind != "llava":
        assert AutoConfig.from_pretrained(tmp_path / "out").image_grid_pinpoints[0] == [42, 84]


@pytest.mark.parametrize(("layer", "index"), [(-1, 2), (-2, 1), (0, 0), (2, 2), (1, 1)])
@torch.no_grad()
def test_the_hosts_layer_is_read_by_its_number(layer: int, index: int, hosts: dict[str, Path]) -> None:
    model, processor = opened(hosts["llava"])
    model.config.vision_feature_layer = layer
    tower = tiny_tower()
    swap(model, processor, tower)
    pixels = processor(text=[PROMPT], images=[photo()], return_tensors="pt")["pixel_values"]
    expected = model.model.multi_modal_projector(tower(pixels, output_hidden_states=True).hidden_states[index][:, 1:])
    assert torch.equal(torch.stack(model.get_image_features(pixels).pooler_output), expected)


def test_a_truncated_towers_layers_are_counted_from_the_end(hosts: dict[str, Path]) -> None:
    model, processor = opened(hosts["llava"])
    model.config.vision_feature_layer = 1  # of two blocks: the last but one
    swap(model, processor, tiny_tower(num_hidden_layers=1, coarse_blocks=0))
    assert model.config.vision_feature_layer == -2
    assert logits(model, processor).isfinite().all()


def test_several_layers_are_concatenated(hosts: dict[str, Path], tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(hosts["llava"])
    config.vision_feature_layer = [-2, -1]
    model, processor = LlavaForConditionalGeneration(config).eval(), AutoProcessor.from_pretrained(hosts["llava"])
    swap(model, processor, tiny_tower())
    assert logits(model, processor).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_host_gets_a_tower_of_its_dtype_with_exact_boxes(
    dtype: torch.dtype, hosts: dict[str, Path], tmp_path: Path
) -> None:
    tower = tiny_tower()
    boxes = tower.focusing.token_roi.weight.detach().clone()
    model, processor = opened(hosts["llava"], dtype=dtype)
    swap(model, processor, tower)
    assert tower.dtype == dtype
    output = logits(model, processor)  # photos come in float32
    model.save_pretrained(tmp_path / "half")
    processor.save_pretrained(tmp_path / "half")
    again, _ = opened(tmp_path / "half")
    assert again.dtype == dtype
    assert torch.equal(again.model.vision_tower.focusing.token_roi.weight, boxes)
    assert torch.equal(logits(again, processor), output)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_a_hosts_choice_of_attention_never_fails_on_the_tower(attention: str, swapped_folder: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(swapped_folder, attn_implementation=attention)
    assert model.config._attn_implementation == attention
    assert SparseFormerModel._supports_flash_attn  # asking for it needs a package that is not installed here


def test_gradients_reach_the_tower_unless_it_is_frozen(hosts: dict[str, Path]) -> None:
    for frozen in (False, True):
        model, processor = opened(hosts["llava"])
        tower = tiny_tower()
        tower.requires_grad_(not frozen)
        swap(model, processor, tower)
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
        model.train()
        inputs = processor(text=[PROMPT], images=[photo()], return_tensors="pt")
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
        assert all((parameter.grad is None) == frozen for parameter in tower.focusing.parameters())


class Strided(torch.nn.Module):
    """Every fourth token of the dense tower: a tower that is not ours, with what the Protocol asks for and no more."""

    def __init__(self, dense: Any) -> None:
        super().__init__()
        self.dense = dense
        facts = dict(hidden_size=32, num_hidden_layers=2, image_size=56, has_cls_token=True, budget=4, patch_size=28)
        self.config = PreTrainedConfig(image_mean=CLIP_MEAN, image_std=CLIP_STD, squashes=False, **facts)

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        states = self.dense(pixel_values, output_hidden_states=True).hidden_states
        kept = tuple(torch.cat([state[:, :1], state[:, 1::4]], dim=1) for state in states)
        return BaseModelOutputWithPooling(hidden_states=kept)


def test_any_module_that_keeps_to_the_protocol_is_a_tower(hosts: dict[str, Path]) -> None:
    model, processor = opened(hosts["llava"])
    pixels = processor(text=[PROMPT], images=[photo()], return_tensors="pt")["pixel_values"]
    dense = model.get_image_features(pixels).pooler_output[0]
    swapped = swap(model, processor, Strided(model.model.vision_tower))
    torch.testing.assert_close(model.get_image_features(pixels).pooler_output[0], dense[::4])
    inputs = processor(text=[PROMPT], images=[photo()], return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2).shape[1] <= inputs["input_ids"].shape[1] + 2
    swapped.undo()
    with pytest.raises(ValueError, match="num_tokens is 9, and this tower always gives 4"):
        swap(model, processor, Strided(model.model.vision_tower), 9)


def test_undo_restores_everything(hosts: dict[str, Path]) -> None:
    for kind in KINDS:
        model, processor = opened(hosts[kind])
        config, settings, whole = model.config.to_dict(), processor.to_dict(), set(model._no_split_modules)
        before = logits(model, processor)
        swapped = swap(model, processor, tiny_tower(kind=kind, image_size=42), 36)
        assert not torch.equal(logits(model, processor).mean(), before.mean())
        swapped.undo()
        assert torch.equal(logits(model, processor), before)
        assert model._no_split_modules == whole
        assert model.config.to_dict() == config
        assert processor.to_dict() == settings


def test_undo_follows_where_the_host_has_gone(hosts: dict[str, Path]) -> None:
    model, processor = opened(hosts["llava"])
    swapped = swap(model, processor, tiny_tower())
    model.bfloat16().train()
    swapped.undo()
    assert model.model.vision_tower.training and model.model.vision_tower.dtype == torch.bfloat16
    assert logits(model, processor).isfinite().all()

    model, processor = opened(hosts["llava"])
    dense = model.model.vision_tower.double()
    swap(model, processor, tiny_tower()).undo()
    assert dense.dtype == torch.float64  # finer than its projector, which has stayed as it was

    model, processor = opened(hosts["llava"])
    before = logits(model, processor)
    swapped = swap(model, processor, tiny_tower())
    cpu_offload(model, execution_device="cpu")
    assert next(model.model.vision_tower.parameters()).is_meta
    swapped.undo()
    assert torch.equal(logits(model, processor), before)


def test_projector_and_language_model_keep_their_bits(hosts: dict[str, Path]) -> None:
    model, processor = opened(hosts["llava"])

    def fingerprint() -> str:
        state = {name: tensor for name, tensor in model.state_dict().items() if "vision_tower" not in name}
        return bytes_hash(sorted(state.items()))

    before = fingerprint()
    swap(model, processor, tiny_tower())
    assert fingerprint() == before


@pytest.mark.parametrize("old_layout", [False, True])
def test_a_host_swapped_in_memory_saves_and_reloads_the_same(
    old_layout: bool, hosts: dict[str, Path], tmp_path: Path
) -> None:
    # Checkpoints from before transformers 5 nest the tower in `vision_model`; it would rename ours on saving.
    host = tmp_path / "host"
    shutil.copytree(hosts["llava"], host)
    if old_layout:
        tensors = load_file(host / "model.safetensors")
        renamed = {name.replace("vision_tower.", "vision_tower.vision_model."): t for name, t in tensors.items()}
        save_file(renamed, host / "model.safetensors", metadata={"format": "pt"})
    model, processor = opened(host)
    swap(model, processor, tiny_tower(), 36)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again, its_processor = opened(tmp_path / "saved")
    assert torch.equal(logits(again, its_processor), logits(model, processor))
    swap_folder(host, tiny_tower(), tmp_path / "out", 36)
    assert torch.equal(logits(*opened(tmp_path / "out")), logits(model, processor))


def test_batches_equal_single_prompts(swapped_folder: Path) -> None:
    model, processor = opened(swapped_folder)
    prompts = [PROMPT, "USER: <image>\n<image>\nred green ASSISTANT:", "USER: hi ASSISTANT:"]
    photos = [[photo(0)], [photo(1), photo(2)], []]
    inputs = processor(text=prompts, images=[each for of in photos for each in of], padding=True, return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist() == [49, 98, 0]
    assert inputs["attention_mask"][2, 0] == 0  # padded on the left, as the host's tokenizer was saved
    batch = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    for prompt, images, row in zip(prompts, photos, batch, strict=True):
        single = processor(text=[prompt], images=images or None, return_tensors="pt")
        alone = model.generate(**single, max_new_tokens=6, do_sample=False)[0, single["input_ids"].shape[1] :]
        assert row[: len(alone)].tolist() == alone.tolist()


def test_streaming_and_the_pipeline_say_what_generate_says(swapped_folder: Path) -> None:
    model, processor = opened(swapped_folder)
    inputs = processor(text=[PROMPT], images=[photo()], return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    text = processor.decode(tokens, skip_special_tokens=True)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    thread = Thread(target=model.generate, kwargs=dict(**inputs, max_new_tokens=8, do_sample=False, streamer=streamer))
    thread.start()
    assert "".join(streamer) == text
    thread.join()

    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    question = {"type": "text", "text": "Is there a dog in the photo?"}
    messages = [{"role": "user", "content": [{"type": "image", "image": photo()}, question]}]
    said = pipe(text=messages, max_new_tokens=8, do_sample=False, return_full_text=False)[0]["generated_text"]
    plain = pipe(images=[photo()], text=PROMPT, max_new_tokens=8, do_sample=False, return_full_text=False)
    assert (said, plain[0]["generated_text"]) == (text, text)


def test_a_process_that_has_not_imported_the_package_is_told_the_type(
    swapped_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "sparseformer")
    with pytest.raises((ValueError, KeyError), match="sparseformer"):  # KeyError in 5.8
        AutoConfig.from_pretrained(swapped_folder)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(hidden_size=48, num_attention_heads=2), "tokens 32 wide, and the tower's are 48 wide"),
        (dict(image_mean=[0.5] * 3), r"with mean \(0.4815, 0.4578, 0.4082\), and the tower expects \(0.5000"),
        (dict(image_std=[0.5] * 3), r"with std \(0.2686"),
        (dict(focusing="chosen"), "num_tokens is 49, and there are 16 patches to choose from: ask for 16 at most"),
    ],
)
def test_a_tower_that_does_not_fit_is_refused_with_both_numbers(
    overrides: dict[str, Any], message: str, hosts: dict[str, Path], tmp_path: Path
) -> None:
    model, processor = opened(hosts["llava"])
    dense, config, settings = model.model.vision_tower, model.config.to_dict(), processor.to_dict()
    with pytest.raises(ValueError, match=message):
        swap(model, processor, tiny_tower(**overrides))
    assert model.model.vision_tower is dense
    assert (model.config.to_dict(), processor.to_dict()) == (config, settings)
    with pytest.raises(ValueError, match=message):
        swap_folder(hosts["llava"], tiny_tower(**overrides), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_layer_deeper_than_the_tower_is_refused(hosts: dict[str, Path]) -> None:
    model, processor = opened(hosts["llava"])
    model.config.vision_feature_layer = 0
    with pytest.raises(ValueError, match="layer -3 of its tower's 2 blocks, and the new tower has only 1 blocks"):
        swap(model, processor, tiny_tower(num_hidden_layers=1, coarse_blocks=0))


def test_a_number_too_large_for_the_hosts_dtype_is_refused(hosts: dict[str, Path]) -> None:
    model, processor = opened(hosts["llava"], dtype=torch.float16)
    tower = tiny_tower()
    tower.blocks[0].mlp.fc1.bias.data[0] = 1e5
    with pytest.raises(
        ValueError, match=r"blocks.0.mlp.fc1.bias holds 100000, and the host's torch.float16 ends at 65504"
    ):
        swap(model, processor, tower)
    model.model.multi_modal_projector.linear_1.weight = torch.nn.Parameter(
        torch.zeros(4, dtype=torch.uint8), requires_grad=False
    )
    with pytest.raises(ValueError, match=r"projector holds torch.uint8 and the tower torch.float32"):
        swap(model, processor, tiny_tower())


def test_other_misfits_are_refused(hosts: dict[str, Path]) -> None:
    model, processor = opened(hosts["llava"])
    with pytest.raises(ValueError, match="num_tokens is 0"):
        swap(model, processor, tiny_tower(), 0)
    with pytest.raises(ValueError, match="this is a dict: open a folder first"):
        swap(model, processor, {})
    with pytest.raises(ValueError, match="nowhere is no SparseFormer folder"):
        swap(model, processor, Path("runs/nowhere"))
    with pytest.raises(ValueError, match="Linear is no tower: its configuration lacks hidden_size"):
        swap(model, processor, torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"LlavaModel has no language model's head.*AutoModelForImageTextToText"):
        swap(model.model, processor, tiny_tower())
    with pytest.raises(ValueError, match="makes no photos: open the host's processor by AutoProcessor"):
        swap(model, processor.tokenizer, tiny_tower())
    swap(model, processor, tiny_tower())
    with pytest.raises(ValueError, match=r"'sparseformer'.*undo that first"):
        swap(model, processor, tiny_tower())
    model, processor = opened(hosts["llava"])
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(ValueError, match="reads the class token and 16 patches, and the tower has no class token"):
        swap(model, processor, tiny_tower(pooling="mean"))
    model, processor = opened(hosts["llava_next"])
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(ValueError, match="no square grid"):
        swap(model, processor, tiny_tower())
    model, processor = opened(hosts["llava"])
    processor.image_processor.do_center_crop = False
    with pytest.raises(ValueError, match=r"photos of \{'shortest_edge': 56\}, and not squares"):
        swap(model, processor, tiny_tower())
