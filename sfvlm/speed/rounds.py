"""Measures encoders in turns, a few at a time: latency, throughput, the floor, energy.

    for measured in measure_encoders(encoders, batch_size=8, ways=["int8"], ...):
        measured.rows

A round is the first encoder, against which all ratios are, and some others; all of a round run in turns, and a ratio is of
what one turn of it took. So a slow drift of the machine is in both, and no more than a round's models need memory at once where
they share no weights.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..encoder.accelerate import accelerate
from .encoders import Encoder
from .energy import Meter
from .floor import Ceiling, floor_seconds, measure_ceiling
from .hosts import check_numbers
from .measure import Measures, Row, cost_rows, in_turns, now

SIDES_A_ROUND = 4  # beside the first
COMPILED = ("compile", "graph")  # ways of `sfvlm.encoder.accelerate` that torch's compiler takes part in
ENERGY_SECONDS = 0.5  # a run goes on for so long where energy is counted: counters tick slowly
# Ways of `sfvlm.encoder.accelerate` that compute in another dtype than the encoder's; None for one without a floor.
ARITHMETIC: dict[str, torch.dtype | None] = {"bfloat16": torch.bfloat16, "int8": None}


class Ceilings:
    """What a device does at most, by dtype; measured when first asked for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.measured: dict[torch.dtype, Ceiling] = {}

    def __getitem__(self, dtype: torch.dtype) -> Ceiling:
        if dtype not in self.measured:
            self.measured[dtype] = measure_ceiling(self.device, dtype)
        return self.measured[dtype]

    def facts(self) -> dict[str, dict[str, float]]:
        """For a results file."""
        return {str(dtype).removeprefix("torch."): ceiling._asdict() for dtype, ceiling in self.measured.items()}


@dataclass(frozen=True)
class Round:
    """What a round found.

    Attributes:
        rows: Of `cost_rows`; without the first encoder, whose row the first round has. `reference` says against what the
            ratios are.
        left_out: Encoder and way -> why it could not be measured.
    """

    rows: list[Row]
    left_out: dict[str, str] = field(default_factory=dict)


def measure_encoders(
    encoders: Sequence[Encoder],
    batch_size: int,
    *,
    ceilings: Mapping[torch.dtype, Ceiling] | Ceilings,
    ways: Sequence[str] = (),
    meter: Meter | None = None,
    repeats: int = 5,
    warmups: int = 1,
) -> Iterator[Round]:
    """Measures encoders on random pixels, others every turn and the same for all of one size.

    Args:
        encoders: The first is the one that the others are compared with.
        batch_size: Photos at once.
        ceilings: Of the device, by dtype.
        ways: Of `sfvlm.encoder.accelerate`, each measured beside every encoder as it is.
        meter: Where the device counts what it draws.
        repeats, warmups: Runs of each that are kept, and before those.

    Raises:
        ValueError: A number is too small to measure anything.
    """
    check_numbers(batch_size=batch_size, repeats=repeats)
    sizes = (1, 1) if ways else (1 + SIDES_A_ROUND, SIDES_A_ROUND)
    for reference, new in rounds_of(encoders, *sizes):
        if set(ways) & set(COMPILED):
            torch._dynamo.reset()  # what it keeps is of earlier rounds: graphs, and on a GPU their memory
        sides, left_out = list(new), {}
        for encoder in new:
            for how in ways:
                try:
                    sides.append(accelerated(encoder, how, batch_size))
                except ValueError as error:
                    left_out[f"{encoder.name} +{how}"] = str(error)
        before = [] if reference is None else [reference]
        rows = _measure_round([*before, *sides], batch_size, ceilings, meter, repeats, warmups)
        yield Round(rows[len(before) :], left_out)


def rounds_of(
    encoders: Sequence[Encoder], first_size: int, size: int
) -> Iterator[tuple[Encoder | None, Sequence[Encoder]]]:
    """Whom the new encoders of each round are measured beside, and those.

    Args:
        encoders: The first one is new in the first round, which has none beside, and is measured beside all later ones.
        first_size, size: How many are new in the first round, and in each later one.
    """
    yield None, encoders[:first_size]
    for start in range(first_size, len(encoders), size):
        yield encoders[0], encoders[start : start + size]


def accelerated(encoder: Encoder, how: str, batch_size: int) -> Encoder:
    """The encoder in a way of `sfvlm.encoder.accelerate`, run once: what is compiled or recorded is then ready.

    Raises:
        ValueError: It cannot be had here, or loses too much.
    """
    if encoder.counted is None:
        raise ValueError("it is no torch module")
    with torch.inference_mode():  # as it will be run, photos too: torch compiles anew for what was made elsewhere
        pixels = encoder.pixels(batch_size, 0)
        model = accelerate(encoder.counted, how, pixels)
        model(pixels)
    return replace(encoder, name=f"{encoder.name} +{how}", model=model, how=how)


def _measure_round(
    encoders: Sequence[Encoder],
    batch_size: int,
    ceilings: Mapping[torch.dtype, Ceiling] | Ceilings,
    meter: Meter | None,
    repeats: int,
    warmups: int,
) -> list[Row]:
    runs = in_turns([timed_encode(encoder, batch_size, meter) for encoder in encoders], repeats, warmups)
    things = [(encoder.name, encoder.source) for encoder in encoders]
    rows = cost_rows(things, batch_size, [encoder_facts(encoder, batch_size) for encoder in encoders], runs)
    first = {"model": encoders[0].name, "encode_seconds": rows[0]["measures"]["encode_seconds"]["values"]}
    for encoder, row in zip(encoders, rows, strict=True):
        row |= {"image_size": encoder.image_size, "how": encoder.how, "reference": first}
        dtype = arithmetic(encoder)
        row["measures"] |= derived(row["measures"], batch_size, None if dtype is None else ceilings[dtype])
    return rows


def timed_encode(encoder: Encoder, batch_size: int, meter: Meter | None = None) -> Callable[[int], Measures]:
    """What `in_turns` calls: a turn's number to what encoding that turn's photos took.

    The photos are on the device before the clock is read. With a meter the encoder then goes on for a while on the same
    photos, for what one of them takes of energy.
    """

    @torch.inference_mode()
    def run(turn: int) -> Measures:
        pixels = encoder.pixels(batch_size, turn)
        before = 0.0 if meter is None else meter()
        start = now(encoder.device)
        encoder.model(pixels)
        end = now(encoder.device)
        measures = {"encode_seconds": end - start}
        if meter is not None:
            photos = batch_size
            while end - start < ENERGY_SECONDS:
                encoder.model(pixels)
                photos, end = photos + batch_size, now(encoder.device)
            measures["photo_joules"] = (meter() - before) / photos
        return measures

    return run


def encoder_facts(encoder: Encoder, batch_size: int) -> Measures:
    """Image tokens, parameters, multiply-adds a photo, and the least that is read for a batch: weights and pixels, once."""
    facts: Measures = {"image_tokens": encoder.num_tokens}
    if encoder.counted is not None:
        facts |= {"encoder_parameters": encoder.parameters, "encoder_macs": encoder.macs}
    dtype = arithmetic(encoder)
    if dtype is not None:
        pixels = batch_size * 3 * encoder.image_size**2
        facts["read_bytes"] = encoder.parameters * dtype.itemsize + pixels * encoder.dtype.itemsize
    return facts


def arithmetic(encoder: Encoder) -> torch.dtype | None:
    """What an encoder computes in; None where that, or what it computes, is unknown."""
    if encoder.counted is None:
        return None
    return encoder.dtype if encoder.how is None else ARITHMETIC.get(encoder.how, encoder.dtype)


def derived(measures: Mapping[str, Any], batch_size: int, ceiling: Ceiling | None) -> dict[str, Any]:
    """What follows from the latency: photos a second; and with a ceiling the floor of the batch, and its share of the latency."""
    seconds = measures["encode_seconds"]
    found = {"encode_throughput": _inverse(seconds, batch_size)}
    if ceiling is not None:
        floor = floor_seconds(
            measures["encoder_macs"]["median"] * batch_size, measures["read_bytes"]["median"], ceiling
        )
        alone = {"median": floor, "min": floor, "max": floor, "values": [floor], "times_less": None}
        found |= {"floor_seconds": alone, "floor_share": _inverse(seconds, floor)}
    return found


def _inverse(summary: Mapping[str, Any], number: float) -> dict[str, Any]:
    """A number by what was measured: the median's inverse is the inverse of the median, the least is the most."""
    return {
        "median": number / summary["median"],
        "min": number / summary["max"],
        "max": number / summary["min"],
        "values": [number / value for value in summary["values"]],
        "times_less": None,
    }
