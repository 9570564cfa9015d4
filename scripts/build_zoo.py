"""Trains the models that are shipped with the package, from public photos and rendered scenes.

    python scripts/build_zoo.py clip --data DATA --out runs/clip-tiny
    python scripts/build_zoo.py llava --data DATA --clip runs/clip-tiny/model --out runs/llava-tiny
    python scripts/build_zoo.py held-out --data DATA --out runs/held-out.txt
    python scripts/build_zoo.py ship --clip runs/clip-tiny/model --llava runs/llava-tiny/model --sparseformer runs/sparseformer-tiny-49

An interrupted run continues when the command is given again.
"""

from typing import Annotated

import tyro
from zoo.clip import ClipOptions, build_clip
from zoo.held_out import HeldOutOptions, write_held_out
from zoo.llava import LlavaOptions, build_llava
from zoo.ship import ShipOptions, ship

from sfvlm.cli import run

Options = (
    Annotated[ClipOptions, tyro.conf.subcommand("clip")]
    | Annotated[LlavaOptions, tyro.conf.subcommand("llava")]
    | Annotated[HeldOutOptions, tyro.conf.subcommand("held-out")]
    | Annotated[ShipOptions, tyro.conf.subcommand("ship")]
)


def build(options: ClipOptions | LlavaOptions | HeldOutOptions | ShipOptions) -> None:
    """Trains one of the shipped models, lists the photos that measure them, or stores what was trained."""
    match options:
        case ShipOptions():
            ship(options)
        case HeldOutOptions():
            write_held_out(options)
        case ClipOptions():
            print(build_clip(options))
        case _:
            print(build_llava(options))


if __name__ == "__main__":
    run(build, Options)  # type: ignore[arg-type]
