"""The flags of `sfvlm convert`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ConvertCommand:
    """Convert an original llava checkpoint into transformers' layout, so that a tower can be put into it."""

    checkpoint: str
    """Folder or hub id of an original llava checkpoint, in safetensors or pickled."""
    out: Path
    """Folder to write; it must not exist."""
    vision_tower: str | None = None
    """Folder, hub id or name of its CLIP; default what its config.json names."""
    chat_template: str | None = None
    """vicuna-v1, mistral-instruct, or a file with a Jinja template; default vicuna-v1 for LLaVA-1.5."""
