"""What a swap changes in a host, worked out before anything is touched, with every reason to refuse; then set at once.

A host counts its image tokens twice: the processor writes placeholders into the prompt, the model fills them. All
settings of both sides that enter the two counts are decided here, together:

LLaVA, LLaVA-NeXT    processor  (H // patch_size) (W // patch_size) + num_additional_image_tokens - [strategy "default"]
                     model      tokens of the layer - [strategy "default"]
LLaVA-OneVision      processor  num_image_tokens - [strategy "default"], and the root of num_image_tokens as a tile's side
                     model      as above
both with tiles      model      image_size // patch_size of the tower's configuration as a tile's side

Source: transformers 5.23, `models/llava*/processing_*.py`, `modeling_*.py`.
"""

import copy
import math
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..encoder.configuration import SparseFormerConfig
from .facts import HOSTS, HostFacts, read_host
from .tower import TowerConfig

__all__ = ["HOSTS", "HostFacts", "Plan", "Setting", "apply_plan", "plan_swap", "read_host", "restore"]


@dataclass(frozen=True)
class Plan:
    """What a swap sets: fields of the host's configuration, processor, image processor and video processor."""

    host: HostFacts
    tokens: int  # image tokens the LLM reads, counted as `HostFacts.tokens`
    budget: int  # the tower's
    config: dict[str, Any]
    processor: dict[str, Any]
    image_processor: dict[str, Any]
    video_processor: dict[str, Any]


def plan_swap(host: HostFacts, tower: TowerConfig, num_tokens: int | None = None) -> Plan:
    """What must be set so that this tower serves this host.

    Args:
        host: From `read_host`.
        tower: The tower's configuration.
        num_tokens: Image tokens a photo or tile, the class token not counted; default the tower's budget.

    Raises:
        ValueError: The two do not fit: width, depth, normalisation, class token, or the grid that tiles need.
    """
    _check_fit(host, tower)
    budget = tower.budget if num_tokens is None else num_tokens
    if type(budget) is not int or budget < 1:
        raise ValueError(f"num_tokens is {budget!r}; it is a whole number, at least 1.")
    if isinstance(tower, SparseFormerConfig):
        tower.check_budget(budget)
    if budget != tower.budget and not hasattr(tower, "default_budget"):
        raise ValueError(f"num_tokens is {budget}, and this tower always gives {tower.budget}.")
    side = math.isqrt(budget)
    patch = tower.image_size // side
    on_grid = side * side == budget and patch > 0 and tower.image_size // patch == side
    if host.tiles and not on_grid:
        raise ValueError(
            f"A {host.kind} host puts the tokens of its tiles together as square grids, counted in whole pixels, and a tower "
            f"of {budget} tokens on {tower.image_size} pixels has no such grid: try {side**2} or {(side + 1) ** 2} tokens, "
            "or another image size."
        )

    strategy = "default" if tower.has_cls_token and not host.reads_cls else "full"
    config: dict[str, Any] = {"vision_feature_select_strategy": strategy}
    if tower.num_hidden_layers != host.depth:  # a truncated tower ends as the dense one does
        config["vision_feature_layer"] = host.layers[0] if len(host.layers) == 1 else list(host.layers)
    if host.kind != "llava_onevision":
        config["image_seq_length"] = budget + host.reads_cls
    processor: dict[str, Any] = {"num_image_tokens": budget, "vision_feature_select_strategy": "full"}
    if host.kind != "llava_onevision":  # beyond the square grid, everything is "additional"
        extra = 0 if on_grid else budget - 1
        processor = {
            "patch_size": patch if on_grid else tower.image_size,
            "num_additional_image_tokens": extra + int(tower.has_cls_token),
            "vision_feature_select_strategy": strategy,
        }
    image_processor: dict[str, Any] = {}
    if tower.image_size != host.image_size:
        image_processor["size"] = tower.image_size
        if host.pinpoints:
            pinpoints = _rescale(host.pinpoints, host.image_size, tower.image_size)
            config["image_grid_pinpoints"] = image_processor["image_grid_pinpoints"] = pinpoints
    video_processor = {"size": tower.image_size} if image_processor and host.kind == "llava_onevision" else {}
    return Plan(host, budget + host.reads_cls, budget, config, processor, image_processor, video_processor)


def _check_fit(host: HostFacts, tower: TowerConfig) -> None:
    if tower.hidden_size != host.width:
        raise ValueError(
            f"The host's projector reads tokens {host.width} wide, and the tower's are {tower.hidden_size} wide: bootstrap "
            "the tower from the host's own (--teacher HOST)."
        )
    deepest = -min(host.layers)
    if deepest > tower.num_hidden_layers + 1:
        raise ValueError(
            f"The host reads layer -{deepest} of its tower's {host.depth} blocks, and the new tower has only "
            f"{tower.num_hidden_layers} blocks."
        )
    check_layers = getattr(tower, "check_layers", None)
    if check_layers is not None:  # a tower that was made for certain layers
        check_layers(host.layers)
    for name, theirs, ours in (("mean", host.mean, tower.image_mean), ("std", host.std, tower.image_std)):
        if any(abs(a - b) > 1e-4 for a, b in zip(theirs, ours, strict=True)):
            raise ValueError(
                f"The host's processor normalises with {name} {_round(theirs)}, and the tower expects {_round(ours)}."
            )
    for name in ("resample", "crop_pct"):
        theirs, ours = getattr(host, name), getattr(tower, name, getattr(host, name))
        if theirs != ours and (isinstance(ours, str) or abs(theirs - ours) > 1e-3):
            warnings.warn(
                f"The host's processor makes photos with {name} {theirs}, and the tower learned from photos of {ours}: bootstrapped "
                "with --host, it learns from the host's.",
                stacklevel=2,
            )
    if host.reads_cls and not tower.has_cls_token:
        raise ValueError(
            f"The host reads the class token and {host.tokens - 1} patches, and the tower has no class token."
        )
    if host.reads_cls and host.tiles:
        raise ValueError(
            f"The host reads the class token and {host.tokens - 1} patches a tile, which are no square grid: it takes tiles "
            'with vision_feature_select_strategy "default" alone.'
        )


def _rescale(pinpoints: tuple[tuple[int, int], ...], old: int, new: int) -> list[list[int]]:
    """The same numbers of tiles, of another side."""
    broken = [size for size in pinpoints if size[0] % old or size[1] % old]
    if broken:
        raise ValueError(f"The host's tiles have {old} pixels, and its grid {list(broken[0])} is no multiple of that.")
    return [[height // old * new, width // old * new] for height, width in pinpoints]


def _round(values: Any) -> str:
    return "(" + ", ".join(f"{float(value):.4f}" for value in values) + ")"


class Setting(NamedTuple):
    """One attribute of one object, with the value it has and the one it had."""

    owner: Any
    name: str
    before: Any
    after: Any

    @classmethod
    def of(cls, owner: Any, name: str, value: Any) -> "Setting":
        """Sets the attribute and returns what restores it."""
        before = getattr(owner, name)
        setattr(owner, name, value)
        return cls(owner, name, before, value)


def restore(settings: tuple[Setting, ...]) -> None:
    """Sets every attribute to what it was, the last one first."""
    for setting in reversed(settings):
        setattr(setting.owner, setting.name, setting.before)


def apply_plan(plan: Plan, config: Any, processor: Any, tower_config: Any) -> tuple[Setting, ...]:
    """Changes a host's configuration and processor, and the tower's default budget; everything at once.

    Args:
        plan: From `plan_swap`.
        config: The host's configuration; its `vision_config` becomes the tower's own.
        processor: The host's processor.
        tower_config: The tower's configuration.
    """
    settings: list[Setting] = []
    if tower_config.budget != plan.budget:
        settings.append(Setting.of(tower_config, "default_budget", plan.budget))
    settings.append(Setting.of(config, "vision_config", tower_config))
    parts = [(config, plan.config), (processor, plan.processor), (processor.image_processor, plan.image_processor)]
    parts.append((getattr(processor, "video_processor", None), plan.video_processor))
    for owner, fields in parts:
        if owner is None:
            continue
        for name, value in fields.items():
            if name == "size":
                settings += _set_side(owner, value)
            else:
                settings.append(Setting.of(owner, name, copy.deepcopy(value)))
    return tuple(settings)


def _set_side(image_processor: Any, side: int) -> list[Setting]:
    """Another side for the photos, in the form the processor uses: its shortest edge, or height and width."""
    settings = []
    for name in ("size", "crop_size"):
        old = getattr(image_processor, name, None)
        if old:
            sizes = {key: side for key, value in dict(old).items() if value is not None}
            settings.append(Setting.of(image_processor, name, type(old)(**sizes)))
    return settings
