"""The third and fourth step: how near each way stays to the dense LLaVA's own words, and what a reply costs with each."""

from pathlib import Path
from typing import Any

from ..bootstrap.targets.interview import Interview, read_prompts
from ..evaluate.fidelity import fidelity_rows, measure_fidelity, passed_over
from ..hosts.reader import HostReader
from ..photos.batches import Selection
from ..photos.sources import readable
from ..speed.energy import open_meter
from ..speed.hosts import host_facts, host_subject, measure_hosts
from ..speed.measure import write_costs
from ..teachers.open import open_teacher
from ..util.results import short_names, write_results
from .bench import DENSE, Bench
from .place import Place

TURNS = 4  # prompts a photo
AT_ONCE = 16  # photos
TIMED_PHOTOS = 16  # that take turns
REPEATS, NEW_TOKENS = 5, 32


def measure_nearness(bench: Bench, photos: Selection, place: Place, command: str) -> None:
    """Asks the dense LLaVA about the photos held back, reads its answers through every tower, and writes both."""
    recipe, host = bench.recipe, bench.dense
    dense = open_teacher(recipe.host).model.to(host.model.device, host.model.dtype)
    prompts = read_prompts(recipe.prompts) if recipe.prompts else ()
    interview = Interview(
        HostReader(host.model, host.processor), host.processor, host.fingerprint, dense, TURNS, recipe.seed, prompts, AT_ONCE
    )  # fmt: skip
    towers: dict[str, Any] = {name: bench.tower_of(name) for name in bench.towers}
    found = measure_fidelity(interview, towers, photos, place.answers)
    tokens = {name: tower.config.budget for name, tower in towers.items()}
    rows = fidelity_rows(found, tokens, "+".join(short_names(recipe.photos)), recipe.host)
    count, why = passed_over(photos, next(iter(found.values())))
    facts = {"turns": TURNS, "seed": recipe.seed, "passed_over": count, "first_passed_over": why}
    write_results(place.fidelity, rows, {"command": command, **facts}, host.model.device)


def measure_costs(bench: Bench, photos: Selection, path: Path, command: str) -> None:
    """Times replies of all of them in turns, one at a time, and counts multiply-adds."""
    images = [photo.image for photo, _ in zip(readable(photos), range(TIMED_PHOTOS), strict=False)]
    hosts = {DENSE: bench.dense} | bench.few
    subjects = [host_subject(host, name, images) for name, host in hosts.items()]
    device = bench.dense.model.device
    facts = [host_facts(subject) for subject in subjects]
    rows = measure_hosts(
        subjects, 1, facts, repeats=REPEATS, new_tokens=NEW_TOKENS, meter=open_meter(device)
    )  # fmt: skip
    settings = {"host": bench.recipe.host, "repeats": REPEATS, "new_tokens": NEW_TOKENS}
    write_costs(path, rows, {"command": command, "settings": settings, "finished": True}, device)
