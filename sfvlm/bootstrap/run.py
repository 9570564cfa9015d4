"""The training of a student, from the first look at the folder to the finished model, in the order in which it happens.

    photos --split--> training, held back
    training ----batches----> views (B, 3, S, S) --step--> other weights, a line in metrics.jsonl, every so often a checkpoint
    held back --evaluation--> cosine, agreement with the teacher, statistics of the boxes
    student, or its average --export--> the model's folder

A step depends on (options, step number) alone: views are seeded by photo and epoch, batches by step, rates by step, and the
student has no dropout. So on a CPU a run that was killed and resumed from its last checkpoint ends on the same bits as one that
was not. On a GPU gradients of sampling and resizing are added in any order, and it ends near them.

B photos of a step, of S pixels a side; of several processes each has its part of them.
"""

import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from ..dense.learning import save_guide
from ..dense.together import attach_guide, detach_guide
from ..encoder.compiling import compile_forms
from ..encoder.sparseformer import SparseFormerModel
from ..hosts.facts import read_host
from ..hosts.host import Host
from ..photos.batches import ViewBatch
from ..photos.sources import Photos
from ..teachers.open import Teacher
from ..teachers.report import InheritanceReport
from ..util.console import say
from ..util.files import make_folder
from .batches import Skips, photos_at_once, training_batches
from .checkpoints import RunCheckpoints, list_checkpoints, uninterrupted
from .export import Origin, export_student
from .held_back import HeldBack
from .learner import open_accelerator, open_learner
from .metrics_log import MetricsLog, RunLog
from .objective import Objective
from .optimization import freeze_unread
from .options import BootstrapOptions
from .photos import split_photos
from .step import Step
from .targets.interview import ask_host
from .targets.teacher import TeacherTargets, open_cache

METRICS = "metrics.jsonl"
SKIPPED = "skipped.jsonl"
CHECKPOINTS = "checkpoints"


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
    _check_folder(out, resume)
    config = student.config
    options.check(config)
    objective = options.objective.from_end(teacher.config.num_hidden_layers, config.num_hidden_layers)
    report = _freeze_unread(student, report, objective, host)
    make_folder(out)
    split = split_photos(photos, options, for_host=host is not None)
    for remark in split.remarks:
        say(remark)
    guide = None
    if objective.dense:
        guide = attach_guide(student, teacher.model, split.held_back, options.seed)
    trained = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)

    accelerator = open_accelerator(options, config, out)
    at_once = photos_at_once(options, accelerator)
    skips = Skips(out / SKIPPED, accelerator)
    origin = Origin(teacher, config, trained, report, split, host, options, accelerator)
    learner = open_learner(student, options, accelerator)
    dense = teacher.model.to(accelerator.device)
    with accelerator.main_process_first():
        cache = open_cache(out / "teacher-cache", teacher.sha256, split.trained, config, options)
    reader, told = None, {}
    if objective.needs_host:
        reader, told = ask_host(host, dense, split, out, options, at_once, accelerator)
    targets = TeacherTargets(
        compile_forms(dense) if options.compile else dense, config, objective, cache, reader, guide
    )

    checkpoints = RunCheckpoints(
        out / CHECKPOINTS, learner, origin.fingerprint(), options.keep_checkpoints, accelerator
    )
    metrics = MetricsLog(out / METRICS)
    if resume:
        checkpoints.take_up()
        if accelerator.is_main_process:
            metrics.rewind(learner.step)
    accelerator.wait_for_everyone()

    log, started = RunLog(metrics, learner, options, accelerator), time.perf_counter()
    step = Step(learner, targets, told.get("train"), split.training, checkpoints.folder, options, accelerator)
    evaluate = HeldBack(split.held_back, targets, told.get("held_back"), at_once, skips, accelerator)
    result = _train(
        min(options.steps, stop_after or options.steps),
        training_batches(split.training, config, reader, options, accelerator, skips, start=learner.step),
        step, evaluate, checkpoints, log,
    )  # fmt: skip
    if learner.step >= options.steps:
        result = evaluate(learner.outcome)
        log.evaluation(result)
        if accelerator.is_main_process:
            facts = origin.facts(learner.step, skips.count, time.perf_counter() - started, result)
            finished = learner.finished()
            learned = detach_guide(finished)
            export_student(finished, out, report, facts)
            if learned is not None:
                save_guide(
                    learned,
                    out,
                    {"teacher": teacher.source, "teacher_sha256": teacher.sha256, "trained": "with the encoder"},
                )
    accelerator.wait_for_everyone()
    log.end()
    return result


def _check_folder(out: Path, resume: bool) -> None:
    """Raises ValueError unless a run may begin in the folder, or go on in it."""
    begun = (out / METRICS).exists() or bool(list_checkpoints(out / CHECKPOINTS))
    if begun and not resume:
        raise ValueError(f"{out} holds a run already; continue it with --resume, or give another folder.")
    if not begun and (out / "config.json").exists():
        raise ValueError(f"{out} holds a model, and no run that made it: give another folder.")


def _freeze_unread(
    student: SparseFormerModel, report: InheritanceReport, objective: Objective, host: Host | None
) -> InheritanceReport:
    """Freezes what the objective does not reach; the report says so, unless an earlier run has trained it."""
    layers = [objective.layer] if objective.tokens else []
    if objective.needs_host and host is not None:
        student.config.aligned_layers = list(read_host(host.model.config, host.processor).layers)
        layers += student.config.aligned_layers
    frozen = freeze_unread(student, objective, layers)
    if report.earlier is not None:
        return report
    rows = tuple(row._replace(trained=row.trained and row.student not in frozen) for row in report.rows)
    return replace(report, rows=rows)


def _train(
    until: int, batches: Iterable[ViewBatch], step: Step, evaluate: HeldBack, checkpoints: RunCheckpoints, log: RunLog
) -> dict[str, float]:
    """Steps from where the learner is to `until`; what the last evaluation between them found.

    Raises:
        KeyboardInterrupt: After a checkpoint was saved.
    """
    learner, options, result = step.learner, step.options, {}
    several = step.accelerator.num_processes > 1

    def save() -> None:
        evaluate.skips.tell()
        checkpoints.save()

    try:
        # One process stops at once; several agree on a step first, as each waits for the others inside of one.
        with uninterrupted() if several else nullcontext([]) as interrupts:
            for batch in batches:
                if learner.step >= until:
                    break
                parts, output = step(batch, interrupts)
                log.step(parts, output)
                if options.eval_every and learner.step % options.eval_every == 0 and learner.step < options.steps:
                    result = evaluate(learner.outcome)
                    log.evaluation(result)
                if learner.step % options.save_every == 0 or learner.step == until:
                    save()
    except KeyboardInterrupt:
        with uninterrupted():  # a second one would lose what the first one saves
            save()
        raise
    finally:
        log.close_bar()
    return result
