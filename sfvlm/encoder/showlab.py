"""Official SparseFormer checkpoints (showlab/sparseformer, bootstrapped models) to our names, strictly.

Two forms are in circulation: the released "converted" files, and the raw training state from which they were made. The
official converter deletes `stage_embedding`, the vectors added before each of the four focusing steps, although the official
model then creates them anew, at random. When a file lacks them, they are set to zero here and a warning says so: a
deterministic model, but not quite the trained one. The raw form has them.
"""

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..util.tensors import check_keys
from .configuration import SparseFormerConfig, preset
from .sparseformer import SparseFormerModel

_KINDS = ("weight", "bias")

_SAMPLE_AND_MIX = {
    "roi_offset_bias": "offset_bias",
    "roi_offset_module.0.weight": "offset_norm.weight",
    "roi_offset_module.0.bias": "offset_norm.bias",
    "roi_offset_module.1.weight": "offset.weight",
    **{
        f"adaptive_mixing.{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in {
            "parameter_generator.0": "generator_norm",
            "parameter_generator.1": "generator_in",
            "parameter_generator.2": "generator_out",
            "out_proj": "out",
            "tuo_proj": "out",
        }.items()
        for kind in _KINDS
    },
}

_BLOCK = {
    **{
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in {
            "norm1": "norm1",
            "ln_attn": "norm1",
            "attn.qkv": "attn.qkv",
            "attn.proj": "attn.proj",
            "attn.out_proj": "attn.proj",
            "norm2": "norm2",
            "ffn.0": "norm2",
            "mlp.fc1": "mlp.fc1",
            "ffn.1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
            "ffn.3": "mlp.fc2",
        }.items()
        for kind in _KINDS
    },
    "attn.in_proj_weight": "attn.qkv.weight",
    "attn.in_proj_bias": "attn.qkv.bias",
}

# Layer 0 is the focusing stage, 1 the lift, 2 the last look, 3 and on the cortex; `{}` counts the cortex from 0.
OFFICIAL: dict[str, str | None] = {
    **{f"feat_extractor.conv1.{kind}": f"focusing.early_conv.conv.{kind}" for kind in _KINDS},
    "initial_roi.weight": "focusing.token_roi.weight",
    "token_roi.weight": "focusing.token_roi.weight",
    "initial_embedding.weight": "focusing.token",
    "token_embedding.weight": "focusing.token",
    "layers.0.stage_embedding.weight": "focusing.stage_embedding",
    **{f"layers.0.{theirs}": f"focusing.sample_and_mix.{ours}" for theirs, ours in _SAMPLE_AND_MIX.items()},
    **{f"layers.0.{theirs}": f"focusing.block.{ours}" for theirs, ours in _BLOCK.items()},
    **{f"layers.0.pe_transition.0.{kind}": f"focusing.place_in_box.norm.{kind}" for kind in _KINDS},
    **{f"layers.0.pe_transition.1.{kind}": f"focusing.place_in_box.proj.{kind}" for kind in _KINDS},
    **{f"layers.0.roi_adjust_module.0.{kind}": f"focusing.refiner.norm.{kind}" for kind in _KINDS},
    **{f"layers.0.roi_adjust_module.1.{kind}": f"focusing.refiner.fc1.{kind}" for kind in _KINDS},
    "layers.0.roi_adjust_module.3.weight": "focusing.refiner.fc2.weight",
    **{f"layers.1.0.{kind}": f"focusing.lift.{kind}" for kind in _KINDS},
    **{f"layers.2.{theirs}": f"focusing.last_sample_and_mix.{ours}" for theirs, ours in _SAMPLE_AND_MIX.items()},
    **{f"layers.2.pe_transition.0.{kind}": f"focusing.last_place_in_box.norm.{kind}" for kind in _KINDS},
    **{f"layers.2.pe_transition.1.{kind}": f"focusing.last_place_in_box.proj.{kind}" for kind in _KINDS},
    "cls_embedding.weight": "cls_token",
    "global_embedding.weight": "cls_token",
    "global_roi.weight": None,  # the class token's box, which nothing reads
    **{f"blocks.{{}}.{theirs}": f"blocks.{{}}.{ours}" for theirs, ours in _BLOCK.items()},
    **{f"{theirs}.{kind}": f"head.norm.{kind}" for theirs in ("norm", "head.norm", "ln_post") for kind in _KINDS},
    **{
        f"{theirs}.{kind}": f"head.LAST.{kind}" for theirs in ("proj", "head.classifier", "cls_head") for kind in _KINDS
    },
}

_FIRST_CORTEX_LAYER = 3


def convert(official: dict[str, Tensor], config: SparseFormerConfig) -> dict[str, Tensor]:
    """Official tensors, in either form, under our names for a fresh-focusing configuration.

    Raises:
        ValueError: A tensor is in no table.
    """
    tensors = dict(official)
    if "token_roi_cc.weight" in tensors and "token_roi_wh.weight" in tensors:  # raw: centres and sizes
        center, size = tensors.pop("token_roi_cc.weight"), tensors.pop("token_roi_wh.weight")
        tensors["token_roi.weight"] = torch.cat([center - size / 2, center + size / 2], dim=1)
    last = "classifier" if config.num_classes else "projection"
    converted: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        template, number = _template(key)
        if template not in OFFICIAL:
            raise ValueError(f"The tensor {key!r} is not in the table of official SparseFormer checkpoints.")
        ours = OFFICIAL[template]
        if ours is not None:
            ours = ours.format(number).replace("LAST", last)
            converted[ours] = tensor[0] if ours in ("cls_token", "focusing.token") else tensor
    return converted


def load_official(checkpoint: str | Path, name: str) -> SparseFormerModel:
    """Builds the preset `name` with the weights of an official `.pth` or `.safetensors` file.

    Raises:
        ValueError: The name is no preset, or the file's tensors are not exactly the preset's.
    """
    path = Path(checkpoint)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state: dict[str, Any] = dict(load_file(path))
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    return from_official(state.get("model", state), preset(name))


def from_official(state: dict[str, Tensor], config: SparseFormerConfig) -> SparseFormerModel:
    """Builds a model from official tensors in memory; see `load_official`."""
    model = SparseFormerModel(config)
    tensors = convert(state, config)
    stage = "focusing.stage_embedding"
    if stage not in tensors:
        warnings.warn(
            "The official checkpoint lacks stage_embedding (the official converter deletes it); it is set to zero, so "
            "outputs differ from the trained model's. The raw checkpoint has it.",
            stacklevel=2,
        )
        tensors[stage] = torch.zeros_like(model.state_dict()[stage])
    check_keys(tensors, model.state_dict(), "the official checkpoint")
    model.load_state_dict(tensors)
    return model.eval()


def _template(key: str) -> tuple[str, int]:
    """The key with its cortex block number cut out, in the raw form's spelling (`blocks.{}`)."""
    if match := re.match(r"blocks\.(\d+)\.", key):
        return f"blocks.{{}}.{key[match.end() :]}", int(match[1])
    match = re.match(r"layers\.(\d+)\.", key)
    if match and int(match[1]) >= _FIRST_CORTEX_LAYER:
        return f"blocks.{{}}.{key[match.end() :]}", int(match[1]) - _FIRST_CORTEX_LAYER
    return key, 0
