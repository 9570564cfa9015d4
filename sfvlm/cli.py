"""The `sfvlm` command and what the scripts share: flags from dataclasses, and one clear sentence for bad input."""

import functools
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import tyro
from torch import nn

from .bootstrap import BootstrapOptions, bootstrap
from .configuration import Focusing
from .controls import cost, make_controls
from .images import open_photos
from .inherit import inherit, student_config
from .results import table, write_results
from .sparseformer import SparseFormerModel
from .teachers import Teacher, open_teacher
from .texts import open_text_encoder
from .visualize import draw_focusing, save_picture
from .zeroshot import (
    Candidate,
    Classes,
    EvaluationViews,
    Student,
    Task,
    evaluate,
    open_evaluation_photos,
    open_student,
)

Options = TypeVar("Options")


@dataclass(frozen=True)
class BootstrapCommand:
    """Bootstrap a SparseFormer from a pretrained vision transformer and unlabelled photos."""

    teacher: str
    """Transformers folder or hub id (CLIP, SigLIP, LLaVA), timm:NAME:FILE, open_clip:NAME:FILE or local-dir:FOLDER."""
    photos: list[str]
    """Folders, tar shards (globs and braces too), Hugging Face datasets on disk, or scenes:COUNT for rendered ones."""
    out: Path
    """Folder to write; also holds checkpoints and metrics along the way."""
    num_tokens: int = 49
    """Budget: tokens a photo becomes."""
    focusing: Focusing = "inherited"
    """inherited: glimpses through the teacher's own embeddings. fresh: the paper's focusing transformer."""
    truncate: int | None = None
    """Leading teacher blocks left out; default a third for fresh focusing, none for inherited."""
    tuned_blocks: int | None = None
    """Leading student blocks that are trained; default two thirds."""
    coarse_blocks: int | None = None
    """Blocks of the first look, inherited focusing only; 0 leaves the boxes where they start."""
    box_zoom: float = 0.8
    """Share of the photo's side that the boxes of the closer look tile at the start, inherited focusing only."""
    glimpse_size: int | None = None
    """Samples a side of a box, inherited focusing only; default as many as the box has pixels at the start."""
    image_size: int | None = None
    """Side of the student's photos in pixels; default the teacher's."""
    resume: bool = False
    """Continue the run in OUT from its newest checkpoint."""
    training: Annotated[BootstrapOptions, tyro.conf.arg(name="")] = field(default_factory=BootstrapOptions)


def bootstrap_command(command: BootstrapCommand) -> None:
    """Opens the teacher and the photos, builds the student, trains it, and says where it is."""
    teacher = open_teacher(command.teacher)
    photos = open_photos(command.photos)
    given = {name: getattr(command, name) for name in ("coarse_blocks", "box_zoom", "glimpse_size", "image_size")}
    config = student_config(
        teacher.config,
        focusing=command.focusing,
        num_tokens=command.num_tokens,
        truncate=command.truncate,
        **{name: value for name, value in given.items() if value is not None},
    )
    student, report = inherit(teacher, config, command.tuned_blocks, command.training.seed)
    say(f"{len(photos)} photos; teacher of {teacher.config.num_tokens} tokens, student of {config.num_tokens}.")
    say(report.summary())
    result = bootstrap(teacher, student, report, photos, command.out, command.training, resume=command.resume)
    say(", ".join(f"{name} {value:.4f}" for name, value in result.items()))
    say(f"Wrote {command.out}. Measure it: python eval/zeroshot.py --model {command.out} --data YOUR_DATA --controls")


@dataclass(frozen=True)
class ZeroShotCommand:
    """Measure SparseFormers beside their dense teacher, and beside the cheap ways to the same number of tokens."""

    data: list[str]
    """Photos, each source measured alone: class folders, shards with labels or captions, CLIP_benchmark's folders."""
    model: list[Path] = field(default_factory=list)
    """SparseFormer folders."""
    teacher: str | None = None
    """As in bootstrapping; default the one that MODEL/bootstrap.json names."""
    task: Task = "auto"
    """auto: classification where there are labels, retrieval where there are captions, else fidelity to the teacher."""
    controls: bool = False
    """Also measure the teacher at lower resolution, with larger patches, and with merged tokens."""
    num_tokens: list[int] = field(default_factory=list)
    """Budgets; default each model's own."""
    image_size: int | None = None
    """Side of the photos in pixels; default the models', or the teacher's without any."""
    crop_pct: float = 1.0
    """Share of the shortest side that a view shows."""
    class_indices: str | None = None
    """Classes of the labels 0, 1, ... when a data set has some of ImageNet's alone: 0,217,482."""
    class_names: Path | None = None
    """A text file of class names, one a line; default the data's own, or ImageNet's."""
    templates: Path | None = None
    """A text file of prompts with {c} or {} for the class name; default the data's own, or CLIP's 80."""
    limit: int | None = None
    """At most so many photos of each source, spread evenly."""
    batch_size: int = 64
    """Photos encoded at once."""
    workers: int = 0
    """Processes that decode photos; 0 decodes in between."""
    device: str | None = None
    """Default cuda where there is one."""
    out: Path | None = None
    """A .json file to write; the folder of that name gets a file a row, for `clip_benchmark build`."""


def zeroshot_command(command: ZeroShotCommand) -> None:
    """Opens the models, measures them on each source, prints a table for it, and writes the results."""
    if command.out is not None and command.out.suffix != ".json":
        raise ValueError(f"--out is {command.out}; it must end in .json.")
    if not command.data:
        raise ValueError("There are no photos to measure on: give --data.")
    classes = Classes(
        names=_lines(command.class_names), templates=_lines(command.templates), indices=_numbers(command.class_indices)
    )
    sources = [(source, open_evaluation_photos(source)) for source in command.data]
    students = [open_student(folder) for folder in command.model]
    teacher = open_teacher(command.teacher or _teacher_of(command.model))
    image_size = _image_size(command, teacher, students)
    device = command.device or ("cuda" if torch.cuda.is_available() else "cpu")
    candidates, citations = _candidates(command, teacher, students, image_size, device)
    text = functools.cache(lambda: open_text_encoder(teacher.source, device))

    rows, skipped = [], {}
    names = _short_names([source.removesuffix(".tar") for source in command.data])
    for name, (source, photos) in zip(names, sources, strict=True):
        views = EvaluationViews(photos, image_size, command.limit, command.crop_pct)
        found, broken = evaluate(
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
        say(f"\n{name}: {found[0]['task'].replace('_', ' ')}, {len(views) - len(broken)} photos of {image_size} pixels")
        say(table(found))
        if broken:
            say(f"Skipped {len(broken)} broken photos, the first {broken[0]['key']}: {broken[0]['reason']}.")
    if command.out is not None:
        facts = {"command": shlex.join(sys.argv), "skipped": skipped, "citations": citations, "device": device}
        folder = write_results(command.out, rows, facts)
        say(f"\nWrote {command.out}; for a CSV file: clip_benchmark build {folder}")


def _candidates(
    command: ZeroShotCommand, teacher: Teacher, students: list[SparseFormerModel], image_size: int, device: str
) -> tuple[list[Candidate], dict[str, str]]:
    """The teacher, the students at each budget, and the controls at all of them; and where the controls come from."""
    modules: list[tuple[str, str, nn.Module]] = [("teacher", teacher.source, teacher.model)]
    budgets: dict[int, None] = dict.fromkeys(command.num_tokens)
    for folder, name, student in zip(command.model, _short_names(command.model), students, strict=True):
        for count in command.num_tokens or [student.config.num_tokens]:
            modules.append((f"{name}@{count}", str(folder), Student(student, count)))
            budgets[count] = None
    citations: dict[str, str] = {}
    for count in budgets if command.controls else ():
        for control in make_controls(teacher.model, count, image_size):
            modules.append((control.name, teacher.source, control))
            citations[control.name] = control.citation
    if command.controls and not budgets:
        raise ValueError("--controls needs a budget: give --num-tokens, or a --model that has one.")
    candidates = []
    for name, pretrained, module in modules:
        spent = cost(module.to(device), image_size)
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
        found[json.loads(path.read_text())["teacher"]] = folder
    if len(found) > 1:
        raise ValueError(f"They have several teachers ({', '.join(found)}): measure each alone, or give --teacher.")
    return next(iter(found))


def _image_size(command: ZeroShotCommand, teacher: Teacher, students: list[SparseFormerModel]) -> int:
    """One side for all, so that all see the same views; a multiple of the teacher's patch."""
    given = command.image_size
    found = {student.config.image_size for student in students} or {teacher.config.image_size}
    if given is None and len(found) > 1:
        raise ValueError(f"The models take photos of different sides ({sorted(found)}): choose one with --image-size.")
    size, patch = given or found.pop(), teacher.config.teacher_patch_size
    if size < patch or size % patch:
        raise ValueError(f"The photos' side is {size}, no multiple of the teacher's patches of {patch} pixels.")
    return size


def _lines(path: Path | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    if not path.is_file():
        raise ValueError(f"The file {path} does not exist.")
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--class-indices is {text!r}; it must be numbers and commas, such as 0,217,482.") from None


def _short_names(paths: Sequence[str | Path]) -> list[str]:
    """Last parts of paths, or whole ones where two end alike."""
    short = [Path(path).name or str(path) for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


@dataclass(frozen=True)
class BoxesCommand:
    """Draw where the tokens looked: the photo, then its boxes after each step."""

    model: Path
    """A SparseFormer folder."""
    photo: Path
    """An image file."""
    out: Path
    """The picture to write."""
    num_tokens: int | None = None
    """Budget; default the model's."""
    points: bool = False
    """Also draw the sampling points."""


def boxes_command(command: BoxesCommand) -> None:
    """Opens the model and the photo, and writes the picture."""
    photo = open_photos(command.photo)[0]
    picture = draw_focusing(open_student(command.model), photo.image, command.num_tokens, with_points=command.points)
    save_picture(picture, command.out)
    say(f"Wrote {command.out}.")


COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "bootstrap": (BootstrapCommand, bootstrap_command),
    "zeroshot": (ZeroShotCommand, zeroshot_command),
    "boxes": (BoxesCommand, boxes_command),
}


def main(arguments: list[str] | None = None) -> None:
    """The `sfvlm` command: `sfvlm bootstrap --help` and so on."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        for known, (options, _) in COMMANDS.items():
            say(f"sfvlm {known:<10} {(options.__doc__ or '').splitlines()[0]}")
    elif name in COMMANDS:
        options, action = COMMANDS[name]
        run(action, options, rest)
    else:
        sys.stderr.write(f"error: There is no command {name!r}; the commands are {', '.join(COMMANDS)}.\n")
        raise SystemExit(2)


def say(text: str) -> None:
    """Prints for people, once over all processes."""
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def run(action: Callable[[Any], None], options: type[Options], arguments: list[str] | None = None) -> None:
    """Parses flags into `options` and acts; bad input ends with one sentence and exit code 2, Ctrl-C with 130."""
    parsed = tyro.cli(options, args=arguments, config=(tyro.conf.CascadeSubcommandArgs,))
    try:
        action(parsed)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted; what was reached is saved. Continue with --resume.\n")
        raise SystemExit(130) from None
