"""What labels mean: the classes of photos beside the classes of a classifier.

    what the photos' classes are called, names given -> resolve_classes -> names of the classifier, label -> class
    labels of photos, label -> class -> mapped_labels -> columns of the classifier

What is assumed on the way is said, and what contradicts itself is refused.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..photos.folders import is_number
from .texts import Template, are_wordnet_ids, imagenet_indices, imagenet_names


@dataclass(frozen=True)
class Classes:
    """What labels mean, where the photos do not say it themselves."""

    names: tuple[str, ...] | None = None
    templates: tuple[Template, ...] | None = None
    indices: tuple[int, ...] | None = None  # label -> class of the names or of the teacher's classifier
    ids: tuple[str, ...] | None = None  # what else the classes of these names are called: numbers or WordNet ids


def resolve_classes(
    own_names: tuple[str, ...] | None, classes: Classes, outputs: int | None, remarks: list[str] | None = None
) -> tuple[tuple[str, ...] | None, tuple[int, ...] | None]:
    """The names of the classifier's classes, and label -> class; None for a label that is its class.

    Names: those given, or the photos' own, or ImageNet's. Where the photos have names or numbers too, these are found among the
    given ones; only where they are called otherwise throughout, the order decides. Folders named by WordNet ids are ImageNet
    classes, unless as many names are given for a classifier of texts.

    Args:
        own_names: What the photos' source calls its classes.
        classes: What was given.
        outputs: Classes of the teacher's own classifier; None to make one from names.
        remarks: Receives what is assumed, a sentence each.

    Raises:
        ValueError: The photos have so many classes, the classifier or what was given so many others, or others of these names; or
            there is one alone.
    """
    own: tuple[str, ...] = tuple(own_names or ())
    said: list[str] = []
    if classes.indices and own == tuple(sorted(own, key=_counting)) != tuple(sorted(own)):
        said.append(f"The classes of --class-indices are those of the photos by number: {own[0]}, {own[1]}, ...")
    if own and classes.indices:
        if len(own) != len(classes.indices):
            raise ValueError(f"The photos have {len(own)} classes, and --class-indices lists {len(classes.indices)}.")
        _check_indices(own, classes, outputs)
        if not all(map(is_number, own)) and _is_sorted_as_text(own):
            said.append(
                f"The classes of --class-indices are those of the photos sorted as text: {own[0]}, {own[1]}, ..."
            )
    if outputs is None:
        names, indices = _of_texts(own, classes, said.append)
        outputs = len(names)
    else:
        names, indices = None, _of_outputs(own, classes, outputs, said.append)
    if remarks is not None:
        remarks += said
    return names, None if indices == tuple(range(outputs)) else indices


def _of_texts(
    own: tuple[str, ...], classes: Classes, say: Callable[[str], None]
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Names for a classifier of texts, and label -> class."""
    indices = classes.indices
    if classes.names is not None:
        names = classes.names
        if indices is None:
            indices = _found_among(own, classes, say) if own else _counted_from(classes, say)
    else:
        indices = indices or imagenet_indices(own)
        names = own if own and not indices else imagenet_names()
        if not own and indices is None:
            say(
                f"The photos have labels but no names: these are taken for the numbers of ImageNet's {len(names)} classes "
                f"(0 is {names[0]!r}); --class-names gives others."
            )
        if classes.indices and own:
            say("The classes are called as ImageNet calls those of --class-indices, not as the photos call them.")
        if own and not indices and are_wordnet_ids(own):
            raise ValueError(
                f"The {len(own)} classes are called by WordNet ids such as {own[0]}, not all of which are among ImageNet's "
                "1000: give their names with --class-names."
            )
        if names is own and all(map(is_number, own)) and len(own) > 1:
            say(
                f"The classes are called by numbers such as {own[0]}, and so they are in sentences: --class-names gives others."
            )
        elif names is own and (
            odd := next((name for name in own if "_" in name or _unnumbered(name) != _plain(name)), None)
        ):
            say(f"Sentences are made of the classes' names as they are, such as {odd!r}: --class-names gives others.")
    if len(names) < 2:
        raise ValueError(
            f"There is one class, {', '.join(names)!r}, so that no choice can be wrong: give others with --class-names and "
            "--class-indices, or measure without labels by --task fidelity."
        )
    if (names is own or names is classes.names) and (alike := _alike(names)):
        say(f"Classes have nearly the same name, between which no sentence can choose: {' and '.join(alike)}.")
    return names, indices


def _of_outputs(
    own: tuple[str, ...], classes: Classes, outputs: int, say: Callable[[str], None]
) -> tuple[int, ...] | None:
    """Label -> class of a teacher's own classifier."""
    if classes.names is not None:
        say("The names of --class-names are not used: the teacher has a classifier of its own.")
    if classes.templates is not None:
        say("The sentences of --templates are not used: the teacher has a classifier of its own.")
    if classes.indices:
        return classes.indices
    if not own:
        say(
            f"The photos' labels are taken for the numbers of the teacher's {outputs} classes; --class-indices gives others."
        )
        return None
    indices = imagenet_indices(own)
    if indices is None and len(own) != outputs:
        raise ValueError(
            f"The photos have {len(own)} classes, the teacher's classifier {outputs}: say which they are "
            "with --class-indices, or measure without labels by --task fidelity."
        )
    if indices is None and all(map(is_number, own)):
        return _by_number(own, [f"class {number}" for number in range(outputs)], "The teacher's classes", say)
    if indices is None:
        _check_order(own, "the teacher's classes")
        say(
            f"The photos' {outputs} classes are taken for the teacher's in their order: {own[0]!r} is its class 0, {own[-1]!r} its "
            f"class {outputs - 1}."
        )
    return indices


def _found_among(own: tuple[str, ...], classes: Classes, say: Callable[[str], None]) -> tuple[int, ...] | None:
    """Label -> class where the photos' classes are called something and names are given: by name, by number, or by their order."""
    names, ids = tuple(classes.names or ()), tuple(classes.ids or ())
    if own == names:
        return None
    for called in (ids, names):
        places = _places(own, called)
        if places and all(len(place) == 1 for place in places):
            found = tuple(place[0] for place in places)
            if found != tuple(range(len(names))):
                say(
                    f"The photos' classes are found among --class-names by what they are called: {own[0]!r} is {names[found[0]]!r}."
                )
            return found
        if places and all(places):
            twice = next(name for name, place in zip(own, places, strict=True) if len(place) > 1)
            raise ValueError(
                f"The class {twice!r} of the photos is called like several of --class-names: tell them apart."
            )
        strays = [
            (name, place)
            for label, (name, place) in enumerate(zip(own, places, strict=True))
            if place and label not in place
        ]
        if strays and len(own) == len(names) and not are_wordnet_ids(own) and not all(map(is_number, own)):
            lost = next(name for name, place in zip(own, places, strict=True) if not place)
            raise ValueError(
                f"The photos' classes and --class-names contradict each other: {strays[0][0]!r} is class {own.index(strays[0][0])} of "
                f"the photos and {strays[0][1][0]} of the names, and {lost!r} is none of them. Name all classes as the photos do, or "
                "say with --class-indices which of the names they are."
            )
    if all(map(is_number, own)):
        return _by_number(own, names, "The names of --class-names", say)
    if len(own) != len(names):
        if len(names) == 1000 and (indices := imagenet_indices(own)):
            say("The names of --class-names are taken for ImageNet's 1000 classes in their order.")
            return indices
        raise ValueError(
            f"The photos have {len(own)} classes, and {len(names)} names are given: give as many, in the order of the "
            "labels, or say with --class-indices which of the names they are."
        )
    _check_order(own, "--class-names")
    say(
        f"The {len(names)} names of --class-names are taken for the photos' classes in their order: {own[0]!r} is {names[0]!r}, "
        f"{own[-1]!r} is {names[-1]!r}."
    )
    return None


def _is_sorted_as_text(own: Sequence[str]) -> bool:
    """Whether numbers in names are in the order of text: class 10 before class 2."""
    return [*own] == sorted(own) != sorted(own, key=_counting)


def _check_order(own: Sequence[str], others: str) -> None:
    """Raises ValueError where two orders of the photos' classes are as likely."""
    if _is_sorted_as_text(own):
        counted = sorted(own, key=_counting)
        raise ValueError(
            f"The photos' classes are sorted as text ({own[0]}, {own[1]}, ...) and {others} may be sorted by number ({counted[0]}, "
            f"{counted[1]}, ...): name the folders by the classes, or write their numbers with as many digits each."
        )


def _check_indices(own: Sequence[str], classes: Classes, outputs: int | None) -> None:
    """Raises ValueError where what the photos' classes are called says otherwise than --class-indices."""
    given = classes.indices or ()
    names = classes.names or (imagenet_names() if outputs is None else ())
    meant: Sequence[Sequence[int]] = _places(own, names) if names else ()
    if all(map(is_number, own)):
        numbers = [int(name) for name in own]
        meant = [[number] for number in numbers] if {*numbers} == {*given} else ()
    elif classes.names is None and outputs in (None, 1000) and (wordnet := imagenet_indices(own)) is not None:
        meant = [[number] for number in wordnet]
    for name, place, index in zip(own, meant, given, strict=False):
        if place and index not in place:
            called = f", {names[index]!r}" if 0 <= index < len(names) else ""
            raise ValueError(
                f"--class-indices says that the photos' class {name!r} is class {index}{called}, but it is called like class {place[0]}: "
                f"list the classes in the order of the photos', {own[0]}, {own[1] if len(own) > 1 else '...'}, ..., or leave the flag out."
            )


def _by_number(
    own: Sequence[str], names: Sequence[str], of_what: str, say: Callable[[str], None]
) -> tuple[int, ...] | None:
    """Label -> class where the photos' classes are called by numbers: these are places among the names."""
    numbers = [int(name) for name in own]
    low, high = min(numbers), max(numbers)
    if low == 0 and high < len(names):
        first = 0
    elif low >= 1 and high == len(names):
        first = 1
    elif len(own) == len(names):
        say(f"{of_what} are taken for the photos' classes in the order of their numbers: {own[0]} is {names[0]!r}.")
        return None
    else:
        raise ValueError(
            f"The photos have {len(own)} classes, called by the numbers {low} to {high}. {of_what} are {len(names)}: say with "
            "--class-indices which they are."
        )
    found = tuple(number - first for number in numbers)
    say(
        f"The photos' classes are called by numbers. {of_what} are taken for these, counted from {first}: {own[0]} is "
        f"{names[found[0]]!r}, {own[-1]} is {names[found[-1]]!r}."
    )
    return found


def _counted_from(classes: Classes, say: Callable[[str], None]) -> tuple[int, ...] | None:
    """Label -> class where photos have labels alone: a file of names may count them from 1."""
    if not classes.ids or not all(map(is_number, classes.ids)) or int(classes.ids[0]) == 0:
        return None
    say("Labels are counted from 1, as --class-names counts its names.")
    return (-1, *range(len(classes.ids)))


def _places(own: Sequence[str], called: Sequence[str]) -> list[list[int]]:
    """Where each name stands among others: in the strictest form in which all are there, or else in the loosest."""
    found: list[list[int]] = []
    for form in (str, _plain, _unnumbered):
        places: dict[str, list[int]] = defaultdict(list)
        for number, name in enumerate(called):
            places[form(name)].append(number)
        found = [places.get(form(name), []) for name in own]
        if all(found):
            break
    return found


def _plain(name: str) -> str:
    """A name without what people write in different ways: case, underscores, leading zeros of a number."""
    words = re.sub(r"[\W_]+", " ", name).strip().casefold()
    return str(int(words)) if is_number(words) else words


def _unnumbered(name: str) -> str:
    """`_plain` without a number or WordNet id in front: 001.Laysan_Albatross, n02085620-Chihuahua."""
    return _plain(re.sub(r"^([0-9]+|n[0-9]{8})[-._ ]+(?=\D)", "", name))


def _counting(name: str) -> list[tuple[int, str]]:
    """The order of people: class 2 before class 10."""
    return [(int(part), "") if is_number(part) else (-1, part) for part in re.split("([0-9]+)", name)]


def _alike(names: Sequence[str]) -> list[str]:
    """Two names that differ in case or signs alone."""
    seen: dict[str, str] = {}
    for name in names:
        key = _plain(name) or name
        if key in seen:
            return [repr(seen[key]), repr(name)]
        seen[key] = name
    return []


def absent_classes(
    labels: Sequence[int | None],
    names: Sequence[str] | None,
    indices: Sequence[int] | None,
    outputs: int | None,
) -> list[str]:
    """A sentence where classes of the classifier have no photo: they may be others than the photos'."""
    total = len(names) if names is not None else outputs or 0
    present = {*mapped_labels(labels, indices, total).tolist()}
    absent = [number for number in range(total) if number not in present]
    if not absent:
        return []
    called = f" ({names[absent[0]]!r})" if names is not None else ""
    return [
        f"{len(absent)} of the {total} classes have no photo among the {len(labels)} measured, the first of them number "
        f"{absent[0]}{called}."
    ]


def mapped_labels(labels: Sequence[int | None], class_indices: Sequence[int] | None, classes: int) -> Tensor:
    """Labels of photos to columns of a classifier: (N,).

    Raises:
        ValueError: A photo has no label, or one outside the indices or the classifier.
    """
    if any(label is None for label in labels):
        raise ValueError(f"{sum(label is None for label in labels)} of {len(labels)} photos have no label.")
    numbers = [label for label in labels if label is not None]  # of any size: they are what a file says
    known = classes if class_indices is None else len(class_indices)
    low, high = min(numbers), max(numbers)
    if not 0 <= low <= high < known:
        what = f"the classifier has {classes} classes" if class_indices is None else f"--class-indices lists {known}"
        is_one_more = class_indices is None and low >= 1 and high == known
        way_out = " If they are counted from 1, let --class-names say so: 1 NAME, 2 NAME, ..." if is_one_more else ""
        raise ValueError(f"The labels go from {low} to {high}, but {what}, counted from 0.{way_out}")
    given = torch.tensor(numbers)
    if class_indices is None:
        return given
    table = torch.tensor(class_indices)
    columns = table[given]
    if int(columns.min()) < 0:
        raise ValueError(f"A photo has the label {int(given[columns < 0][0])}, for which no class is given.")
    if not int(table.max()) < classes:
        raise ValueError(
            f"The class indices go from {int(table.min())} to {int(table.max())}; the classifier has {classes} classes."
        )
    return columns
