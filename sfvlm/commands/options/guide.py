"""The flags of `sfvlm guide`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ...dense.options import GuideOptions


@dataclass(frozen=True)
class GuideCommand:
    """Teach a SparseFormer to make the dense map of its teacher, from photos without labels; the SparseFormer stays as it is."""

    model: str = "sparseformer-tiny-49"
    """SparseFormer folder, or name of the zoo."""
    teacher: str | None = None
    """That it was made from; default what its bootstrap.json says."""
    photos: list[str] = field(default_factory=lambda: ["scenes:2000"])
    """Folders, tar shards (globs and braces too), Hugging Face datasets on disk, or scenes:COUNT for rendered ones."""
    out: Path | None = None
    """Folder that receives guide/; default the model's own."""
    guide_size: int = 128
    """Width of the guide."""
    attending_blocks: int = 1
    """Blocks that attend to the tokens."""
    mixing_blocks: int = 2
    """Blocks after them that mix neighbours only."""
    even_share: float | None = 1.0
    """How the encoder chooses its patches where a map is wanted: the share that is the best of each region."""
    context_share: float | None = None
    """Context where a map is wanted, as a share of the model's tokens; default as the model has it."""
    context_blocks: int | None = None
    """Blocks that this context stays for; default as the model has it."""
    device: str | None = None
    """Default cuda where there is one."""
    resume: bool = False
    """Continue the run in OUT."""
    training: Annotated[GuideOptions, tyro.conf.arg(name="")] = field(default_factory=GuideOptions)
