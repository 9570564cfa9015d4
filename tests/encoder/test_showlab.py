"""Parity with the official implementation, on a golden case computed by it (see the file's `source`)."""

import json
import re
from pathlib import Path

import pytest
import torch
from golden_weights import golden_tensor
from tiny import tiny_config

from sfvlm.encoder.configuration import PRESETS, SparseFormerConfig, preset
from sfvlm.encoder.showlab import convert, from_official, load_official
from sfvlm.encoder.sparseformer import SparseFormerModel

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "showlab_golden.json").read_text())


def golden_config() -> SparseFormerConfig:
    return tiny_config(
        "fresh", num_tokens=5, conv_dim=8, focusing_size=64, num_focusing_steps=4, num_points=4, mixing_points=32,
        generator_size=16, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512,
        hidden_act="quick_gelu", pre_norm=False, projection_dim=6, box_shift=None, box_log_scale=None,
    )  # fmt: skip


def golden_state() -> dict[str, torch.Tensor]:
    return {key: golden_tensor(key, tuple(shape)) for key, shape in GOLDEN["shapes"].items()}


def raw_form(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The spelling that the official converter takes: its renames, backwards."""
    raw = {}
    for key, tensor in state.items():
        if key == "initial_roi.weight":
            raw["token_roi_cc.weight"] = (tensor[:, :2] + tensor[:, 2:]) / 2
            raw["token_roi_wh.weight"] = tensor[:, 2:] - tensor[:, :2]
            continue
        key = key.replace("initial_embedding", "token_embedding").replace("cls_embedding", "global_embedding")
        key = re.sub(r"^norm\.", "ln_post.", key)
        key = re.sub(r"^proj\.", "cls_head.", key)
        key = key.replace("adaptive_mixing.out_proj", "adaptive_mixing.tuo_proj")
        if match := re.match(r"layers\.(\d+)\.", key):
            number = int(match[1])
            if number >= 3:
                key = f"blocks.{number - 3}.{key[match.end() :]}"
            for new, old in {
                "norm1.": "ln_attn.",
                "norm2.": "ffn.0.",
                "mlp.fc1.": "ffn.1.",
                "mlp.fc2.": "ffn.3.",
            }.items():
                key = key.replace(new, old)
            key = key.replace("attn.qkv.", "attn.in_proj_").replace("attn.proj.", "attn.out_proj.")
        raw[key] = tensor
    raw["global_roi.weight"] = torch.zeros(1, 4)
    return raw


@torch.no_grad()
@pytest.mark.parametrize("form", ["converted", "raw"])
def test_output_and_boxes_equal_the_official_ones(form: str) -> None:
    state = golden_state() if form == "converted" else raw_form(golden_state())
    output = from_official(state, golden_config())(golden_tensor("pixels", (2, 3, 40, 56)) * 20)
    torch.testing.assert_close(output.pooler_output, torch.tensor(GOLDEN["output"]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.token_rois[-1], torch.tensor(GOLDEN["token_roi"]), atol=1e-5, rtol=1e-5)


def test_a_missing_stage_embedding_is_set_to_zero_with_a_warning() -> None:
    state = golden_state()
    del state["layers.0.stage_embedding.weight"]
    with pytest.warns(UserWarning, match="lacks stage_embedding"):
        model = from_official(state, golden_config())
    assert not model.focusing.stage_embedding.any()


def test_an_unknown_or_missing_official_tensor_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"layers\.0\.surprise"):
        from_official(golden_state() | {"layers.0.surprise": torch.ones(1)}, golden_config())
    state = golden_state()
    del state["layers.3.attn.qkv.weight"]
    with pytest.raises(ValueError, match=r"missing: blocks\.0\.attn\.qkv\.weight"):
        from_official(state, golden_config())


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_official_names_of_a_preset_fill_it_exactly(name: str) -> None:
    config = preset(name)
    with torch.device("meta"):
        wanted = {key: tuple(tensor.shape) for key, tensor in SparseFormerModel(config).state_dict().items()}
    layers = {key for key in GOLDEN["shapes"] if not re.match(r"layers\.[45]\.", key)}
    official = {key: torch.zeros(1, 1) for key in layers if not key.startswith("layers.3.")}
    for number in range(config.num_hidden_layers):
        official |= {
            key.replace("layers.3.", f"layers.{number + 3}."): torch.zeros(1)
            for key in layers
            if key.startswith("layers.3.")
        }
    official |= {"proj.bias": torch.zeros(1)} if config.num_classes else {}
    assert convert(official, config).keys() == wanted.keys()


def test_a_pickle_is_opened_as_tensors_only(tmp_path: Path) -> None:
    state = {"model": golden_state()}
    torch.save(state, tmp_path / "official.pth")
    with pytest.raises(ValueError, match="shape"):  # the file opens; a preset is larger than the golden case
        load_official(tmp_path / "official.pth", "sparseformer-clip-base")
