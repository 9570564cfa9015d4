"""The command behind `eval/fidelity.py`: how near towers keep a host to what it says with its dense one."""

import sys
from typing import Any

from ...bootstrap.targets.interview import Interview, read_prompts
from ...evaluate.fidelity import fidelity_rows, measure_fidelity, passed_over
from ...hosts.host import open_host
from ...hosts.named_towers import split_tower
from ...hosts.reader import HostReader
from ...look.sides import twins_with
from ...photos.batches import Selection
from ...photos.sources import Photos, named, open_and_say
from ...teachers.open import open_teacher
from ...util.console import say
from ...util.results import Row, aligned, check_json, check_once, short_names, write_results
from ...util.subsets import spread
from .options import FidelityCommand


def fidelity_command(command: FidelityCommand) -> None:
    """Asks the dense host, reads its answers through each tower, and prints a table."""
    check_json(command.out)
    _check(command)
    prompts = read_prompts(command.prompts) if command.prompts else ()
    every = open_and_say(command.photos)
    photos = Selection(every, _chosen(every, command))
    host = open_host(command.host, dtype=command.dtype, device=command.device)
    dense = open_teacher(command.host).model.to(host.model.device, host.model.dtype)
    twins = twins_with(host, dict(zip(short_names(command.tower), command.tower, strict=True)))
    towers: dict[str, Any] = {name: twin.model.model.vision_tower for name, twin in twins.items()}
    reader = HostReader(host.model, host.processor)
    interview = Interview(
        reader, host.processor, host.fingerprint, dense, command.turns, command.seed, prompts, command.batch_size
    )
    answers = None if command.out is None else command.out.with_suffix("") / "answers.jsonl"
    try:
        found = measure_fidelity(interview, towers, photos, answers)
    except KeyboardInterrupt:
        kept = "the same command continues" if answers is not None else "without --out nothing is kept"
        sys.stderr.write(f"\nInterrupted; {kept}.\n")
        raise SystemExit(130) from None
    first = next(iter(found.values()))
    tokens = {name: tower.config.budget for name, tower in towers.items()}
    rows = fidelity_rows(found, tokens, "+".join(short_names(command.photos)), command.host)
    say(
        f"\nWhat {command.host} says with its own tower, through others: {len(first.photos)} photos, {command.turns} prompts each"
    )
    say(fidelity_table(rows))
    count, why = passed_over(photos, first)
    if count:
        say(f"{count} of {len(photos)} photos were passed over, the first of them {why}.")
    if command.out is not None:
        asked = {name: getattr(command, name) for name in ("turns", "seed", "limit")}
        asked |= {"only": command.only and str(command.only), "remarks": list(every.remarks)}
        write_results(command.out, rows, asked, host.model.device)
        say(f"\nWrote {command.out}; the answers are in {answers}.")


def _chosen(photos: Photos, command: FidelityCommand) -> list[int]:
    """Which of the photos are asked about."""
    if command.only is None:
        return spread(len(photos), command.limit or None)
    remarks: list[str] = []
    indices = sorted(named(photos, command.only, remarks))
    for remark in remarks:
        say(remark)
    return [indices[number] for number in spread(len(indices), command.limit or None)]


def _check(command: FidelityCommand) -> None:
    for name, least in (("limit", 0), ("turns", 1), ("batch_size", 1)):
        if getattr(command, name) < least:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} is {getattr(command, name)}; it must be at least {least}.")
    if not command.tower:
        raise ValueError("There is no tower to measure: give --tower.")
    for tower in command.tower:
        split_tower(tower)
    check_once("tower", command.tower)


def fidelity_table(rows: list[Row]) -> str:
    """Results as an aligned table, a row a tower; the difference from the first one is paired, photo by photo."""
    ends = ("95 % from", "to")
    lines = [["tower", "tokens", "nats a word", *ends, "same words", *ends, "difference", *ends]]
    for row in rows:
        numbers = row["metrics"]
        lines.append([row["model"], f"{numbers['tokens']:.0f}"])
        for name, form in (("divergence", "{:.3f}"), ("same_words", "{:.1%}"), ("difference", "{:+.3f}")):
            lines[-1] += [form.format(numbers[name + end]) if name in numbers else "" for end in ("", "_low", "_high")]
    return aligned(lines)
