"""Our towers inside vLLM's own LLaVA, LLaVA-NeXT and LLaVA-OneVision classes.

Each of these classes asks two functions for its tower: one builds it, one counts its tokens. Both are wrapped, so that they
answer for our configurations and leave all others to vLLM. Weights load by name, as vLLM's classes load a dense tower's.

    vLLM 0.32.0    model_executor/models/llava.py     init_vision_tower_for_llava, BaseLlavaProcessingInfo
                                         vision.py    VisionEncoderInfo, get_vision_encoder_info

The names are private to vLLM. `install` looks at what it relies on before it changes anything; what does not fit is told
by `plugin`, and such folders are served through vLLM's transformers backend.
"""

import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..alternatives.configuration import ReducedTowerConfig
from ..encoder.configuration import SparseFormerConfig

OURS = (SparseFormerConfig, ReducedTowerConfig)
MODELS = "vllm.model_executor.models"
CLASSES = ("llava", "llava_next", "llava_onevision")  # modules that import the two functions by name
BUILDS, COUNTS = "init_vision_tower_for_llava", "get_vision_encoder_info"
ASKED = {"self", "pixel_values", "select_layers", "feature_select_strategy"}  # what these classes give a tower


class Unsupported(Exception):
    """This vLLM is not as `native` knows it."""


def install() -> None:
    """Wraps the two functions wherever they are known by name; once, however often it is called.

    Raises:
        Unsupported: This vLLM asks for more than a tower of ours gives.
    """
    modules = [importlib.import_module(f"{MODELS}.{name}") for name in CLASSES]  # all before one is changed
    vision = importlib.import_module(f"{MODELS}.vision")
    clip = importlib.import_module(f"{MODELS}.clip")
    if hasattr(getattr(modules[0], BUILDS, None), "of_sfvlm"):
        return
    info = _info(vision.VisionEncoderInfo)
    missing = info.__abstractmethods__ | _missing(modules[0], (BUILDS, COUNTS, "BaseLlavaProcessingInfo"))
    for module in modules[1:]:
        missing |= _missing(module, (BUILDS,))
    asked = set(inspect.signature(clip.CLIPVisionModel.forward).parameters) - ASKED
    first = next(iter(inspect.signature(getattr(modules[0], BUILDS, str)).parameters), "")
    if missing or asked or first != "hf_config":
        raise Unsupported(f"unknown there: {', '.join(sorted(missing | asked)) or f'{BUILDS}({first}, ...)'}")
    for module in modules:
        setattr(module, BUILDS, _builder(getattr(module, BUILDS)))
        if hasattr(module, COUNTS):
            setattr(module, COUNTS, _counter(getattr(module, COUNTS), info))


def _missing(module: Any, names: tuple[str, ...]) -> set[str]:
    return {f"{module.__name__}.{name}" for name in names if not hasattr(module, name)}


def _builder(stock: Callable[..., Any]) -> Callable[..., Any]:
    def build(hf_config: Any, *args: Any, **options: Any) -> Any:
        return (
            served_tower(hf_config) if isinstance(hf_config.vision_config, OURS) else stock(hf_config, *args, **options)
        )

    build.of_sfvlm = True  # type: ignore[attr-defined]
    return build


def _counter(stock: Callable[..., Any], info: type) -> Callable[..., Any]:
    def count(hf_config: Any) -> Any:
        return info(hf_config) if isinstance(hf_config.vision_config, OURS) else stock(hf_config)

    return count


def _info(base: type) -> Any:
    """What a class of vLLM's `VisionEncoderInfo` says of a tower of ours."""

    class Info(base):
        def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
            """The class token included: vLLM takes it off where the host does."""
            config = self.vision_config
            return config.budget + int(config.has_cls_token)

        def get_image_size(self) -> int:
            return self.vision_config.image_size

        def get_patch_size(self) -> int:
            return self.vision_config.patch_size

        def get_patch_grid_length(self) -> int:
            return math.isqrt(self.vision_config.budget)

    return Info


def served_tower(hf_config: Any) -> nn.Module:
    """The tower of a host's configuration as vLLM's classes call it, tried once on an empty photo.

    Args:
        hf_config: Of the host; its `vision_config` is ours.

    Returns:
        A module `(pixel_values (B, 3, H, W)) -> (B, N, D x layers)`: the tokens of the layers that the host reads.

    Raises:
        ValueError: It does not give what the host counts on. Inside vLLM, what a tower raises at a photo ends the engine.
    """
    config = hf_config.vision_config
    layers = hf_config.vision_feature_layer
    tower = _class_of(config)(config)
    tower.layers = [layers] if isinstance(layers, int) else list(layers)
    strategy = hf_config.vision_feature_select_strategy
    parameter = next(tower.parameters())
    if not parameter.is_meta:
        empty = torch.zeros(1, 3, config.image_size, config.image_size, dtype=parameter.dtype, device=parameter.device)
        with torch.no_grad():
            given = tuple(tower(empty, feature_select_strategy=strategy).shape)
        tokens = config.budget + int(config.has_cls_token and strategy != "default")
        wanted = (1, tokens, config.hidden_size * len(tower.layers))
        if given != wanted:
            raise ValueError(f"The tower gives tokens of {given}, and its host reads {wanted}: make the swap anew.")
    return tower


def _class_of(config: Any) -> Any:
    """The model of a configuration, called as vLLM's towers are."""
    from ..alternatives.towers import ReducedTower
    from ..encoder.sparseformer import SparseFormerModel

    base: Any = SparseFormerModel if isinstance(config, SparseFormerConfig) else ReducedTower

    class Served(base):
        layers: list[int]

        def forward(
            self, pixel_values: Tensor, select_layers: Any = None, feature_select_strategy: str | None = None
        ) -> Tensor:
            """`select_layers` are the host's own, which are known."""
            output = super().forward(pixel_values, output_hidden_states=True, return_dict=True)
            features = torch.cat([output.hidden_states[layer] for layer in self.layers], dim=-1)
            return features[:, 1:] if feature_select_strategy == "default" else features

    return Served
