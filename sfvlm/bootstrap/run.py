"""The training loop: a student learns to say what its teacher says, from unlabelled photos.

A step depends on (options, step number) alone: views are seeded by photo and epoch, batches by step, rates by step, and the
student has no dropout. So on a CPU a run that was killed and resumed from its last checkpoint ends on the same bits as one that
was not. On a GPU gradients of sampling and resizing are added in any order, and it ends near them.
"""

import json
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, gather_object
from torch import Tensor, nn
from tqdm import tqdm

from ..encoder import roi
from ..encoder.accelerate import compile_forms
from ..encoder.configuration import CHOICE
from ..encoder.sparseformer import SparseFormerModel, SparseFormerOutput
from ..hosts.facts import read_host
from ..hosts.host import Host
from ..hosts.reader import HostReader
from ..photos.sources import Photos
from ..photos.views import (
    EpochSampler,
    SkipLog,
    ViewBatch,
    ViewDataset,
    collate_views,
    normalize,
    shard_indices,
    view_loader,
    view_settings,
)
from ..teachers.inherit import InheritanceReport
from ..teachers.open import Teacher
from ..util.console import say
from ..util.files import make_folder
from .alignment import Target, align, selected
from .checkpoints import (
    differences,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    uninterrupted,
)
from .export import export_student
from .host_texts import Conversations, Interview, read_prompts
from .metrics_log import MetricsLog, Rate, rounded
from .optimization import freeze_unread, parameter_groups, rate_at, running_average, with_lora, without_lora
from .options import BootstrapOptions
from .photos import split_photos
from .targets import TeacherTargets, open_cache

METRICS = "metrics.jsonl"
SKIPPED = "skipped.jsonl"
# What a resumed run must have been begun with, of the student's configuration.
ARCHITECTURE = (
    "image_size",
    "num_hidden_layers",
    "coarse_blocks",
    "glimpse_size",
    "box_zoom",
    "proportional_attention",
)


class NonFiniteLoss(ValueError):
    """The loss or its gradient was not a number: the run stopped before the step that would have spoilt the weights."""


def bootstrap(
    teacher: Teacher,
    student: SparseFormerModel,
    report: InheritanceReport,
    photos: Photos,
    out: Path,
    options: BootstrapOptions,
    *,
    host: Host | None = None,
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
        host: The LLaVA that shall read the student's tokens, where the objective needs one; its tower is the teacher.
        resume: Continue from the newest checkpoint in `out`.
        stop_after: Stop there as if interrupted, with a checkpoint (schedules still aim at `options.steps`).

    Returns:
        The last evaluation on the held-back photos.

    Raises:
        NonFiniteLoss: With the step and the photos of the batch; the last good checkpoint stays.
        ValueError: Options and checkpoint disagree, `out` holds a run that is not to be resumed or another model, or nothing can
            be read.
        KeyboardInterrupt: After a checkpoint was saved.
    """
    begun = (out / METRICS).exists() or bool(list_checkpoints(out / "checkpoints"))
    if begun and not resume:
        raise ValueError(f"{out} holds a run already; continue it with --resume, or give another folder.")
    if not begun and (out / "config.json").exists():
        raise ValueError(f"{out} holds a model, and no run that made it: give another folder.")
    run = _Run(teacher, student, report, photos, out, options, host)
    if resume:
        run.resume()
    run.accelerator.wait_for_everyone()
    return run.train(min(options.steps, stop_after or options.steps))


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
        host: Host | None,
    ) -> None:
        self.teacher, self.report, self.out, self.options = teacher, report, out, options
        self.config = student.config
        options.check(self.config)
        self.objective = options.objective.from_end(teacher.config.num_hidden_layers, self.config.num_hidden_layers)
        self._freeze_unread(student, host)
        self.trained = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
        make_folder(out)
        self.metrics = MetricsLog(out / METRICS)
        self.accelerator = Accelerator(
            mixed_precision=options.precision,
            cpu=options.cpu,
            log_with=None if options.report_to == "none" else options.report_to,
            project_dir=out,
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=self._sees_all_patches()),
                InitProcessGroupKwargs(timeout=timedelta(days=7)),  # the others wait while the first one asks a host
            ],
        )
        if options.report_to != "none" and not self.accelerator.log_with:
            raise ValueError(f"report_to is {options.report_to!r}, which is not installed: pip install 'sfvlm[log]'.")
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        world = self.accelerator.num_processes
        if options.batch_size % world:
            raise ValueError(f"batch_size {options.batch_size} is not a multiple of the {world} processes.")
        self.at_once = options.batch_size // world  # photos that a device has memory for
        self.photos = split_photos(photos, options, for_host=host is not None)
        for remark in self.photos.remarks:
            say(remark)
        self.skips = SkipLog(out / SKIPPED) if self.is_main else None
        self.untold: list[Mapping[str, str]] = []  # photos passed over here, which the first process does not know yet

        trainable = with_lora(student, options) if options.tune == "lora" else student
        optimizer = torch.optim.AdamW(parameter_groups(trainable, self.config.focusing, options), betas=(0.9, 0.98))
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.plain: nn.Module = trainable.to(self.device)
        self.ema = running_average(self.plain, options) if options.ema_decay else None
        compiled = compile_forms(self.plain) if options.compile else self.plain
        self.model, self.optimizer = self.accelerator.prepare(compiled, optimizer)
        dense = teacher.model.to(self.device)
        self.dense: nn.Module = compile_forms(dense) if options.compile else dense
        with self.accelerator.main_process_first():
            cache = open_cache(out / "teacher-cache", teacher.sha256, self.photos.trained, self.config, options)
        self.host_source = None if host is None else host.source
        self.host, self.asked = self._open_host(host)
        self.targets = TeacherTargets(self.dense, self.config, self.objective, cache, self.host)
        self.step = 0
        self.interrupts: list[int] = []  # of this process, where several have to stop at the same step

    def _freeze_unread(self, student: SparseFormerModel, host: Host | None) -> None:
        """Freezes what the objective does not reach; the report says so, unless an earlier run has trained it."""
        layers = [self.objective.layer] if self.objective.tokens else []
        if self.objective.needs_host and host is not None:
            layers += read_host(host.model.config, host.processor).layers
        frozen = freeze_unread(student, self.objective, layers)
        if self.report.earlier is None:
            rows = tuple(row._replace(trained=row.trained and row.student not in frozen) for row in self.report.rows)
            self.report = replace(self.report, rows=rows)

    def _sees_all_patches(self) -> bool:
        """Whether all blocks do at some budget: proportional attention then has nothing to add, and gets no gradient."""
        config = self.config
        if config.focusing != "chosen" or not config.proportional_attention:
            return False
        keeps_context = config.context_blocks == config.num_hidden_layers
        budgets = self.options.budgets or (config.budget,)
        seen = max(budget + keeps_context * config.context_size(budget) for budget in budgets)
        return seen == config.teacher_grid**2

    def _open_host(self, host: Host | None) -> tuple[HostReader | None, dict[str, Conversations]]:
        """The host as a reader, and what it says of the photos: by "train" and "held_back"."""
        options = self.options
        if not options.objective.needs_host:
            return None, {}
        if host is None:
            raise ValueError("The objectives projected and answers need a host: give --host.")
        reader = HostReader(host.model, host.processor).to(self.device)
        self.config.aligned_layers = list(reader.facts.layers)
        given = read_prompts(options.host_prompts) if options.host_prompts else ()
        interview = Interview(
            reader, host.processor, host.fingerprint, self.teacher.model, options.host_turns, options.seed, given,
            at_once=min(Interview.at_once, self.at_once),
        )  # fmt: skip
        asked = {}
        for name, photos in (("train", self.photos.training), ("held_back", self.photos.held_back)):
            with self.accelerator.main_process_first():
                turns = interview.answers(photos, self.out / f"answers.{name}.jsonl")
            asked[name] = Conversations(host.processor, turns, options.seed)
        return reader, asked

    def train(self, until: int) -> dict[str, float]:
        options = self.options
        if options.report_to != "none":
            kept = options.to_dict()
            plain = {
                name: value if isinstance(value, int | float | str) else json.dumps(value)
                for name, value in kept.items()
            }
            self.accelerator.init_trackers("sfvlm", config=plain)
        bar = tqdm(total=options.steps, initial=self.step, unit="step", disable=not self.is_main, smoothing=0.05)
        started, rate = time.perf_counter(), Rate(options.batch_size, self.step)
        result: dict[str, float] = {}
        try:
            with self._awaiting_interrupts() as self.interrupts:
                for batch in self._batches():
                    if self.step >= until:
                        break
                    parts, output = self._train_step(batch)
                    if self.step % options.log_every == 0 or self.step == options.steps:
                        self._log(parts, output, rate.at(self.step), bar)
                    bar.update()
                    if options.eval_every and self.step % options.eval_every == 0 and self.step < options.steps:
                        result = self._evaluate()
                        rate.restart(self.step)
                    if self.step % options.save_every == 0 or self.step == until:
                        self._save()
        except KeyboardInterrupt:
            with uninterrupted():  # a second one would lose what the first one saves
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

    def _awaiting_interrupts(self) -> AbstractContextManager[list[int]]:
        """One process stops at once; several agree on a step first, as each waits for the others inside of one."""
        return uninterrupted() if self.accelerator.num_processes > 1 else nullcontext([])

    def _train_step(self, batch: ViewBatch) -> tuple[dict[str, Tensor], SparseFormerOutput]:
        options = self.options
        factor = rate_at(self.step, options)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        pixels = self._pixels(batch)
        self.model.train()
        with self.accelerator.autocast():
            target = self.targets(batch, pixels, self.asked.get("train"))
            wants_tokens = bool(self.objective.tokens or self.host)
            output = self.model(pixels, self._budget(), output_hidden_states=wants_tokens)
            loss, parts = align(output, target, self.objective, self.host)
        broken, interrupted = self._anywhere(not torch.isfinite(loss.detach()), bool(self.interrupts))
        if broken:
            raise self._no_number("loss", loss, batch)
        if interrupted:
            raise KeyboardInterrupt
        self.accelerator.backward(loss)
        norm: Any = self.accelerator.clip_grad_norm_(self.model.parameters(), options.clip_grad_norm or math.inf)
        if self.accelerator.scaler is None and not torch.isfinite(norm):  # a scaler leaves such steps out
            raise self._no_number("gradient's norm", norm, batch)
        with uninterrupted():  # weights, their average and the step's number change together
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            if self.ema is not None:
                self.ema.update(self.plain, self.step)
        return parts | {"loss": loss.detach()}, output

    def _anywhere(self, *said: bool) -> list[bool]:
        """Whether any process says so, of several things."""
        flags = torch.tensor(said, device=self.device).float()
        counts: Any = self.accelerator.reduce(flags, "sum")  # it knows no maximum
        return [count > 0 for count in counts.tolist()]

    def _no_number(self, what: str, value: Tensor, batch: ViewBatch) -> NonFiniteLoss:
        keys = ", ".join(self.photos.training.key(int(index)) for index in batch["index"][:4])
        return NonFiniteLoss(
            f"The {what} is {value.item()} at step {self.step + 1} (photos {keys}, ...). The last good checkpoint stays in "
            f"{self.out / 'checkpoints'}; begin again with lower rates, in another folder."
        )

    def _budget(self) -> int | None:
        """This step's budget, the same on all ranks; None for the student's own."""
        budgets = self.options.budgets
        return random.Random(f"{self.options.seed} {self.step}").choice(budgets) if budgets else None

    def _batches(self) -> Iterator[ViewBatch]:
        options = self.options
        views = ViewDataset(
            self.photos.training,
            self.config.image_size,
            training=True,
            seed=options.seed,
            num_views=options.cached_views or None,
            scale=options.crop_scale,
            interpolation=view_settings(self.config)["interpolation"],
            pad=self._padding(),
        )
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        sampler = EpochSampler(len(views), self.at_once, options.seed, rank, world, start_step=self.step)
        for batch in view_loader(views, sampler, options.workers, pin_memory=self.device.type == "cuda"):
            self._note_skips(batch["skipped"])
            yield batch

    def _padding(self) -> tuple[float, ...] | None:
        """The colour of a host that pads its photos: bars are part of what its tower sees."""
        return None if self.host is None else self.host.facts.padding

    def _note_skips(self, skipped: Sequence[Mapping[str, str]]) -> None:
        """Photos that were passed over: the first process writes them down, the others keep them until they can tell it."""
        if self.skips is not None:
            self.skips.add(skipped)
        else:
            self.untold += skipped

    def _tell_skips(self) -> None:
        """On all processes at once: the first one writes down what the others kept."""
        told = gather_object(self.untold)
        self.untold = []
        if self.skips is not None:
            self.skips.add(told)

    def _pixels(self, batch: ViewBatch) -> Tensor:
        pixels = batch["pixels"].to(self.device, non_blocking=True)
        return normalize(pixels, self.config.image_mean, self.config.image_std)

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        """On the held-back photos: cosine, agreement of the classifier's first choice or of a host's words, box statistics."""
        student = self._averaged()
        student.eval()
        shown = view_settings(self.config)
        if self.host is not None:
            shown["squash"] = self.host.facts.squashes
        views = ViewDataset(
            self.photos.held_back,
            self.config.image_size,
            training=False,
            seed=0,
            **shown,
            pad=self._padding(),
        )
        cosines, agree, said, boxes = [], [], [], []
        batch: list[Any] = []
        indices = shard_indices(len(views), self.accelerator.process_index, self.accelerator.num_processes)
        for number, index in enumerate(indices):
            batch.append(views[0, index])
            if len(batch) < min(32, self.at_once) and number + 1 < len(indices):
                continue
            collated = collate_views(batch)
            batch = []
            self._note_skips(collated["skipped"])
            pixels = self._pixels(collated)
            with self.accelerator.autocast():
                ours, theirs = student(pixels, output_hidden_states=self.host is not None), self.dense(pixels)
                if self.host is not None:
                    said += self._same_words(ours, self.targets.of(theirs, collated, self.asked["held_back"]))
            cosines.append(F.cosine_similarity(ours.pooler_output.float(), theirs.pooled.float(), dim=-1))
            if theirs.logits is not None:
                agree.append((ours.logits.argmax(-1) == theirs.logits.argmax(-1)).float())
            boxes.append(ours.token_rois[-1])
        self._tell_skips()
        result = {"cosine": self._mean(cosines)}
        if self.config.num_classes:  # on every rank, also one without photos: the mean is a joint act
            result["agreement"] = self._mean(agree)
        if self.options.objective.answers:
            result["answer_agreement"] = self._mean(said)
        result |= {f"box_{name}": value for name, value in roi.spread(torch.cat(boxes)).items()} if boxes else {}
        self._write({"step": self.step} | {f"eval_{name}": value for name, value in result.items()})
        return result

    def _same_words(self, student: SparseFormerOutput, target: Target) -> list[Tensor]:
        """Whether the host's next word is the same from both towers, at each word of its answers (M,)."""
        if target.texts is None or target.logits is None:
            return []
        assert self.host is not None
        logits = self.host.next_token_logits(self.host.project(selected(student, self.host)), target.texts)
        return [(logits.argmax(-1) == target.logits.argmax(-1)).float()]

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
        self.metrics.add(values)
        if self.options.report_to != "none":
            self.accelerator.log({key: value for key, value in values.items() if key != "step"}, step=self.step)

    def _save(self) -> None:
        self.accelerator.wait_for_everyone()
        self._tell_skips()
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
            ValueError: The checkpoint was made with other options, teacher or photos, or on another kind or number of devices; the
                differing entries are named.
        """
        checkpoints = list_checkpoints(self.out / "checkpoints")
        self.step = 0
        if checkpoints:
            tensors, optimizer, state = load_checkpoint(checkpoints[-1], self.device)
            now = self._fingerprint()
            then = now | state["fingerprint"]  # older ones say less
            if changes := differences(then, now):
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
            self.metrics.rewind(self.step)

    def _fingerprint(self) -> dict[str, Any]:
        """What must agree for a resumed run to end where an uninterrupted one would."""
        return self.options.binding() | {
            "teacher_sha256": self.teacher.sha256,
            "num_tokens": self.config.num_tokens,
            "focusing": self.config.focusing,
            "host": self.host_source,
            "started_from": self.report.earlier,
            "trained_parameters": self.trained,
            "device": self.device.type,
            "processes": self.accelerator.num_processes,
            **self.photos.fingerprint,
            **{name: getattr(self.config, name) for name in ARCHITECTURE},
            **{name: getattr(self.config, name) for name in CHOICE if self.config.focusing == "chosen"},
        }

    def _export(self, result: dict[str, float], seconds: float) -> None:
        model = self._averaged()
        if self.options.tune == "lora":
            model = without_lora(model)
        assert isinstance(model, SparseFormerModel)
        model.config.aligned_layers = self.config.aligned_layers  # the average was copied before the host was opened
        facts = {
            "teacher": self.teacher.source,
            "teacher_sha256": self.teacher.sha256,
            "started_from": self.report.earlier,
            **self.photos.counts(),
            "photos_skipped": self.skips.count if self.skips else 0,
            "photos_seen": self.step * self.options.batch_size,
            "seconds_of_last_run": round(seconds, 1),
            "host": None if self.host is None else {"source": self.host_source, "layers": self.config.aligned_layers},
            "device": str(self.device),
            "processes": self.accelerator.num_processes,
            "options": self.options.to_dict(),
            "held_back_evaluation": rounded(result),
        }
        export_student(model, self.out, self.report, facts)
