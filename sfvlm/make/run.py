"""The order of things: six steps from a LLaVA and photos to a report, each done once.

photos --held back--> measured on        the rest --1 tower--> tower/ --2 swap--> llava/
tower, alternatives --3 nearness--> fidelity.json --4 cost--> speed.json --5 examples--> examples/ --6--> report.html
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from ..photos.sources import Photos, names_hash, open_photos, readable
from ..util.console import say
from ..util.devices import usable_device
from ..zoo.names import folder_of
from .bench import Bench
from .estimate import check_room, in_words, measure_pace, seconds_left
from .examples import show_examples
from .held_back import HeldBack, hold_back
from .measures import measure_costs, measure_nearness
from .place import Place, open_place
from .recipe import Recipe
from .report import write_report
from .tower import Fit, check_fit, make_tower, put_into, training_options
from .verdict import Verdict


@dataclass(frozen=True)
class Step:
    """A step, by the name of its mark."""

    name: str
    title: str
    work: Callable[[], object]


def make(recipe: Recipe, folder: Path) -> Verdict:
    """Makes what the recipe says in a folder, or goes on where an earlier call stopped.

    Args:
        recipe: What is asked for.
        folder: New, empty, or begun by the same recipe.

    Returns:
        What the report says at its head.

    Raises:
        ValueError: The LLaVA or the photos are none that this can be made of, or the folder holds something else; nothing is written
            then. Or something cannot be written: what was done before is kept, and the same call goes on.
        KeyboardInterrupt: What was reached is saved.
    """
    recipe = recipe.completed()
    if not recipe.cpu:
        usable_device()
    fit = check_fit(recipe)
    photos = open_photos(recipe.photos)
    found = {"number of photos": len(photos), "hash of their names": names_hash(photos)[:16]}
    place = open_place(folder, recipe.binding() | found)
    for remark in (*photos.remarks, *(f"{name} is left out: {why}" for name, why in fit.left_out.items())):
        say(remark)
    assert recipe.held_back is not None
    held = hold_back(photos, recipe.held_back, recipe.seed, place.held_back)
    if held.unreadable:
        key, why = next(iter(held.unreadable.items()))
        place.remember("unreadable", {"count": len(held.unreadable), "key": key, "why": why})
    bench, command = Bench(recipe, place, fit.alternatives), recipe.command(folder)
    steps = _steps(recipe, fit, photos, held, bench, place, command)
    if not all(place.is_done(step.name) for step in steps):
        check_room(folder_of(recipe.host), place)
        _say_plan(recipe, fit, photos, held, bench, place)
    for number, step in enumerate(steps, 1):
        _take(step, f"{number} of {len(steps) + 1}", place)
    verdict = write_report(recipe, fit, photos, held, place)
    say(f"{len(steps) + 1} of {len(steps) + 1}  wrote {place.report}")
    return verdict


def _steps(
    recipe: Recipe, fit: Fit, photos: Photos, held: HeldBack, bench: Bench, place: Place, command: str
) -> list[Step]:
    ways = len(fit.alternatives) + 1
    return [
        Step(
            "tower",
            f"a tower of {recipe.num_tokens} tokens learns from the LLaVA, {recipe.steps} steps",
            lambda: make_tower(recipe, fit, photos, place),
        ),
        Step("llava", "the LLaVA gets that tower", lambda: put_into(recipe, place)),
        Step(
            "fidelity",
            f"how near {ways} ways stay to the LLaVA's own words, on {len(held.photos)} photos held back",
            lambda: measure_nearness(bench, held.photos, place, command),
        ),
        Step("speed", "what a reply costs", lambda: measure_costs(bench, held.photos, place.speed, command)),
        Step(
            "examples",
            "both answers about some of the photos",
            lambda: show_examples(bench, held.photos, place.examples),
        ),
    ]


def _take(step: Step, number: str, place: Place) -> None:
    """One step with a line before and after; a line alone where it is done already."""
    if place.is_done(step.name):
        say(f"{number}  {step.title}: done before, in {_spent(place, step.name)}")
        return
    say(f"{number}  {step.title} ...")
    started, earlier = time.monotonic(), place.spent(step.name)
    with place.step(step.name):
        step.work()
    with_earlier = f", {_spent(place, step.name)} with earlier runs" if earlier.seconds or earlier.at_least else ""
    say(f"{number}  done in {in_words(time.monotonic() - started)}{with_earlier}")


def _spent(place: Place, step: str) -> str:
    spent = place.spent(step)
    return ("at least " if spent.at_least else "") + in_words(spent.seconds)


def _say_plan(recipe: Recipe, fit: Fit, photos: Photos, held: HeldBack, bench: Bench, place: Place) -> None:
    """What will be done, from what, and how long that takes here."""
    options = training_options(recipe, place)
    left = len(photos) - len(held.photos)
    learned = min(left, recipe.most_photos or left)
    few = "" if learned == left else f", the most that --most-photos {recipe.most_photos} allows"
    before, each = fit.facts.tokens - fit.facts.reads_cls, "tile" if fit.facts.tiles else "photo"
    say(
        f"{recipe.host}: {recipe.num_tokens} tokens instead of {before} a {each}. {len(photos)} photos: {len(held.photos)} are held back "
        f"to measure on, {learned} are for learning{few}."
    )
    if held.unreadable:
        key, why = next(iter(held.unreadable.items()))
        say(f"{len(held.unreadable)} photos that were drawn cannot be read, the first of them {key}: {why}.")
    images = [photo.image for photo in islice(readable(held.photos), 4)]
    seconds = seconds_left(measure_pace(bench, images), fit, options, learned, len(held.photos), place)
    say(f"This takes about {in_words(seconds)} on {_machine(bench)}. It may be interrupted: the same command goes on.")


def _machine(bench: Bench) -> str:
    device = bench.dense.model.device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"the CPU with {threads} thread{'s' * (threads != 1)}"
