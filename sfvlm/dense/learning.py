"""How a guide learns: to make the teacher's own map from what a frozen encoder saw. No labels.

    photos --views--> lessons in files --step--> other weights, a line in metrics.jsonl, every so often a checkpoint --> guide/

A step depends on (options, step number) alone, so on a CPU a run that was killed and resumed ends on the same bits as one that was
not. Everything that is written is whole or absent.
"""

import copy
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..encoder.sparseformer import SparseFormerModel
from ..photos.sources import Photos, names_hash
from ..photos.views import normalize
from ..teachers.open import Teacher
from ..util.console import say
from ..util.files import append_text, make_folder, replacing, replacing_inside
from ..util.tensors import tensor_hash
from .guide import GUIDE, Guide, GuideConfig
from .maps import as_map, nearness
from .options import GuideOptions
from .views import CHUNK, Lesson, chunk_budgets, make_lessons, read_lesson


def dense_error(scaled: Tensor, guide: Guide, teacher: Tensor) -> Tensor:
    """Mean squared error of a map in units of each feature's spread: 1 for one that says the same everywhere. -> scalar."""
    return F.mse_loss(scaled.float(), guide.scale(teacher.float()))


def train_guide(
    model: SparseFormerModel,
    teacher: Teacher,
    photos: Photos,
    out: Path,
    options: GuideOptions,
    guide_config: GuideConfig | None = None,
    *,
    earlier: Guide | None = None,
    resume: bool = False,
    stop_after: int | None = None,
) -> dict[str, float]:
    """Trains a guide for a frozen encoder and writes it to the folder `out`.

    Args:
        model: The encoder, which stays as it is.
        teacher: That it was made from.
        photos: Without labels.
        out: Receives `guide/`; `guide-training/`, with views, metrics and the checkpoint, goes when it is finished.
        options: See `GuideOptions`.
        guide_config: By default, `GuideConfig.of(model.config)`.
        earlier: A guide to go on from, which stays as it is; its configuration and its units count then.
        resume: Continue from the checkpoint in `out`.
        stop_after: Stop there as if interrupted, with a checkpoint.

    Returns:
        What the guide explains of the teacher's maps on views that it did not learn from, and what the nearest tokens do: 1 minus
        `dense_error`.

    Raises:
        ValueError: The teacher is not the encoder's, a run is there that is not to be resumed, or one of other options.
    """
    config = earlier.config if earlier is not None else guide_config or GuideConfig.of(model.config)
    if (
        teacher.config.hidden_size != model.config.hidden_size
        or teacher.config.teacher_grid != model.config.teacher_grid
    ):
        raise ValueError(
            f"The teacher {teacher.source} has {teacher.config.hidden_size} features on a grid of {teacher.config.teacher_grid}, and "
            f"the encoder {model.config.hidden_size} on {model.config.teacher_grid}: name the teacher that it was made from."
        )
    for budget in options.budgets:
        model.config.check_budget(budget)
    work = out / "guide-training"
    if (out / GUIDE / "config.json").exists():
        raise ValueError(f"{out / GUIDE} is there already: remove it, or give another folder.")
    if not resume and (work / "checkpoint.pt").exists():
        raise ValueError(f"{work} holds an unfinished run: continue it with --resume, or remove it.")
    make_folder(work)
    device = next(model.parameters()).device
    model.eval().requires_grad_(False)
    teacher.model.to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        guide = Guide(config)
    nn.Module.to(guide, device)  # transformers' own says of itself that it takes none
    budgets = chunk_budgets(options.views, options.budgets, model.config.budget)
    key = _key(model, teacher, photos, config, options)
    bar = tqdm(total=len(budgets) * CHUNK, desc="views", unit="view", disable=None)
    precision = torch.bfloat16 if options.bf16 else torch.float32
    make_lessons(
        photos,
        _in(precision, model),
        _in(precision, teacher.model),
        guide,
        budgets,
        work / "views",
        key=key,
        seed=options.seed,
        scale=options.crop_scale,
        report=lambda done: _advance(bar, done),
    )
    bar.close()
    lessons = [read_lesson(work / "views", number) for number in range(len(budgets))]
    held_back, training = lessons[-1], lessons[:-1]
    if earlier is None:
        guide.learn_scale(torch.cat([lesson.teacher for lesson in training[:8]]).to(device))
    else:
        guide.load_state_dict(earlier.state_dict())

    begun = None if earlier is None else tensor_hash(earlier.state_dict())
    optimizer = torch.optim.AdamW(_groups(guide, options.weight_decay), lr=options.learning_rate, betas=(0.9, 0.98))
    run = _Run(
        guide,
        optimizer,
        work,
        json.loads(json.dumps(asdict(options) | {"guide": config.to_diff_dict(), "started_from": begun} | key)),
    )
    start = run.take_up() if resume else 0
    last = min(options.steps, stop_after or options.steps)
    bar = tqdm(total=options.steps, initial=start, desc="guide", unit="step", disable=None)
    started = time.perf_counter()
    for step, lesson in _batches(training, options, start, last):
        loss = _step(guide, optimizer, lesson, model, options, step)
        bar.update()
        done = step + 1
        if done % 20 == 0 or done == last:
            bar.set_postfix(error=f"{loss:.4f}")
            append_text(work / "metrics.jsonl", json.dumps({"step": done, "error": round(loss, 5)}) + "\n")
        if done % options.save_every == 0 or done == last:
            run.save(done)
    bar.close()
    result = evaluate_guide(guide, held_back, model)
    say(f"explained of the teacher's map: {result['guided']:.3f} guided, {result['nearest']:.3f} by the nearest tokens")
    if last < options.steps:
        return result
    facts = {
        "teacher": teacher.source,
        "teacher_sha256": teacher.sha256,
        "encoder_sha256": key["encoder_sha256"],
        "started_from": begun,
        "photos": list(photos.origins),
        "options": asdict(options),
        "seconds_of_last_run": round(time.perf_counter() - started, 1),
        "explained": {name: round(value, 4) for name, value in result.items()},
    }
    save_guide(guide, out, facts, (work / "metrics.jsonl").read_text())
    shutil.rmtree(work)
    return result


@torch.no_grad()
def evaluate_guide(guide: Guide, lesson: Lesson, model: SparseFormerModel) -> dict[str, float]:
    """What a guide, and the nearest tokens alone, explain of the teacher's maps: 1 minus `dense_error`."""
    guided = nearest = 0.0
    parts = torch.arange(len(lesson.pixels)).split(32)
    guide.eval()
    for index in parts:
        batch = lesson.part(index)
        scaled, target = _scaled(guide, batch, model), batch.teacher.to(guide.device)
        size = (target.shape[-2], target.shape[-1])
        tokens, boxes = batch.seen.last_hidden_state, batch.seen.token_rois
        assert tokens is not None and boxes is not None
        alone = as_map(nearness(boxes[-1].to(guide.device), size) @ tokens.to(guide.device).float(), size)
        guided += float(dense_error(scaled, guide, target)) * len(index)
        nearest += float(dense_error(guide.scale(alone), guide, target)) * len(index)
    count = len(lesson.pixels)
    return {"guided": 1 - guided / count, "nearest": 1 - nearest / count}


def save_guide(guide: Guide, out: Path, facts: dict[str, Any], metrics: str | None = None) -> None:
    """Writes `guide/` into a folder, whole or not at all: weights, `guide.json` that says how they were made, and the curve."""
    make_folder(out / GUIDE)
    with replacing_inside(out / GUIDE) as folder:
        guide.save_pretrained(folder)
        (folder / "guide.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        if metrics is not None:
            (folder / "metrics.jsonl").write_text(metrics, encoding="utf-8")


class _Run:
    """The checkpoint of a run: one file, replaced in one piece."""

    def __init__(
        self, guide: Guide, optimizer: torch.optim.Optimizer, folder: Path, fingerprint: dict[str, Any]
    ) -> None:
        self.guide, self.optimizer, self.path, self.fingerprint = (
            guide,
            optimizer,
            folder / "checkpoint.pt",
            fingerprint,
        )

    def save(self, step: int) -> None:
        state = {"guide": self.guide.state_dict(), "optimizer": self.optimizer.state_dict(), "step": step}
        with replacing(self.path) as temporary:
            torch.save(state | {"fingerprint": self.fingerprint}, temporary)

    def take_up(self) -> int:
        """The step to go on from.

        Raises:
            ValueError: There is no checkpoint, or one of other options.
        """
        if not self.path.exists():
            raise ValueError(f"There is no run to resume: {self.path} does not exist.")
        state = torch.load(self.path, weights_only=True, map_location=self.guide.device)
        theirs = state["fingerprint"]
        if different := sorted(name for name in theirs if theirs[name] != self.fingerprint.get(name)):
            raise ValueError(f"The run in {self.path.parent} was begun with other settings ({', '.join(different)}).")
        self.guide.load_state_dict(state["guide"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])


def _in(precision: torch.dtype, module: Any) -> Any:
    """A copy of a module in some precision."""
    return copy.deepcopy(module).to(precision)


def _advance(bar: Any, done: int) -> None:
    bar.update(done - bar.n)


def _key(
    model: SparseFormerModel, teacher: Teacher, photos: Photos, config: GuideConfig, options: GuideOptions
) -> dict[str, Any]:
    """What the lessons depend on."""
    return {
        "encoder_sha256": tensor_hash(model.state_dict()),
        "teacher_sha256": teacher.sha256,
        "photo_names": names_hash(photos),
        "choice": [config.even_share, config.context_share, config.context_blocks],
        "views": options.views,
        "budgets": list(options.budgets),
        "crop_scale": list(options.crop_scale),
        "seed": options.seed,
        "bf16": options.bf16,
    }


def _groups(guide: Guide, decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay, and the rest without."""
    matrices = [each for each in guide.parameters() if each.ndim > 1]
    return [
        {"params": matrices, "weight_decay": decay},
        {"params": [each for each in guide.parameters() if each.ndim < 2], "weight_decay": 0.0},
    ]


def _batches(lessons: Sequence[Lesson], options: GuideOptions, start: int, last: int) -> Iterator[tuple[int, Lesson]]:
    """The batch of each step: every view of a chunk once an epoch, in an order of the seed and the epoch."""
    each = max(1, CHUNK // options.batch_size)
    for step in range(start, last):
        epoch, place = divmod(step, each * len(lessons))
        generator = torch.Generator().manual_seed(options.seed * 100_003 + epoch)
        chunk, part = divmod(int(torch.randperm(each * len(lessons), generator=generator)[place]), each)
        order = torch.randperm(CHUNK, generator=generator)
        yield step, lessons[chunk].part(order[part * options.batch_size : (part + 1) * options.batch_size])


def _step(
    guide: Guide,
    optimizer: torch.optim.Optimizer,
    lesson: Lesson,
    model: SparseFormerModel,
    options: GuideOptions,
    step: int,
) -> float:
    rate = min(1.0, (step + 1) / options.warm_up) * (0.5 + 0.5 * math.cos(math.pi * step / options.steps))
    for group in optimizer.param_groups:
        group["lr"] = options.learning_rate * rate
    guide.train()
    with torch.autocast(guide.device.type, torch.bfloat16, enabled=options.bf16):
        scaled = _scaled(guide, lesson, model)
    loss = dense_error(scaled, guide, lesson.teacher.to(guide.device))
    if not bool(torch.isfinite(loss)):
        raise ValueError(f"The error is {loss.item()} at step {step + 1}: begin again with a lower learning rate.")
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(guide.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _scaled(guide: Guide, lesson: Lesson, model: SparseFormerModel) -> Tensor:
    """A guide's map of a lesson, whose tokens are behind the encoder's last norm already."""
    device = guide.device
    pixels = normalize(lesson.pixels.to(device), model.config.image_mean, model.config.image_std)
    seen = lesson.on(device)
    return guide.scaled(seen, pixels, nn.Identity(), (lesson.teacher.shape[-2], lesson.teacher.shape[-1]))
