"""The language models of the `llava` package by the names that the installed transformers uses, no line of theirs edited.

Their methods take the cache as `past_key_values` and hand it on so; transformers says `cache` since 5.24. Where a class and
the class that it hands on to disagree, both ends are translated, and its signature says what it takes now:

    generate(cache=) -> the package's forward(past_key_values=) -> super().forward(past_key_values=) -> transformers' (cache=)
"""

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

from ..reader import cache_name

METHODS = ("forward", "prepare_inputs_for_generation")


class _Between:
    """Stands behind a class of the package, before what it inherits from: there `super()` looks first.

    Attributes:
        replaced: The class's own methods, by name.
    """

    replaced: dict[str, Callable[..., Any]]


def adapt(arch: types.ModuleType | None) -> None:
    """Translates the models of the package that need it; again is once.

    Args:
        arch: Its `llava.model.llava_arch`, from which all of them inherit; None, or one without them, has none to translate.
    """
    for kind in _models(arch):
        names = {method: found for method in METHODS if (found := _disagreement(kind, method))}
        if names:
            between = type("Between", (_Between,), {"replaced": {method: vars(kind)[method] for method in names}})
            for method, (theirs, asked) in names.items():
                setattr(between, method, _hands_on(between, method, theirs, asked))
                setattr(kind, method, _takes(vars(kind)[method], theirs, asked))
            kind.__bases__ = (between, *kind.__bases__)


def restore(arch: types.ModuleType | None) -> None:
    """Undoes `adapt`."""
    for kind in _models(arch):
        between = kind.__bases__[0]
        if issubclass(between, _Between) and "replaced" in vars(between):
            kind.__bases__ = kind.__bases__[1:]
            for method, original in between.replaced.items():
                setattr(kind, method, original)


def _models(arch: types.ModuleType | None) -> Iterator[type]:
    """All classes of language models that were imported, parents first."""
    root = getattr(arch, "LlavaMetaForCausalLM", None)
    waiting = [] if root is None else [root]
    while waiting:
        kind = waiting.pop(0)
        yield kind
        waiting += kind.__subclasses__()


def _disagreement(kind: type, method: str) -> tuple[str, str] | None:
    """The cache's name in a class's own method and in the inherited one, where both have one and they differ."""
    inherited = getattr(super(kind, kind), method, None)
    if method not in vars(kind) or inherited is None:
        return None
    theirs, asked = cache_name(vars(kind)[method]), cache_name(inherited)
    return (theirs, asked) if theirs and asked and theirs != asked else None


def _takes(method: Callable[..., Any], theirs: str, asked: str) -> Callable[..., Any]:
    """A method of the package that is called by transformers' name."""

    @functools.wraps(method)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **_renamed(kwargs, asked, theirs))

    signature = inspect.signature(method)
    called.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[each.replace(name=asked) if each.name == theirs else each for each in signature.parameters.values()]
    )
    return called


def _hands_on(between: type, method: str, theirs: str, asked: str) -> Callable[..., Any]:
    """What the package's `super()` finds."""

    def handed_on(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(between, self), method)(*args, **_renamed(kwargs, theirs, asked))

    return handed_on


def _renamed(arguments: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """The same arguments with one renamed; what is given by the new name stays."""
    given = arguments.pop(old, None)
    return arguments if given is None or arguments.get(new) is not None else arguments | {new: given}
