"""`eval/speed.py --server`: servers under load, beside the first of them."""

import sys
from dataclasses import asdict
from typing import Any

from ...serve.endpoint import Endpoint
from ...serve.load import measure_load
from ...util.console import say
from ...util.files import write_json
from ...util.provenance import making
from ...util.results import aligned, check_once
from ..options.speed import SpeedCommand

SIDE = 336  # pixels of a photo
COLUMNS = (
    ("server", "server", ""), ("concurrency", "at once", ""), ("requests_a_second", "requests/s", ".2f"), ("faster", "ratio", ".2f"),
    ("first_word_ms", "first word ms", ".0f"), ("latency_ms", "whole ms", ".0f"), ("latency_95_ms", "95 % ms", ".0f"),
    ("prompt_tokens", "prompt tokens", ".0f"), ("new_tokens", "new", ".0f"),
)  # fmt: skip


def measure_servers(command: SpeedCommand) -> None:
    """Asks the servers in turns, prints a table and writes it; what is measured is kept level by level."""
    check_once("server", command.server)
    for flag, number in (("requests", command.requests), ("concurrency", min(command.concurrency, default=0))):
        if number < 1:
            raise ValueError(f"--{flag} is {number}; it must be at least 1.")
    servers = [Endpoint(url, concurrency=max(command.concurrency)) for url in command.server]
    rows: list[dict[str, Any]] = []
    try:
        for row in measure_load(
            servers,
            command.concurrency,
            requests=command.requests,
            rounds=command.repeats,
            new_tokens=command.new_tokens,
            side=SIDE,
            tell=lambda line: say(f"  {line}"),
        ):
            rows.append(row)
            if command.out is not None:
                settings = {
                    name: asdict(command)[name] for name in ("concurrency", "requests", "repeats", "new_tokens")
                }
                write_json(command.out, {"rows": rows, "settings": settings, **making()})
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted.\n")
        raise SystemExit(130) from None
    finally:
        if rows:
            lines = [[f"{row[name]:{form}}" for name, _, form in COLUMNS] for row in rows]
            say("\n" + aligned([[heading for _, heading, _ in COLUMNS], *lines]))
