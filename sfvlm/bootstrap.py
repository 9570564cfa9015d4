"""The training loop: a student learns to say what its teacher says, from unlabelled photos.

A step depends on (options, step number) alone: views are seeded by photo and epoch, batches by step, rates by step, and the
student has no dropout. So a run that was killed and resumed from its last checkpoint ends on the same bits as one that was not.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from . import roi
from .alignment import Objective, Target, align
from .checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from .export import export_student
from .images import Photos
from .inherit import InheritanceReport, TuneMethod, is_fresh
from .sparseformer import SparseFormerModel, SparseFormerOutput
from .teacher_cache import TeacherCache
from .teachers import Teacher
from .views import EpochSampler, Selection, SkipLog, ViewBatch, ViewDataset, collate_views, normalize, shard_indices


@dataclass(frozen=True)
class BootstrapOptions:
    """How a student is trained."""

    steps: int = 2000
    """Optimizer steps."""
    batch_size: int = 32
    """Photos a step, over all processes."""
    learning_rate: float = 1e-4
    """Peak rate of inherited weights."""
    fresh_learning_rate: float = 1e-3
    """Peak rate of fresh weights."""
    box_learning_rate: float = 1e-3
    """Peak rate of the boxes every photo starts from."""
    weight_decay: float = 0.05
    """AdamW's, on matrices only."""
    warmup: float = 0.05
    """Share of the steps over which rates rise; then they fall along a cosine."""
    clip_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""
    ema_decay: float = 0.0
    """Decay of the averaged weights that are evaluated and exported instead; 0 for none."""
    tune: TuneMethod = "full"
    """How inherited blocks are tuned: in full, or by LoRA (merged on export)."""
    lora_rank: int = 16
    """Rank of the LoRA updates."""
    objective: Objective = field(default_factory=Objective)
    """What is matched."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Share of a photo's area a training view shows."""
    cached_views: int = 0
    """Views a photo has in all; their pooled teacher outputs are kept on disk. 0: a new view every epoch, no cache."""
    teacher_cache: Path | None = None
    """Folder of that cache, OUT/teacher-cache by default. Runs with the same teacher, photos and seed may share it."""
    held_back: int = 256
    """Photos never trained on, for the evaluation during the run (a tenth at most)."""
    eval_every: int = 250
    """Steps between evaluations on them; 0 for the end only."""
    save_every: int = 250
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """How many to keep."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Automatic mixed precision."""
    compile: bool = False
    """torch.compile the student and the teacher."""
    workers: int = 1
    """Processes that decode photos."""
    seed: int = 0
    """Of views and order."""
    report_to: Literal["none", "tensorboard", "wandb"] = "none"
    """Also log there."""
    cpu: bool = False
    """Stay on the CPU though there is an accelerator."""


class NonFiniteLoss(ValueError):
    """The loss was not a number: the run stopped before the step that would have spoilt the weights."""


def bootstrap(
    teacher: Teacher,
    student: SparseFormerModel,
    report: InheritanceReport,
    photos: Photos,
    out: Path,
    options: BootstrapOptions,
    *,
    resume: bool = False,
    stop_after: int | None = None,
) -> dict[str, float]:
    """Trains `student` towards `teacher` on `photos` and writes the finished model to the folder `out`.

    Args:
        teacher, student, report: From `open_teacher` and `inherit`.
        photos: From `open_photos`.
        out: Receives the model, `metrics.jsonl`, `skipped.jsonl`, `inheritance.json`, `bootstrap.json`, a model card, and
            `checkpoints/` along the way.
        options: See `BootstrapOptions`.
        resume: Continue from the newest checkpoint in `out`.
        stop_after: Stop there as if interrupted, with a checkpoint (schedules still aim at `options.steps`).

    Returns:
        The last evaluation on the held-back photos.

    Raises:
        NonFiniteLoss: With the step and the photos of the batch; the last good checkpoint stays.
        ValueError: Options and checkpoint disagree, or nothing can be read.
        KeyboardInterrupt: After a checkpoint was saved.
    """
    run = _Run(teacher, student, report, photos, out, options)
    if resume:
        run.resume()
    elif run.metrics_path.exists() and run.is_main:
        raise ValueError(f"{out} holds a run already; continue it with --resume, or give another folder.")
    run.accelerator.wait_for_everyone()
    return run.train(min(options.steps, stop_after or options.steps))


def rate_at(step: int, options: BootstrapOptions) -> float:
    """The factor on all peak rates at a step (counted from 0): linear warm-up, then a half cosine to zero."""
    warm = max(1, round(options.warmup * options.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, options.steps - warm)))


class _Run:
    """One training run: its parts, and where it is."""

    def __init__(
        self,
        teacher: Teacher,
        student: SparseFormerModel,
        report: InheritanceReport,
        photos: Photos,
        out: Path,
        options: BootstrapOptions,
    ) -> None:
        self.teacher, self.report, self.photos, self.out, self.options = teacher, report, photos, out, options
        self.config = student.config
        out.mkdir(parents=True, exist_ok=True)
        self.metrics_path = out / "metrics.jsonl"
        self.accelerator = Accelerator(
            mixed_precision=options.precision,
            cpu=options.cpu,
            log_with=None if options.report_to == "none" else options.report_to,
            project_dir=out,
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        world = self.accelerator.num_processes
        if options.batch_size % world:
            raise ValueError(f"batch_size {options.batch_size} is not a multiple of the {world} processes.")
        self.training_photos, self.held_back = _split(photos, options)
        self.skips = SkipLog(out / "skipped.jsonl") if self.is_main else None

        trainable = _with_lora(student, options) if options.tune == "lora" else student
        optimizer = torch.optim.AdamW(_parameter_groups(trainable, self.config.focusing, options), betas=(0.9, 0.98))
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.plain: nn.Module = trainable.to(self.device)
        self.ema = _average(self.plain, options) if options.ema_decay else None
        compiled = torch.compile(self.plain) if options.compile else self.plain
        self.model, self.optimizer = self.accelerator.prepare(compiled, optimizer)
        dense = teacher.model.to(self.device)
        self.dense: nn.Module = torch.compile(dense) if options.compile else dense  # type: ignore[assignment]
        self.cache = self._open_cache()
        self.step = 0

    def train(self, until: int) -> dict[str, float]:
        options = self.options
        if options.report_to != "none":
            self.accelerator.init_trackers("sfvlm", config=_plain(asdict(options)))
        bar = tqdm(total=options.steps, initial=self.step, unit="step", disable=not self.is_main, smoothing=0.05)
        started, window = time.perf_counter(), time.perf_counter()
        result: dict[str, float] = {}
        try:
            for batch in self._batches():
                if self.step >= until:
                    break
                parts, output = self._train_step(batch)
                if self.step % options.log_every == 0 or self.step == options.steps:
                    photos_a_second = options.batch_size * options.log_every / (time.perf_counter() - window)
                    window = time.perf_counter()
                    self._log(parts, output, photos_a_second, bar)
                bar.update()
                if options.eval_every and self.step % options.eval_every == 0 and self.step < options.steps:
                    result = self._evaluate()
                    window = time.perf_counter()
                if self.step % options.save_every == 0 or self.step == until:
                    self._save()
        except KeyboardInterrupt:
            self._save()
            raise
        finally:
            bar.close()
        if self.step >= options.steps:
            result = self._evaluate()
            if self.is_main:
                self._export(result, time.perf_counter() - started)
        self.accelerator.wait_for_everyone()
        if options.report_to != "none":
            self.accelerator.end_training()
        return result

    def _train_step(self, batch: ViewBatch) -> tuple[dict[str, Tensor], SparseFormerOutput]:
        options = self.options
        factor = rate_at(self.step, options)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        pixels = self._pixels(batch)
        target = self._target(batch, pixels)
        self.model.train()
        with self.accelerator.autocast():
            output = self.model(pixels, output_hidden_states=bool(options.objective.tokens))
            loss, parts = align(output, target, options.objective)
        finite = self.accelerator.reduce(torch.isfinite(loss.detach()).float(), "min")
        if not finite:
            keys = ", ".join(self.training_photos.key(int(index)) for index in batch["index"][:4])
            raise NonFiniteLoss(
                f"The loss is {loss.item()} at step {self.step + 1} (photos {keys}, ...). "
                f"The last good checkpoint is in {self.out / 'checkpoints'}; lower the rates and resume."
            )
        self.accelerator.backward(loss)
        if options.clip_grad_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), options.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.plain, self.step)
        return parts | {"loss": loss.detach()}, output

    def _batches(self) -> Iterator[ViewBatch]:
        options, world = self.options, self.accelerator.num_processes
        views = ViewDataset(
            self.training_photos,
            self.config.image_size,
            training=True,
            seed=options.seed,
            num_views=options.cached_views or None,
            scale=options.crop_scale,
        )
        rank = self.accelerator.process_index
        sampler = EpochSampler(len(views), options.batch_size // world, options.seed, rank, world, start_step=self.step)
        loader = DataLoader(
            views,
            batch_sampler=sampler,
            collate_fn=collate_views,
            num_workers=options.workers,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if options.workers else None,
        )
        for batch in loader:
            if batch["skipped"] and self.skips is not None:
                self.skips.add(batch["skipped"])
            yield batch

    def _pixels(self, batch: ViewBatch) -> Tensor:
        pixels = batch["pixels"].to(self.device, non_blocking=True)
        return normalize(pixels, self.config.image_mean, self.config.image_std)

    @torch.no_grad()
    def _target(self, batch: ViewBatch, pixels: Tensor) -> Target:
        cached = self.cache.get(batch["view"], batch["index"]) if self.cache else None
        if cached is not None:
            return Target(cached.to(self.device))
        with self.accelerator.autocast():
            output = self.dense(pixels)
        if self.cache:
            self.cache.put(batch["view"], batch["index"], output.pooled)
        objective = self.options.objective
        patches = self.config.teacher_grid**2
        return Target(output.pooled, output.hidden_states[objective.layer][:, -patches:] if objective.tokens else None)

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        """Cosine, agreement of the classifier's first choice, and box statistics on the held-back photos."""
        student = self._averaged()
        student.eval()
        views = ViewDataset(self.held_back, self.config.image_size, training=False, seed=0)
        cosines, agree, boxes = [], [], []
        batch: list[Any] = []
        indices = shard_indices(len(views), self.accelerator.process_index, self.accelerator.num_processes)
        for number, index in enumerate(indices):
            batch.append(views[0, index])
            if len(batch) < 32 and number + 1 < len(indices):
                continue
            collated = collate_views(batch)
            batch = []
            if self.skips is not None:
                self.skips.add(collated["skipped"])
            pixels = self._pixels(collated)
            with self.accelerator.autocast():
                ours, theirs = student(pixels), self.dense(pixels)
            cosines.append(F.cosine_similarity(ours.pooler_output.float(), theirs.pooled.float(), dim=-1))
            if theirs.logits is not None:
                agree.append((ours.logits.argmax(-1) == theirs.logits.argmax(-1)).float())
            boxes.append(ours.token_rois[-1])
        result = {"cosine": self._mean(cosines)}
        if agree:
            result["agreement"] = self._mean(agree)
        result |= {f"box_{name}": value for name, value in roi.spread(torch.cat(boxes)).items()} if boxes else {}
        self._write({"step": self.step} | {f"eval_{name}": value for name, value in result.items()})
        return result

    def _mean(self, values: list[Tensor]) -> float:
        joined = torch.cat(values) if values else torch.zeros(0, device=self.device)
        total = torch.tensor([joined.sum().item(), len(joined)], device=self.device)
        total = self.accelerator.reduce(total, "sum")
        return (total[0] / total[1]).item()

    def _averaged(self) -> nn.Module:
        return self.plain if self.ema is None else self.ema.module

    def _log(self, parts: dict[str, Tensor], output: SparseFormerOutput, photos_a_second: float, bar: tqdm) -> None:
        assert output.token_rois is not None
        mean = {name: self.accelerator.reduce(value, "mean").item() for name, value in parts.items()}  # type: ignore[union-attr]
        boxes = {f"box_{name}": value for name, value in roi.spread(output.token_rois[-1]).items()}
        rate = {"rate": self.peaks[0] * rate_at(self.step - 1, self.options)}
        self._write({"step": self.step} | mean | boxes | rate | {"photos_a_second": photos_a_second})
        bar.set_postfix(loss=f"{mean['loss']:.4f}", box=f"{boxes['box_size']:.3f}", photos_s=f"{photos_a_second:.0f}")

    def _write(self, values: dict[str, float]) -> None:
        if not self.is_main:
            return
        with self.metrics_path.open("a") as file:
            file.write(json.dumps({name: _rounded(value) for name, value in values.items()}) + "\n")
        if self.options.report_to != "none":
            self.accelerator.log({key: value for key, value in values.items() if key != "step"}, step=self.step)

    def _save(self) -> None:
        self.accelerator.wait_for_everyone()
        if not self.is_main:
            return
        tensors = {"student": self.plain.state_dict()}
        if self.ema is not None:
            tensors["averaged"] = self.ema.module.state_dict()
        optimizer: dict[str, Any] = {"optimizer": self.optimizer.state_dict()}
        if self.accelerator.scaler is not None:
            optimizer["scaler"] = self.accelerator.scaler.state_dict()
        state = {"fingerprint": self._fingerprint()}
        save_checkpoint(self.out / "checkpoints", self.step, tensors, optimizer, state, self.options.keep_checkpoints)

    def resume(self) -> None:
        """Takes up the newest checkpoint; without any, the run starts anew.

        Raises:
            ValueError: The checkpoint was made with other options, teacher or photos; the differing entries are named.
        """
        checkpoints = list_checkpoints(self.out / "checkpoints")
        self.step = 0
        if checkpoints:
            tensors, optimizer, state = load_checkpoint(checkpoints[-1], self.device)
            now, then = self._fingerprint(), state["fingerprint"]
            different = [name for name in now if then.get(name) != now[name]]
            if different:
                changes = ", ".join(f"{name}: {then.get(name)} then, {now[name]} now" for name in different)
                raise ValueError(
                    f"{checkpoints[-1]} was made with other settings ({changes}); give the same ones to resume."
                )
            self.plain.load_state_dict(tensors["student"])
            if self.ema is not None:
                self.ema.module.load_state_dict(tensors["averaged"])
            self.optimizer.load_state_dict(optimizer["optimizer"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(optimizer["scaler"])
            self.step = state["step"]
        if self.is_main:
            _truncate_metrics(self.metrics_path, self.step)

    def _fingerprint(self) -> dict[str, Any]:
        """What must agree for a resumed run to end where an uninterrupted one would."""
        free = (
            "eval_every",
            "save_every",
            "keep_checkpoints",
            "log_every",
            "workers",
            "report_to",
            "cpu",
            "teacher_cache",
        )
        options = {name: value for name, value in _plain(asdict(self.options)).items() if name not in free}
        return options | {
            "teacher_sha256": self.teacher.sha256,
            "photos": len(self.photos),
            "num_tokens": self.config.num_tokens,
            "focusing": self.config.focusing,
        }

    def _open_cache(self) -> TeacherCache | None:
        options = self.options
        if not options.cached_views:
            return None
        if options.objective.tokens:
            raise ValueError("cached_views keeps pooled outputs only; token objectives need cached_views 0.")
        key = {
            "teacher_sha256": self.teacher.sha256,
            "photos": len(self.training_photos),
            "first": self.training_photos.key(0),
            "last": self.training_photos.key(len(self.training_photos) - 1),
            "seed": options.seed,
            "crop_scale": options.crop_scale,
            "image_size": self.config.image_size,
            "precision": options.precision,
        }
        folder = options.teacher_cache or self.out / "teacher-cache"
        with self.accelerator.main_process_first():
            return TeacherCache(
                folder, key, options.cached_views, len(self.training_photos), self.config.embedding_size
            )

    def _export(self, result: dict[str, float], seconds: float) -> None:
        model = self._averaged()
        if self.options.tune == "lora":
            import copy

            model = copy.deepcopy(model).merge_and_unload()  # type: ignore[operator]
        assert isinstance(model, SparseFormerModel)
        facts = {
            "teacher": self.teacher.source,
            "teacher_sha256": self.teacher.sha256,
            "photos": list(self.photos.origins),
            "photos_read": len(self.photos),
            "photos_held_back": len(self.held_back),
            "photos_skipped": self.skips.count if self.skips else 0,
            "photos_seen": self.step * self.options.batch_size,
            "seconds_of_last_run": round(seconds, 1),
            "device": str(self.device),
            "processes": self.accelerator.num_processes,
            "options": _plain(asdict(self.options)),
            "held_back_evaluation": {name: _rounded(value) for name, value in result.items()},
        }
        export_student(model, self.out, self.report, facts)


def _split(photos: Photos, options: BootstrapOptions) -> tuple[Selection, Selection]:
    """Training photos and held-back ones, by a permutation of the seed."""
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(options.seed)).tolist()
    count = min(options.held_back, len(photos) // 10)
    held_back = order[:count] or order[:1]  # with fewer than ten photos, the evaluation looks at a trained one
    return Selection(photos, sorted(order[count:])), Selection(photos, sorted(held_back))


def _parameter_groups(model: nn.Module, focusing: str, options: BootstrapOptions) -> list[dict[str, Any]]:
    """Three rates (boxes, fresh, inherited), each with and without weight decay; empty groups left out."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name = name.removeprefix("base_model.model.")
        if name.endswith("token_roi.weight"):
            rate, decay = options.box_learning_rate, 0.0
        else:
            rate = options.fresh_learning_rate if is_fresh(name, focusing) or "lora_" in name else options.learning_rate
            decay = options.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()]


def _with_lora(student: SparseFormerModel, options: BootstrapOptions) -> nn.Module:
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


def _average(model: nn.Module, options: BootstrapOptions) -> Any:
    from timm.utils.model_ema import ModelEmaV3

    return ModelEmaV3(model, decay=options.ema_decay, use_warmup=True)


def _truncate_metrics(path: Path, step: int) -> None:
    """Drops the lines of steps that a resumed run will do again."""
    if path.exists():
        lines = [
            line for line in path.read_text().splitlines() if line.endswith("}") and json.loads(line)["step"] <= step
        ]
        path.write_text("".join(f"{line}\n" for line in lines))


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(options, default=str))


def _rounded(value: float) -> float:
    return float(f"{value:.6g}") if isinstance(value, float) else value
