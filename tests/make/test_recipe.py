"""What is asked for, and how a command says it."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from sfvlm import cli
from sfvlm.commands.options.make import MakeCommand
from sfvlm.make.estimate import in_words
from sfvlm.make.recipe import Recipe


def test_without_photos_the_shipped_llava_learns_from_few_scenes_for_few_steps() -> None:
    quick, usual = Recipe().completed(), Recipe(photos=["photos"]).completed()
    assert quick.host == "llava-tiny" and quick.photos[0].startswith("scenes:")
    assert (quick.steps or 0) * (quick.batch_size or 0) < 5000 < (usual.steps or 0) * (usual.batch_size or 0)
    assert Recipe(steps=7).completed().steps == 7


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(
            host="a b",
            photos=["x y", "z"],
            cpu=True,
            prompts=Path("p q.txt"),
            alternatives=["stride", "average"],
            seed=3,
        ),
        replace(Recipe(photos=["p"]).completed(), precision="bf16", most_photos=0),
    ],
)
def test_the_command_of_a_recipe_asks_for_that_recipe(recipe: Recipe) -> None:
    words = shlex.split(recipe.command(Path("runs/a b")))
    assert words[:2] == ["sfvlm", "make"]
    parsed = cli._parsed(MakeCommand, words[2:])
    assert parsed == MakeCommand(**vars(recipe), out=Path("runs/a b"))


def test_workers_alone_may_differ_from_run_to_run() -> None:
    assert Recipe(workers=1).binding() == Recipe(workers=8).binding()
    assert Recipe(seed=1).binding() != Recipe(seed=2).binding()
    assert Recipe(prompts=Path("a")).binding()["prompts"] == "a"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (61, "61 s"), (95, "2 min"), (3600, "60 min"), (9000, "2 h 30 min"), (200_000, "2.3 days")],
)
def test_times_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
