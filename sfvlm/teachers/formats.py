"""Reads a teacher of any form to a configuration and tensors in canonical names: transformers, open_clip, timm.

Activation, norm epsilon, normalisation, image size and depth are read from the teacher's own configuration, never guessed
from a name.
"""

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..encoder.configuration import SparseFormerConfig
from ..util.errors import reason
from ..util.files import check_content, read_json
from ..zoo.downloads import hub_folder
from ..zoo.weight_files import WeightFiles, open_weights, read_tensors
from .facts import activation_name, check_no_adapter, library, only_epsilon, teacher_config, tell_assumed
from .preprocessors import of_open_clip, of_transformers
from .tables import OPEN_CLIP, TRANSFORMERS, check_values, rename
from .timm import read_timm

# Parts of a whole CLIP that are no tower's, and of a tower that lost its place, which are missed by name later.
BESIDE = ("text_model.", "text_projection.", "logit_scale", "logit_bias", "vision_model.", ".layers.")
VISION_TYPES = ("clip", "clip_vision_model", "siglip", "siglip_vision_model")


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


def read_open_clip(source: str) -> tuple[SparseFormerConfig, dict[str, Tensor]]:
    """`open_clip:NAME:FILE`, `open_clip:NAME:TAG`, or `local-dir:FOLDER`."""
    return open_clip_vision(open_clip_model(source).visual, source)


def open_clip_model(source: str) -> Any:
    """The whole CLIP of such a source, in open_clip's own form.

    Raises:
        ValueError: open_clip does not know it, or there are no weights, or not all of them are whole.
    """
    open_clip = library("open_clip", source)
    name, pretrained, file = _open_clip_named(open_clip, source)
    if file is not None:
        check_no_adapter(file.parent)
        check_content(file)
    try:
        clip = open_clip.create_model(name, pretrained=pretrained)
        state = {} if file is None else open_clip.factory.load_state_dict(str(file))
    except Exception as error:  # a damaged file, a foreign one and no network are of many unrelated types
        raise ValueError(f"open_clip cannot open {source!r}: {reason(error)}") from error
    # As stored: open_clip takes numbers of any kind for weights.
    check_values({key: tensor for key, tensor in state.items() if tensor.dtype != torch.int64}, source)  # which count
    _tell_resized(state.get("visual.positional_embedding"), clip.visual, source)
    if source.startswith("open_clip:") and file is not None:
        shown = {tag: open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)}
        fields = ("mean", "std", "interpolation", "resize_mode", "quick_gelu")
        tell_assumed(source, fields, shown, f"open_clip:{name}:TAG, or local-dir: with an open_clip_config.json")
    return clip


def _open_clip_named(open_clip: Any, source: str) -> tuple[str, str | None, Path | None]:
    """open_clip's own two names of a source, and the file that weights come from, if it is one of tensors by name."""
    if source.startswith("open_clip:"):
        _, name, *given = source.split(":", 2)
        if not given:
            raise ValueError(
                f"Teacher {source!r} names no weights: give a file or a tag, open_clip:{name}:/path/or/tag."
            )
        if name not in open_clip.list_models():
            raise ValueError(f"open_clip knows no model named {name!r}; see open_clip.list_models().")
        file = Path(given[0])
        return name, given[0], file if file.is_file() and file.suffix not in (".npz", ".npy") else None
    folder = Path(source.removeprefix("local-dir:"))
    check_no_adapter(folder)
    found = open_clip.factory._find_checkpoint_in_dir(folder)
    if found is None:  # open_clip would go on with random numbers
        raise ValueError(f"The folder {folder} holds no weights that open_clip reads (.safetensors, .bin or .pth).")
    return source, None, Path(found)


def _tell_resized(positions: Tensor | None, visual: Any, source: str) -> None:
    """Warns if positions are of another number of patches than the model has, which open_clip resizes."""
    ours = getattr(visual, "positional_embedding", None)
    if positions is not None and ours is not None and len(positions) != len(ours):
        warnings.warn(
            f"The positions of {source!r} are of {len(positions)} tokens, and the named model has {len(ours)}: open_clip resizes them.",
            stacklevel=2,
        )


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
    if visual.pool_type != "tok":
        raise ValueError(
            f"The vision tower of {source!r} pools by {visual.pool_type!r}; only the class token is supported."
        )
    if len({*visual.image_size}) != 1 or len({*visual.patch_size}) != 1:
        raise ValueError(
            f"The vision tower of {source!r} has photos of {tuple(visual.image_size)} in patches of {tuple(visual.patch_size)} pixels; "
            "only squares are supported."
        )
    block = cast(Any, visual.transformer.resblocks[0])
    tensors = dict(visual.state_dict())
    canonical = rename(tensors, OPEN_CLIP, source)
    patch = cast(Any, visual.patch_size)[0]
    config = teacher_config(
        image_size=cast(Any, visual.image_size)[0],
        patch=patch,
        width=visual.conv1.out_channels,
        depth=len(visual.transformer.resblocks),
        heads=block.attn.num_heads,
        mlp=block.mlp.c_fc.out_features,
        activation=activation_name(block.mlp.gelu),
        eps=only_epsilon(visual, source),
        photo=of_open_clip(visual, source),
        pooling="cls",
        tensors=canonical,
    )
    return config, canonical


def read_transformers(source: str, local_files_only: bool) -> tuple[SparseFormerConfig, dict[str, Tensor]]:
    """A folder or hub id of a CLIP or SigLIP model, of its vision tower alone, or of a LLaVA that holds one."""
    folder = _model_folder(source, local_files_only)
    check_no_adapter(folder)
    described = read_json(folder / "config.json")
    if described.get("auto_map"):
        raise ValueError(
            f"{source!r} is a model of code of its own (auto_map in config.json), which is not run: remove the field if "
            "transformers' own classes give its vectors."
        )
    model_type, vision = _vision_config(described, source)
    siglip = model_type.startswith("siglip")
    hosted = described.get("model_type") not in VISION_TYPES
    tensors = _vision_tensors(folder, source, None if siglip else _projection_dim(described, vision), hosted=hosted)
    has_head = any(key.startswith("head.") for key in tensors)
    if siglip and not hosted:  # LLaVA-OneVision keeps the blocks alone
        _check_pooling(vision, has_head, source)
    needed = "embeddings.patch_embedding.bias" if siglip else "pre_layrnorm.weight"
    if needed not in tensors:
        raise ValueError(f"{source!r} lacks the tensor {needed} of its vision tower, which every {model_type} has.")
    canonical = rename(tensors, TRANSFORMERS, source)
    config = teacher_config(
        image_size=vision["image_size"],
        patch=vision["patch_size"],
        width=vision["hidden_size"],
        depth=vision["num_hidden_layers"],
        heads=vision["num_attention_heads"],
        mlp=vision["intermediate_size"],
        activation=vision["hidden_act"],
        eps=vision["layer_norm_eps"],
        photo=of_transformers(folder, vision["image_size"], siglip=siglip, hosted=hosted),
        pooling="cls" if not siglip else "attention" if has_head else "mean",
        tensors=canonical,
    )
    return config, canonical


def _vision_config(described: dict[str, Any], source: str) -> tuple[str, dict[str, Any]]:
    """The type of the vision model, and its fields with transformers' defaults filled in: files hold only what differs.

    Raises:
        ValueError: It is neither CLIP nor SigLIP, is quantised, or is described otherwise than transformers can read.
    """
    from transformers import CLIPConfig, CLIPVisionConfig, SiglipConfig, SiglipVisionConfig

    whole = {"clip": CLIPConfig, "siglip": SiglipConfig}.get(str(described.get("model_type")))
    given = described if whole else described.get("vision_config") or described
    if not isinstance(given, dict):
        raise ValueError(f"vision_config of {source!r} is {given!r}; it is a JSON object.")
    model_type = given.get("model_type", described.get("model_type"))
    if model_type not in VISION_TYPES:
        raise ValueError(
            f"The vision model of {source!r} is of type {model_type!r}; teachers are CLIP or SigLIP, or a LLaVA that holds one."
        )
    if given.get("quantization_config"):
        raise ValueError(f"{source!r} is quantised (quantization_config): open the model it was made from.")
    kind = SiglipVisionConfig if model_type.startswith("siglip") else CLIPVisionConfig
    fields = {key: value for key, value in given.items() if key not in ("model_type", "transformers_version")}
    try:
        # Of a whole CLIP transformers decides which of two descriptions is the tower's (vision_config_dict).
        vision = (whole(**fields).vision_config if whole else kind(**fields)).to_dict()
    except Exception as error:  # transformers checks each field in its own way
        raise ValueError(f"The vision configuration of {source!r} cannot be read: {reason(error)}") from error
    for name in ("image_size", "patch_size"):
        if type(vision[name]) is not int or vision[name] < 1:
            raise ValueError(f"{name} of {source!r} is {vision[name]!r}; it is a whole number of pixels.")
    if vision["num_channels"] != 3:
        raise ValueError(f"num_channels of {source!r} is {vision['num_channels']}, and photos have 3.")
    return model_type, vision


def _projection_dim(described: dict[str, Any], vision: dict[str, Any]) -> int:
    """Width of the projection that a CLIP's configuration describes, 0 where it describes none."""
    classes = described.get("architectures") or []
    if described.get("model_type") == "clip" and (not classes or "CLIPModel" in classes):
        return described.get("projection_dim") or 512
    return vision["projection_dim"] if "CLIPVisionModelWithProjection" in classes else 0


def _check_pooling(vision: dict[str, Any], has_head: bool, source: str) -> None:
    """Raises ValueError if a SigLIP's tensors pool by attention and its configuration says otherwise, or the other way round."""
    says = vision.get("vision_use_head", True)  # older transformers write it down only where it is given
    if has_head != bool(says):
        raise ValueError(
            f"{source!r} {'holds' if has_head else 'lacks'} the tensors of a pooling head (head.*), and its configuration has "
            f"vision_use_head {says}: make one of the two right."
        )


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


def _vision_tensors(folder: Path, source: str, projection_dim: int | None, *, hosted: bool) -> dict[str, Tensor]:
    """The tower's tensors alone, without its prefix: 4.x and 5.x of transformers, LLaVA, and wrappers nest it differently.

    Args:
        folder: Of the model.
        source: What it is called in errors.
        projection_dim: Width of the projection behind a CLIP's tower, 0 where none is described; None for a SigLIP.
        hosted: Whether it is the tower of a larger model, of which the rest is left out.

    Raises:
        ValueError: There is not exactly one tower, or no such projection beside it, or something else of a classifier's.
    """
    anchor, projection = "embeddings.patch_embedding.weight", "visual_projection.weight"
    weights = open_weights(folder, pickles=True)
    prefixes = [key.removesuffix(anchor) for key in weights.where if key.endswith(anchor)]
    if len(prefixes) != 1:
        raise ValueError(f"{source!r} holds {len(prefixes)} CLIP or SigLIP vision towers; exactly one is needed.")
    wanted = {key: key.removeprefix(prefixes[0]) for key in weights.where if key.startswith(prefixes[0])}
    key = f"{prefixes[0].removesuffix('vision_model.')}{projection}"  # wrappers put their names before both
    if key in weights.where:
        wanted[key] = projection
    elif projection_dim is not None:
        _check_no_projection(weights, key, projection_dim, source)
    beside = [name for name in weights.where if name not in wanted and not any(part in name for part in BESIDE)]
    if beside and not hosted:
        raise ValueError(
            f"{source!r} holds {beside[0]} beside its tower, which would be left out, as a classifier is: open the CLIP or SigLIP that "
            "it was made from, or save the tower alone."
        )
    tensors = {wanted[key]: tensor for key, tensor in read_tensors(weights, wanted)}
    if projection in tensors and projection_dim and len(tensors[projection]) != projection_dim:
        raise ValueError(
            f"The projection {key} of {source!r} is {len(tensors[projection])} wide, and its configuration has projection_dim "
            f"{projection_dim}: make one of the two right."
        )
    return tensors


def _check_no_projection(weights: WeightFiles, key: str, projection_dim: int, source: str) -> None:
    """Raises ValueError if a CLIP without that projection should have one: its configuration, or what lies beside, says so."""
    signs = ("visual_projection", "text_projection.weight", "logit_scale")
    found = [name for sign in signs for name in weights.where if sign in name]
    if projection_dim or found:
        held = f", and holds {found[0]}" if found else ""
        raise ValueError(f"{source!r} lacks its projection {key}{held}: without it, its vectors are of another space.")
