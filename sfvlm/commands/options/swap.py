"""The flags of `sfvlm swap`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SwapCommand:
    """Put a SparseFormer into a LLaVA; projector and language model stay as they are, bit for bit."""

    host: str = "llava-tiny"
    """Folder, hub id or name of a transformers LLaVA, LLaVA-NeXT or LLaVA-OneVision; with --undo a swapped folder."""
    tower: str = "sparseformer-tiny-49"
    """SparseFormer folder or name; or reduce:METHOD for the host's own tower with few tokens, without training:
    resolution, larger-patch, stride, average, cls-attention, diversity, random, merging,
    merging-decreasing, merging-gradual."""
    out: Path = Path("runs/llava-49")
    """Folder to write; it must not exist."""
    num_tokens: int | None = None
    """Image tokens a photo or tile; default the tower's own budget; reduce:METHOD has none."""
    undo: bool = False
    """Write the dense host that HOST, a swapped folder, was made from."""
