"""Our encoder as a vision tower of the original `llava` package.

    config.json: mm_vision_tower "sfvlm:FOLDER" -> LlavaTower, without parameters yet
    load_model()                                -> the SparseFormer of FOLDER, frozen
    tower(images)                               -> (B, N, D) at the host's layer, in the images' dtype and on their device

What the package asks: `sfvlm.hosts.llava.contract`. How it gets this tower: `sfvlm.llava_package`. Shapes: B batch, N tokens, D width.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ...encoder.configuration import SparseFormerConfig
from ...encoder.folder import image_processor, open_config, open_student
from ...encoder.sparseformer import SparseFormerModel
from ...zoo.names import resolve
from .contract import ImageProcessor, check_fit, grid_side, selected_feature

PREFIX = "sfvlm:"


class TowerImageProcessor:
    """The encoder's own preprocessing with the fields that `ImageProcessor` names, whichever class does the work."""

    def __init__(self, config: SparseFormerConfig) -> None:
        self._inner = image_processor(config)
        self.image_mean, self.image_std = list(config.image_mean), list(config.image_std)
        self.size = {"shortest_edge": config.image_size}
        self.crop_size = {"height": config.image_size, "width": config.image_size}

    def preprocess(self, images: Any, return_tensors: str | None = None) -> Any:
        return self._inner.preprocess(images, return_tensors=return_tensors)

    __call__ = preprocess


class LlavaTower(nn.Module):
    """A SparseFormer as `llava` builds, loads and calls its towers: a `VisionTower`.

    The encoder lies under `encoder`: what older checkpoints keep of a CLIP tower, `vision_tower.vision_model...`, meets no
    tensor of that name here. Its weights are read from its own folder by `load_model`, as the dense tower's are; only where
    the host's configuration says that the checkpoint holds a tuned tower (`unfreeze_mm_vision_tower`, or NeXT's
    `mm_tunable_parts`) do they come from there.

    Args:
        vision_tower: "sfvlm:" and a SparseFormer folder or name of the zoo.
        args: The host's configuration, or the training script's arguments.
        delay_load: Read the tower's configuration alone, until `load_model`.

    Raises:
        ValueError: There is no such tower, or it does not fit the host.
    """

    def __init__(self, vision_tower: str, args: Any, delay_load: bool = False) -> None:
        super().__init__()
        self.vision_tower_name = vision_tower
        self.folder = Path(resolve(vision_tower.removeprefix(PREFIX)))
        self.cfg_only = open_config(self.folder)
        check_fit(args, self.cfg_only)
        self.select_layer: int = args.mm_vision_select_layer
        self.select_feature: str = selected_feature(args)
        self.image_processor: ImageProcessor = TowerImageProcessor(self.cfg_only)
        self.encoder: SparseFormerModel | None = None
        self.is_loaded = False
        tuned = getattr(args, "unfreeze_mm_vision_tower", False) or "mm_vision_tower" in (
            getattr(args, "mm_tunable_parts", None) or ""
        )
        if torch.empty(0).device.type == "meta":  # the host's from_pretrained, which would overwrite what is read now
            if tuned:
                self.encoder = _FromCheckpoint(self.cfg_only)
        elif tuned or not delay_load:
            self.load_model()

    def load_model(self, device_map: Any = None) -> None:
        """Opens the encoder, in float32 and frozen; a second call does nothing.

        Args:
            device_map: A device; "auto" for the GPU where there is one; or a dict from parts of the host to devices.
        """
        if self.is_loaded:
            return
        if self.encoder is None or not _was_filled(self.encoder, self.folder):
            self.encoder = open_student(self.folder).float()
        self.encoder.requires_grad_(False)
        self.encoder.eval()
        device = _device(device_map)
        if device is not None:
            nn.Module.to(self.encoder, device)
        self.is_loaded = True

    def forward(self, images: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """Tokens at the host's layer: (B, 3, H, W) -> (B, N, D), or a list of (3, H, W) -> a list of (1, N, D).

        They come in the dtype and on the device of the images. Gradients are stopped unless a parameter of the encoder
        asks for them, as one does only where somebody unfroze it.
        """
        if isinstance(images, list):
            return [self._encode(image[None]) for image in images]
        return self._encode(images)

    def _encode(self, images: Tensor) -> Tensor:
        encoder = self._loaded()
        tuned = any(parameter.requires_grad for parameter in encoder.parameters())
        with torch.set_grad_enabled(tuned and torch.is_grad_enabled()):
            output = encoder(images.to(device=self.device, dtype=self.dtype), output_hidden_states=True)
            return self.feature_select(output).to(device=images.device, dtype=images.dtype)

    def feature_select(self, image_forward_outs: Any) -> Tensor:
        """The hidden state of the host's layer, (B, [1 +] N, D); "patch" leaves out the class token, where there is one."""
        tokens = image_forward_outs.hidden_states[self.select_layer]
        return tokens[:, int(self.config.has_cls_token) :] if self.select_feature == "patch" else tokens

    def _loaded(self) -> SparseFormerModel:
        if self.encoder is None or not self.is_loaded:
            raise ValueError(f"The tower {self.vision_tower_name} holds no weights yet: call load_model() first.")
        return self.encoder

    @property
    def config(self) -> SparseFormerConfig:
        return self.cfg_only if self.encoder is None else self.encoder.config

    @property
    def dtype(self) -> torch.dtype:
        return self._loaded().dtype

    @property
    def device(self) -> torch.device:
        return self._loaded().device

    @property
    def dummy_feature(self) -> Tensor:
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def image_size(self) -> int:
        return self.config.image_size

    @property
    def num_patches(self) -> int:
        return self.config.budget + (self.select_feature == "cls_patch")

    @property
    def num_patches_per_side(self) -> int:
        """Side of the token grid; ValueError where the budget is no square."""
        return grid_side(self.config)


class _FromCheckpoint(SparseFormerModel):
    """An encoder that the host's `from_pretrained` fills; what its checkpoint lacks becomes NaN, to be found out."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        for parameter in module.parameters(recurse=False):
            init.constant_(parameter, math.nan)


def _was_filled(encoder: SparseFormerModel, folder: Path) -> bool:
    """Whether a host's checkpoint held the encoder; ValueError if it held a part of it."""
    state = encoder.state_dict()
    lost = [name for name, tensor in state.items() if tensor.is_meta or bool(tensor.isnan().any())]
    if lost and len(lost) < len(state):
        raise ValueError(
            f"The host's checkpoint holds {len(state) - len(lost)} of the {len(state)} tensors of its tower {folder}; "
            f"the first that it lacks is {lost[0]}: save it whole, or leave unfreeze_mm_vision_tower out of its config.json."
        )
    return not lost


def _device(device_map: Any) -> torch.device | None:
    """Where a tower goes by a device map; None for where it is."""
    if isinstance(device_map, dict):
        named = (device_map[part] for part in ("model.vision_tower", "model", "") if part in device_map)
        device_map = next(named, None)
    if device_map is None:
        return None
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return torch.device("cuda") if torch.cuda.is_available() else None
    return torch.device(device_map)
