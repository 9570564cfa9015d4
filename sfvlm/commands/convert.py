"""The command that converts an original llava checkpoint into transformers' layout."""

from dataclasses import dataclass
from pathlib import Path

from ..cli import say
from ..convert import MANIFEST, convert_original


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


def convert_command(command: ConvertCommand) -> None:
    """Converts, and says what was done."""
    manifest = convert_original(command.checkpoint, command.out, command.vision_tower, command.chat_template)
    tensors, vocabulary, prompt = manifest["tensors"], manifest["vocabulary"], manifest["prompt"]
    say(f"{manifest['host']}: {tensors['written']} tensors, {len(tensors['dropped'])} dropped on purpose.")
    say(f"Vision tower: weights of {manifest['tower']['weights']}. Photos: {manifest['photos']['now']}.")
    before, after = vocabulary["rows_before"], vocabulary["rows_after"]
    say(f"<image> is token {vocabulary['image_token_id']}; vocabulary {before} -> {after} rows.")
    same = "the ids" if prompt["ids_as_in_the_llava_package"] else "OTHER ids than those"
    say(f"Chat template {prompt['template']}: prompts have {same} that the llava package gives them.")
    say(f"Wrote {command.out}; what differs from the original is in its {MANIFEST}.")
