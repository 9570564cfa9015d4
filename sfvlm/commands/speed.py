"""The command behind `eval/speed.py`: hosts, encoders, or random models of published sizes, to tables of what they cost."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..alternatives.towers import REDUCE
from ..bootstrap.options import BootstrapOptions
from ..encoder.accelerate import check_possible
from ..hosts.host import check_host, open_host
from ..photos.sources import first_images, open_and_say
from ..speed.encoders import SUITE_BUDGETS, Encoder, Encoders, dense_base, encoder_name, open_dense, suite
from ..speed.energy import open_meter
from ..speed.hosts import Subject, check_numbers, host_facts, host_subject, measure_hosts
from ..speed.measure import Row, cost_table, write_costs
from ..speed.plots import check_plot, plot_quality, plot_scaling
from ..speed.rounds import Ceilings, measure_encoders
from ..speed.scaling import (
    SCALING_BATCH_SIZES,
    SCALING_BUDGETS,
    fits,
    measure_panel,
    scaling_panels,
)
from ..speed.shapes import open_shape, shape_named
from ..teachers.student import student_config
from ..util.console import say
from ..util.devices import usable_device
from ..util.results import short_names
from .hosted.under_load import measure_servers
from .options.speed import SpeedCommand

FEWEST_PHOTOS = 16  # that take turns
ENCODERS = ("clip-l14-336", "sparseformer-clip-large")
BOOTSTRAP_SCENES = 512
PRECISIONS: dict[str, Any] = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def speed_command(command: SpeedCommand) -> None:
    """Measures, prints tables and writes the results; or plots results that are there already."""
    device = _check(command)
    torch.set_num_threads(command.threads)
    if command.results:
        assert command.plot is not None
        left_out = plot_quality(command.results, command.plot)
        for line in left_out:
            say(f"Left out: {line}.")
        say(f"Wrote {command.plot}.")
        return
    if command.server:
        measure_servers(command)
        return
    report = Report(command, device)
    try:
        if command.host or command.shape is not None:
            _measure_hosts(report)
        elif command.scaling:
            _measure_scaling(report)
        elif command.bootstrap is not None:
            _measure_bootstrap(report)
        else:
            _measure_encoders(report)
    except torch.OutOfMemoryError as error:
        sizes = ", ".join(map(str, report.batch_sizes))
        raise ValueError(
            f"The memory of {device} is too small for batches of {sizes}: give fewer or smaller ones."
        ) from error
    except KeyboardInterrupt:
        kept = f"what was measured before is in {command.out}" if report.rows and command.out else "nothing is kept"
        sys.stderr.write(f"\nInterrupted; {kept}.\n")
        raise SystemExit(130) from None
    if command.out is not None:
        say(f"\nWrote {command.out}.")


class Report:
    """What a run has measured so far, and the file that has it."""

    def __init__(self, command: SpeedCommand, device: torch.device) -> None:
        self.command, self.device = command, device
        self.rows: list[Row] = []
        self.facts: dict[str, Any] = {}
        self.turns = {"repeats": command.repeats, "warmups": command.warmups}

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Those asked for, or what suits what is measured."""
        if self.command.batch_sizes is not None:
            return self.command.batch_sizes
        if self.command.scaling:
            return SCALING_BATCH_SIZES
        if self.command.bootstrap is not None:
            return (BootstrapOptions.batch_size,)
        is_encoders = not self.command.host and self.command.shape is None
        return (1, 8, 64) if is_encoders and self.device.type == "cuda" else (1, 8)

    def add(self, rows: Sequence[Row], *, is_last: bool = False) -> None:
        """Keeps rows; the file has them from now on."""
        self.rows += rows
        if self.command.out is not None:
            settings = asdict(self.command) | {"batch_sizes": self.batch_sizes}
            settings = {name: _plain(value) for name, value in settings.items()}
            facts = {"settings": settings, **self.facts, "finished": is_last}
            write_costs(self.command.out, self.rows, facts, self.device)


def _plain(value: Any) -> Any:
    """Paths as text, for JSON."""
    return (
        [str(each) for each in value] if isinstance(value, list) else str(value) if isinstance(value, Path) else value
    )


def _check(command: SpeedCommand) -> torch.device:
    """What can be said before anything large is read; returns the device."""
    batch_sizes = command.batch_sizes if command.batch_sizes is not None else (1,)
    check_numbers(
        repeats=command.repeats,
        threads=command.threads,
        **{
            "batch size": min(batch_sizes, default=0),
            "budget": min(command.budgets if command.budgets is not None else (1,), default=0),
            "image size": min(command.image_sizes, default=0),
        },
    )
    if command.warmups < 0:
        raise ValueError(f"--warmups is {command.warmups}; it must be 0 or more.")
    _check_kind(command)
    if len(command.scaling) > 2:
        raise ValueError(f"--scaling takes a sparse encoder and a dense one, not {len(command.scaling)}.")
    if command.out is not None and (command.out.is_dir() or not command.out.parent.is_dir()):
        raise ValueError(f"--out is {command.out}; it must be a file in a folder that exists.")
    if command.plot is not None:
        check_plot(command.plot)
    if command.new_tokens < 2:
        raise ValueError(f"--new-tokens is {command.new_tokens}; the time of a further token needs at least 2.")
    if command.shape is not None:
        shape_named(command.shape)
    for source in command.host:
        check_host(source)
    for name in _encoder_names(command):
        encoder_name(name)
    if command.bootstrap is not None:
        _student_name(command.bootstrap)
    device = usable_device(command.device)
    for how in command.accelerate:
        check_possible(how, device)
    return device


def _check_kind(command: SpeedCommand) -> None:
    """Raises ValueError unless one kind of thing is asked for, with nothing that belongs to another."""
    asked = {
        "--host": bool(command.host),
        "--shape": command.shape is not None,
        "--encoder": bool(command.encoder),
        "--suite": command.suite is not None,
        "--scaling": bool(command.scaling),
        "--bootstrap": command.bootstrap is not None,
        "--server": bool(command.server),
        "--results": bool(command.results),
    }
    given = [flag for flag, is_given in asked.items() if is_given]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are kinds of measurement of their own: give one of them, not both.")
    if command.photos and not (command.host or command.bootstrap is not None):
        raise ValueError("--photos are shown to hosts, or learned from: give --host or --bootstrap too.")
    if command.accelerate and (given or ["--encoder"])[0] not in ("--encoder", "--suite", "--bootstrap"):
        raise ValueError(f"--accelerate is for encoders, not for {given[0]}.")
    if command.bootstrap is not None and command.accelerate not in ([], ["compile"]):
        raise ValueError(f"--bootstrap can be accelerated by compile, not by {' '.join(command.accelerate)}.")
    if command.plot is not None and given[:1] not in (["--scaling"], ["--results"]):
        raise ValueError(
            "--plot needs --scaling, or --results with files to plot: of this command and of an evaluation."
        )
    if command.results and command.plot is None:
        raise ValueError("--results are for a plot: say where by --plot.")


def _encoder_names(command: SpeedCommand) -> list[str]:
    """Of all encoders that are to be measured; for scaling, the sparse one and what it is made of."""
    if command.host or command.shape is not None or command.bootstrap is not None or command.server or command.results:
        return []
    if command.suite is not None:
        return suite(command.suite, command.budgets or SUITE_BUDGETS)
    if command.scaling:
        dense = dense_base(command.scaling[0]) if len(command.scaling) == 1 else None
        return command.scaling if dense is None else [command.scaling[0], dense]
    return command.encoder or list(ENCODERS)


def _student_name(name: str) -> tuple[str, Any, int]:
    """What a student to be bootstrapped is made of, its focusing and its tokens.

    Raises:
        ValueError: It is no student.
    """
    base, way, tokens = encoder_name(name)
    if dense_base(name) is None or tokens is None or (way or "").startswith(REDUCE):
        raise ValueError(f"--bootstrap is {name}; it takes a student of a dense encoder, as clip-l14-336@49.")
    return base, way or "chosen", tokens


def _measure_hosts(report: Report) -> None:
    """All hosts at every batch size."""
    command = report.command
    subjects = _subjects(command, report.device, max(report.batch_sizes))
    facts = [host_facts(subject) for subject in subjects]
    measure = partial(
        measure_hosts,
        subjects,
        facts=facts,
        new_tokens=command.new_tokens,
        meter=open_meter(report.device),
        **report.turns,
    )
    for batch_size in report.batch_sizes:
        rows = measure(batch_size)
        say(cost_table(rows) + "\n")
        report.add(rows, is_last=batch_size == report.batch_sizes[-1])
    say(_legend(command.repeats, report.rows[0]["model"]))


def _measure_encoders(report: Report) -> None:
    """Encoders at every batch size, a round after another."""
    command, names = report.command, _encoder_names(report.command)
    opened = _open_encoders(report, names)
    for encoder in opened:
        _ = encoder.macs  # what cannot be run says so before anything is timed
    ceilings, meter = Ceilings(report.device), open_meter(report.device)
    _ = ceilings[opened[0].dtype]
    left_out: dict[str, str] = {}
    for batch_size in report.batch_sizes:
        rows: list[Row] = []
        rounds = measure_encoders(
            opened, batch_size, ceilings=ceilings, ways=command.accelerate, meter=meter, **report.turns
        )
        for measured in rounds:
            rows += measured.rows
            left_out |= measured.left_out
            report.facts = {"ceilings": ceilings.facts(), "left_out": left_out}
            report.add(measured.rows)
        say(cost_table(rows, line_a_row=True) + "\n")
    report.add([], is_last=True)
    for name, reason in left_out.items():
        say(f"Left out: {name}. {reason}")
    say(_legend(command.repeats, opened[0].name))


def _measure_scaling(report: Report) -> None:
    """Panel by panel, and the plot of all."""
    command = report.command
    sparse, *dense = _open_encoders(report, _encoder_names(command))
    panels = scaling_panels(
        sparse,
        dense[0] if dense else None,
        budgets=command.budgets or SCALING_BUDGETS,
        batch_sizes=report.batch_sizes,
        image_sizes=command.image_sizes,
    )
    for panel in panels:
        rows = measure_panel(panel, **report.turns)
        for row in rows:
            cost = row["measures"]
            say(
                f"{row['panel']} {row['x']}  {row['model']}  {cost['encode_seconds']['median'] * 1e3:.3g} ms  "
                f"{cost['encode_macs']['median'] * 1e-9:.3g} GMACs"
            )
        report.facts = {"fits": fits(report.rows + rows)}
        report.add(rows, is_last=panel is panels[-1])
    for fit in report.facts["fits"]:
        say(
            f"{fit['panel']}, {fit['model']}: {fit['at_zero'] * 1e3:.3g} ms and {fit['slope'] * 1e3:.3g} ms a {fit['each']} "
            f"(R² {fit['explained']:.3f}); the last place takes {fit['last_by_first']:.3g} times the first."
        )
    if command.plot is not None:
        plot_scaling(report.rows, command.plot)
        say(f"Wrote {command.plot}.")


def _measure_bootstrap(report: Report) -> None:
    """A run at every batch size."""
    from ..speed.bootstrap import measure_bootstrap  # trains, which needs more packages than measuring

    command, device = report.command, report.device
    assert command.bootstrap is not None
    base, focusing, tokens = _student_name(command.bootstrap)
    dtype = command.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    photos, ceilings = open_and_say(command.photos or f"scenes:{BOOTSTRAP_SCENES}"), Ceilings(device)
    for batch_size in report.batch_sizes:
        options = BootstrapOptions(
            batch_size=batch_size,
            precision=PRECISIONS[dtype],
            compile=bool(command.accelerate),
            workers=command.workers,
            cpu=device.type == "cpu",
        )
        ceiling = ceilings[getattr(torch, dtype)]
        teacher = open_dense(base)
        student = student_config(teacher.config, focusing=focusing, num_tokens=tokens)
        row = measure_bootstrap(teacher, student, photos, options, ceiling, **report.turns)
        say(cost_table([row]) + "\n")
        report.facts = {"ceilings": ceilings.facts()}
        report.add([row], is_last=batch_size == report.batch_sizes[-1])


def _open_encoders(report: Report, names: Sequence[str]) -> list[Encoder]:
    encoders = Encoders(report.device, getattr(torch, report.command.dtype or "float32"))
    return encoders.open_all(names)


def _legend(repeats: int, first: str) -> str:
    return f"Medians (and extremes) of {repeats} in turns; x: how many times less than {first}."


def _subjects(command: SpeedCommand, device: torch.device, largest: int) -> list[Subject]:
    """The hosts, all in memory at once."""
    if command.shape is not None:
        dtype = command.dtype or ("float32" if device.type == "cpu" else "bfloat16")
        return open_shape(command.shape, dtype=getattr(torch, dtype), device=device, batch_size=largest)
    count = max(FEWEST_PHOTOS, largest)
    photos = first_images(open_and_say(command.photos or f"scenes:{count}"), count)
    subjects = []
    for source, name in zip(command.host, short_names(command.host), strict=True):
        host = open_host(source, dtype=command.dtype, device=str(device))
        host.model.requires_grad_(False)
        subjects.append(host_subject(host, name, photos, command.prompt))
    return subjects
