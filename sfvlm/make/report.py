"""The last step: everything that was found, on one page that needs nothing but itself."""

import base64
import difflib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..bootstrap.run import SKIPPED
from ..photos.sources import Photos
from ..util.errors import shortened
from ..util.files import read_json, replacing
from ..util.statistics import Interval
from .chart import chart
from .estimate import in_words
from .examples import Example, read_examples
from .held_back import HeldBack
from .place import Place
from .recipe import Recipe
from .tower import Fit, training_options
from .verdict import FAR, NEAR, SOONER, Verdict, judge
from .ways import Way, Ways, read_ways

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
        folder=str(place.folder),
        verdict=verdict,
        ways=ways,
        rows=[_row(way, ways) for way in ways.all],
        chart=chart(ways),
        examples=[_shown(example, place.examples) for example in read_examples(place.examples)],
        costs=list(_costs(recipe, fit, photos, held, place)),
        left_out=list(_left_out(recipe, fit, photos, place)),
        commands=list(_commands(recipe, place, verdict, ways)),
        use=shlex.quote(str(place.llava)),
        machine=read_json(place.speed)["machine"],
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
        "work": f"{way.macs / ways.dense.macs:.0%}",
        "macs": f"{way.macs / 1e9:.3g} G",
        "first_word": f"{way.first_word * 1e3:.3g} ms",
        "sooner": "" if way is ways.dense else f"{way.sooner:.2f} times sooner",
        "divergence": _between(way.divergence, "{:.3f}"),
        "same_words": _between(way.same_words, "{:.1%}"),
        "against": "" if way.difference is None else against,
    }


def _between(found: Interval | None, form: str) -> tuple[str, str] | None:
    """A value, and its interval."""
    if found is None:
        return None
    return form.format(found.value), f"{form.format(found.low)} to {form.format(found.high)}"


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
    options = training_options(recipe, place)
    yield (
        "learning the tower",
        f"{_time(place, 'tower')}, {options.steps} steps of {options.batch_size} photos, the LLaVA's answers included",
    )
    yield "measuring", _time(place, "fidelity", "speed", "examples")
    yield (
        "photos",
        f"{facts['photos_read']} to learn from, without labels; {len(held.photos)} held back and measured on, of {len(photos)} in all",
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
    options, host, new = (
        training_options(recipe, place),
        recipe.host,
        place.folder.with_name(f"{place.folder.name}-again"),
    )
    tuned = {
        "steps": options.steps, "batch-size": options.batch_size, "most-photos": options.most_photos, "held-back": options.held_back,
        "precision": options.precision, "seed": options.seed, "save-every": options.save_every,
    }  # fmt: skip
    flags = [word for name, value in tuned.items() for word in (f"--{name}", str(value))]
    prompts = [] if recipe.prompts is None else [str(recipe.prompts)]
    learned = [
        "--leave-out",
        str(place.held_back),
        *(["--host-prompts", *prompts] if prompts else []),
        *(["--cpu"] if recipe.cpu else []),
    ]
    tower, count = str(new / "tower"), str(recipe.num_tokens)
    yield (
        "the tower",
        _line(
            "bootstrap",
            "--host",
            host,
            "--photos",
            *recipe.photos,
            "--num-tokens",
            count,
            *flags,
            *learned,
            "--out",
            tower,
        ),
    )
    yield "the LLaVA with it", _line("swap", "--host", host, "--tower", tower, "--out", str(new / "llava"))
    towers = [str(place.tower), *(f"reduce:{way.name}@{count}" for way in ways.others)]
    asked = [
        "--only",
        str(place.held_back),
        "--limit",
        "0",
        "--seed",
        str(recipe.seed),
        *(["--prompts", *prompts] if prompts else []),
    ]
    yield (
        "how near each way stays",
        _line(
            "fidelity",
            "--host",
            host,
            "--tower",
            *towers,
            "--photos",
            *recipe.photos,
            *asked,
            "--out",
            str(new / "fidelity.json"),
        ),
    )
    yield (
        "what a reply costs",
        _line("speed", "--host", host, str(place.llava), "--photos", *recipe.photos, "--batch-sizes", "1"),
    )
    first = ways.others[0].name if ways.others else None
    if first is not None:
        to = str(place.folder / f"llava-{first}")
        yield (
            f"a LLaVA with {first} instead",
            _line("swap", "--host", host, "--tower", f"reduce:{first}", "--num-tokens", count, "--out", to),
        )
    yield (
        "the LLaVA as it was",
        _line("swap", "--undo", "--host", str(place.llava), "--out", str(place.folder / "llava-dense")),
    )
    longer = [str(4 * options.steps)]
    if verdict.advice in ("perhaps", "not yet", "another"):
        more = ["--photos", *recipe.photos, "--num-tokens", count, "--steps", *longer]
        yield "all of it, with longer training", _line("make", "--host", host, *more, "--out", str(new))


def _line(*words: str) -> str:
    return shlex.join(["sfvlm", *words])
