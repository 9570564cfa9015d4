"""The command that measures SparseFormers beside their teacher and the cheap alternatives."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch import nn

from ..alternatives.controls import make_controls
from ..alternatives.costs import cost
from ..encoder.accelerate import example_pixels
from ..encoder.folder import open_student
from ..encoder.sparseformer import SparseFormerModel
from ..evaluate.classes import Classes
from ..evaluate.encoding import EvaluationViews, Student
from ..evaluate.texts import open_text_encoder
from ..evaluate.zeroshot import Candidate, evaluate, open_evaluation_photos
from ..photos.class_names import read_classes
from ..photos.views import view_settings
from ..teachers.open import Teacher, open_teacher
from ..util.console import say
from ..util.devices import usable_device
from ..util.files import read_json, read_templates
from ..util.results import check_json, short_names, table, write_results
from ..zoo.names import resolve
from .options.zeroshot import ZeroShotCommand

Content = TypeVar("Content")


def zeroshot_command(command: ZeroShotCommand) -> None:
    """Opens the models, measures them on each source, prints a table for it, and writes the results."""
    check_json(command.out)
    device = str(usable_device(command.device))
    if not command.data:
        raise ValueError("There are no photos to measure on: give --data.")
    named = _read(command.class_names, read_classes)
    classes = Classes(
        names=None if named is None else named.names,
        ids=None if named is None else named.ids,
        templates=_read(command.templates, read_templates),
        indices=_numbers(command.class_indices),
    )
    sources = [(source, open_evaluation_photos(source)) for source in command.data]
    folders = [Path(resolve(name)) for name in command.model]
    students = [open_student(folder) for folder in folders]
    teacher = open_teacher(command.teacher or _teacher_of(folders))
    image_size = _image_size(command, teacher, students)
    shown = view_settings(teacher.config)
    if command.crop_pct is not None:
        shown["crop_pct"] = command.crop_pct
    text = functools.cache(lambda: open_text_encoder(teacher.source, device))
    candidates, citations = _candidates(command, teacher, students, image_size, device)

    rows, skipped, remarks, passed_over = [], {}, {}, {}
    names = short_names([source.removesuffix(".tar") for source in command.data])
    for name, (source, photos) in zip(names, sources, strict=True):
        views = EvaluationViews(photos, image_size, command.limit, **shown)
        found, broken, remarks[source] = evaluate(
            candidates,
            views,
            (teacher.config.image_mean, teacher.config.image_std),
            text,
            dataset=name,
            task=command.task,
            classes=classes,
            batch_size=command.batch_size,
            device=device,
            workers=command.workers,
        )
        rows += found
        skipped[source] = list(broken)
        passed_over[source] = dict(photos.passed_over.counts)
        if command.out is not None:  # each time: what stops a later source loses nothing
            facts = {"skipped": skipped, "citations": citations}
            facts |= {"passed_over": passed_over, "remarks": {name: list(said) for name, said in remarks.items()}}
            write_results(command.out, rows, facts, device)
        say(f"\n{name}: {found[0]['task'].replace('_', ' ')}, {len(views) - len(broken)} photos of {image_size} pixels")
        say(table(found))
        for remark in remarks[source]:
            say(remark)
        if broken:
            say(f"Skipped {len(broken)} broken photos, the first {broken[0]['key']}: {broken[0]['reason']}.")
    if command.out is not None:
        say(f"\nWrote {command.out}; for a CSV file: clip_benchmark build {command.out.with_suffix('')}")


def _candidates(
    command: ZeroShotCommand, teacher: Teacher, students: list[SparseFormerModel], image_size: int, device: str
) -> tuple[list[Candidate], dict[str, str]]:
    """The teacher, the students at each budget, and the controls at all of them; and where the controls come from."""
    modules: list[tuple[str, str, nn.Module, nn.Module]] = [("teacher", teacher.source, teacher.model, teacher.model)]
    budgets: dict[int, None] = dict.fromkeys(command.num_tokens)
    for folder, name, student in zip(command.model, short_names(command.model), students, strict=True):
        pixels = example_pixels(student.config, command.batch_size, image_size) if command.accelerate else None
        for count in command.num_tokens or [student.config.num_tokens]:
            plain = Student(student, count).to(device)
            modules.append((f"{name}@{count}", folder, plain, plain))
            for how in command.accelerate:
                faster = student.accelerate(how, pixels=pixels, num_tokens=count)
                modules.append((f"{name}@{count} +{how}", folder, Student(faster, count), plain))
            budgets[count] = None
    citations: dict[str, str] = {}
    for count in budgets if command.controls else ():
        for control in make_controls(teacher.model, count, image_size):
            modules.append((control.name, teacher.source, control, control))
            citations[control.name] = control.citation
    if command.controls and not budgets:
        raise ValueError("--controls needs a budget: give --num-tokens, or a --model that has one.")
    candidates = []
    for name, pretrained, module, counted in modules:
        spent = cost(counted.to(device), image_size)  # products in another form are not seen by the counter
        numbers = {"tokens": spent.tokens, "mean_tokens": spent.mean_tokens, "gmacs": spent.macs / 1e9}
        candidates.append(Candidate(name, pretrained, module, numbers))
    return candidates, citations


def _teacher_of(folders: list[Path]) -> str:
    """The teacher that all folders name in their `bootstrap.json`."""
    if not folders:
        raise ValueError("There is nothing to measure: give --model, --teacher or both.")
    found: dict[str, Path] = {}
    for folder in folders:
        path = folder / "bootstrap.json"
        if not path.is_file():
            raise ValueError(f"{folder} has no bootstrap.json that names its teacher: give --teacher.")
        named = read_json(path).get("teacher")
        if not isinstance(named, str):
            raise ValueError(f"{path} names no teacher: give --teacher.")
        found[named] = folder
    if len(found) > 1:
        raise ValueError(f"They have several teachers ({', '.join(found)}): measure each alone, or give --teacher.")
    return next(iter(found))


def _image_size(command: ZeroShotCommand, teacher: Teacher, students: list[SparseFormerModel]) -> int:
    """One side for all, so that all see the same views; a multiple of the teacher's patch."""
    given = command.image_size
    found = {student.config.image_size for student in students} or {teacher.config.image_size}
    if given is None and len(found) > 1:
        raise ValueError(f"The models take photos of different sides ({sorted(found)}): choose one with --image-size.")
    size, patch = found.pop() if given is None else given, teacher.config.teacher_patch_size
    if size < patch or size % patch:
        raise ValueError(f"The photos' side is {size}, no multiple of the teacher's patches of {patch} pixels.")
    return size


def _read(path: Path | None, read: Callable[[Path], Content]) -> Content | None:
    if path is None:
        return None
    if not path.is_file():
        raise ValueError(f"The file {path} does not exist.")
    return read(path)


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--class-indices is {text!r}; it must be numbers and commas, such as 0,217,482.") from None
