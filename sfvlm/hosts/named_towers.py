"""Towers as commands name them: TOWER or TOWER@TOKENS, put into an open host."""

from pathlib import Path

from ..alternatives.methods import method_named
from ..alternatives.towers import REDUCE, reduce_host
from ..teachers.open import Teacher
from ..zoo.names import folder_of, resolve
from .host import Host
from .swap import swap


def put_tower(host: Host, tower: str, dense: Teacher | None = None) -> None:
    """Swaps an open host's tower for one that is given as TOWER or TOWER@TOKENS.

    Args:
        host: Is changed.
        tower: What it is given.
        dense: The host's own tower, where it is open already: several of `reduce:` hold one and the same then.

    Raises:
        ValueError: There is no such tower, it does not fit, or its number of tokens is none.
    """
    name, count = split_tower(tower)
    if name.startswith(REDUCE):
        few = reduce_host(folder_of(host.source), name.removeprefix(REDUCE), count, dense)
        swap(host.model, host.processor, few)
    else:
        swap(host.model, host.processor, name, count)


def split_tower(tower: str) -> tuple[str, int | None]:
    """TOWER@TOKENS in two; None where no number is given, and where all of it is the path of a folder.

    Raises:
        ValueError: There is no such method, zoo name or folder, or its number of tokens is none.
    """
    if Path(tower).is_dir():
        return tower, None
    name, mark, number = tower.rpartition("@")
    if mark and not number.isdecimal():
        raise ValueError(f"The tower {tower!r} asks for {number!r} tokens; behind @ stands a number, as in {name}@49.")
    name, count = (name, int(number)) if mark else (tower, None)
    if name.startswith(REDUCE):
        method_named(name.removeprefix(REDUCE))
        if count is None:
            raise ValueError(f"{tower} has no budget of its own: say how many tokens, as in {tower}@49.")
    elif not Path(resolve(name)).is_dir():
        raise ValueError(f"There is no tower {name}: give a SparseFormer folder, a name of the zoo, or reduce:METHOD.")
    return name, count
