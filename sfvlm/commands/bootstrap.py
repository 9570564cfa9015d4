"""The command that makes a SparseFormer from a teacher and photos."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from ..alignment import for_host
from ..bootstrap import bootstrap
from ..bootstrap_options import BootstrapOptions
from ..chat import open_host
from ..cli import say
from ..configuration import CHOICE, Focusing, SparseFormerConfig
from ..export import open_student
from ..host_facts import read_host
from ..images import open_photos
from ..inherit import check_descent, inherit, student_config, take_over
from ..teachers import Teacher, check_own_tower, open_teacher
from ..zoo import resolve


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
    start_from: Path | None = None
    """SparseFormer folder to train on, such as for another host with the same tower; its architecture counts then, and of
    the flags for it even_share, context_share and context_blocks where they are given. Default: the teacher's own weights."""
    num_tokens: int = 49
    """Budget: tokens a photo becomes."""
    focusing: Focusing = "chosen"
    """chosen: glimpses of whole patches through the teacher's own embeddings, of those that the teacher would attend to.
    inherited: such glimpses in boxes that move. fresh: the paper's focusing transformer."""
    truncate: int | None = None
    """Leading teacher blocks left out; default a third for fresh focusing, none for the others."""
    tuned_blocks: int | None = None
    """Leading student blocks that are trained; default two thirds."""
    coarse_blocks: int | None = None
    """Blocks of the first look; 0 leaves the boxes of inherited focusing where they start. Not for fresh focusing."""
    box_zoom: float = 0.8
    """Share of the photo's side that the boxes of the closer look tile at the start, inherited focusing only."""
    glimpse_size: int | None = None
    """Samples a side of a box, inherited focusing only; default the teacher's patch size."""
    even_share: float | None = None
    """Share of the tokens that go to the best patch of each region of an even grid, the others to the best of all; chosen
    focusing only, default all of them for a host, and a fifth for the pooled vector alone."""
    context_share: float | None = None
    """How many more patches are looked at as context of the tokens, as a share of NUM_TOKENS; chosen focusing only, default a half
    for a host, and as many again for the pooled vector alone."""
    context_blocks: int | None = None
    """Leading blocks that this context stays for; default two thirds, or the earlier ones of START_FROM."""
    proportional_attention: bool | None = None
    """Whether tokens attend to each other as to all the patches that they stand for; chosen focusing only, default True."""
    image_size: int | None = None
    """Side of the student's photos in pixels; default the teacher's."""
    resume: bool = False
    """Continue the run in OUT from its newest checkpoint."""
    training: Annotated[BootstrapOptions, tyro.conf.arg(name="")] = field(default_factory=_first_run)


def bootstrap_command(command: BootstrapCommand) -> None:
    """Opens the teacher and the photos, builds the student, trains it, and says where it is."""
    teacher = open_teacher(command.teacher or command.host or "clip-tiny")
    if command.teacher is not None and command.host is not None:
        check_own_tower(teacher, open_teacher(command.host))
    photos = open_photos(command.photos)
    earlier = None if command.start_from is None else open_student(resolve(command.start_from)).float()
    if earlier is None:
        config = _student_config(command, teacher)
    else:
        check_descent(earlier.config, teacher, str(command.start_from))
        config = earlier.config
        config.aligned_layers = None  # a host sets its own
        for name in CHOICE:
            if getattr(command, name) is not None:
                setattr(config, name, getattr(command, name))
        config.check_choice()
    student, report = inherit(teacher, config, command.tuned_blocks, command.training.seed)
    if earlier is not None:
        report = take_over(student, report, earlier, str(command.start_from))
    say(f"{len(photos)} photos; teacher of {teacher.config.num_tokens} tokens, student of {config.num_tokens}.")
    say(report.summary())
    options, host = command.training, None
    if command.host is not None:
        host = open_host(command.host, **_place_of_host(options))
        if not options.objective.needs_host:
            read = read_host(host.model.config, host.processor).layers
            options = replace(options, objective=for_host(options.objective, max(read)))
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


def _place_of_host(options: BootstrapOptions) -> dict[str, Any]:
    """Each process has its own GPU; and what half of 16 bits rounds to zero, bfloat16 does not."""
    if options.cpu or not torch.cuda.is_available():
        return {"device": "cpu"}
    dtype = "bfloat16" if torch.cuda.is_bf16_supported() else None
    return {"device": f"cuda:{os.environ.get('LOCAL_RANK', '0')}", "dtype": dtype}


def _student_config(command: BootstrapCommand, teacher: Teacher) -> SparseFormerConfig:
    given = {
        name: getattr(command, name)
        for name in ("coarse_blocks", "box_zoom", "glimpse_size", "proportional_attention", "image_size", *CHOICE)
    }
    return student_config(
        teacher.config,
        focusing=command.focusing,
        num_tokens=command.num_tokens,
        truncate=command.truncate,
        for_host=command.host is not None,
        **{name: value for name, value in given.items() if value is not None},
    )
