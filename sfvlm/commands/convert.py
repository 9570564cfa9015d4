"""The command that converts an original llava checkpoint into transformers' layout."""

from ..hosts.llava.convert import MANIFEST, convert_original
from ..util.console import say
from .options.convert import ConvertCommand


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
