import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import randomize
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from sfvlm.encoder.configuration import CLIP_MEAN
from sfvlm.teachers.formats import open_clip_vision
from sfvlm.teachers.open import Teacher, open_teacher
from sfvlm.util.tensors import tensor_hash

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


OPEN_CLIP: dict[str, Any] = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 64, "head_width": 32, "patch_size": 8, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 16, "vocab_size": 99, "width": 32, "heads": 2, "layers": 1},
}


def write_open_clip_config(folder: Path, preprocess: dict[str, Any] | None = None, **changes: Any) -> None:
    described = {"model_cfg": OPEN_CLIP | changes, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def clip_teacher(clip_folder: Path) -> Teacher:
    return open_teacher(clip_folder)


@torch.no_grad()
def test_a_clip_teacher_equals_transformers_layer_by_layer(clip_teacher: Teacher, clip_model: CLIPModel) -> None:
    output = clip_teacher.model(PIXELS)
    theirs = clip_model.vision_model(PIXELS, output_hidden_states=True)
    close(output.pooled, clip_model.get_image_features(PIXELS).pooler_output)
    assert len(output.hidden_states) == len(theirs.hidden_states)
    for ours, reference in zip(output.hidden_states, theirs.hidden_states, strict=True):
        close(ours, reference)


@torch.no_grad()
def test_an_inherited_block_equals_the_teachers_on_random_tokens(clip_teacher: Teacher, clip_model: CLIPModel) -> None:
    tokens = torch.randn(2, 11, 64)
    for ours, theirs in zip(clip_teacher.model.blocks, clip_model.vision_model.encoder.layers, strict=True):
        reference = theirs(tokens, attention_mask=None)
        close(ours(tokens), reference[0] if isinstance(reference, tuple) else reference)


def test_what_matters_is_read_from_the_configuration(clip_teacher: Teacher) -> None:
    config = clip_teacher.config
    assert (config.hidden_act, config.layer_norm_eps, config.num_hidden_layers) == ("quick_gelu", 1e-5, 4)
    assert (config.teacher_patch_size, config.teacher_grid, config.projection_dim) == (8, 4, 24)


def test_old_and_new_key_names_and_towers_alone_are_one_teacher(
    clip_teacher: Teacher, clip_model: CLIPModel, tmp_path: Path
) -> None:
    with_projection = CLIPVisionModelWithProjection(clip_model.config.vision_config)
    with_projection.vision_model.load_state_dict(clip_model.vision_model.state_dict())
    with_projection.visual_projection.load_state_dict(clip_model.visual_projection.state_dict())
    with_projection.save_pretrained(tmp_path / "projected")
    assert open_teacher(tmp_path / "projected").sha256 == clip_teacher.sha256

    tower = CLIPVisionModel(clip_model.config.vision_config)
    tower.load_state_dict(clip_model.vision_model.state_dict())
    tower.save_pretrained(tmp_path / "new")
    new = open_teacher(tmp_path / "new")
    assert new.config.projection_dim == 0
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    tensors = load_file(tmp_path / "new" / "model.safetensors")
    prefix = "vision_model."
    old = {prefix + key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    old[f"{prefix}embeddings.position_ids"] = torch.arange(17)[None]
    save_file(old, tmp_path / "old" / "model.safetensors")
    assert open_teacher(tmp_path / "old").sha256 == new.sha256


def test_the_tower_inside_a_llava_is_found(clip_model: CLIPModel, tmp_path: Path) -> None:
    vision = clip_model.config.vision_config
    text = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    llava = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=5))
    llava.model.vision_tower.load_state_dict(clip_model.vision_model.state_dict())
    llava.save_pretrained(tmp_path)
    teacher = open_teacher(tmp_path)
    with torch.no_grad():
        theirs = llava.model.vision_tower(PIXELS, output_hidden_states=True).hidden_states
        close(teacher.model(PIXELS).hidden_states[-2], theirs[-2])


@torch.no_grad()
def test_open_clip_and_timm_forms_of_one_model_are_one_teacher(
    clip_teacher: Teacher, clip_model: CLIPModel, tmp_path: Path
) -> None:
    import open_clip

    write_open_clip_config(tmp_path)
    theirs = open_clip.CLIP(**OPEN_CLIP)
    canonical = clip_teacher.model.state_dict()
    state = theirs.visual.state_dict()
    renamed = {
        "class_embedding": canonical["cls_token"],
        "positional_embedding": canonical["positions"],
        "conv1.weight": canonical["patch.weight"],
        "ln_pre.weight": canonical["pre_norm.weight"],
        "ln_pre.bias": canonical["pre_norm.bias"],
        "ln_post.weight": canonical["head.norm.weight"],
        "ln_post.bias": canonical["head.norm.bias"],
        "proj": canonical["head.projection.weight"].T,
    }
    parts = {
        "ln_1": "norm1",
        "attn.in_proj_": "attn.qkv.",
        "attn.out_proj": "attn.proj",
        "ln_2": "norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for number in range(4):
        for kind in ("weight", "bias"):
            for name, ours in parts.items():
                their_key = f"{name}{kind}" if name.endswith("_") else f"{name}.{kind}"
                our_key = f"{ours}{kind}" if ours.endswith(".") else f"{ours}.{kind}"
                renamed[f"transformer.resblocks.{number}.{their_key}"] = canonical[f"blocks.{number}.{our_key}"]
    assert renamed.keys() == state.keys()
    theirs.visual.load_state_dict(renamed)
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    teacher = open_teacher(f"local-dir:{tmp_path}")
    assert teacher.config.hidden_act == "quick_gelu"
    assert teacher.sha256 == clip_teacher.sha256
    close(teacher.model(PIXELS).pooled, theirs.encode_image(PIXELS))
    assert teacher.config.squashes is False
    write_open_clip_config(tmp_path, dict(resize_mode="squash"))
    assert open_teacher(f"local-dir:{tmp_path}").config.squashes is True


@torch.no_grad()
def test_a_timm_teacher_equals_timm_with_its_classifier(tmp_path: Path) -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", num_classes=1000).eval()
    randomize(model, scale=0.02)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    teacher = open_teacher(f"timm:vit_tiny_patch16_224:{tmp_path / 'vit.safetensors'}")
    pixels = torch.randn(2, 3, 224, 224)
    output = teacher.model(pixels)
    assert output.logits is not None
    torch.testing.assert_close(output.logits, model(pixels), atol=1e-4, rtol=1e-4)
    assert (teacher.config.hidden_act, teacher.config.layer_norm_eps) == ("gelu", 1e-6)
    assert tuple(teacher.config.image_mean) == (0.5, 0.5, 0.5)


@torch.no_grad()
def test_a_siglip_teacher_pools_by_attention(tmp_path: Path) -> None:
    fields = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
    model = SiglipVisionModel(SiglipVisionConfig(**fields, image_size=32, patch_size=8)).eval()
    randomize(model, scale=0.05)
    model.save_pretrained(tmp_path)
    teacher = open_teacher(tmp_path)
    theirs = model(PIXELS, output_hidden_states=True)
    assert teacher.config.hidden_act == "gelu_pytorch_tanh"
    assert not teacher.config.has_cls_token
    close(teacher.model(PIXELS).pooled, theirs.pooler_output)
    close(teacher.model(PIXELS).hidden_states[-2], theirs.hidden_states[-2])


def test_a_photo_is_squashed_where_the_teachers_own_preprocessor_does(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "preprocessor_config.json"
    for size, squashed in (
        ({"height": 32, "width": 32}, True),
        ({"shortest_edge": 32, "height": None}, False),
        (32, False),
    ):
        file.write_text(json.dumps({"size": size, "image_mean": None}))
        config = open_teacher(tmp_path).config
        assert (config.squashes, tuple(config.image_mean)) == (squashed, CLIP_MEAN)


def timm_file(monkeypatch: pytest.MonkeyPatch, file: Path, **sizes: Any) -> Any:
    """A tiny model of timm, which now builds its test_vit so, and its weights in a file."""
    import timm

    sizes = dict(embed_dim=64, depth=2, num_heads=2, mlp_ratio=2, dynamic_img_size=False) | sizes
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, **sizes))
    model = randomize(timm.create_model("test_vit"), scale=0.05).eval()
    save_file(model.state_dict(), file)
    return model


@torch.no_grad()
def test_a_clip_of_timm_has_a_projection_and_no_classifier(
    clip_teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from timm.layers import QuickGELU

    sizes = dict(patch_size=8, img_size=32, depth=4, num_classes=24, pre_norm=True, act_layer=QuickGELU)
    file = tmp_path / "clip.safetensors"
    model = timm_file(monkeypatch, file, **sizes, norm_layer=partial(torch.nn.LayerNorm, eps=1e-5))
    model.head.bias.zero_()  # as timm itself fills it from a CLIP's projection
    save_file(model.state_dict(), file)
    teacher = open_teacher(f"timm:test_vit:{file}")
    described = {"projection_dim", "num_classes", "hidden_act", "pre_norm", "pooling", "teacher_grid"}
    ours, theirs = teacher.config.to_dict(), clip_teacher.config.to_dict()
    assert {name: ours[name] for name in described} == {name: theirs[name] for name in described}
    output = teacher.model(PIXELS)
    close(output.pooled, model(PIXELS))
    assert output.logits is None
    model.head.bias += 1  # a classifier was trained on it
    save_file(model.state_dict(), file)
    assert open_teacher(f"timm:test_vit:{file}").config.num_classes == 24


def test_a_timm_model_that_norms_before_it_takes_the_mean_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gap.safetensors"
    timm_file(monkeypatch, file, img_size=32, class_token=False, global_pool="avg", fc_norm=False)
    with pytest.raises(ValueError, match="'test_vit' takes the mean after its last norm, and a SparseFormer"):
        open_teacher(f"timm:test_vit:{file}")


@torch.no_grad()
def test_a_photo_keeps_the_size_that_its_patches_do_not_fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, pixels = tmp_path / "map.safetensors", torch.randn(1, 3, 38, 38)
    model = timm_file(monkeypatch, file, patch_size=16, img_size=38, class_token=False, global_pool="map")
    teacher = open_teacher(f"timm:test_vit:{file}")
    assert (teacher.config.image_size, teacher.config.teacher_grid) == (38, 2)
    theirs = model.forward_intermediates(pixels, indices=[-1], output_fmt="NLC", intermediates_only=True)
    close(teacher.model(pixels).hidden_states[-1], theirs[0])

    import open_clip

    vision = OPEN_CLIP["vision_cfg"] | {"image_size": 38}
    write_open_clip_config(tmp_path, vision_cfg=vision)
    clip = randomize(open_clip.CLIP(**(OPEN_CLIP | {"vision_cfg": vision})), scale=0.05)
    save_file(clip.state_dict(), tmp_path / "open_clip_model.safetensors")
    teacher = open_teacher(f"local-dir:{tmp_path}")
    assert (teacher.config.image_size, teacher.config.teacher_grid) == (38, 4)
    close(teacher.model(pixels).pooled, clip.encode_image(pixels))  # type: ignore[operator]


def test_timm_names_may_have_tags(tmp_path: Path) -> None:
    import timm

    save_file(timm.create_model("vit_tiny_patch16_224.augreg_in21k").state_dict(), tmp_path / "vit.safetensors")
    teacher = open_teacher(f"timm:vit_tiny_patch16_224.augreg_in21k:{tmp_path / 'vit.safetensors'}")
    assert teacher.config.num_classes == 21843
    with pytest.raises(ValueError, match=r"timm cannot build 'vit_tiny_patch16_224\.unheard': .*tag"):
        open_teacher(f"timm:vit_tiny_patch16_224.unheard:{tmp_path / 'vit.safetensors'}")


@pytest.mark.parametrize("shards", [1, 2])
def test_pickled_weights_are_opened_without_their_code(shards: int, clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(clip_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(clip_folder / "model.safetensors")
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    else:
        places = {key: f"pytorch_model-{number % 2}.bin" for number, key in enumerate(tensors)}
        for file in set(places.values()):
            torch.save({key: tensor for key, tensor in tensors.items() if places[key] == file}, folder / file)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert open_teacher(folder).sha256 == open_teacher(clip_folder).sha256
    file = next(folder.glob("*.bin"))
    torch.save({"weights": Path("code")}, file)
    with pytest.raises(
        ValueError, match=f"{file.name} cannot be read as a pickle of tensors alone: Unsupported global"
    ):
        open_teacher(folder)
    torch.save({0: torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=f"{file.name} cannot be read .*: it holds other things than tensors by name"):
        open_teacher(folder)


def test_what_else_lies_in_the_folder_is_no_weight_of_the_model(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    zeros = {key: torch.zeros_like(tensor) for key, tensor in load_file(folder / "model.safetensors").items()}
    save_file(zeros, folder / "optimizer.safetensors")
    assert open_teacher(folder).sha256 == open_teacher(clip_folder).sha256


def test_a_folder_that_lacks_a_shard_is_refused_by_its_name(clip_model: CLIPModel, tmp_path: Path) -> None:
    clip_model.save_pretrained(tmp_path, max_shard_size="100KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert open_teacher(tmp_path).config.num_hidden_layers == 4
    shards[1].unlink()
    with pytest.raises(ValueError, match=f"{shards[1].name} is missing, which model.safetensors.index.json lists"):
        open_teacher(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": null, "b": "c"}}')
    with pytest.raises(ValueError, match="does not list which file holds each tensor"):
        open_teacher(tmp_path)


def test_damaged_json_is_named(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json is no JSON"):
        open_teacher(folder)
    for content in ("[]", '{"model_type": "cl'):
        (folder / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"clip/config\.json (is no JSON|holds no JSON object)"):
            open_teacher(folder)


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, source in {"timm": "timm:vit_tiny_patch16_224", "open_clip": "open_clip:ViT-B-32:openai"}.items():
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ValueError, match=rf"{source!r} needs the package {name}: pip install 'sfvlm\[train\]'"):
            open_teacher(source)


def test_unknown_missing_and_misshapen_tensors_are_named(clip_folder: Path, tmp_path: Path) -> None:
    def changed(name: str, change: object) -> Path:
        folder = tmp_path / name
        shutil.copytree(clip_folder, folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)  # type: ignore[operator]
        save_file(tensors, folder / "model.safetensors")
        return folder

    key = "vision_model.post_layernorm.bias"
    with pytest.raises(ValueError, match="surprise"):
        open_teacher(changed("unknown", lambda tensors: tensors.update({"vision_model.surprise": torch.ones(1)})))
    with pytest.raises(ValueError, match=r"missing: head\.norm\.bias"):
        open_teacher(changed("missing", lambda tensors: tensors.pop(key)))
    for part in "qkv":
        lost = f"vision_model.encoder.layers.1.self_attn.{part}_proj.bias"
        with pytest.raises(ValueError, match=r"missing: blocks\.1\.attn\.qkv\.bias"):
            open_teacher(changed(f"missing {part}", lambda tensors, lost=lost: tensors.pop(lost)))
    with pytest.raises(ValueError, match=r"head\.norm\.bias is \(7,\), not \(64,\)"):
        open_teacher(changed("shape", lambda tensors: tensors.update({key: torch.ones(7)})))


def test_sources_that_cannot_be_opened_say_what_to_give(tmp_path: Path, clip_folder: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes((clip_folder / "model.safetensors").read_bytes()[:1000])
    (tmp_path / "damaged").mkdir()
    write_open_clip_config(tmp_path / "damaged")
    shutil.copy(weights, tmp_path / "damaged" / "open_clip_model.safetensors")
    for source, message in {
        str(weights): "timm:NAME:",
        str(tmp_path): "no config.json",
        "nobody/nothing": "local folder",
        "timm:vit_unheard_of": "timm knows no model",
        "timm:vit_tiny_patch16_224:/nowhere.safetensors": "does not exist",
        "timm:resnet18:" + str(weights): "resnet18",
        "open_clip:ViT-B-32": "names no weights",
        "open_clip:ViT-Unheard-Of:x": "open_clip knows no model",
        f"local-dir:{tmp_path}": "open_clip cannot open",
        f"local-dir:{tmp_path / 'damaged'}": "open_clip cannot open",
    }.items():
        with pytest.raises(ValueError, match=message):
            open_teacher(source)
    shutil.copy(clip_folder / "config.json", tmp_path / "config.json")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        open_teacher(tmp_path)


def test_a_configuration_that_holds_only_differences_is_completed(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "sparse")
    path = tmp_path / "sparse" / "config.json"
    config = json.loads(path.read_text())
    default = CLIPVisionConfig().to_dict()
    vision = {k: v for k, v in config["vision_config"].items() if k == "model_type" or default.get(k) != v}
    path.write_text(json.dumps(config | {"vision_config": vision}))
    assert open_teacher(tmp_path / "sparse").sha256 == open_teacher(clip_folder).sha256


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": [32, 32]}, r"image_size of .* is \[32, 32\]; it is a whole number of pixels"),
        ({"patch_size": 0}, "patch_size of .* is 0; it is a whole number of pixels"),
        ({"num_attention_heads": "2"}, "The vision configuration of .* cannot be read: .*num_attention_heads"),
    ],
)
def test_a_configuration_that_describes_no_tower_is_one_sentence(
    fields: dict[str, Any], message: str, clip_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(clip_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"] |= fields
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        open_teacher(tmp_path)


def test_an_open_clip_tower_that_pools_by_attention_is_told_so() -> None:
    import open_clip

    vision = OPEN_CLIP["vision_cfg"] | {"attentional_pool": True}
    clip = open_clip.CLIP(**(OPEN_CLIP | {"vision_cfg": vision}))
    with pytest.raises(ValueError, match="pools by attention, as CoCa does"):
        open_clip_vision(clip.visual, "coca")


def test_the_hash_sees_a_single_changed_weight(clip_teacher: Teacher) -> None:
    state = {key: tensor.clone() for key, tensor in clip_teacher.model.state_dict().items()}
    assert tensor_hash(state) == clip_teacher.sha256
    state["head.norm.bias"][0] += 1e-3
    assert tensor_hash(state) != clip_teacher.sha256


def changed_clip(folder: Path, source: Path, rename: Any = None, config: dict[str, Any] | None = None) -> Path:
    """A copy of a CLIP whose tensors are what `rename` makes of them all, and whose configuration has other fields."""
    shutil.copytree(source, folder)
    if rename is not None:
        save_file(rename(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | (config or {})))
    return folder


@pytest.mark.parametrize(
    "wrapper", ["module.", "model.", "_orig_mod.", "clip.", "student.", "base_model.model.", "module._orig_mod.", "x."]
)
def test_a_wrappers_prefix_loses_nothing(
    wrapper: str, clip_folder: Path, clip_teacher: Teacher, tmp_path: Path
) -> None:
    folder = changed_clip(
        tmp_path / "clip", clip_folder, lambda tensors: {wrapper + key: tensor for key, tensor in tensors.items()}
    )
    assert open_teacher(folder).sha256 == clip_teacher.sha256


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (
            lambda key: "module." * (not key.startswith("visual_projection")) + key,
            "lacks its projection module.visual_",
        ),
        (lambda key: "module." * key.startswith("vision_model") + key, "lacks its projection module.visual_projection"),
        (
            lambda key: key.replace("visual_projection.", "visual_projection.base_layer."),
            "lacks its projection visual_",
        ),
        (
            lambda key: key.replace("visual_projection", "_fsdp_wrapped_module.visual_projection"),
            "lacks its projection",
        ),
        (lambda key: key.replace("visual_projection", "dropped"), "lacks its projection visual_projection.weight"),
        (lambda key: key.replace("pre_layrnorm", "pre_layernorm"), "lacks the tensor pre_layrnorm.weight"),
        (lambda key: key.replace("vision_model.encoder", "vision_model._fsdp_wrapped_module.encoder"), "_fsdp_wrapped"),
        (lambda key: key.replace("self_attn.q_proj.weight", "self_attn.q_proj.base_layer.weight"), "base_layer"),
        (lambda key: "module." * ("layers.1." in key) + key, "missing: blocks.1"),
    ],
)
def test_what_a_clip_has_by_its_configuration_is_missed_by_name(
    rename: Any, message: str, clip_folder: Path, tmp_path: Path
) -> None:
    folder = changed_clip(
        tmp_path / "clip", clip_folder, lambda tensors: {rename(key): tensor for key, tensor in tensors.items()}
    )
    with pytest.raises(ValueError, match=message):
        open_teacher(folder)


def test_a_projection_is_missed_by_what_lies_beside_it(
    clip_folder: Path, clip_model: CLIPModel, tmp_path: Path
) -> None:
    """The configuration is the tower's alone, and the weights are those of a whole CLIP but one."""
    folder = changed_clip(
        tmp_path / "clip",
        clip_folder,
        lambda tensors: {key: tensor for key, tensor in tensors.items() if "visual_projection" not in key},
    )
    (folder / "config.json").write_text(json.dumps(clip_model.config.vision_config.to_dict()))
    with pytest.raises(ValueError, match=r"lacks its projection visual_projection.weight, and holds text_projection"):
        open_teacher(folder)


def test_of_two_descriptions_of_a_tower_transformers_choice_is_taken(
    clip_folder: Path, clip_model: CLIPModel, tmp_path: Path
) -> None:
    vision = clip_model.config.vision_config.to_dict()
    given = {"vision_config": vision | {"num_attention_heads": 4, "hidden_act": "gelu"}, "vision_config_dict": vision}
    folder = changed_clip(tmp_path / "two", clip_folder, config=given)
    theirs = CLIPModel.from_pretrained(folder).eval()
    assert theirs.config.vision_config.num_attention_heads == 2
    with torch.no_grad():
        close(open_teacher(folder).model(PIXELS).pooled, theirs.get_image_features(PIXELS).pooler_output)
    for name, wrong in (("vision_config", [1]), ("vision_config", "clip"), ("vision_config_dict", [1])):
        folder = changed_clip(tmp_path / f"{name} {len(str(wrong))}", clip_folder, config={name: wrong})
        with pytest.raises(ValueError, match=r"vision configuration of .* cannot be read"):
            open_teacher(folder)
    folder = changed_clip(tmp_path / "llava", clip_folder, config={"model_type": "llava", "vision_config": [1]})
    with pytest.raises(ValueError, match=r"vision_config of .* is \[1\]; it is a JSON object"):
        open_teacher(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, r"is quantised \(quantization_config\)"),
        ({"projection_dim": 32}, "projection visual_projection.weight of .* is 24 wide, .* projection_dim 32"),
    ],
)
def test_a_configuration_that_contradicts_the_tensors_is_refused(
    config: dict[str, Any], message: str, clip_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        open_teacher(changed_clip(tmp_path / "clip", clip_folder, config=config))


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_beside_a_teacher_is_not_left_out_silently(file: str, clip_folder: Path, tmp_path: Path) -> None:
    folder = changed_clip(tmp_path / "clip", clip_folder)
    (folder / file).write_text("{}")
    for source in (str(folder), f"local-dir:{folder}"):
        with pytest.raises(ValueError, match="holds an adapter, which would be left out: merge it"):
            open_teacher(source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: torch.full_like(tensor, torch.nan), "holds 64 numbers that are not finite .* of 64"),
        (
            lambda tensor: tensor.clone().index_fill_(0, torch.tensor(3), torch.inf),
            "holds 1 numbers that are not finite",
        ),
        (lambda tensor: tensor.to(torch.int8), "is int8: it is quantised"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "is float8_e4m3fn: it is quantised"),
        (lambda tensor: tensor[:0], r"is empty \(0,\): its file was not saved whole"),
    ],
)
def test_tensors_that_are_no_weights_are_refused_by_name(
    change: Any, message: str, clip_folder: Path, tmp_path: Path
) -> None:
    import open_clip
    import timm

    key = "vision_model.post_layernorm.bias"
    folder = changed_clip(tmp_path / "clip", clip_folder, lambda tensors: tensors | {key: change(tensors[key])})
    with pytest.raises(ValueError, match=f"The tensor 'post_layernorm.bias' of .* {message}"):
        open_teacher(folder)

    write_open_clip_config(tmp_path)
    tensors = open_clip.CLIP(**OPEN_CLIP).state_dict()
    key = "visual.ln_post.bias"
    save_file(tensors | {key: change(tensors[key])}, tmp_path / "open_clip_model.safetensors")
    short = "open_clip cannot open .* size mismatch for visual.ln_post.bias"  # open_clip sees that itself
    with pytest.raises(ValueError, match=short if "empty" in message else f"The tensor '{key}' of .* {message}"):
        open_teacher(f"local-dir:{tmp_path}")

    tensors = timm.create_model("test_vit").state_dict()
    save_file(tensors | {"norm.bias": change(tensors["norm.bias"])}, tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match=f"The tensor 'norm.bias' of .* {message}"):
        open_teacher(f"timm:test_vit:{tmp_path / 'vit.safetensors'}")


def test_a_siglip_pools_as_its_configuration_says_or_is_refused(tmp_path: Path) -> None:
    fields = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
    SiglipVisionModel(SiglipVisionConfig(**fields, image_size=32, patch_size=8)).save_pretrained(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    path = tmp_path / "config.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"vision_use_head": False}))
    with pytest.raises(ValueError, match=r"holds the tensors of a pooling head .* vision_use_head False"):
        open_teacher(tmp_path)
    path.write_text(json.dumps(described))
    save_file({key: tensor for key, tensor in whole.items() if "head." not in key}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks the tensors of a pooling head .* vision_use_head True"):
        open_teacher(tmp_path)
    path.write_text(json.dumps(described | {"vision_use_head": False}))
    assert open_teacher(tmp_path).config.pooling == "mean"
    path.write_text(json.dumps(described))
    lost = {key: tensor for key, tensor in whole.items() if not key.endswith("patch_embedding.bias")}
    save_file(lost, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks the tensor embeddings\.patch_embedding\.bias"):
        open_teacher(tmp_path)


@pytest.mark.parametrize("classes", [10, 0])
@torch.no_grad()
def test_a_timm_model_has_the_head_that_its_tensors_have(classes: int, tmp_path: Path) -> None:
    import timm

    model = randomize(timm.create_model("test_vit", num_classes=classes), scale=0.02).eval()
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    teacher = open_teacher(f"timm:test_vit:{tmp_path / 'vit.safetensors'}")
    side = teacher.config.image_size
    output = teacher.model(torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)))
    assert teacher.config.num_classes == classes
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    close(output.pooled if output.logits is None else output.logits, model(pixels))  # type: ignore[operator]


@torch.no_grad()
def test_a_timm_model_sees_photos_as_large_as_its_positions(tmp_path: Path) -> None:
    import timm

    model = randomize(timm.create_model("test_vit", img_size=96), scale=0.02).eval()
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    with pytest.warns(UserWarning, match="of 96 pixels a side, .* photos of 160: it is opened for 96"):
        teacher = open_teacher(f"timm:test_vit:{tmp_path / 'vit.safetensors'}")
    pixels = torch.randn(2, 3, 96, 96)
    output = teacher.model(pixels)
    assert teacher.config.image_size == 96 and output.logits is not None
    close(output.logits, model(pixels))  # type: ignore[operator]


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.module.", "backbone."])
def test_checkpoints_of_timms_and_open_clips_training_are_opened(prefix: str, tmp_path: Path) -> None:
    import open_clip
    import timm

    torch.manual_seed(0)
    tensors = timm.create_model("test_vit").state_dict()
    save_file(tensors, tmp_path / "plain.safetensors")
    state = {prefix + key: tensor for key, tensor in tensors.items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"step": 1}}, tmp_path / "epoch_3.pth")
    plain = open_teacher(f"timm:test_vit:{tmp_path / 'plain.safetensors'}")
    assert open_teacher(f"timm:test_vit:{tmp_path / 'epoch_3.pth'}").sha256 == plain.sha256
    if prefix not in ("", "module."):
        return
    write_open_clip_config(tmp_path)
    tensors = open_clip.CLIP(**OPEN_CLIP).state_dict()
    file = tmp_path / "open_clip_pytorch_model.bin"
    torch.save(tensors, file)
    plain = open_teacher(f"local-dir:{tmp_path}")
    state = {prefix + key: tensor for key, tensor in tensors.items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"step": 1}}, file)
    assert open_teacher(f"local-dir:{tmp_path}").sha256 == plain.sha256


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 605156676\n"
STAND_INS = [(POINTER, "is a pointer of git-lfs"), (b"<!DOCTYPE html><html>", "is a web page"), (b"", "is empty")]


@pytest.mark.parametrize(("content", "message"), STAND_INS)
@pytest.mark.parametrize("form", ["config.json", "model.safetensors", "pytorch_model.bin", "open_clip", "timm"])
def test_what_a_download_left_in_place_of_a_file_is_called_by_its_name(
    form: str, content: bytes, message: str, clip_folder: Path, tmp_path: Path
) -> None:
    name = {"open_clip": "open_clip_model.safetensors", "timm": "vit.pth"}.get(form, form)
    source = {"open_clip": f"local-dir:{tmp_path}", "timm": f"timm:test_vit:{tmp_path / name}"}.get(form, str(tmp_path))
    shutil.copytree(clip_folder, tmp_path, dirs_exist_ok=True)
    if form == "pytorch_model.bin":
        (tmp_path / "model.safetensors").unlink()
    write_open_clip_config(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} {message}"):
        open_teacher(source)


@pytest.mark.parametrize("file", [None, "epoch_3.pt", "flax_model.msgpack"])
def test_an_open_clip_folder_without_weights_is_no_teacher_of_random_numbers(file: str | None, tmp_path: Path) -> None:
    write_open_clip_config(tmp_path)
    if file is not None:
        (tmp_path / file).write_bytes(b"weights")
    with pytest.raises(ValueError, match="holds no weights that open_clip reads"):
        open_teacher(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("name", ["model.safetensors", "epoch_3.bin"])
def test_weights_that_open_clip_finds_under_another_name_are_checked_as_stored(name: str, tmp_path: Path) -> None:
    import open_clip

    write_open_clip_config(tmp_path)
    tensors = open_clip.CLIP(**OPEN_CLIP).state_dict()
    tensors["visual.ln_post.bias"] = tensors["visual.ln_post.bias"].to(torch.int8)
    save_file(tensors, tmp_path / name) if name.endswith("safetensors") else torch.save(tensors, tmp_path / name)
    with pytest.raises(ValueError, match=r"'visual\.ln_post\.bias' of .* is int8: it is quantised"):
        open_teacher(f"local-dir:{tmp_path}")


@torch.no_grad()
def test_positions_that_open_clip_resizes_are_told_and_its_own(tmp_path: Path) -> None:
    import open_clip

    write_open_clip_config(tmp_path)
    larger = OPEN_CLIP["vision_cfg"] | {"image_size": 64}
    tensors = randomize(open_clip.CLIP(**(OPEN_CLIP | {"vision_cfg": larger})), scale=0.05).state_dict()
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    with pytest.warns(UserWarning, match="are of 65 tokens, and the named model has 17: open_clip resizes them"):
        teacher = open_teacher(f"local-dir:{tmp_path}")
    close(teacher.model(PIXELS).pooled, open_clip.create_model(f"local-dir:{tmp_path}").eval().encode_image(PIXELS))


@pytest.mark.parametrize("name", ["state_dict", "model", "module", "state_dict_ema"])
def test_tensors_under_a_name_of_a_trainings_are_found(name: str, clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nested"
    shutil.copytree(clip_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(clip_folder / "model.safetensors")
    torch.save({"epoch": 3, "optimizer": {"state": {}}, name: tensors}, folder / "pytorch_model.bin")
    assert open_teacher(folder).sha256 == open_teacher(clip_folder).sha256
    torch.save({name: tensors, "model_ema": tensors}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"holds tensors under the names {name}, model_ema: save one of them alone"):
        open_teacher(folder)


def test_a_classifier_beside_a_tower_is_not_left_out_silently(tmp_path: Path) -> None:
    sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
    vision = sizes | dict(image_size=32, patch_size=8)
    text = sizes | dict(vocab_size=99, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    clip = CLIPForImageClassification(CLIPConfig(vision_config=vision, text_config=text))
    siglip = SiglipForImageClassification(SiglipConfig(vision_config=vision, text_config=text))
    for name, model in (("clip", clip), ("siglip", siglip)):
        model.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=r"holds classifier\.bias beside its tower, which would be left out"):
            open_teacher(tmp_path / name)


def test_a_model_of_code_of_its_own_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = changed_clip(
        tmp_path / "clip", clip_folder, config={"auto_map": {"AutoModel": "modeling_evaclip.EvaCLIP"}}
    )
    with pytest.raises(ValueError, match=r"code of its own \(auto_map in config.json\), which is not run"):
        open_teacher(folder)


@pytest.mark.parametrize("library", ["timm", "open_clip"])
def test_an_adapter_beside_a_file_of_weights_is_not_left_out_silently(library: str, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"whatever it is")
    (tmp_path / "adapter_config.json").write_text("{}")
    name = {"timm": "test_vit", "open_clip": "ViT-B-32"}[library]
    with pytest.raises(ValueError, match="holds an adapter, which would be left out: merge it"):
        open_teacher(f"{library}:{name}:{tmp_path / 'weights.safetensors'}")


def test_blocks_of_another_kind_with_the_same_names_are_refused(tmp_path: Path) -> None:
    import timm

    name, sizes = "vit_base_patch16_rpn_224", dict(qkv_bias=True, depth=1, embed_dim=64, num_heads=2, img_size=32)
    save_file(timm.create_model(name, **sizes).state_dict(), tmp_path / "vit.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "model_args": sizes}))
    with pytest.raises(ValueError, match="has blocks of the kind ResPostBlock"):
        open_teacher(f"timm:{name}:{tmp_path / 'vit.safetensors'}")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("vit_small_patch16_224", "mean, std of its model's name are assumed"),  # AugReg's and DINO's
        ("vit_small_patch16_224.dino", None),
        ("vit_small_patch32_224", None),  # all that are published agree
    ],
)
def test_a_bare_file_of_timm_says_what_its_name_leaves_open(
    name: str, told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    import timm

    file = tmp_path / "vit.safetensors"
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, embed_dim=64, depth=2, num_heads=2))
    save_file(timm.create_model(name).state_dict(), file)
    open_teacher(f"timm:{name}:{file}")
    said = [str(each.message) for each in recwarn if "are assumed" in str(each.message)]
    assert len(said) == (told is not None) and (told is None or told in said[0])
    if told is not None:
        (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "pretrained_cfg": {"mean": [0.4] * 3}}))
        open_teacher(f"timm:{name}:{file}")
        assert len([each for each in recwarn if "are assumed" in str(each.message)]) == 1


def test_a_bare_file_of_open_clip_says_what_its_name_leaves_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    import open_clip

    (tmp_path / "ViT-tiny-two-ways.json").write_text(json.dumps(OPEN_CLIP))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [*open_clip.factory._MODEL_CONFIG_PATHS])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    open_clip.add_model_config(tmp_path / "ViT-tiny-two-ways.json")
    file = tmp_path / "weights.safetensors"
    save_file(open_clip.CLIP(**OPEN_CLIP).state_dict(), file)
    source = f"open_clip:ViT-tiny-two-ways:{file}"
    open_teacher(source)
    assert not [each for each in recwarn if "are assumed" in str(each.message)]
    tags = {"openai": {"quick_gelu": True, "mean": (0.48,) * 3}, "laion2b": {"mean": (0.5,) * 3}}
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: list(tags))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: tags[tag])
    with pytest.warns(UserWarning, match=r"mean, quick_gelu of its model's name are assumed, .*\(openai, laion2b\)"):
        open_teacher(source)


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_of_two_copies_of_a_tensor_the_one_that_the_index_lists_is_taken(
    names: tuple[str, str], clip_folder: Path, tmp_path: Path
) -> None:
    folder, (true, old) = tmp_path / "clip", (f"{name}.safetensors" for name in names)
    shutil.copytree(clip_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / true)
    save_file({key: tensor * 0 for key, tensor in tensors.items()} | {"logit_bias": torch.zeros(1)}, folder / old)
    listed = dict.fromkeys(tensors, true) | {"logit_bias": old}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    assert open_teacher(folder).sha256 == open_teacher(clip_folder).sha256
