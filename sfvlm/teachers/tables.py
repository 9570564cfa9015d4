"""The tensor names of timm, transformers and open_clip, as literal tables to one set of names and shapes, strictly."""

from collections.abc import Mapping

import torch
from torch import Tensor

# `{}` stands for a layer's number; `None` for dropped on purpose. Names that only tables have (`attn.q`, `attn.k`, `attn.v`,
# `attention_pool.qkv`, `projection.transposed`) are brought to canonical ones at the end of `rename`.
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


def rename(tensors: dict[str, Tensor], table: Table, what: str) -> dict[str, Tensor]:
    """Renames by a literal table, strictly.

    Raises:
        ValueError: A tensor is not in the table, or holds no weights.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        number = next((part for part in key.split(".") if part.isdigit() and f".{part}." in key), None)
        template = key if key in table else key.replace(f".{number}.", ".{}.", 1)
        if template not in table:
            raise ValueError(f"The tensor {key!r} of {what} is not in the table of that format.")
        ours = table[template]
        if ours is not None:
            check_values({key: tensor}, what)
            renamed[ours.format(number)] = tensor
    return _canonical(renamed)


def check_values(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raises one ValueError for the first tensor that is empty, quantised, or holds a number that is not finite."""
    for key, tensor in tensors.items():
        if tensor.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(
                f"The tensor {key!r} of {what} is {kind}: it is quantised, so open the model it was made from."
            )
        if not tensor.numel():
            raise ValueError(
                f"The tensor {key!r} of {what} is empty {tuple(tensor.shape)}: its file was not saved whole."
            )
        if not (finite := torch.isfinite(tensor)).all():
            count = int((~finite).sum())
            raise ValueError(
                f"The tensor {key!r} of {what} holds {count} numbers that are not finite (NaN or infinite), of {tensor.numel()}: "
                "give weights of a run that did not diverge."
            )


def _canonical(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Brings renamed tensors to canonical shapes: fused `qkv`, split pooling query, 1-D class token, 2-D positions."""
    out: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if ".attn.q." in key:
            names = [key.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
            if all(name in tensors for name in names):  # otherwise it is missing, and named as such
                out[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat([tensors[name] for name in names])
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
