"""Opens a teacher: the dense vision transformer a SparseFormer is bootstrapped from.

    transformers  a folder or hub id of a CLIP or SigLIP model, or of a LLaVA that holds one
    open_clip     `open_clip:ViT-B-16-quickgelu:/path/weights.safetensors`, or `local-dir:/path`
    timm          `timm:vit_base_patch16_224:/path/weights.safetensors`; without a file, from the hub

Whatever the format, the result is one plain vision transformer with one set of tensor names (the literal tables below), so
that the three formats of one model give one student. Activation, norm epsilon, normalisation, image size and depth
are read from the teacher's own configuration, never guessed from a name.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from .blocks import Block, Head, block_sizes
from .configuration import CLIP_MEAN, CLIP_STD, SparseFormerConfig

# A layer's number stands where `{}` is. `None`: dropped on purpose. Three names in a list: rows of one fused tensor.
Table = dict[str, str | None]

BLOCK_TENSORS = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")

TIMM: Table = {
    "cls_token": "cls_token",
    "pos_embed": "positions",
    "patch_embed.proj.weight": "patch.weight",
    "patch_embed.proj.bias": "patch.bias",
    "norm_pre.weight": "pre_norm.weight",
    "norm_pre.bias": "pre_norm.bias",
    **{
        f"blocks.{{}}.{name}.{kind}": f"blocks.{{}}.{name}.{kind}"
        for name in BLOCK_TENSORS
        for kind in ("weight", "bias")
    },
    "norm.weight": "head.norm.weight",
    "norm.bias": "head.norm.bias",
    "fc_norm.weight": "head.norm.weight",
    "fc_norm.bias": "head.norm.bias",
    "attn_pool.latent": "head.attention_pool.query",
    **{
        f"attn_pool.{name}.{kind}": f"head.attention_pool.{name}.{kind}"
        for name in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    },
    "head.weight": "head.classifier.weight",
    "head.bias": "head.classifier.bias",
}

TRANSFORMERS: Table = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.patch_embedding.weight": "patch.weight",
    "embeddings.patch_embedding.bias": "patch.bias",
    "embeddings.position_embedding.weight": "positions",
    "embeddings.position_ids": None,  # a counter that transformers 4.30 and older saved
    "pre_layrnorm.weight": "pre_norm.weight",
    "pre_layrnorm.bias": "pre_norm.bias",
    **{
        f"encoder.layers.{{}}.{theirs}.{kind}": f"blocks.{{}}.{ours}.{kind}"
        for theirs, ours in {
            "layer_norm1": "norm1",
            "self_attn.q_proj": "attn.q",
            "self_attn.k_proj": "attn.k",
            "self_attn.v_proj": "attn.v",
            "self_attn.out_proj": "attn.proj",
            "layer_norm2": "norm2",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        }.items()
        for kind in ("weight", "bias")
    },
    "post_layernorm.weight": "head.norm.weight",
    "post_layernorm.bias": "head.norm.bias",
    "head.probe": "head.attention_pool.query",
    "head.attention.in_proj_weight": "head.attention_pool.qkv.weight",
    "head.attention.in_proj_bias": "head.attention_pool.qkv.bias",
    "head.attention.out_proj.weight": "head.attention_pool.proj.weight",
    "head.attention.out_proj.bias": "head.attention_pool.proj.bias",
    "head.layernorm.weight": "head.attention_pool.norm.weight",
    "head.layernorm.bias": "head.attention_pool.norm.bias",
    **{
        f"head.mlp.{name}.{kind}": f"head.attention_pool.mlp.{name}.{kind}"
        for name in ("fc1", "fc2")
        for kind in ("weight", "bias")
    },
    "visual_projection.weight": "head.projection.weight",
}

OPEN_CLIP: Table = {
    "class_embedding": "cls_token",
    "positional_embedding": "positions",
    "conv1.weight": "patch.weight",
    "ln_pre.weight": "pre_norm.weight",
    "ln_pre.bias": "pre_norm.bias",
    **{
        f"transformer.resblocks.{{}}.{theirs}": f"blocks.{{}}.{ours}"
        for theirs, ours in {
            "ln_1.weight": "norm1.weight",
            "ln_1.bias": "norm1.bias",
            "attn.in_proj_weight": "attn.qkv.weight",
            "attn.in_proj_bias": "attn.qkv.bias",
            "attn.out_proj.weight": "attn.proj.weight",
            "attn.out_proj.bias": "attn.proj.bias",
            "ln_2.weight": "norm2.weight",
            "ln_2.bias": "norm2.bias",
            "mlp.c_fc.weight": "mlp.fc1.weight",
            "mlp.c_fc.bias": "mlp.fc1.bias",
            "mlp.c_proj.weight": "mlp.fc2.weight",
            "mlp.c_proj.bias": "mlp.fc2.bias",
        }.items()
    },
    "ln_post.weight": "head.norm.weight",
    "ln_post.bias": "head.norm.bias",
    "proj": "head.projection.transposed",
}


@dataclass(frozen=True)
class TeacherOutput:
    """What a student may be asked to match."""

    pooled: Tensor  # (B, E) after the projection, where there is one
    logits: Tensor | None  # (B, classes), for a teacher with a classifier
    hidden_states: tuple[Tensor, ...]  # L + 1 of (B, 1 + patches, D): the blocks' input, then each block's output


class DenseTransformer(nn.Module):
    """A plain vision transformer: every patch a token. (B, 3, H, W) -> TeacherOutput.

    Args:
        config: The cortex fields describe the blocks and the head; `teacher_patch_size` and `teacher_grid` the patches.
    """

    def __init__(self, config: SparseFormerConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.teacher_patch_size
        self.patch = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(width)) if config.has_cls_token else None
        count = config.teacher_grid**2 + config.has_cls_token
        self.positions = nn.Parameter(torch.zeros(count, width))
        self.pre_norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(*block_sizes(config)) for _ in range(config.num_hidden_layers))
        self.head = Head(config)

    def embed(self, pixels: Tensor) -> Tensor:
        """The first block's input: (B, 3, H, W) -> (B, [1 +] patches, D); positions are interpolated to other sizes."""
        tokens = self.patch(pixels)  # (B, D, h, w)
        side, extra = self.config.teacher_grid, int(self.config.has_cls_token)
        table = self.positions[extra:].T.reshape(1, -1, side, side)
        if tokens.shape[-2:] != (side, side):
            table = F.interpolate(table, size=tokens.shape[-2:], mode="bilinear", align_corners=False, antialias=False)
        tokens = (tokens + table).flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            cls = (self.cls_token + self.positions[0]).expand(len(pixels), 1, -1)
            tokens = torch.cat([cls, tokens], dim=1)
        return self.pre_norm(tokens)

    def forward(self, pixels: Tensor) -> TeacherOutput:
        hidden = [self.embed(pixels)]
        for block in self.blocks:
            hidden.append(block(hidden[-1]))
        pooled, logits = self.head(hidden[-1])
        return TeacherOutput(pooled, logits, tuple(hidden))


@dataclass(frozen=True)
class Teacher:
    """A frozen teacher, with what is needed to say where it came from."""

    model: DenseTransformer
    source: str
    sha256: str  # of its tensors, in canonical names: the same model in another format has the same one
    resize_mode: str = "shortest"

    @property
    def config(self) -> SparseFormerConfig:
        return self.model.config


def open_teacher(source: str | Path, *, local_files_only: bool = False) -> Teacher:
    """Opens a teacher from a path or hub id; the forms are listed at the head of this module.

    Raises:
        ValueError: The source is of no known form, has unknown tensors, lacks some, or cannot be reached.
    """
    name = str(source)
    if name.startswith("timm:"):
        config, tensors = _open_timm(name)
    elif name.startswith(("open_clip:", "local-dir:")):
        config, tensors = _open_open_clip(name)
    else:
        config, tensors = _open_transformers(name, local_files_only)
    model = DenseTransformer(config)
    check_keys(tensors, model.state_dict(), f"teacher {name}")
    model.load_state_dict(tensors)
    return Teacher(model.eval().requires_grad_(False), name, tensor_hash(model.state_dict()))


def check_keys(given: dict[str, Tensor], wanted: dict[str, Tensor], what: str) -> None:
    """Raises one ValueError that lists missing, unknown and wrongly shaped tensors, if there are any."""
    missing = sorted(wanted.keys() - given.keys())
    unknown = sorted(given.keys() - wanted.keys())
    shapes = [
        f"{key} is {tuple(given[key].shape)}, not {tuple(wanted[key].shape)}"
        for key in sorted(given.keys() & wanted.keys())
        if given[key].shape != wanted[key].shape
    ]
    problems = [
        f"{title}: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
        for title, names in (("missing", missing), ("unknown", unknown), ("shape", shapes))
        if names
    ]
    if problems:
        raise ValueError(f"The tensors of {what} do not fit: {'; '.join(problems)}.")


def tensor_hash(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, shapes and float32 values, in sorted order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().float().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def rename(tensors: dict[str, Tensor], table: Table, what: str) -> dict[str, Tensor]:
    """Renames by a literal table, strictly.

    Raises:
        ValueError: A tensor is not in the table.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        number = next((part for part in key.split(".") if part.isdigit() and f".{part}." in key), None)
        template = key if key in table else key.replace(f".{number}.", ".{}.", 1)
        if template not in table:
            raise ValueError(f"The tensor {key!r} of {what} is not in the table of that format.")
        ours = table[template]
        if ours is not None:
            renamed[ours.format(number)] = tensor
    return _fuse(renamed)


def _fuse(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Brings renamed tensors to canonical shapes: fused `qkv`, split pooling query, 1-D class token, 2-D positions."""
    out: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if ".attn.q." in key:
            parts = [tensors[key.replace(".attn.q.", f".attn.{part}.")] for part in "qkv"]
            out[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
        elif ".attn.k." in key or ".attn.v." in key:
            continue
        elif ".attention_pool.qkv." in key:
            width = len(tensor) // 3
            out[key.replace(".qkv.", ".q.")] = tensor[:width]
            out[key.replace(".qkv.", ".kv.")] = tensor[width:]
        elif key == "head.projection.transposed":
            out["head.projection.weight"] = tensor.T.contiguous()
        elif key == "cls_token":
            out[key] = tensor.reshape(-1)
        elif key == "positions":
            out[key] = tensor.reshape(-1, tensor.shape[-1])
        elif key == "head.attention_pool.query":
            out[key] = tensor.reshape(1, 1, -1)
        else:
            out[key] = tensor
    if "patch.bias" not in out and "patch.weight" in out:
        out["patch.bias"] = torch.zeros(len(out["patch.weight"]))
    return {key: tensor.detach().float().clone() for key, tensor in out.items()}


def _open_timm(source: str) -> tuple[SparseFormerConfig, dict[str, Tensor]]:
    import timm
    from timm.models.vision_transformer import VisionTransformer

    _, name, *file = source.split(":", 2)
    if name not in timm.list_models():
        raise ValueError(f"timm knows no model named {name!r}; see timm.list_models('vit_*').")
    path = file[0] if file else None
    if path is not None and not Path(path).is_file():
        raise ValueError(f"The weights file {path} of teacher {source!r} does not exist.")
    model = timm.create_model(name, pretrained=False)
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"timm's {name!r} is a {type(model).__name__}, not a plain VisionTransformer.")
    try:
        if path is None:
            model = timm.create_model(name, pretrained=True)
        else:
            timm.models.load_checkpoint(model, path)
    except Exception as error:  # hub, pickle, safetensors and key errors are of many unrelated types
        raise ValueError(
            f"The weights of {source!r} cannot be read ({type(error).__name__}: {str(error).splitlines()[0]}); "
            f"give a file of that model: timm:{name}:/path.safetensors."
        ) from error
    assert isinstance(model, VisionTransformer)
    block = cast(Any, model.blocks[0])
    pooling = {"token": "cls", "avg": "mean", "map": "attention"}.get(model.global_pool)
    patch, grid = model.patch_embed.patch_size, model.patch_embed.grid_size
    canonical = rename(model.state_dict(), TIMM, source)
    if pooling is None or patch[0] != patch[1] or grid[0] != grid[1] or model.num_prefix_tokens != (pooling == "cls"):
        raise ValueError(
            f"timm's {name!r} pools by {model.global_pool!r} with {model.num_prefix_tokens} prefix tokens on a grid of {grid}; "
            "supported are 'token' with one, or 'avg' and 'map' without any, on a square grid."
        )
    config = _teacher_config(
        image_size=patch[0] * grid[0],
        patch=patch[0],
        width=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        mlp=block.mlp.fc1.out_features,
        activation=_activation_name(block.mlp.act),
        eps=block.norm1.eps,
        mean=cast(Any, model.pretrained_cfg)["mean"],
        std=cast(Any, model.pretrained_cfg)["std"],
        pooling=pooling,
        tensors=canonical,
    )
    return config, canonical


def _open_open_clip(source: str) -> tuple[SparseFormerConfig, dict[str, Tensor]]:
    import open_clip

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
    except (OSError, RuntimeError) as error:
        raise ValueError(f"open_clip cannot open {source!r}: {str(error).splitlines()[0]}") from error
    return open_clip_vision(clip.visual, source)


def open_clip_vision(visual: Any, source: str) -> tuple[SparseFormerConfig, dict[str, Tensor]]:
    """Configuration and canonical tensors of open_clip's own vision transformer."""
    from open_clip.transformer import VisionTransformer

    if not isinstance(visual, VisionTransformer):
        raise ValueError(
            f"The vision tower of {source!r} is a {type(visual).__name__}; only open_clip's own ViT is supported."
        )
    if visual.attn_pool is not None or visual.pool_type != "tok" or getattr(visual, "final_ln_after_pool", False):
        raise ValueError(
            f"The vision tower of {source!r} pools by {visual.pool_type!r}; only the class token is supported."
        )
    block = cast(Any, visual.transformer.resblocks[0])
    tensors = dict(visual.state_dict())
    canonical = rename(tensors, OPEN_CLIP, source)
    patch = cast(Any, visual.patch_size)[0]
    config = _teacher_config(
        image_size=patch * visual.grid_size[0],
        patch=patch,
        width=visual.conv1.out_channels,
        depth=len(visual.transformer.resblocks),
        heads=block.attn.num_heads,
        mlp=block.mlp.c_fc.out_features,
        activation=_activation_name(block.mlp.gelu),
        eps=block.ln_1.eps,
        mean=getattr(visual, "image_mean", None) or CLIP_MEAN,
        std=getattr(visual, "image_std", None) or CLIP_STD,
        pooling="cls",
        tensors=canonical,
    )
    return config, canonical


def _open_transformers(source: str, local_files_only: bool) -> tuple[SparseFormerConfig, dict[str, Tensor]]:
    folder = _model_folder(source, local_files_only)
    described = json.loads((folder / "config.json").read_text())
    vision = described.get("vision_config", described)
    model_type = vision.get("model_type", described.get("model_type"))
    if model_type not in ("clip_vision_model", "clip", "siglip_vision_model", "siglip"):
        raise ValueError(
            f"The vision model of {source!r} is of type {model_type!r}; teachers are CLIP or SigLIP, or a LLaVA that holds one."
        )
    defaults = _vision_defaults(model_type, vision)
    tensors = _vision_tensors(folder, source)
    canonical = rename(tensors, TRANSFORMERS, source)
    siglip = model_type.startswith("siglip")
    preprocessor = _preprocessor(folder)
    config = _teacher_config(
        image_size=defaults["image_size"],
        patch=defaults["patch_size"],
        width=defaults["hidden_size"],
        depth=defaults["num_hidden_layers"],
        heads=defaults["num_attention_heads"],
        mlp=defaults["intermediate_size"],
        activation=defaults["hidden_act"],
        eps=defaults["layer_norm_eps"],
        mean=preprocessor.get("image_mean", (0.5,) * 3 if siglip else CLIP_MEAN),
        std=preprocessor.get("image_std", (0.5,) * 3 if siglip else CLIP_STD),
        pooling="attention" if siglip else "cls",
        tensors=canonical,
    )
    return config, canonical


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
    pooling: str,
    tensors: dict[str, Tensor],
) -> SparseFormerConfig:
    projection = tensors.get("head.projection.weight")
    classifier = tensors.get("head.classifier.weight")
    return SparseFormerConfig(
        image_size=image_size,
        image_mean=tuple(float(value) for value in mean),
        image_std=tuple(float(value) for value in std),
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


def _vision_defaults(model_type: str, vision: dict[str, Any]) -> dict[str, Any]:
    """The vision fields with transformers' defaults filled in: old configuration files hold only what differs."""
    from transformers import CLIPVisionConfig, SiglipVisionConfig

    kind = SiglipVisionConfig if model_type.startswith("siglip") else CLIPVisionConfig
    fields = {key: value for key, value in vision.items() if key not in ("model_type", "transformers_version")}
    return kind(**fields).to_dict()


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
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(
            snapshot_download(source, allow_patterns=["*.json", "*.safetensors"], local_files_only=local_files_only)
        )
    except (HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError, OSError) as error:
        raise ValueError(
            f"{source!r} is neither a folder nor a model that can be downloaded or found in the cache "
            f"({type(error).__name__}); offline, give the path of a local folder."
        ) from error


def _preprocessor(folder: Path) -> dict[str, Any]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text())
            return content.get("image_processor", content)
    return {}


def _vision_tensors(folder: Path, source: str) -> dict[str, Tensor]:
    """The tower's tensors alone, without its prefix: 4.x and 5.x of transformers, and LLaVA, nest it differently."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"The folder of {source!r} holds no .safetensors file; convert pickled weights with transformers first."
        )
    anchor = "embeddings.patch_embedding.weight"
    index: dict[str, Path] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                index |= dict.fromkeys(opened.keys(), file)
        except Exception as error:  # safetensors raises its own untyped error for a truncated file
            raise ValueError(f"{file} cannot be read as safetensors: {error}") from error
    prefixes = [key.removesuffix(anchor) for key in index if key.endswith(anchor)]
    if len(prefixes) != 1:
        raise ValueError(f"{source!r} holds {len(prefixes)} CLIP or SigLIP vision towers; exactly one is needed.")
    wanted = {key: key.removeprefix(prefixes[0]) for key in index if key.startswith(prefixes[0])}
    if not prefixes[0]:  # a tower saved alone, by transformers 5: everything in the file is its own
        wanted = {key: key for key in index}
    elif "visual_projection.weight" in index:
        wanted["visual_projection.weight"] = "visual_projection.weight"
    tensors: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            tensors |= {wanted[key]: opened.get_tensor(key) for key in opened.keys() if key in wanted}  # noqa: SIM118
    return tensors
