"""The command that makes a SparseFormer from a teacher and photos."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from ..alignment import FOR_HOST
from ..bootstrap import bootstrap
from ..bootstrap_options import BootstrapOptions
from ..chat import open_host
from ..cli import say
from ..configuration import Focusing
from ..images import open_photos
from ..inherit import inherit, student_config
from ..teachers import open_teacher


def _first_run() -> BootstrapOptions:
    """Minutes on two cores: what a first run without arguments should take. Real ones ask for thousands of steps."""
    return BootstrapOptions(steps=200)


@dataclass(frozen=True)
class BootstrapCommand:
    """Bootstrap a SparseFormer from a pretrained vision transformer and unlabelled photos."""

    teacher: str | None = None
    """A name of `sfvlm zoo`, transformers folder or hub id (CLIP, SigLIP, LLaVA), timm:NAME:FILE, open_clip:NAME:FILE,
    local-dir:FOLDER. Default the host's own tower, or clip-tiny."""
    host: str | None = None
    """LLaVA whose projector and language model shall read the tokens: folder, hub id or name of the zoo. Its answers to
    prompts about the photos are what the student learns to keep."""
    photos: list[str] = field(default_factory=lambda: ["scenes:6000"])
    """Folders, tar shards (globs and braces too), Hugging Face datasets on disk, or scenes:COUNT for rendered ones."""
    out: Path = Path("runs/quickstart")
    """Folder to write; also holds checkpoints and metrics along the way."""
    num_tokens: int = 49
    """Budget: tokens a photo becomes."""
    focusing: Focusing = "inherited"
    """inherited: glimpses through the teacher's own embeddings, in boxes that move. chosen: such of whole patches, those that
    the teacher would attend to. fresh: the paper's focusing transformer."""
    truncate: int | None = None
    """Leading teacher blocks left out; default a third for fresh focusing, none for inherited."""
    tuned_blocks: int | None = None
    """Leading student blocks that are trained; default two thirds."""
    coarse_blocks: int | None = None
    """Blocks of the first look; 0 leaves the boxes of inherited focusing where they start. Not for fresh focusing."""
    box_zoom: float = 0.8
    """Share of the photo's side that the boxes of the closer look tile at the start, inherited focusing only."""
    glimpse_size: int | None = None
    """Samples a side of a box, inherited focusing only; default the teacher's patch size."""
    image_size: int | None = None
    """Side of the student's photos in pixels; default the teacher's."""
    resume: bool = False
    """Continue the run in OUT from its newest checkpoint."""
    training: Annotated[BootstrapOptions, tyro.conf.arg(name="")] = field(default_factory=_first_run)


def bootstrap_command(command: BootstrapCommand) -> None:
    """Opens the teacher and the photos, builds the student, trains it, and says where it is."""
    teacher = open_teacher(command.teacher or command.host or "clip-tiny")
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
    options, host = command.training, None
    if command.host is not None:
        device = "cpu" if options.cpu else None
        host = open_host(command.host, device=device)
        if not options.objective.needs_host:
            options = replace(options, objective=FOR_HOST)
    result = bootstrap(teacher, student, report, photos, command.out, options, host=host, resume=command.resume)
    say(", ".join(f"{name} {value:.4f}" for name, value in result.items()))
    if command.host is None:
        say(
            f"Wrote {command.out}. Measure it: python eval/zeroshot.py --model {command.out} --data YOUR_DATA --controls"
        )
    else:
        say(
            f"Wrote {command.out}. Use it: python scripts/swap_llava_tower.py --host {command.host} --tower {command.out}"
        )
