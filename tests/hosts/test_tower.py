import copy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, convert_weights_to_lp, get_model_preprocess_cfg
from PIL import Image
from tiny import randomize, tiny_config, tiny_model
from transformers import PreTrainedConfig

from sfvlm import SparseFormerConfig, SparseFormerModel
from sfvlm.encoder.folder import image_processor
from sfvlm.hosts.tower import TOWER_FIELDS, OpenClipVisual, check_dtype, check_tower, swap_open_clip
from sfvlm.photos.scenes import render_scene
from sfvlm.teachers.formats import open_clip_vision
from sfvlm.teachers.inherit import inherit
from sfvlm.teachers.open import DenseTransformer, Teacher
from sfvlm.teachers.student import student_config

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TEXT = torch.randint(1, 90, (4, 16), generator=torch.Generator().manual_seed(2))


def tiny_clip(embed_dim: int = 24) -> CLIP:
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=3, width=64, head_width=32, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=16, vocab_size=99, width=32, heads=2, layers=2)
    return randomize(CLIP(embed_dim, vision, text, quick_gelu=True)).eval()  # type: ignore[return-value]


def student_of(clip: CLIP, num_tokens: int, **overrides: Any) -> SparseFormerModel:
    config, tensors = open_clip_vision(clip.visual, "tiny")
    dense = DenseTransformer(config)
    dense.load_state_dict(tensors)
    student, _ = inherit(
        Teacher(dense.eval(), "tiny", ""),
        student_config(config, focusing="inherited", num_tokens=num_tokens, **overrides),
    )
    return student.eval().requires_grad_(True)


def test_a_sparseformer_is_a_tower_and_says_how_many_tokens_it_gives() -> None:
    model = tiny_model()
    check_tower(model)
    assert (model.config.budget, model.config.patch_size) == (4, 16)
    config = SparseFormerConfig(**(tiny_config().to_dict() | {"default_budget": 16}))
    assert (config.num_tokens, config.budget, config.patch_size) == (4, 16, 8)
    assert SparseFormerModel(config).eval()(PIXELS).last_hidden_state.shape == (3, 17, 64)


@pytest.mark.parametrize("side", [224, 336])
@pytest.mark.parametrize("root", [4, 5, 6, 7, 8, 10])
def test_patch_size_gives_the_budget_back_in_whole_pixels(side: int, root: int) -> None:
    config = tiny_config(image_size=side, num_tokens=root * root)
    assert (side // config.patch_size) ** 2 == root * root


def test_the_default_budget_travels_with_the_model(tmp_path: Path) -> None:
    model = tiny_model()
    model.config.default_budget = 9
    model.save_pretrained(tmp_path)
    loaded = SparseFormerModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(PIXELS).last_hidden_state, tiny_model()(PIXELS, num_tokens=9).last_hidden_state)


def test_what_is_no_tower_is_told_what_it_lacks() -> None:
    module = torch.nn.Linear(2, 2)
    module.config = PreTrainedConfig()  # type: ignore[assignment]
    for name in TOWER_FIELDS[:-1]:
        setattr(module.config, name, 1)
    with pytest.raises(ValueError, match="Linear is no tower: its configuration lacks patch_size"):
        check_tower(module)


def test_a_dtype_that_no_tower_computes_in_is_refused() -> None:
    check_dtype(tiny_model(), torch.bfloat16)
    with pytest.raises(ValueError, match=r"holds torch.int8 and the tower torch.float32"):
        check_dtype(tiny_model(), torch.int8)


@torch.no_grad()
def test_at_the_full_budget_open_clips_own_functions_give_the_dense_results() -> None:
    clip = tiny_clip()
    expected = clip.get_logits(PIXELS, TEXT)
    intermediates = clip.visual.forward_intermediates(PIXELS, output_extra_tokens=True)
    dense = swap_open_clip(clip, student_of(clip, 16, coarse_blocks=0))
    for ours, theirs in zip(clip.get_logits(PIXELS, TEXT), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    found = clip.visual.forward_intermediates(PIXELS, output_extra_tokens=True)
    assert found.keys() == intermediates.keys()
    for name, theirs in intermediates.items():
        torch.testing.assert_close(found[name], theirs, atol=1e-4, rtol=1e-4)
    clip.visual = dense
    assert torch.equal(clip.get_logits(PIXELS, TEXT)[0], expected[0])


@torch.no_grad()
def test_encode_image_is_our_pooled_vector_at_any_budget() -> None:
    clip = tiny_clip()
    tower = student_of(clip, 4)
    for budget in (None, 9):
        swap_open_clip(clip, tower, budget)
        assert torch.equal(clip.encode_image(PIXELS), tower(PIXELS, num_tokens=budget).pooler_output)
        clip.visual = tiny_clip().visual


@torch.no_grad()
def test_the_zero_shot_path_of_open_clip_works() -> None:
    clip = tiny_clip()
    tower = student_of(clip, 4)
    swap_open_clip(clip, tower)

    def tokenizer(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[1 + ord(letter) % 90 for letter in text.ljust(16)[:16]] for text in texts])

    classifier = open_clip.build_zero_shot_classifier(
        clip, tokenizer=tokenizer, classnames=["dog", "cat"], templates=[lambda c: f"a {c}"], num_classes_per_batch=None
    )
    logits = clip.encode_image(PIXELS, normalize=True) @ classifier
    expected = torch.nn.functional.normalize(tower(PIXELS).pooler_output, dim=-1) @ classifier
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("pooling", ["cls", "attention"])
def test_open_clips_transform_makes_the_pixels_of_our_processor(pooling: str) -> None:
    tower = tiny_model(pooling=pooling)
    visual = OpenClipVisual(tower)
    config = open_clip.transform.PreprocessCfg(**visual.preprocess_cfg)
    photo = render_scene(0, 0, 48).image.resize((60, 40), Image.Resampling.BICUBIC)  # leaves an even margin to crop
    theirs = open_clip.transform.image_transform_v2(config, is_train=False)(photo)
    ours = image_processor(tower.config)(photo, return_tensors="pt")["pixel_values"][0]
    assert theirs.shape == ours.shape
    torch.testing.assert_close(theirs, ours, atol=0.02, rtol=0)  # 1 / 255 / std is 0.015


def test_preprocessing_is_found_where_open_clip_looks() -> None:
    clip = tiny_clip()
    swap_open_clip(clip, student_of(clip, 4))
    found = get_model_preprocess_cfg(clip)
    assert (found["size"], tuple(found["mean"])) == (32, tuple(clip.visual.tower.config.image_mean))
    assert clip.visual.image_size == 32


def test_weights_survive_saving_and_strict_loading(tmp_path: Path) -> None:
    clip = tiny_clip()
    swap_open_clip(clip, randomize(student_of(clip, 4)))  # type: ignore[arg-type]
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    fresh = tiny_clip()
    swap_open_clip(fresh, student_of(fresh, 4))
    open_clip.load_checkpoint(fresh, str(tmp_path / "clip.pt"))
    assert torch.equal(fresh.encode_image(PIXELS), clip.encode_image(PIXELS))


def test_a_dense_checkpoint_overwrites_nothing_of_ours() -> None:
    clip = tiny_clip()
    dense = copy.deepcopy(clip.state_dict())
    swap_open_clip(clip, student_of(clip, 16))
    assert not [name for name in dense if name.startswith("visual.") and name in clip.state_dict()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_low_precision_leaves_the_tower_of_one_dtype(dtype: torch.dtype) -> None:
    clip = tiny_clip()
    swap_open_clip(clip, student_of(clip, 4))
    exact = clip.encode_image(PIXELS)
    convert_weights_to_lp(clip, dtype)
    vectors = clip.encode_image(PIXELS.to(dtype))
    assert vectors.dtype == dtype
    assert torch.cosine_similarity(vectors.float(), exact).min() > 0.99
    assert clip.visual.tower.focusing.token_roi.weight.dtype == torch.float32
    other = tiny_clip()
    convert_weights_to_lp(other, dtype)
    tower = student_of(tiny_clip(), 4)
    swap_open_clip(other, tower)
    assert torch.equal(other.encode_image(PIXELS.to(dtype)), vectors)


@pytest.mark.parametrize(
    ("unlocked", "trained"),
    [
        (0, set()),
        (1, {"head.projection"}),
        (2, {"head.projection", "blocks.2", "head.norm"}),
        (3, {"head.projection", "blocks.2", "head.norm", "blocks.1"}),
    ],
)
def test_locking_leaves_the_last_groups_trainable(unlocked: int, trained: set[str]) -> None:
    clip = tiny_clip()
    swap_open_clip(clip, student_of(clip, 4))
    clip.lock_image_tower(unlocked_groups=unlocked, freeze_bn_stats=True)
    found = {".".join(name.split(".")[1:3]) for name, each in clip.visual.named_parameters() if each.requires_grad}
    assert found == trained
    clip.lock_image_tower(unlocked_groups=5)
    assert all(parameter.requires_grad for parameter in clip.visual.parameters())


def test_gradient_checkpointing_is_switched_through_open_clip() -> None:
    clip = tiny_clip().train()
    swap_open_clip(clip, student_of(clip, 4))
    gradients = []
    for enable in (False, True):
        clip.set_grad_checkpointing(enable)
        assert clip.visual.tower.gradient_checkpointing is enable
        clip.zero_grad()
        clip.encode_image(PIXELS).square().sum().backward()
        gradients.append([each.grad.clone() for each in clip.visual.parameters() if each.grad is not None])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_boxes_and_positions_are_spared_weight_decay() -> None:
    clip = tiny_clip()
    swap_open_clip(clip, student_of(clip, 4))
    names = clip.no_weight_decay() - {"positional_embedding"}
    assert names == {
        "visual.tower.cls_token", "visual.tower.focusing.positions", "visual.tower.focusing.token_roi.weight",
    }  # fmt: skip
    assert names <= {name for name, _ in clip.named_parameters()}


@torch.no_grad()
def test_coca_gets_tokens_beside_the_vector_and_odd_grids_are_refused() -> None:
    tower = tiny_model()
    pooled, tokens = OpenClipVisual(tower, 7, output_tokens=True)(PIXELS)
    assert (pooled.shape, tokens.shape) == ((3, 24), (3, 7, 64))
    with pytest.raises(ValueError, match="7 tokens are no square grid"):
        OpenClipVisual(tower, 7).forward_intermediates(PIXELS)
    flat = OpenClipVisual(tower, 7).forward_intermediates(
        PIXELS, indices=[-1], output_fmt="NLC", intermediates_only=True
    )
    assert flat.keys() == {"image_intermediates"}
    assert torch.equal(flat["image_intermediates"][0], tower(PIXELS, num_tokens=7).last_hidden_state[:, 1:])


def test_a_number_of_tokens_that_is_none_is_refused_by_open_clip_too() -> None:
    clip = tiny_clip()
    for count in (0, -3):
        with pytest.raises(ValueError, match=f"num_tokens is {count}; a photo needs at least 1 token"):
            swap_open_clip(clip, student_of(clip, 4), count)
    with pytest.raises(ValueError, match="there are 16 patches to choose from"):
        OpenClipVisual(tiny_model("chosen"), 17)


def test_a_tower_in_another_space_is_refused() -> None:
    clip = tiny_clip()
    dense = clip.visual
    with pytest.raises(ValueError, match="a vector of 24 dimensions, and this CLIP's image-text space has 16"):
        swap_open_clip(tiny_clip(16), student_of(clip, 4))
    with pytest.raises(ValueError, match="no projection into the image-text space of 24 dimensions"):
        swap_open_clip(clip, tiny_model(projection_dim=0, hidden_size=24, num_attention_heads=2))
    assert clip.visual is dense
    del dense.output_dim  # as of timm's towers
    with pytest.raises(ValueError, match="a vector of 16 dimensions, and this CLIP's image-text space has 24"):
        swap_open_clip(clip, student_of(tiny_clip(16), 4))
