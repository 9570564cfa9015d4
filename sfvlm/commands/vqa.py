"""The command behind `eval/vqa.py`: hosts, questions and photos to one table and one results file."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ..hosts.host import Host, check_host, open_host
from ..hosts.named_towers import put_tower, split_tower
from ..look.sides import twin_of
from ..photos.decode import UnreadablePhoto
from ..photos.sources import open_and_say
from ..serve.endpoint import Endpoint
from ..util.choices import SCENE_TEST_SEED
from ..util.console import say
from ..util.devices import usable_device
from ..util.results import Row, aligned, check_json, check_once, short_names, write_results
from ..vqa.answers import (
    Run,
    Shard,
    answer_folder,
    answer_names,
    answer_path,
    merge_shards,
    read_answers,
    run_of,
)
from ..vqa.ask import (
    BENCHMARKS,
    RULES,
    ask,
    benchmark_named,
    compare,
    limited,
    made_questions,
    measure,
    questions_of,
    result_row,
    rule_of,
    run_by,
)
from ..vqa.metrics import Score
from ..vqa.photos import NamedPhotos, SourcePhotos, TablePhotos, check_photos
from ..vqa.questions import Question
from ..vqa.retained import write_scores
from .options.vqa import VqaCommand

AHEAD = 8  # batches of a server's requests, so that few wait for the slowest


@dataclass(frozen=True)
class Answered:
    """What one model said."""

    name: str
    source: str
    texts: list[str]
    run: Run | None  # None where it is unknown
    facts: dict[str, Any] = field(default_factory=dict)  # that its row shall have


def vqa_command(command: VqaCommand) -> None:
    """Reads the questions, asks each host, prints a table and writes the results."""
    rule = rule_of(command.benchmark, command.rule)
    shard = _check(command)
    questions, photos = _questions(command)
    if shard is not None:
        questions, whole = shard.of(questions), questions
        say(f"Shard {shard.number} of {shard.count}: {len(questions)} of {len(whole)} questions.")
    try:
        answered = list(_answered(command, questions, photos, shard))
    except KeyboardInterrupt:
        kept = "the same command continues" if command.out is not None else "without --out nothing is kept"
        sys.stderr.write(f"\nInterrupted; {kept}.\n")
        raise SystemExit(130) from None
    if shard is not None:
        say(f"When all {shard.count} shards are answered, join them by the same command without --shard.")
    if command.out is not None and (shard is not None or command.only_ask):
        say(f"The answers are in {answer_folder(command.out)}.")
        return
    scores = [measure(command.benchmark, questions, each.texts, rule) for each in answered]
    rows = list(_rows(command, rule, questions, answered, scores))
    say(f"\n{command.benchmark}: {len(questions)} questions, {len(set(scores[0].photos))} photos; {RULES[rule].words}")
    say(vqa_table(rows, scores[0].headline, benchmark_named(command.benchmark).shown))
    if command.out is not None:
        made = {name: getattr(command, name) for name in ("split", "negatives", "seed", "limit")}
        remarks = list(photos.photos.remarks) if isinstance(photos, SourcePhotos) else []
        facts = {**made, "remarks": remarks}
        write_results(command.out, rows, facts, usable_device(command.device))
        write_scores(
            command.out,
            command.benchmark,
            {each.name: score for each, score in zip(answered, scores, strict=True)},
            {each.name: each.run for each in answered},
        )
        say(f"\nWrote {command.out}; the answers are in {answer_folder(command.out)}.")


def _check(command: VqaCommand) -> Shard | None:
    """What can be said before anything is read."""
    check_json(command.out)
    asked = [*command.model, *command.server]
    if bool(asked) == bool(command.answers):
        raise ValueError(
            "Give --model for hosts that are asked, --server for servers, or --answers for answers that are there already."
        )
    if command.tower and not command.model:
        raise ValueError("--tower replaces the tower of a host: give the host by --model.")
    for tower in command.tower:
        split_tower(tower)
    if (command.shard is not None or command.only_ask) and (command.out is None or command.answers):
        raise ValueError("--shard and --only-ask need --model, and --out for a place to keep the answers.")
    if command.server_model and len(command.server_model) != len(command.server):
        raise ValueError(
            f"--server-model names {len(command.server_model)} models, and --server {len(command.server)} servers: one for each."
        )
    numbers = (command.batch_size, command.max_new_tokens, command.concurrency)
    for flag, value in zip(("batch-size", "max-new-tokens", "concurrency"), numbers, strict=True):
        if value is not None and value < 1:
            raise ValueError(f"--{flag} is {value}; it must be at least 1.")
    check_once("host", command.model)
    check_once("tower", command.tower)
    check_once("server", list(map("::".join, zip(command.server, command.server_model or command.server, strict=True))))
    usable_device(command.device)
    shard = None if command.shard is None else Shard.parse(command.shard)
    for source in command.model:
        check_host(source)
    return shard


def _questions(command: VqaCommand) -> tuple[list[Question], NamedPhotos | None]:
    """The questions, and their photos where a host is to be asked; what cannot be measured is refused before that."""
    name, sources = command.benchmark, command.photos
    if name == "scenes" and not sources:
        sources = [f"scenes:500:{SCENE_TEST_SEED}"]
    is_made = not command.questions and benchmark_named(name).make is not None
    if not is_made and not command.questions:
        raise ValueError(f"The questions of {name} come in files: give --questions.")
    if name == "mmbench" and command.questions and not sources:
        photos: NamedPhotos | None = TablePhotos(command.questions[0])
    elif sources:
        photos = SourcePhotos(open_and_say(sources))
    elif is_made or not command.answers:
        raise ValueError(f"The photos of {name} are missing: give --photos.")
    else:
        photos = None
    if is_made:
        assert isinstance(photos, SourcePhotos)
        options = {} if name == "scenes" else dict[str, Any](split=command.split)
        if name in ("pope-like", "pope-captions"):
            options |= dict(seed=command.seed, negatives=command.negatives)
        unasked: dict[str, str] = {}
        questions = made_questions(name, photos.photos, unasked, **options)
        if unasked:
            photos.photos.notes += (
                f"{len(unasked)} photos have no questions, because they or what is said of them cannot be read; the first of them: "
                f"{next(iter(unasked.values()))}.",
            )
            say(photos.photos.notes[-1])
    else:
        questions = questions_of(name, command.questions, command.annotations, not command.only_ask)
    if photos is not None and not command.answers:
        check_photos(questions, photos, ", ".join(sources) or str(command.questions[0]))
        _say_assumed(photos)
    questions = limited(name, questions, command.limit)
    if not command.only_ask:
        measure(name, questions, [""] * len(questions), command.rule)
    return questions, photos


def _say_assumed(photos: NamedPhotos) -> None:
    """Says which photos were found by their file names alone."""
    assumed = photos.assumed if isinstance(photos, SourcePhotos) else {}
    if assumed:
        name, key = next(iter(assumed.items()))
        say(f"{len(assumed)} photos lie in none of the folders that their names speak of: {name} is taken to be {key}.")


def _answered(
    command: VqaCommand, questions: Sequence[Question], photos: NamedPhotos | None, shard: Shard | None
) -> Iterator[Answered]:
    """Each model's answers."""
    for path, name in zip(command.answers, answer_names(command.answers, command.benchmark), strict=True):
        yield Answered(name, str(path), read_answers(path, questions), run_of(path))
    if command.answers:
        return
    assert photos is not None
    longest = command.max_new_tokens or BENCHMARKS[command.benchmark].max_new_tokens
    servers = _servers(command)  # whoever does not answer is known before a host is opened
    for name, pretrained, host in chain[tuple[str, str, Host | Endpoint]](_hosts(command), servers):
        path = _answer_path(command, name, questions, shard)
        problems: dict[str, str] = {}
        texts = ask(
            host,
            questions,
            photos,
            max_new_tokens=longest,
            batch_size=command.batch_size if isinstance(host, Host) else AHEAD * command.concurrency,
            path=path,
            model_id=name,
            problems=problems,
        )
        if problems:
            say(
                f"{len(problems)} photos could not be shown to {name}, so that no question about them is answered; the first of them: "
                f"{next(iter(problems.values()))}."
            )
        run = None if path is None else run_by(host, name, longest)
        yield Answered(name, pretrained, texts, run, _facts(host, questions, photos))
        del host  # or it would be in memory while the next one is opened


def _hosts(command: VqaCommand) -> Iterator[tuple[str, str, Host]]:
    """Each model that is asked, with its name and its source: the first host, the towers in its place, the other hosts."""
    names = short_names([*command.model, *command.tower])
    hosts, towers = names[: len(command.model)], names[len(command.model) :]
    for number, (name, source) in enumerate(zip(hosts, command.model, strict=True)):
        host = open_host(source, dtype=command.dtype, device=command.device, bits=command.bits)
        in_its_place = list(zip(towers, command.tower, strict=True)) if number == 0 else []
        for _, tower in in_its_place:  # what does not fit is refused before anybody is asked
            put_tower(twin_of(host), tower)
        yield name, source, host
        for its_name, tower in in_its_place:
            twin = twin_of(host)
            put_tower(twin, tower)
            yield its_name, f"{source} with {tower}", twin
            del twin
        del host
        torch.cuda.empty_cache()


def _servers(command: VqaCommand) -> list[tuple[str, str, Endpoint]]:
    """Each server that is asked, with its name and its address."""
    models = command.server_model or [None] * len(command.server)
    found = [
        Endpoint(url, model, concurrency=command.concurrency, key=command.key)
        for url, model in zip(command.server, models, strict=True)
    ]
    return [(each.source, each.url, each) for each in found]


def _answer_path(command: VqaCommand, name: str, questions: Sequence[Question], shard: Shard | None) -> Path | None:
    """The answer file of a model; shards that are there and complete become one first."""
    if command.out is None:
        return None
    whole = answer_path(command.out, command.benchmark, name)
    if shard is not None:
        return shard.path(whole)
    if merge_shards(whole, questions):
        say(f"Joined the shards of {whole}.")
    return whole


def _facts(host: Host | Endpoint, questions: Sequence[Question], photos: NamedPhotos) -> dict[str, Any]:
    """Tokens the LLM reads for the first photo that can be read; of a server's, those of the whole prompt."""
    for item in questions:
        if item.image is not None:
            try:
                image = photos.open(item.image)
                return (
                    host.facts(image, item.text) if isinstance(host, Endpoint) else {"tokens": host.image_tokens(image)}
                )
            except UnreadablePhoto:
                continue
    return {}


def _rows(
    command: VqaCommand, rule: str, questions: Sequence[Question], answered: list[Answered], scores: list[Score]
) -> Iterator[Row]:
    for each, score in zip(answered, scores, strict=True):
        yield result_row(
            command.benchmark,
            each.name,
            each.source,
            score,
            rule=rule,
            comparison=None if score is scores[0] else compare(scores[0], score),
            facts={"questions": len(questions), "unanswered": sum(not text for text in each.texts), **each.facts},
        )


def vqa_table(rows: Sequence[Row], headline: str, shown: Sequence[str] = ()) -> str:
    """Results as an aligned table, a row a model: what none of them has is left out."""
    columns = [
        ("tokens", "tokens"),
        ("prompt_tokens", "prompt tokens"),
        (headline, headline),
        (f"{headline}_low", "95 % from"),
        (f"{headline}_high", "to"),
        *((name, name) for name in shown),
        ("difference", "difference"),
        ("difference_low", "from"),
        ("difference_high", "to"),
        ("retained", "retained"),
        ("retained_low", "from"),
        ("retained_high", "to"),
    ]
    columns = [column for column in columns if any(column[0] in row["metrics"] for row in rows)]
    lines = [["model", *(heading for _, heading in columns)]]
    for row in rows:
        lines.append([row["model"], *(_cell(name, row["metrics"].get(name), headline) for name, _ in columns)])
    return aligned(lines)


def _cell(name: str, value: float | None, headline: str) -> str:
    """Shares as per cent, MME's points and CIDEr-D as they are; a difference has a sign."""
    if value is None:
        return ""
    if name in ("tokens", "prompt_tokens"):
        return f"{value:.0f}"
    sign = "+" if name.startswith("difference") else ""
    if headline in ("points", "cider_d") and not name.startswith("retained"):
        return f"{value:{sign}.{1 if headline == 'points' else 3}f}"
    return f"{value:{sign}.1%}"
