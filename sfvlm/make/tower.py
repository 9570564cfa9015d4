"""The first two steps: a tower that learns from the LLaVA, and a LLaVA with that tower."""

from dataclasses import dataclass, replace

import torch

from ..bootstrap.alignment import for_host
from ..bootstrap.learner import place_of_host
from ..bootstrap.options import BootstrapOptions
from ..bootstrap.run import bootstrap
from ..encoder.configuration import SparseFormerConfig
from ..hosts.facts import HostFacts
from ..hosts.folders import plan_folder, swap_folder
from ..hosts.host import check_host, open_host
from ..photos.sources import Photos
from ..teachers.inherit import inherit
from ..teachers.open import Teacher, open_teacher
from ..teachers.student import student_config
from ..util.console import say
from ..zoo.names import folder_of
from .bench import possible_alternatives
from .place import Place
from .recipe import Recipe


@dataclass(frozen=True)
class Fit:
    """What is known before anything is learned.

    Attributes:
        teacher: The LLaVA's own tower.
        config: Of the student.
        facts: What the LLaVA asks of a tower.
        alternatives: Names of the cheap ways to as few tokens.
        left_out: Why each other one is none.
    """

    teacher: Teacher
    config: SparseFormerConfig
    facts: HostFacts
    alternatives: list[str]
    left_out: dict[str, str]


def check_fit(recipe: Recipe) -> Fit:
    """Whether a tower of so many tokens can be made for this LLaVA and put into it.

    Raises:
        ValueError: It is no LLaVA that a tower can be put into, its tower is of no known kind, or the number of tokens is none.
    """
    check_host(recipe.host)
    folder = folder_of(recipe.host)
    teacher = open_teacher(recipe.host)
    config = student_config(teacher.config, num_tokens=recipe.num_tokens, for_host=True)
    config.check_budget(recipe.num_tokens)
    facts = plan_folder(folder, config).host
    patches = teacher.config.teacher_grid**2
    alternatives, left_out = possible_alternatives(recipe.alternatives, facts, patches, recipe.num_tokens)
    return Fit(teacher, config, facts, alternatives, left_out)


def training_options(recipe: Recipe, place: Place) -> BootstrapOptions:
    """How the tower is trained: the bootstrap's own defaults, but for what the recipe says."""
    assert recipe.steps is not None and recipe.batch_size is not None
    on_gpu = not recipe.cpu and torch.cuda.is_available()
    precision = recipe.precision or ("bf16" if on_gpu and torch.cuda.is_bf16_supported() else "no")
    return BootstrapOptions(
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        host_prompts=recipe.prompts,
        most_photos=recipe.most_photos,
        leave_out=place.held_back,
        held_back=min(
            BootstrapOptions.held_back, max(16, recipe.steps // 5)
        ),  # each costs as much as a step's, or nearly
        save_every=min(BootstrapOptions.save_every, max(10, recipe.steps // 8)),
        precision=precision,
        workers=recipe.workers,
        seed=recipe.seed,
        cpu=recipe.cpu,
    )


def make_tower(recipe: Recipe, fit: Fit, photos: Photos, place: Place) -> None:
    """Bootstraps the tower; a run that was interrupted goes on from its last checkpoint."""
    options = training_options(recipe, place)
    student, report = inherit(fit.teacher, fit.config, seed=recipe.seed)
    host = open_host(recipe.host, **place_of_host(options))
    options = replace(options, objective=for_host(options.objective, max(fit.facts.layers)))
    bootstrap(fit.teacher, student, report, photos, place.tower, options, host=host, resume=True)


def put_into(recipe: Recipe, place: Place) -> None:
    """Writes the LLaVA with the new tower; one that a killed run left behind is whole."""
    if place.llava.exists():
        return
    manifest = swap_folder(folder_of(recipe.host), place.tower, place.llava)
    tokens = manifest["tokens"]
    say(f"{tokens['after']} tokens a {tokens['of_each']} instead of {tokens['before']}.")
