"""Names of the photos that measure the shipped models: what a tower for them must not be trained on either."""

from dataclasses import dataclass
from pathlib import Path

from sfvlm.util.files import write_text
from zoo.sources import HELD_OUT, Data


@dataclass(frozen=True)
class HeldOutOptions:
    """List the photos that measure the shipped models, for `bootstrap_clip.py --leave-out`."""

    data: Path
    """Folder with the training shards."""
    out: Path
    """Text file to write, a name a line."""


def write_held_out(options: HeldOutOptions) -> None:
    """Writes the names."""
    data = Data(options.data)
    photos = [data.held_out_photos(shard) for shard in HELD_OUT]
    names = [each.key(index) for each in photos for index in range(len(each))]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, "".join(f"{name}\n" for name in names))
    print(f"Wrote the names of {len(names)} photos to {options.out}.")
