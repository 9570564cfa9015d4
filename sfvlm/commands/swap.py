"""The command that swaps a host's tower."""

from pathlib import Path

from ..alternatives.towers import REDUCE, reduce_host
from ..hosts.folders import swap_folder, undo_folder
from ..util.console import say
from ..util.files import check_absent
from ..zoo.names import folder_of, resolve
from .options.swap import SwapCommand


def swap_command(command: SwapCommand) -> None:
    """Swaps, or undoes a swap, and says what was done."""
    if command.undo:
        manifest = undo_folder(command.host, command.out)
        tokens = manifest["tokens"]
        say(
            f"Wrote {command.out}: the dense host of {tokens['before']} tokens a {tokens['of_each']} again, bit for bit."
        )
        return
    check_absent(command.out)  # before a host is downloaded
    host, num_tokens = folder_of(command.host), command.num_tokens
    if command.tower.startswith(REDUCE):
        tower = reduce_host(host, command.tower.removeprefix(REDUCE), num_tokens)
    else:
        tower = Path(resolve(command.tower))
    manifest = swap_folder(host, tower, command.out, num_tokens)
    tokens, untouched = manifest["tokens"], manifest["untouched"]
    say(f"{tokens['after']} tokens a {tokens['of_each']} instead of {tokens['before']}.")
    for part, facts in untouched.items():
        say(
            f"{part.replace('_', ' ')}: {facts['tensors']} tensors, sha256 {facts['sha256_after'][:16]} before and after."
        )
    say(f"Wrote {command.out}. After `import sfvlm`, transformers' own from_pretrained opens it.")
