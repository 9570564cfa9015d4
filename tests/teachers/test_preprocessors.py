"""Settings of the three libraries' preprocessors: photos and vectors are the library's own, or the field is refused by name."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from tiny import randomize
from tiny_llava import tiny_llava
from transformers import AutoImageProcessor, CLIPImageProcessor, CLIPModel, SiglipVisionConfig, SiglipVisionModel

from sfvlm.encoder.folder import image_processor
from sfvlm.photos.scenes import render_scene
from sfvlm.photos.views import tower_pixels
from sfvlm.teachers.open import Teacher, open_teacher
from sfvlm.teachers.student import student_config

# Wide, high, square, smaller than the model's photos, and with one and three pixels left over.
SIZES = [(101, 40), (37, 90), (64, 64), (20, 23), (33, 32), (35, 32)]
PHOTOS = [render_scene(0, number, 96).image.resize(size) for number, size in enumerate(SIZES)]
CLIP = dict(
    image_processor_type="CLIPImageProcessor", size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32},
    do_center_crop=True, do_normalize=True, do_rescale=True, do_resize=True, rescale_factor=1 / 255, resample=3,
    image_mean=[0.48, 0.46, 0.41], image_std=[0.27, 0.26, 0.28],
)  # fmt: skip


def with_preprocessor(clip_folder: Path, folder: Path, **fields: Any) -> Path:
    shutil.copytree(clip_folder, folder, dirs_exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(CLIP | fields))
    return folder


def agrees(teacher: Teacher, pixels: torch.Tensor, vectors: torch.Tensor) -> None:
    """The teacher's views and vectors are these."""
    seen = tower_pixels(PHOTOS, teacher.config, torch.zeros(1))
    # Of a preprocessor on bytes: another rounding here and there, of one level of 255.
    level = 2.5 / 255 / min(teacher.config.image_std)
    assert (seen - pixels).abs().max() < level
    with torch.no_grad():
        output = teacher.model(seen)
    ours = output.pooled if output.logits is None else output.logits
    assert F.cosine_similarity(ours, vectors, dim=-1).min() > 1 - 1e-4


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"resample": 2},
        {"size": 40},
        {"size": {"shortest_edge": 40}, "crop_size": 32},
        {"size": {"height": 40, "width": 40}},
        {"size": {"height": 32, "width": 32}, "do_center_crop": False, "crop_size": None},
        {"size": 32, "default_to_square": True},
        {"image_mean": 0.4, "image_std": [0.3]},
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_normalize": False, "do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"rescale_factor": 1.0, "image_mean": 127.5, "image_std": 60},
        {"do_convert_rgb": False, "do_pad": True, "data_format": "channels_first", "processor_class": "CLIPProcessor"},
        {"image_processor_type": "CLIPImageProcessorFast", "device": None, "disable_grouping": None},
        {"image_processor_type": "ViTImageProcessor", "resample": 2, "size": 32, "do_center_crop": None},
        {"image_processor_type": None, "feature_extractor_type": "CLIPFeatureExtractor"},
    ],
)
@torch.no_grad()
def test_photos_are_made_as_transformers_makes_them(
    fields: dict[str, Any], clip_folder: Path, clip_model: CLIPModel, tmp_path: Path
) -> None:
    folder = with_preprocessor(clip_folder, tmp_path, **fields)
    theirs = AutoImageProcessor.from_pretrained(folder)
    pixels = theirs(PHOTOS, return_tensors="pt")["pixel_values"]
    teacher = open_teacher(folder)
    agrees(teacher, pixels, clip_model.get_image_features(pixels.float()).pooler_output)
    written = image_processor(student_config(teacher.config, num_tokens=4))(PHOTOS, return_tensors="pt")["pixel_values"]
    level = 2.5 / 255 / min(teacher.config.image_std)
    assert (written - pixels).abs().max() < level


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"do_resize": False}, "do_resize False"),
        ({"do_resize": None}, "do_resize None"),
        ({"do_center_crop": False}, "do_center_crop False"),
        ({"resample": 0}, "resample 'nearest', and photos are resized bicubic or bilinear"),
        ({"resample": None}, "resample None"),
        ({"resample": [3]}, r"resample \[3\]"),
        ({"size": {"height": 32, "width": 40}}, "size {'height': 32, 'width': 40}"),
        ({"size": {"shortest_edge": 32, "longest_edge": 40}}, "'longest_edge': 40"),
        ({"size": {"longest_edge": 32}}, "'longest_edge': 32"),
        ({"size": {"shortest_edge": "32"}}, "'shortest_edge': '32'"),
        ({"size": 24}, "resizes to 24 pixels and crops 32 of them"),
        ({"crop_size": {"height": 32, "width": 24}}, r"'width': 24} \(crop_size\), and the model takes squares of 32"),
        ({"crop_size": 24}, r"'width': 24} \(crop_size\), and the model takes squares of 32"),
        ({"do_normalize": "false"}, "do_normalize 'false'; it is true or false"),
        ({"rescale_factor": 0}, "rescale_factor 0; it is a number above 0"),
        ({"image_std": 0}, "image_std .*0.* by which pixels are divided"),
        ({"image_mean": [0.5, 0.5]}, "image_mean .*; it is three numbers"),
        ({"image_mean": "half"}, "image_mean 'half'; it is three numbers"),
        ({"do_pad": True, "pad_size": {"height": 40, "width": 40}}, "pad_size"),
        ({"data_format": "channels_last"}, "data_format 'channels_last'"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order True, which is not honoured"),
        ({"auto_map": {"AutoImageProcessor": "code.Mine"}}, "auto_map"),
        ({"image_processor_type": "PixtralImageProcessor"}, "PixtralImageProcessor"),
        ({"image_processor_type": "LlavaImageProcessor", "do_pad": True}, "LlavaImageProcessor"),
    ],
)
def test_what_is_not_honoured_of_transformers_is_refused_by_name(
    fields: dict[str, Any], message: str, clip_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json .*{message}"):
        open_teacher(with_preprocessor(clip_folder, tmp_path, **fields))


def test_settings_inside_the_whole_processors_file_win(clip_folder: Path, tmp_path: Path) -> None:
    folder = with_preprocessor(clip_folder, tmp_path)
    whole = folder / "processor_config.json"
    whole.write_text(json.dumps({"image_processor": CLIP | {"image_mean": [0.1] * 3}}))
    assert open_teacher(folder).config.image_mean == (0.1,) * 3
    assert tuple(AutoImageProcessor.from_pretrained(folder).image_mean) == (0.1,) * 3
    for content in ({"image_processor": None}, {"patch_size": 14}):
        whole.write_text(json.dumps(content))
        assert open_teacher(folder).config.image_mean == tuple(CLIP["image_mean"])  # type: ignore[arg-type]
    whole.write_text(json.dumps({"image_processor": [1]}))
    with pytest.raises(ValueError, match=r"processor_config\.json has image_processor \[1\]; it is a JSON object"):
        open_teacher(folder)


def test_a_folder_without_settings_says_which_are_assumed(clip_folder: Path) -> None:
    with pytest.warns(UserWarning, match="holds no settings of an image processor: photos are made as CLIPImage"):
        open_teacher(clip_folder)


@torch.no_grad()
def test_a_siglip_that_resizes_bilinearly_is_seen_so(tmp_path: Path) -> None:
    fields = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
    model = randomize(SiglipVisionModel(SiglipVisionConfig(**fields, image_size=32, patch_size=8)), scale=0.05).eval()
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    settings = dict(image_processor_type="SiglipImageProcessor", size={"height": 32, "width": 32}, resample=2)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    pixels = AutoImageProcessor.from_pretrained(tmp_path)(PHOTOS, return_tensors="pt")["pixel_values"]
    agrees(open_teacher(tmp_path), pixels, model(pixels).pooler_output)


OPEN_CLIP: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 16, "vocab_size": 99, "width": 32, "heads": 2, "layers": 1},
}


def open_clip_folder(folder: Path, preprocess: dict[str, Any], **vision: Any) -> Path:
    described = OPEN_CLIP | {"vision_cfg": OPEN_CLIP["vision_cfg"] | vision}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": described, "preprocess_cfg": preprocess}))
    model = randomize(open_clip.CLIP(**described), scale=0.05)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("preprocess", "vision"),
    [
        ({"resize_mode": "squash"}, {}),
        ({"interpolation": "bilinear", "mean": 0.5, "std": [0.2, 0.3, 0.4], "fill_color": 9}, {}),
        ({"interpolation": "random", "size": 64, "mean": None}, {}),
        ({}, {"no_ln_pre": True, "norm_kwargs": {"eps": 1e-3}, "act_kwargs": {"approximate": "tanh"}}),
        ({}, {"final_ln_after_pool": True}),
        ({}, {"patch_dropout": 0.5, "output_tokens": True, "block_type": "custom", "pos_embed_type": "sin_cos_2d"}),
    ],
)
@torch.no_grad()
def test_photos_are_made_as_open_clip_makes_them(
    preprocess: dict[str, Any], vision: dict[str, Any], tmp_path: Path
) -> None:
    source = f"local-dir:{open_clip_folder(tmp_path, preprocess, **vision)}"
    model, _, transform = open_clip.create_model_and_transforms(source)
    pixels = torch.stack([transform(photo) for photo in PHOTOS])
    vectors = model.eval().encode_image(pixels)
    agrees(open_teacher(source), pixels, vectors[0] if isinstance(vectors, tuple) else vectors)


@pytest.mark.parametrize(
    ("preprocess", "vision", "message"),
    [
        ({"resize_mode": "longest"}, {}, "resize_mode 'longest'"),
        ({"interpolation": "nearest"}, {}, "interpolation 'nearest'"),
        ({"mean": [0.1, 0.2]}, {}, r"mean \[0\.1, 0\.2\]; it is three numbers"),
        ({"mode": "L"}, {}, "mode 'L', which is not honoured; it must be 'RGB'"),
        ({"crop_pct": 0.9}, {}, r"crop_pct 0\.9, which is not honoured"),
        ({}, {"image_size": [32, 40]}, r"photos of \(32, 40\)"),
        ({}, {"ls_init_value": 0.1}, "ls_1.gamma"),
        ({}, {"qk_norm": True}, "ln_q"),
        ({}, {"pool_type": "avg"}, "pools by 'avg'"),
    ],
)
def test_what_is_not_honoured_of_open_clip_is_refused_by_name(
    preprocess: dict[str, Any], vision: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        open_teacher(f"local-dir:{open_clip_folder(tmp_path, preprocess, **vision)}")


NAME = "vit_tiny_patch16_224"
SMALL = dict(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=7)


def timm_folder(folder: Path, shown: dict[str, Any], built: dict[str, Any], **described: Any) -> tuple[str, Any]:
    """A tiny model of timm with its description beside it: as a source, and opened by timm."""
    pools = {"global_pool": built["global_pool"]} if "global_pool" in built else {}
    arguments = SMALL | {name: value for name, value in built.items() if name != "global_pool"}
    beside = {"architecture": NAME, "pretrained_cfg": shown, "model_args": arguments | {"num_classes": 3}} | pools
    (folder / "config.json").write_text(json.dumps(beside | described))
    model = timm.create_model(NAME, pretrained_cfg_overlay=shown, **(arguments | pools))
    randomize(model, scale=0.05).eval()
    save_file(model.state_dict(), folder / "model.safetensors")
    return f"timm:{NAME}:{folder / 'model.safetensors'}", model


@pytest.mark.parametrize(
    ("shown", "built"),
    [
        ({}, {}),
        ({"crop_pct": 1.0, "mean": [0.1, 0.2, 0.3], "std": [0.2, 0.3, 0.4]}, {}),
        ({"crop_pct": 0.95, "interpolation": "bilinear"}, {}),
        ({"crop_pct": 0.8, "crop_mode": "squash"}, {}),
        ({"crop_mode": "squash", "crop_pct": 1.0}, {"class_token": False, "global_pool": "map"}),
        ({"test_crop_pct": 1.0, "test_input_size": [3, 64, 64], "fixed_input_size": False}, {"dynamic_img_size": True}),
        ({}, {"class_token": False, "global_pool": "avg"}),
        ({}, {"pre_norm": True, "act_layer": "relu"}),
    ],
)
@torch.no_grad()
def test_photos_are_made_as_timm_makes_them(shown: dict[str, Any], built: dict[str, Any], tmp_path: Path) -> None:
    source, model = timm_folder(tmp_path, shown, built)
    config = timm.data.resolve_model_data_config(model) | {"input_size": (3, 32, 32)}
    transform = timm.data.create_transform(**config, is_training=False)
    pixels = torch.stack([transform(photo) for photo in PHOTOS])
    teacher = open_teacher(source)
    assert teacher.config.num_classes == 7  # as the tensors say
    agrees(teacher, pixels, model(pixels))


@pytest.mark.parametrize(
    ("shown", "built", "described", "message"),
    [
        ({"crop_mode": "border"}, {}, {}, "crop_mode 'border'"),
        ({"crop_pct": 1.2}, {}, {}, r"crop_pct 1\.2, and a crop is at most 1"),
        ({"interpolation": "lanczos"}, {}, {}, "interpolation 'lanczos'"),
        ({"mean": [0.1, 0.2]}, {}, {}, "mean .*; it is three numbers"),
        ({"input_size": [1, 32, 32]}, {}, {}, r"input_size \(1, 32, 32\), and photos have 3 channels"),
        ({}, {"reg_tokens": 4}, {}, "reg_token"),
        ({}, {"init_values": 0.1}, {}, r"ls1\.gamma"),
        ({}, {"no_embed_class": True}, {}, r"positions is \(16, 64\)"),
        ({}, {}, {"surprise": 1}, "surprise 1, which is not honoured"),
        ({}, {}, {"architecture": "vit_small_patch16_224"}, "describes a vit_small_patch16_224"),
        ({}, {}, {"model_args": [1]}, r"model_args \[1\]; it is a JSON object"),
    ],
)
def test_what_is_not_honoured_of_timm_is_refused_by_name(
    shown: dict[str, Any], built: dict[str, Any], described: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        open_teacher(timm_folder(tmp_path, shown, built, **described)[0])


@pytest.mark.parametrize("width", range(33, 41))
def test_a_students_view_is_what_the_preprocessor_beside_it_makes_whatever_is_left_over(
    width: int, clip_folder: Path
) -> None:
    config = student_config(open_teacher(clip_folder).config, num_tokens=4)
    processor = image_processor(config)
    assert isinstance(processor, CLIPImageProcessor)
    photo = Image.effect_noise((width, 32), 90).convert("RGB")  # not resized: equal to the bit
    assert torch.equal(
        tower_pixels([photo], config, torch.zeros(1)).mul(1000).round(),
        processor(photo, return_tensors="pt")["pixel_values"].mul(1000).round(),
    )


def test_a_llava_that_pads_photos_is_said_to_be_seen_without_as_a_teacher(tmp_path: Path) -> None:
    folder = tiny_llava(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_teacher(folder)
    path = folder / "processor_config.json"
    whole = json.loads(path.read_text())
    whole["image_processor"] |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    path.write_text(json.dumps(whole))
    with pytest.warns(UserWarning, match=r"pads photos \(do_pad\), .* it sees them unpadded"):
        open_teacher(folder)
