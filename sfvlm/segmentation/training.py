"""The training of a segmentation model: a head on a frozen tower, or both.

    photos with masks -> views -> tower, map -> head -> cross-entropy --> a line in metrics.jsonl, every so often a checkpoint
    at the end: mIoU on other photos, and the model's folder

A step depends on (options, step number) alone, so that on a CPU a run that was killed and resumed from its last checkpoint ends on the
same bits as one that was not. The folder opens with transformers: `AutoModelForSemanticSegmentation`, `pipeline("image-segmentation")`.
"""

import copy
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..bootstrap.checkpoints import differences, list_checkpoints, load_checkpoint, save_checkpoint
from ..bootstrap.metrics_log import MetricsLog, Rate
from ..bootstrap.optimization import rate_at
from ..dense.masks import MaskedPhotos
from ..dense.probe import segmentation_loss
from ..photos.batches import SkipLog
from ..util.devices import usable_device
from ..util.files import make_folder, replacing_inside, write_json
from ..util.provenance import provenance
from .batches import Batch, batches
from .evaluation import Candidate, evaluate
from .model import SparseFormerForSemanticSegmentation, label_names, processor_of
from .options import SegmentationOptions
from .views import normalized

CHECKPOINTS, METRICS, SKIPPED, FACTS = "checkpoints", "metrics.jsonl", "skipped.jsonl", "segmentation.json"
PARTS = r".*blocks\.\d+\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)"  # of a tower, what LoRA updates


def train(
    model: SparseFormerForSemanticSegmentation,
    photos: MaskedPhotos,
    val: MaskedPhotos,
    out: Path,
    options: SegmentationOptions,
    facts: dict[str, Any],
    *,
    resume: bool = False,
    stop_after: int | None = None,
) -> dict[str, float]:
    """Trains `model` and writes its folder `out`.

    Args:
        model: From `SparseFormerForSemanticSegmentation.around`.
        photos: To train on, checked.
        val: To measure on, and nothing else.
        out: Receives the model, `metrics.jsonl`, `skipped.jsonl`, `segmentation.json`, and `checkpoints/` along the way.
        options: See `SegmentationOptions`.
        facts: What else `segmentation.json` shall say: where tower and photos come from.
        resume: Continue from the newest checkpoint in `out`.
        stop_after: Stop there as if interrupted, with a checkpoint.

    Returns:
        mIoU, accuracy and so on, on `val`.

    Raises:
        ValueError: Options and checkpoint disagree, or `out` holds a run that is not to be resumed, or another model.
        KeyboardInterrupt: After a checkpoint was saved.
    """
    options.check()
    _check_folder(out, resume)
    make_folder(out)
    device = usable_device(options.device)
    run = _Run(model, options, device, out, facts)
    if resume:
        run.take_up()
    until, started = min(options.steps, stop_after or options.steps), time.perf_counter()
    bar: Any = tqdm(total=options.steps, initial=run.step, unit="step", smoothing=0.05)
    result: dict[str, float] = {}
    try:
        for batch in batches(photos, model.config.sparse, options, run.step):
            if run.step >= until:
                break
            loss = run(batch)
            bar.set_postfix(loss=f"{loss:.3f}")
            bar.update()
            if options.eval_every and run.step % options.eval_every == 0 and run.step < options.steps:
                result = _measured(run.finished(), val, options.batch_size, device)
                run.metrics.add({"step": run.step} | {f"eval_{name}": value for name, value in result.items()})
                run.rate.restart(run.step)
            if run.step % options.save_every == 0 or run.step == until:
                run.save()
    except KeyboardInterrupt:
        run.save()
        raise
    finally:
        bar.close()
    if run.step < options.steps:
        return result
    finished = run.finished()
    result = _measured(finished, val, options.batch_size, device)
    run.metrics.add({"step": run.step} | {f"eval_{name}": value for name, value in result.items()})
    said = {"steps": run.step, "seconds_of_last_run": round(time.perf_counter() - started, 1), "result": result}
    export(finished, out, {**facts, "options": options.fingerprint(), **said})
    return result


def export(model: SparseFormerForSemanticSegmentation, out: Path, facts: dict[str, Any]) -> None:
    """Writes a model's folder: weights, configuration, preprocessor, and `segmentation.json` with where it comes from."""
    make_folder(out)
    with replacing_inside(out) as folder:
        model.cpu().eval().save_pretrained(folder)
        processor_of(model.config).save_pretrained(folder)
        write_json(folder / FACTS, {**facts, **provenance("sfvlm", "torch", "transformers")})


class _Run:
    """A model in training: everything that a step changes and a checkpoint keeps."""

    def __init__(
        self,
        model: SparseFormerForSemanticSegmentation,
        options: SegmentationOptions,
        device: torch.device,
        out: Path,
        facts: dict[str, Any],
    ) -> None:
        self.options, self.device, self.config, self.step = options, device, model.config, 0
        self.model, groups = tuned(model, options)
        self.model.to(device)
        self.trained = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        self.optimizer = torch.optim.AdamW(groups, weight_decay=options.weight_decay)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.metrics, self.skips = MetricsLog(out / METRICS), SkipLog(out / SKIPPED)
        self.rate = Rate(options.batch_size, 0)
        self.folder = out / CHECKPOINTS
        self.fingerprint = {**options.fingerprint(), **facts, "classes": list(label_names(model.config))}
        self._seen: dict[tuple[int, int], Tensor] = {}  # maps of the views that a frozen tower has seen

    @property
    def inner(self) -> SparseFormerForSemanticSegmentation:
        """The model itself, within LoRA or without."""
        return getattr(getattr(self.model, "base_model", None), "model", self.model)  # type: ignore[return-value]

    def __call__(self, batch: Batch) -> float:
        """One step; its loss."""
        inner, options = self.inner, self.options
        self.skips.add(batch.skipped)
        inner.head.train()
        labels = batch.labels.to(self.device)
        dense = self._maps(batch)
        loss = segmentation_loss(inner.head(dense), labels, self.config.semantic_loss_ignore_index)
        self.optimizer.zero_grad()
        loss.backward()
        rate = rate_at(self.step, options)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * rate
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        value = float(loss.detach())
        if not (torch.isfinite(norm) and math.isfinite(value)):
            raise ValueError(f"The loss of step {self.step} is {value}: lower --training.learning-rate.")
        self.optimizer.step()
        self.step += 1
        if self.step % options.log_every == 0 or self.step == options.steps:
            speed = self.rate.at(self.step)
            self.metrics.add({"step": self.step, "loss": value, "rate": rate * self.peaks[0], "photos_a_second": speed})
        return value

    def _maps(self, batch: Batch) -> Tensor:
        """(B, D, h, w) of a batch; of a frozen tower in 16 bits, and from memory where it has seen the view before."""
        options = self.options
        if not options.caches:
            with nullcontext() if options.tune != "head" else torch.no_grad():
                return self._encode(batch.pixels)
        missing = [number for number, name in enumerate(batch.names) if name not in self._seen]
        if missing:
            with torch.no_grad():
                found = self._encode(batch.pixels[missing]).half().cpu()
            self._seen |= {batch.names[number]: each for number, each in zip(missing, found, strict=True)}
        return torch.stack([self._seen[name] for name in batch.names]).to(self.device).float()

    def _encode(self, pixels: Tensor) -> Tensor:
        seen = normalized(pixels.to(self.device), self.config)
        cast: AbstractContextManager[Any] = nullcontext()
        if self.options.precision == "bf16":
            cast = torch.autocast(self.device.type, torch.bfloat16)
        with cast:
            return self.inner.features(seen).float()

    def finished(self) -> SparseFormerForSemanticSegmentation:
        """A copy as it is now, what LoRA learned merged in."""
        model: Any = copy.deepcopy(self.model)
        merged = model.merge_and_unload() if self.options.tune == "lora" else model
        return merged.eval()

    def save(self) -> None:
        """A checkpoint of where it is: what learns, and the head's statistics."""
        tensors = {"trained": dict(self.trained), "head": self.inner.head.state_dict()}
        optimizer = {"optimizer": self.optimizer.state_dict()}
        state = {"fingerprint": self.fingerprint}
        save_checkpoint(self.folder, self.step, tensors, optimizer, state, self.options.keep_checkpoints)

    def take_up(self) -> None:
        """Goes to where the newest checkpoint is; without any, it stays before its first step.

        Raises:
            ValueError: The checkpoint is damaged, or of a run with other settings.
        """
        found = list_checkpoints(self.folder)
        if found:
            tensors, optimizer, state = load_checkpoint(found[-1], self.device)
            if changes := differences(state["fingerprint"], self.fingerprint):
                raise ValueError(f"{found[-1]} was made with other settings ({changes}); give the same ones to resume.")
            with torch.no_grad():
                for name, parameter in self.trained.items():
                    parameter.copy_(tensors["trained"][name])
            self.inner.head.load_state_dict(tensors["head"])
            self.optimizer.load_state_dict(optimizer["optimizer"])
            self.step = int(state["step"])
        self.metrics.rewind(self.step)
        self.rate.restart(self.step)


def tuned(
    model: SparseFormerForSemanticSegmentation, options: SegmentationOptions
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The model with gradients where it shall learn, within LoRA where that is asked for; and its parameters by rate."""
    generator = torch.Generator().manual_seed(options.seed)
    with torch.no_grad():
        model.head.classifier.weight.copy_(torch.randn(model.head.classifier.weight.shape, generator=generator) * 0.01)
    model.requires_grad_(options.tune == "all")
    wrapped: nn.Module = model
    if options.tune == "lora":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=options.lora_rank, lora_alpha=options.lora_rank, target_modules=PARTS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            wrapped = get_peft_model(model, config)  # type: ignore[arg-type]
    model.head.requires_grad_(True)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            own = options.tune == "all" and "head.norm" not in name and "head.classifier" not in name
            groups.setdefault(options.tower_learning_rate if own else options.learning_rate, []).append(parameter)
    return wrapped, [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]


def _measured(
    model: SparseFormerForSemanticSegmentation, val: MaskedPhotos, batch_size: int, device: torch.device
) -> dict[str, float]:
    model.to(device)  # type: ignore[arg-type]
    candidate = Candidate("model", "", lambda pixels: model(pixels).logits, model.config.sparse)
    found = evaluate([candidate], val, label_names(model.config), batch_size=batch_size, device=device, show=False)
    wanted = ("miou", "miou_low", "miou_high", "mean_accuracy", "accuracy", "photos", "classes_averaged")
    return {name: found.rows[0]["metrics"][name] for name in wanted}


def _check_folder(out: Path, resume: bool) -> None:
    """Raises ValueError unless a run may begin in the folder, or go on in it."""
    begun = (out / METRICS).exists() or bool(list_checkpoints(out / CHECKPOINTS))
    if begun and not resume:
        raise ValueError(f"{out} holds a run already; continue it with --resume, or give another folder.")
    if not begun and (out / "config.json").exists():
        raise ValueError(f"{out} holds a model, and no run that made it: give another folder.")


def class_names(given: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """The classes' names: as they are given, or by number.

    Raises:
        ValueError: Fewer are named than the masks show.
    """
    if given is None:
        return tuple(f"class {number}" for number in range(count))
    if len(given) < count:
        raise ValueError(f"The masks show {count} classes, and {len(given)} are named: name all of them, or none.")
    return tuple(given)
