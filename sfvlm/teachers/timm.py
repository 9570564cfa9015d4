"""Reads a teacher of timm: a plain vision transformer by name, with weights from a file or the hub.

The name says what is built; how many classes the head has and how large the photos are, the tensors say.
"""

import math
import warnings
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from ..encoder.configuration import SparseFormerConfig
from ..util.errors import reason
from ..util.files import check_content, read_json
from .facts import activation_name, check_no_adapter, library, only_epsilon, teacher_config, tell_assumed
from .preprocessors import of_timm
from .tables import TIMM, check_values, rename

_ANCHOR = "patch_embed.proj.weight"
# Of the file that timm saves beside weights for the hub; the tensors say how many classes there are.
_DESCRIBED = ("architecture", "model_args", "pretrained_cfg", "global_pool")
_DESCRIBED_HARMLESS = ("num_classes", "num_features", "label_names", "label_descriptions")


def read_timm(source: str) -> tuple[SparseFormerConfig, dict[str, Tensor]]:
    """`timm:NAME:FILE`, or `timm:NAME` from the hub; a plain vision transformer with its classifier, where it has one.

    Raises:
        ValueError: timm does not know or cannot build it, it is no plain vision transformer, or the weights do not fit.
    """
    timm = library("timm", source)
    _, name, *file = source.split(":", 2)
    if not timm.is_model(name):
        raise ValueError(f"timm knows no model named {name!r}; see timm.list_models('vit_*').")
    path = Path(file[0]) if file else None
    if path is not None and not path.is_file():
        raise ValueError(f"The weights file {path} of teacher {source!r} does not exist.")
    if path is not None:
        check_no_adapter(path.parent)
        check_content(path)
    described = _described_beside(path, name)
    if path is not None and not described and "." not in name:
        tags = [tagged for tagged in timm.list_pretrained(f"{name}.*") if tagged.split(".")[0] == name]
        shown = {tagged: timm.get_pretrained_cfg(tagged).to_dict() for tagged in tags}
        fields = ("mean", "std", "crop_pct", "interpolation", "crop_mode")
        tell_assumed(source, fields, shown, f"a tag (timm:{name}.TAG:FILE), or keep timm's config.json beside the file")
    model = _built(timm, name, described)
    try:
        if path is None:
            model = timm.create_model(name, pretrained=True)
        elif path.suffix.lower() in (".npz", ".npy"):
            timm.models.load_checkpoint(model, str(path))
        else:
            state = _unwrapped(timm.models.load_state_dict(str(path)))
            check_values(state, source)
            model = _built(timm, name, described | _shown_by_tensors(model, state, source))
            model.load_state_dict(state)
    except ValueError:
        raise
    except Exception as error:  # hub, pickle, safetensors and key errors are of many unrelated types
        raise ValueError(
            f"The weights of {source!r} cannot be read ({type(error).__name__}: {reason(error)}); "
            f"give a file of that model: timm:{name}:/path.safetensors."
        ) from error
    return _described_by(model, name, source)


def _described_by(model: Any, name: str, source: str) -> tuple[SparseFormerConfig, dict[str, Tensor]]:
    """Configuration and canonical tensors of timm's own vision transformer."""
    block = cast(Any, model.blocks[0])
    pooling = {"token": "cls", "avg": "mean", "map": "attention"}.get(model.global_pool)
    patch, grid = model.patch_embed.patch_size, model.patch_embed.grid_size
    image_size = cast(Any, model.patch_embed.img_size)[0]
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
    config = teacher_config(
        image_size=image_size,
        patch=patch[0],
        width=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        mlp=block.mlp.fc1.out_features,
        activation=activation_name(block.mlp.act),
        eps=only_epsilon(model, source),
        photo=of_timm(cast(Any, model.pretrained_cfg), image_size, source),
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


def _described_beside(path: Path | None, name: str) -> dict[str, Any]:
    """What a `config.json` of timm beside the weights says of the model and its photos, as `create_model` takes it.

    Raises:
        ValueError: It is of another model, or says what is not honoured.
    """
    beside = path and path.parent / "config.json"
    described = read_json(beside) if beside and beside.is_file() else {}
    if beside is None or not described.keys() & {"architecture", "pretrained_cfg"}:
        return {}
    if unknown := sorted(described.keys() - {*_DESCRIBED, *_DESCRIBED_HARMLESS}):
        raise ValueError(
            f"{beside} has {unknown[0]} {described[unknown[0]]!r}, which is not honoured: remove the field."
        )
    architecture = described.get("architecture") or name
    if str(architecture).split(".")[0] != name.split(".")[0]:
        raise ValueError(
            f"{beside} describes a {architecture}, and the teacher is named {name}: give one name for both."
        )
    for field in ("model_args", "pretrained_cfg"):
        if not isinstance(described.get(field) or {}, dict):
            raise ValueError(f"{beside} has {field} {described[field]!r}; it is a JSON object.")
    found = dict(described.get("model_args") or {})
    if described.get("global_pool") is not None:
        found["global_pool"] = described["global_pool"]
    return found | {"pretrained_cfg_overlay": described.get("pretrained_cfg") or None}


def _built(timm: Any, name: str, options: dict[str, Any]) -> Any:
    """The model with random weights.

    Raises:
        ValueError: timm cannot build it, or it is no plain vision transformer.
    """
    from timm.models.vision_transformer import Block, VisionTransformer

    try:
        model = timm.create_model(name, pretrained=False, **options)
    except Exception as error:  # of a tag, what stands behind the dot; of options, anything
        raise ValueError(f"timm cannot build {name!r}: {reason(error)}") from error
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"timm's {name!r} is a {type(model).__name__}, not a plain VisionTransformer.")
    for block in model.blocks:
        if type(block) is not Block:  # others have the same names of tensors
            raise ValueError(
                f"timm's {name!r} has blocks of the kind {type(block).__name__}, and supported is Block alone."
            )
    return model


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without what a wrapper of the model put before every name."""
    prefixes = [key.removesuffix(_ANCHOR) for key in state if key.endswith(_ANCHOR)]
    if len(prefixes) != 1 or not all(key.startswith(prefixes[0]) for key in state):
        return state  # and whatever is unknown is named on loading
    return {key.removeprefix(prefixes[0]): tensor for key, tensor in state.items()}


def _shown_by_tensors(model: Any, state: dict[str, Tensor], source: str) -> dict[str, Any]:
    """What fine-tuning changes of a model that keeps its name: classes, none with a saved head, and the size of its photos."""
    head, positions = state.get("head.weight"), state.get("pos_embed")
    found: dict[str, Any] = {"num_classes": 0 if head is None else len(head)}
    if positions is None or positions.ndim != 3:
        return found
    patch, count = model.patch_embed.patch_size[0], positions.shape[1] - model.num_prefix_tokens
    side = math.isqrt(max(count, 0))
    if count != model.patch_embed.num_patches and side and side * side == count:
        found["img_size"] = side * patch
        warnings.warn(
            f"The positions of {source!r} are of {side * patch} pixels a side, and the named model's photos of "
            f"{model.patch_embed.img_size[0]}: it is opened for {side * patch}.",
            stacklevel=2,
        )
    return found
