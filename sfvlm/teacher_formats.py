"""Reads a teacher of any form to a configuration and tensors in canonical names: transformers, open_clip, timm.

Activation, norm epsilon, normalisation, image size and depth are read from the teacher's own configuration, never guessed
from a name.
"""

import importlib
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .configuration import CLIP_MEAN, CLIP_STD, SparseFormerConfig
from .errors import reason
from .files import read_json
from .teacher_tables import OPEN_CLIP, TIMM, TRANSFORMERS, rename
from .weight_files import open_weights, read_tensors
from .zoo import hub_folder


def read_teacher(source: str, local_files_only: bool) -> tuple[SparseFormerConfig, dict[str, Tensor]]:
    """Configuration and canonical tensors of a source; its prefix says which library's it is.

    Raises:
        ValueError: The source is of no known form, has unknown tensors, or cannot be reached.
    """
    if source.startswith("timm:"):
        return read_timm(source)
    if source.startswith(("open_clip:", "local-dir:")):
        return read_open_clip(source)
    return read_transformers(source, local_files_only)


def read_timm(source: str) -> tuple[SparseFormerConfig, dict[str, Tensor]]:
    """`timm:NAME:FILE`, or `timm:NAME` from the hub; a plain vision transformer with its classifier, where it has one."""
    timm = _library("timm", source)
    from timm.models.vision_transformer import VisionTransformer

    _, name, *file = source.split(":", 2)
    if not timm.is_model(name):
        raise ValueError(f"timm knows no model named {name!r}; see timm.list_models('vit_*').")
    path = file[0] if file else None
    if path is not None and not Path(path).is_file():
        raise ValueError(f"The weights file {path} of teacher {source!r} does not exist.")
    try:
        model = timm.create_model(name, pretrained=False)
    except RuntimeError as error:  # of a tag, what stands behind the dot
        raise ValueError(f"timm cannot build {name!r}: {reason(error)}") from error
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"timm's {name!r} is a {type(model).__name__}, not a plain VisionTransformer.")
    try:
        if path is None:
            model = timm.create_model(name, pretrained=True)
        else:
            timm.models.load_checkpoint(model, path)
    except Exception as error:  # hub, pickle, safetensors and key errors are of many unrelated types
        raise ValueError(
            f"The weights of {source!r} cannot be read ({type(error).__name__}: {reason(error)}); "
            f"give a file of that model: timm:{name}:/path.safetensors."
        ) from error
    assert isinstance(model, VisionTransformer)
    block = cast(Any, model.blocks[0])
    pooling = {"token": "cls", "avg": "mean", "map": "attention"}.get(model.global_pool)
    patch, grid = model.patch_embed.patch_size, model.patch_embed.grid_size
    described = cast(Any, model.pretrained_cfg)
    canonical = _with_projection(rename(model.state_dict(), TIMM, source))
    if pooling is None or patch[0] != patch[1] or grid[0] != grid[1] or model.num_prefix_tokens != (pooling == "cls"):
        raise ValueError(
            f"timm's {name!r} pools by {model.global_pool!r} with {model.num_prefix_tokens} prefix tokens on a grid of {grid}; "
            "supported are 'token' with one, or 'avg' and 'map' without any, on a square grid."
        )
    norm_comes_last = isinstance(model.norm, nn.Identity)
    if pooling != "cls" and norm_comes_last != (pooling == "mean"):
        order = "pools before its last norm" if norm_comes_last else "takes the mean after its last norm"
        raise ValueError(
            f"timm's {name!r} {order}, and a SparseFormer does it the other way round: give one that pools by 'token' or 'map'."
        )
    config = _teacher_config(
        image_size=cast(Any, model.patch_embed.img_size)[0],
        patch=patch[0],
        width=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        mlp=block.mlp.fc1.out_features,
        activation=_activation_name(block.mlp.act),
        eps=block.norm1.eps,
        mean=described["mean"],
        std=described["std"],
        squash=pooling == "attention" or described.get("crop_mode") == "squash",  # SigLIP's own preprocessor does
        pooling=pooling,
        tensors=canonical,
    )
    return config, canonical


def _with_projection(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm keeps a CLIP's projection as a classifier whose bias is zero; these tensors call it by its name again."""
    bias = tensors.get("head.classifier.bias")
    if bias is None or bias.any() or "pre_norm.weight" not in tensors:
        return tensors
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith("head.classifier.")}
    return kept | {"head.projection.weight": tensors["head.classifier.weight"]}


def read_open_clip(source: str) -> tuple[SparseFormerConfig, dict[str, Tensor]]:
    """`open_clip:NAME:FILE`, `open_clip:NAME:TAG`, or `local-dir:FOLDER`."""
    open_clip = _library("open_clip", source)
    if source.startswith("open_clip:"):
        _, name, *file = source.split(":", 2)
        pretrained = file[0] if file else None
        if pretrained is None:
            raise ValueError(
                f"Teacher {source!r} names no weights: give a file or a tag, open_clip:{name}:/path/or/tag."
            )
        if name not in open_clip.list_models():
            raise ValueError(f"open_clip knows no model named {name!r}; see open_clip.list_models().")
    else:
        name, pretrained = source, None
    try:
        clip = open_clip.create_model(name, pretrained=pretrained)
    except Exception as error:  # a damaged file, a foreign one and no network are of many unrelated types
        raise ValueError(f"open_clip cannot open {source!r}: {reason(error)}") from error
    return open_clip_vision(clip.visual, source)


def open_clip_vision(visual: Any, source: str) -> tuple[SparseFormerConfig, dict[str, Tensor]]:
    """Configuration and canonical tensors of open_clip's own vision transformer."""
    from open_clip.transformer import VisionTransformer

    if not isinstance(visual, VisionTransformer):
        raise ValueError(
            f"The vision tower of {source!r} is a {type(visual).__name__}; only open_clip's own ViT is supported. "
            "A ViT of timm, as SigLIP's is, opens in timm's or transformers' form."
        )
    if visual.attn_pool is not None:
        raise ValueError(
            f"The vision tower of {source!r} pools by attention, as CoCa does; only the class token is supported."
        )
    if visual.pool_type != "tok" or getattr(visual, "final_ln_after_pool", False):
        raise ValueError(
            f"The vision tower of {source!r} pools by {visual.pool_type!r}; only the class token is supported."
        )
    block = cast(Any, visual.transformer.resblocks[0])
    tensors = dict(visual.state_dict())
    canonical = rename(tensors, OPEN_CLIP, source)
    patch = cast(Any, visual.patch_size)[0]
    config = _teacher_config(
        image_size=cast(Any, visual.image_size)[0],
        patch=patch,
        width=visual.conv1.out_channels,
        depth=len(visual.transformer.resblocks),
        heads=block.attn.num_heads,
        mlp=block.mlp.c_fc.out_features,
        activation=_activation_name(block.mlp.gelu),
        eps=block.ln_1.eps,
        mean=getattr(visual, "image_mean", None) or CLIP_MEAN,
        std=getattr(visual, "image_std", None) or CLIP_STD,
        squash=(getattr(visual, "preprocess_cfg", None) or {}).get("resize_mode") == "squash",
        pooling="cls",
        tensors=canonical,
    )
    return config, canonical


def read_transformers(source: str, local_files_only: bool) -> tuple[SparseFormerConfig, dict[str, Tensor]]:
    """A folder or hub id of a CLIP or SigLIP model, of its vision tower alone, or of a LLaVA that holds one."""
    folder = _model_folder(source, local_files_only)
    described = read_json(folder / "config.json")
    vision = described.get("vision_config") or described
    model_type = vision.get("model_type", described.get("model_type"))
    if model_type not in ("clip_vision_model", "clip", "siglip_vision_model", "siglip"):
        raise ValueError(
            f"The vision model of {source!r} is of type {model_type!r}; teachers are CLIP or SigLIP, or a LLaVA that holds one."
        )
    defaults = _vision_defaults(model_type, vision, source)
    tensors = _vision_tensors(folder, source)
    canonical = rename(tensors, TRANSFORMERS, source)
    siglip = model_type.startswith("siglip")
    has_head = "head.attention_pool.query" in canonical  # LLaVA-OneVision keeps SigLIP's blocks alone
    preprocessor = _preprocessor(folder)
    size = preprocessor.get("size")
    config = _teacher_config(
        image_size=defaults["image_size"],
        patch=defaults["patch_size"],
        width=defaults["hidden_size"],
        depth=defaults["num_hidden_layers"],
        heads=defaults["num_attention_heads"],
        mlp=defaults["intermediate_size"],
        activation=defaults["hidden_act"],
        eps=defaults["layer_norm_eps"],
        mean=preprocessor.get("image_mean") or ((0.5,) * 3 if siglip else CLIP_MEAN),
        std=preprocessor.get("image_std") or ((0.5,) * 3 if siglip else CLIP_STD),
        squash=size.get("height") is not None if isinstance(size, dict) else siglip,
        pooling="cls" if not siglip else "attention" if has_head else "mean",
        tensors=canonical,
    )
    return config, canonical


def _vision_defaults(model_type: str, vision: dict[str, Any], source: str) -> dict[str, Any]:
    """The vision fields with transformers' defaults filled in: old configuration files hold only what differs."""
    from transformers import CLIPVisionConfig, SiglipVisionConfig

    kind = SiglipVisionConfig if model_type.startswith("siglip") else CLIPVisionConfig
    fields = {key: value for key, value in vision.items() if key not in ("model_type", "transformers_version")}
    try:
        defaults = kind(**fields).to_dict()
    except Exception as error:  # transformers checks each field in its own way
        raise ValueError(f"The vision configuration of {source!r} cannot be read: {reason(error)}") from error
    for name in ("image_size", "patch_size"):
        if type(defaults[name]) is not int or defaults[name] < 1:
            raise ValueError(f"{name} of {source!r} is {defaults[name]!r}; it is a whole number of pixels.")
    return defaults


def _model_folder(source: str, local_files_only: bool) -> Path:
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"The folder {source} holds no config.json, so it is no transformers model.")
        return folder
    if folder.exists():
        raise ValueError(
            f"{source} is a file; a bare weights file does not say what it is: write timm:NAME:{source} or open_clip:NAME:{source}."
        )
    return hub_folder(source, pickles=True, local_files_only=local_files_only)


def _preprocessor(folder: Path) -> dict[str, Any]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            content = read_json(folder / name)
            return content.get("image_processor", content)
    return {}


def _vision_tensors(folder: Path, source: str) -> dict[str, Tensor]:
    """The tower's tensors alone, without its prefix: 4.x and 5.x of transformers, and LLaVA, nest it differently."""
    anchor = "embeddings.patch_embedding.weight"
    weights = open_weights(folder, pickles=True)
    prefixes = [key.removesuffix(anchor) for key in weights.where if key.endswith(anchor)]
    if len(prefixes) != 1:
        raise ValueError(f"{source!r} holds {len(prefixes)} CLIP or SigLIP vision towers; exactly one is needed.")
    wanted = {key: key.removeprefix(prefixes[0]) for key in weights.where if key.startswith(prefixes[0])}
    if prefixes[0] and "visual_projection.weight" in weights.where:
        wanted["visual_projection.weight"] = "visual_projection.weight"
    return {wanted[key]: tensor for key, tensor in read_tensors(weights, wanted)}


def _library(name: str, source: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"Teacher {source!r} needs the package {name}: pip install 'sfvlm[train]'.") from error


def _teacher_config(
    *,
    image_size: int,
    patch: int,
    width: int,
    depth: int,
    heads: int,
    mlp: int,
    activation: str,
    eps: float,
    mean: Any,
    std: Any,
    squash: bool,
    pooling: str,
    tensors: dict[str, Tensor],
) -> SparseFormerConfig:
    """The configuration of a dense teacher: every patch a token. `tensors`, in canonical names, say which parts it has."""
    projection = tensors.get("head.projection.weight")
    classifier = tensors.get("head.classifier.weight")
    return SparseFormerConfig(
        image_size=image_size,
        image_mean=tuple(float(value) for value in mean),
        image_std=tuple(float(value) for value in std),
        squash=squash,
        num_tokens=(image_size // patch) ** 2,
        glimpse_size=patch,
        teacher_patch_size=patch,
        teacher_grid=image_size // patch,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=mlp,
        hidden_act=activation,
        layer_norm_eps=eps,
        pre_norm="pre_norm.weight" in tensors,
        pooling=pooling,
        projection_dim=0 if projection is None else len(projection),
        projection_bias="head.projection.bias" in tensors,
        num_classes=0 if classifier is None else len(classifier),
    )


def _activation_name(module: nn.Module) -> str:
    """transformers' name of an activation module, found by what it computes: class names differ between libraries."""
    from transformers.activations import ACT2FN

    probe = torch.linspace(-4, 4, 33)
    for name in ("gelu", "quick_gelu", "gelu_pytorch_tanh", "relu"):
        if torch.allclose(module(probe.clone()), ACT2FN[name](probe.clone()), atol=1e-6):
            return name
    raise ValueError(f"The activation {type(module).__name__} is none of gelu, quick_gelu, gelu_pytorch_tanh, relu.")
