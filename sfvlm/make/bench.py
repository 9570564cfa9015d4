"""The LLaVAs that are measured side by side: the dense one, the one just made, and the alternatives, in memory at once.

They share the language model, the projector and, but for the new tower, the dense tower; so that there is room for all of them
where there is room for one. Opened when first asked for: a run that has measured everything opens none.
"""

from functools import cached_property
from typing import Any

from ..alternatives.methods import METHODS, check_count, method_named
from ..alternatives.towers import REDUCE
from ..bootstrap.learner import place_of_host
from ..bootstrap.options import BootstrapOptions
from ..hosts.facts import HostFacts
from ..hosts.host import Host, open_host
from ..look.sides import twins_with
from .place import Place
from .recipe import Recipe

DENSE, SPARSE = "dense", "sfvlm"  # what the two are called in every file and table


class Bench:
    """The LLaVAs of a run.

    Args:
        recipe: What was asked for.
        place: Where the new tower is, once it is there.
        alternatives: Names of the cheap ways beside it.
    """

    def __init__(self, recipe: Recipe, place: Place, alternatives: list[str]) -> None:
        self.recipe, self.place, self.alternatives = recipe, place, alternatives

    @cached_property
    def dense(self) -> Host:
        """With its own tower."""
        host = open_host(self.recipe.host, **place_of_host(BootstrapOptions(cpu=self.recipe.cpu)))
        host.model.requires_grad_(False)
        return host

    @cached_property
    def few(self) -> dict[str, Host]:
        """With few tokens, by name; the new one is the first."""
        return twins_with(self.dense, self.towers)

    @property
    def towers(self) -> dict[str, str]:
        """What each of these is made of, as commands take it."""
        reduced = {name: f"{REDUCE}{name}@{self.recipe.num_tokens}" for name in self.alternatives}
        return {SPARSE: str(self.place.tower)} | reduced

    def tower_of(self, name: str) -> Any:
        """The tower of one with few tokens."""
        return self.few[name].model.model.vision_tower


def possible_alternatives(
    asked: list[str], facts: HostFacts, patches: int, num_tokens: int
) -> tuple[list[str], dict[str, str]]:
    """The cheap ways that give so many tokens, and why each other one does not.

    Args:
        asked: Names; none for every one there is.
        facts: Of the host.
        patches: Of its dense tower.
        num_tokens: Asked for.

    Raises:
        ValueError: One that was asked for by name does not exist, does not give so many, or is asked for twice.
    """
    read = facts.depth + 1 + max(facts.layers)
    possible, left_out = [], {}
    for name in asked or METHODS:
        method_named(name)
        if name in possible:
            raise ValueError(f"The alternative {name} is given twice: once is enough.")
        try:
            check_count(name, num_tokens, patches, read)
        except ValueError as error:
            if asked:
                raise
            left_out[name] = str(error)
        else:
            possible.append(name)
    return possible, left_out
