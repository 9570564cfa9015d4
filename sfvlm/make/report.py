"""The last step: everything that was found, on one page that needs nothing but itself."""

import base64
import difflib
import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..bootstrap.run import SKIPPED
from ..photos.sources import Photos
from ..util.errors import shortened
from ..util.files import read_json, replacing
from ..util.results import short_names
from ..util.statistics import Interval
from .chart import chart
from .estimate import in_words
from .examples import Example, read_examples
from .held_back import HeldBack
from .place import Place
from .recipe import Recipe
from .tower import Fit
from .verdict import FAR, NEAR, SOONER, Verdict, judge
from .ways import Way, Ways, read_ways, share

TEMPLATE = "report.html"
SHOWN_SKIPPED = 5


class Word(NamedTuple):
    """A part of an answer, and whether the other side says it otherwise."""

    text: str
    is_other: bool


def write_report(recipe: Recipe, fit: Fit, photos: Photos, held: HeldBack, place: Place) -> Verdict:
    """Writes the page from the files of the steps before, and returns what it says at its head."""
    ways = read_ways(place)
    verdict = judge(ways)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    page = environment.get_template(TEMPLATE).render(
        recipe=recipe,
        name=short_names([recipe.host])[0],
        folder=str(place.folder),
        verdict=verdict,
        ways=ways,
        rows=[_row(way, ways) for way in ways.all],
        chart=chart(ways),
        numbered=[way.name for way in ways.others],
        examples=[_shown(example, place.examples) for example in read_examples(place.examples)],
        costs=list(_costs(recipe, fit, photos, held, place)),
        left_out=list(_left_out(recipe, fit, photos, place)),
        commands=list(_commands(recipe, place, verdict, ways)),
        use=shlex.quote(str(place.llava)),
        machine=read_json(place.speed)["machine"],
        versions=read_json(place.speed)["versions"],
        date=read_json(place.speed)["date"][:10],
        rule={"sooner": SOONER, "near": NEAR, "far": FAR},
        tiles=fit.facts.tiles,
    )
    with replacing(place.report) as temporary:  # names of files may be no UTF-8
        temporary.write_text(page, "utf-8", errors="replace")
    return verdict


def _row(way: Way, ways: Ways) -> dict[str, Any]:
    """A line of the table, as text."""
    against = "nearer" if way.is_nearer else "farther" if way.is_farther else "alike"
    return {
        "kind": "dense" if way is ways.dense else "sparse" if way is ways.sparse else "other",
        "name": way.name,
        "about": way.about,
        "tokens": f"{way.tokens:.0f}",
        "work": share(way.macs / ways.dense.macs),
        "macs": f"{way.macs / 1e9:.3g} G",
        "first_word": f"{way.first_word * 1e3:.3g} ms",
        "sooner": "" if way is ways.dense else f"{way.sooner:.2f} times sooner",
        "divergence": _between(way.divergence, "{:.3f}".format),
        "same_words": _between(way.same_words, partial(share, digits=1)),
        "against": "" if way.difference is None else against,
    }


def _between(found: Interval | None, form: Callable[[float], str]) -> tuple[str, str] | None:
    """A value, and its interval."""
    return None if found is None else (form(found.value), f"{form(found.low)} to {form(found.high)}")


def _shown(example: Example, folder: Path) -> dict[str, Any]:
    """A photo of the page: pictures inside it, and answers with what differs."""
    answers = [
        {"prompt": each.prompt, "dense": each.dense, "sparse": list(_words(each.dense, each.sparse)), "same": each.dense == each.sparse}
        for each in example.answers
    ]  # fmt: skip
    pictures = {name: _inside(folder / getattr(example, name)) for name in ("view", "boxes")}
    return {"key": example.key, "answers": answers, **pictures}


def _inside(picture: Path) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(picture.read_bytes()).decode()


def _words(theirs: str, ours: str) -> Iterator[Word]:
    """Our answer in parts: those that they say too, and the others."""
    before, after = theirs.split(), ours.split()
    for kind, _, _, start, end in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if start < end:
            yield Word(" ".join(after[start:end]), kind != "equal")


def _costs(recipe: Recipe, fit: Fit, photos: Photos, held: HeldBack, place: Place) -> Iterator[tuple[str, str]]:
    """What making it took, by lines."""
    facts = read_json(place.tower / "bootstrap.json")
    rows = read_json(place.tower / "inheritance.json")["rows"]
    trained, all_of_it = (sum(row["parameters"] for row in rows if row["trained"] or each) for each in (False, True))
    yield (
        "learning the tower",
        f"{_time(place, 'tower')}, {recipe.steps} steps of {recipe.batch_size} photos, the LLaVA's answers included",
    )
    yield "measuring", _time(place, "fidelity", "speed", "examples")
    yield (
        "photos",
        f"{facts['photos_read'] - facts['photos_held_back']} learned from, without labels; {facts['photos_held_back']} to watch the "
        f"learning; {len(held.photos)} held back from both and measured on",
    )
    yield (
        "of the tower",
        f"{trained / 1e6:.3g} of {all_of_it / 1e6:.3g} million numbers were trained; projector and language model none",
    )
    yield (
        "on the disk",
        f"{_size(place.llava) / 1e9:.2g} GB the LLaVA, {_size(place.tower) / 1e9:.2g} GB the tower with its checkpoints",
    )


def _time(place: Place, *steps: str) -> str:
    spent = [place.spent(step) for step in steps]
    least = "at least " if any(each.at_least for each in spent) else ""
    return least + in_words(sum(each.seconds for each in spent))


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _left_out(recipe: Recipe, fit: Fit, photos: Photos, place: Place) -> Iterator[str]:
    """What was refused, skipped or not measured, a sentence each."""
    yield from photos.remarks
    for name, why in fit.left_out.items():
        yield f"The alternative {name} was not measured. {why}"
    if drawn := place.marks.get("unreadable"):
        yield f"{drawn['count']} photos that were drawn to be held back cannot be read, the first of them {drawn['key']}: {drawn['why']}."
    skipped = list(_skipped(place.tower / SKIPPED))
    if skipped:
        yield f"{len(skipped)} photos could not be learned from ({place.tower / SKIPPED} has all):"
        yield from (f"{each['key']}: {shortened(each['reason'])}" for each in skipped[:SHOWN_SKIPPED])
    near = read_json(place.fidelity)
    if near["passed_over"]:
        yield f"{near['passed_over']} of the photos held back were not measured, the first of them {near['first_passed_over']}."
    if recipe.most_photos and len(photos) > recipe.most_photos:
        yield f"Of the {len(photos)} photos {recipe.most_photos} at most were learned from (--most-photos)."
    if fit.facts.tiles:
        yield "Nearness is of the overview that comes with a photo's tiles alone; times and answers are of all tiles."


def _skipped(path: Path) -> Iterator[dict[str, str]]:
    if path.is_file():
        for line in path.read_text("utf-8").splitlines():
            if line.endswith("}"):
                yield json.loads(line)


def _commands(recipe: Recipe, place: Place, verdict: Verdict, ways: Ways) -> Iterator[tuple[str, str]]:
    """Each step as a command of its own, into new places."""
    new = place.folder.with_name(f"{place.folder.name}-again")
    options = read_json(place.tower / "bootstrap.json")["options"]
    host, photos, tokens = ("--host", recipe.host), ("--photos", *recipe.photos), ("--num-tokens", recipe.num_tokens)
    tuned = ("steps", "batch_size", "most_photos", "held_back", "precision", "seed", "save_every")
    flags = [word for name in tuned for word in (f"--{name.replace('_', '-')}", options[name])]
    flags += ["--cpu"] * recipe.cpu
    host_prompts, prompts = (
        () if recipe.prompts is None else (flag, recipe.prompts) for flag in ("--host-prompts", "--prompts")
    )
    left_out, out = ("--leave-out", place.held_back), ("--out", new / "tower")
    yield "the tower", _sfvlm("bootstrap", *host, *photos, *tokens, *flags, *host_prompts, *left_out, *out)
    yield "the LLaVA with it", _sfvlm("swap", *host, "--tower", new / "tower", "--out", new / "llava")
    towers = ("--tower", place.tower, *(f"reduce:{way.name}@{recipe.num_tokens}" for way in ways.others))
    asked = ("--only", place.held_back, "--limit", 0, "--seed", recipe.seed, *prompts)
    near = _sfvlm("fidelity", *host, *towers, *photos, *asked, "--out", new / "fidelity.json")
    yield "how near each way stays", near
    yield "what a reply costs", _sfvlm("speed", *host, place.llava, *photos, "--batch-sizes", 1)
    for way in ways.others[:1]:
        reduced = ("--tower", f"reduce:{way.name}", *tokens)
        yield f"a LLaVA with {way.name}", _sfvlm("swap", *host, *reduced, "--out", place.folder / f"llava-{way.name}")
    undone = place.folder / "llava-dense"
    yield "the LLaVA as it was", _sfvlm("swap", "--undo", "--host", place.llava, "--out", undone)
    if verdict.advice in ("perhaps", "not yet", "another"):
        yield "all of it, learning longer", replace(recipe, steps=4 * options["steps"]).command(new)


def _sfvlm(*words: object) -> str:
    """A command as it is typed, each word quoted where it has to be."""
    return shlex.join(["sfvlm", *map(str, words)])
