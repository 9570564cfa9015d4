"""Some of many, spread evenly over all of them: data are often sorted."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def spread(total: int, most: int | None) -> list[int]:
    """Numbers of at most `most` of `total` things; of all without a limit, of none below 1."""
    count = total if most is None else min(most, total)
    return [number * total // count for number in range(count)]


def spread_groups(items: Sequence[Item], most: int | None, group: Callable[[Item], Hashable]) -> list[Item]:
    """At most `most` items, whole groups alone, in the order of all; all without a limit."""
    if most is None or most >= len(items):
        return list(items)
    sizes = Counter(map(group, items))
    names = list(sizes)
    count = max(1, most * len(names) // len(items))
    while count > 0:
        chosen = {names[number] for number in spread(len(names), count)}
        if sum(sizes[name] for name in chosen) <= most:
            return [item for item in items if group(item) in chosen]
        count -= 1  # larger groups than the average one were drawn
    return []
