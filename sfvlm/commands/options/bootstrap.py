"""The flags of `sfvlm bootstrap`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ...bootstrap.options import BootstrapOptions
from ...util.choices import Focusing


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
