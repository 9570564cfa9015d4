"""A student in training: everything that a step changes and a checkpoint keeps, and the devices it is trained on."""

import copy
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn

from ..encoder.compiling import compile_forms
from ..encoder.configuration import SparseFormerConfig
from ..encoder.sparseformer import SparseFormerModel
from .optimization import parameter_groups, sees_all_patches
from .options import BootstrapOptions


@dataclass
class Learner:
    """A student in training.

    Attributes:
        student: What is trained, or LoRA around it; its weights are saved.
        model: The same as a step calls it: compiled, and shared by several processes.
        optimizer: Of what is trained.
        peaks: The highest rate of each of the optimizer's groups.
        average: Follows the student slowly; its `module` is the copy. None without `ema_decay`.
        step: Steps done.
    """

    student: nn.Module
    model: nn.Module
    optimizer: Any
    peaks: list[float]
    average: Any
    step: int = 0

    @property
    def outcome(self) -> nn.Module:
        """What is evaluated and exported: the averaged weights where there are any."""
        return self.student if self.average is None else self.average.module

    def finished(self) -> SparseFormerModel:
        """The same without LoRA around it: what LoRA learned is merged into a copy."""
        model = self.outcome if isinstance(self.outcome, SparseFormerModel) else without_lora(self.outcome)
        assert isinstance(model, SparseFormerModel)
        return model


def open_accelerator(options: BootstrapOptions, config: SparseFormerConfig, out: Path) -> Accelerator:
    """The device of this process, and the way to the other ones.

    Raises:
        ValueError: What `report_to` names is not installed, or a batch cannot be shared out evenly.
    """
    accelerator = Accelerator(
        mixed_precision=options.precision,
        cpu=options.cpu,
        log_with=None if options.report_to == "none" else options.report_to,
        project_dir=out,
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                broadcast_buffers=False,
                find_unused_parameters=sees_all_patches(config, options) or bool(options.objective.dense),
            ),
            InitProcessGroupKwargs(timeout=timedelta(days=7)),  # the others wait while the first one asks a host
        ],
    )
    if options.report_to != "none" and not accelerator.log_with:
        raise ValueError(f"report_to is {options.report_to!r}, which is not installed: pip install 'sfvlm[log]'.")
    if options.batch_size % accelerator.num_processes:
        raise ValueError(
            f"batch_size {options.batch_size} is not a multiple of the {accelerator.num_processes} processes."
        )
    return accelerator


def place_of_host(options: BootstrapOptions) -> dict[str, Any]:
    """Where the host of a run is opened, and in which dtype, as `open_host` takes both.

    Each process has its own GPU; and what half of 16 bits rounds to zero, bfloat16 does not.
    """
    if options.cpu or not torch.cuda.is_available():
        return {"device": "cpu"}
    dtype = "bfloat16" if torch.cuda.is_bf16_supported() else None
    return {"device": f"cuda:{os.environ.get('LOCAL_RANK', '0')}", "dtype": dtype}


def open_learner(student: SparseFormerModel, options: BootstrapOptions, accelerator: Accelerator) -> Learner:
    """A learner before its first step, on its device.

    Raises:
        ValueError: LoRA is asked for, and no block is tuned.
    """
    trained = with_lora(student, options) if options.tune == "lora" else student
    optimizer = torch.optim.AdamW(parameter_groups(trained, student.config.focusing, options), betas=(0.9, 0.98))
    peaks = [group["lr"] for group in optimizer.param_groups]
    trained.to(accelerator.device)
    average = running_average(trained, options) if options.ema_decay else None
    compiled = compile_forms(trained) if options.compile else trained
    model, optimizer = accelerator.prepare(compiled, optimizer)
    return Learner(trained, model, optimizer, peaks, average)


def with_lora(student: SparseFormerModel, options: BootstrapOptions) -> nn.Module:
    """Wraps the tuned blocks' matrices in LoRA; the focusing stage and the class token stay fully trained."""
    from peft import LoraConfig, get_peft_model

    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    numbers = sorted({name.split(".")[1] for name in trained if name.startswith("blocks.")}, key=int)
    if not numbers:
        raise ValueError("tune is 'lora', but no block is tuned: tuned_blocks must be at least 1.")
    targets = rf"blocks\.({'|'.join(numbers)})\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)"
    config = LoraConfig(r=options.lora_rank, lora_alpha=options.lora_rank, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        wrapped = get_peft_model(student, config)  # type: ignore[arg-type]
    for name, parameter in wrapped.named_parameters():
        plain = name.removeprefix("base_model.model.")
        if plain in trained and not plain.startswith("blocks."):
            parameter.requires_grad_(True)
    return wrapped


def without_lora(model: Any) -> SparseFormerModel:
    """A plain model with the updates of `with_lora` merged in; what is given stays as it is."""
    return copy.deepcopy(model).merge_and_unload()


def running_average(model: nn.Module, options: BootstrapOptions) -> Any:
    """A copy of the model whose weights follow it, slowly; timm's, so that `.module` is the copy."""
    from timm.utils.model_ema import ModelEmaV3

    return ModelEmaV3(model, decay=options.ema_decay, use_warmup=True)
