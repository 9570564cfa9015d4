"""The flags of `sfvlm fidelity`."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class FidelityCommand:
    """Measure how near towers keep a LLaVA to what it says with its own dense tower: any photos, no labels."""

    host: str = "llava-tiny"
    """LLaVA with its dense tower: folder, hub id or name of the zoo."""
    tower: list[str] = field(default_factory=lambda: ["sparseformer-tiny-49"])
    """SparseFormer folders or names of the zoo, or reduce:METHOD for the host's own tower with few tokens; behind @ so many
    image tokens, as in runs/sf49@36 reduce:average@49."""
    photos: list[str] = field(default_factory=lambda: ["scenes:100:1000000"])
    """Folders, tar shards, Hugging Face datasets on disk, or scenes:COUNT:SEED; such that no tower was trained on."""
    only: Path | None = None
    """File with the names of the photos to ask about, one a line; default all of them."""
    limit: int = 200
    """At most so many photos, spread evenly over all; 0 for all."""
    turns: int = 4
    """Prompts a photo."""
    prompts: Path | None = None
    """File of these prompts, one a line; default general ones, and those a photo's source brings along."""
    seed: int = 0
    """Of the prompts."""
    batch_size: int = 16
    """Photos at once."""
    dtype: str | None = None
    """Default the checkpoint's own, but float32 on a CPU."""
    device: str | None = None
    """Default cuda where there is one."""
    out: Path | None = None
    """A .json file to write; the folder of that name keeps the host's answers, which the next call takes from there."""
