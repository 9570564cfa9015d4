"""The command that swaps a host's tower."""

from dataclasses import dataclass
from pathlib import Path

from ..cli import say
from ..files import check_absent
from ..reduce import REDUCE, reduce_host
from ..swap_folders import swap_folder, undo_folder
from ..zoo import folder_of, resolve


@dataclass(frozen=True)
class SwapCommand:
    """Put a SparseFormer into a LLaVA; projector and language model stay as they are, bit for bit."""

    host: str = "llava-tiny"
    """Folder, hub id or name of a transformers LLaVA, LLaVA-NeXT or LLaVA-OneVision; with --undo a swapped folder."""
    tower: str = "sparseformer-tiny-49"
    """SparseFormer folder or name; or reduce:METHOD for the host's own tower with few tokens, without training:
    resolution, larger-patch, stride, average, cls-attention, diversity, merging, merging-decreasing,
    merging-gradual."""
    out: Path = Path("runs/llava-49")
    """Folder to write; it must not exist."""
    num_tokens: int | None = None
    """Image tokens a photo or tile; default the tower's own budget; reduce:METHOD has none."""
    undo: bool = False
    """Write the dense host that HOST, a swapped folder, was made from."""


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
