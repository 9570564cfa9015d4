"""Puts a sparse tower into a LLaVA, or refuses with the reason; projector and language model are not touched.

    swapped = swap(model, processor, tower)              in memory; `swapped.undo()` restores
    swap_folder(host, tower, out)                        a folder that stock `from_pretrained` opens after `import sfvlm`
    undo_folder(out, restored)                           the dense host again, bit for bit, from `out` alone

Hosts are transformers' LLaVA, LLaVA-NeXT and LLaVA-OneVision, tested with transformers 5.8 and 5.23. The tokens stay in the
order in which their boxes start, row by row, so that a host that puts tiles together as grids (the latter two) meets
each token about where it looked; a box may have moved by up to `box_shift` of its size from there.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..encoder.folder import open_student
from ..zoo.names import resolve
from .facts import read_host
from .folders import swap_folder, undo_folder
from .plan import Plan, Setting, apply_plan, plan_swap, restore
from .tower import check_dtype, check_tower

__all__ = ["Swapped", "swap", "swap_folder", "undo_folder"]


@dataclass(frozen=True)
class Swapped:
    """A swap that was done in memory, and what is needed to undo it.

    Attributes:
        plan: What was decided; `plan.host.tokens` before and `plan.tokens` after.
        model: The host itself, without a PEFT wrapper.
        dense: The tower that was taken out.
        dtype: What the projector was in then.
    """

    plan: Plan
    model: Any
    dense: nn.Module
    dtype: torch.dtype
    settings: tuple[Setting, ...] = field(repr=False)

    def undo(self) -> None:
        """Puts the dense tower and every setting back; the tower follows where the host has gone meanwhile."""
        tower, dense = self.model.model.vision_tower, self.dense
        dense.train(tower.training)
        if not any(hasattr(module, "_hf_hook") for module in dense.modules()):  # else accelerate moves it
            _place(dense, tower)
            now = next(self.model.model.multi_modal_projector.parameters()).dtype
            if now != self.dtype and all(parameter.is_floating_point() for parameter in dense.parameters()):
                dense.to(now)  # else it keeps its bits: whatever it was in, or quantised
        self.model.model.vision_tower = dense
        restore(self.settings)


def swap(model: Any, processor: Any, tower: Any, num_tokens: int | None = None) -> Swapped:
    """Replaces the vision tower of an open host; the processor is changed with it. Nothing is touched if it refuses.

    The tower moves to the dense tower's device and the projector's dtype, in place, and follows the host between training
    and evaluation. Its gradients are not stopped: freeze it (`tower.requires_grad_(False)`) to train the rest alone. It serves
    one host at a time, for its budget is its own.

    Args:
        model: A LLaVA, LLaVA-NeXT or LLaVA-OneVision `...ForConditionalGeneration`; it may be quantised by
            bitsandbytes (but for its projector), spread by a `device_map`, or wrapped by PEFT.
        processor: Its processor.
        tower: A `sfvlm.hosts.tower.Tower`, such as a SparseFormerModel; or a SparseFormer folder or name of the zoo.
        num_tokens: Image tokens a photo or tile, default the tower's own budget.

    Raises:
        ValueError: They do not fit; the message has both numbers.
    """
    if isinstance(tower, str | Path):
        tower = open_student(resolve(tower))
    check_tower(tower)
    host = model.get_base_model() if hasattr(model, "get_base_model") else model
    plan = plan_swap(read_host(host.config, processor), tower.config, num_tokens)
    if not hasattr(host, "model"):
        raise ValueError(
            f"A {type(host).__name__} has no language model's head: open the host by AutoModelForImageTextToText."
        )
    dense = host.model.vision_tower
    # PEFT keeps what it wraps under one of these two names, whatever the kind of adapter.
    adapted = [
        name for name, module in dense.named_modules() if {"base_layer", "original_module"} & module._modules.keys()
    ]
    if adapted:
        raise ValueError(
            f"{len(adapted)} modules of the host's tower carry an adapter (the first is {adapted[0] or 'the tower itself'}), "
            "which would be lost: merge it, or train it with exclude_modules='.*vision_tower.*'."
        )
    dtype = next(host.model.multi_modal_projector.parameters()).dtype
    check_dtype(tower, dtype)

    _place(tower, dense, dtype, spread=len(set(getattr(host, "hf_device_map", {}).values())) > 1)
    tower.train(dense.training)
    settings = apply_plan(plan, host.config, processor, tower.config)
    conversions = getattr(host, "_weight_conversions", None)
    if conversions:  # transformers renames tensors back when it saves; the dense tower's names are not ours
        ours = [each for each in conversions if not _inside_tower(each)]
        settings += (Setting.of(host, "_weight_conversions", ours),)
    whole = getattr(host, "_no_split_modules", None)
    if isinstance(whole, set):
        ours = whole | set(getattr(tower, "_no_split_modules", None) or ())
        settings += (Setting.of(host, "_no_split_modules", ours),)
    host.model.vision_tower = tower
    return Swapped(plan, host, dense, dtype, settings)


def _inside_tower(conversion: Any) -> bool:
    """Whether transformers renames the inside of the dense tower by it; the attribute's name depends on the version."""
    scopes = (getattr(conversion, name, None) for name in ("scope_prefix", "model_prefix"))
    return any("vision_tower" in scope for scope in scopes if scope)


def _place(new: nn.Module, old: nn.Module, dtype: torch.dtype | None = None, *, spread: bool = False) -> None:
    """Moves a tower to where the other one computes; under a device map with a hook that brings the photos there."""
    hooks = [module._hf_hook for module in old.modules() if hasattr(module, "_hf_hook")]
    offloaded = [device for hook in hooks if (device := getattr(hook, "execution_device", None)) is not None]
    device = next((p.device for p in old.parameters() if p.device.type != "meta"), None)
    device = offloaded[0] if offloaded and device is None else device
    new.to(device=device, dtype=dtype)
    if hooks or spread:
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

        remove_hook_from_module(new)
        add_hook_to_module(new, AlignDevicesHook(execution_device=device))
