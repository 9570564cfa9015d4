"""The speed of a run is what its own log says, and its floor the slower of products and decoding."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

import sfvlm.speed.bootstrap as module
import sfvlm.speed.rounds as rounds_module
from sfvlm.alternatives.costs import macs
from sfvlm.bootstrap.options import BootstrapOptions
from sfvlm.cli import run
from sfvlm.commands.options.speed import SpeedCommand
from sfvlm.commands.speed import speed_command
from sfvlm.photos.sources import open_photos
from sfvlm.speed.bootstrap import STEPS_A_RUN, decode_throughput, measure_bootstrap
from sfvlm.speed.encoders import open_dense
from sfvlm.speed.floor import Ceiling
from sfvlm.teachers.inherit import inherit
from sfvlm.teachers.student import student_config

OPTIONS = BootstrapOptions(batch_size=2, workers=0, cpu=True)


@pytest.mark.parametrize(("operations", "slower"), [(1e3, "products"), (1e15, "decode")])
def test_the_floor_of_a_run_is_the_slower_of_products_and_decoding(
    operations: float, slower: str, clip_folder: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = open_dense(str(clip_folder))
    config = student_config(teacher.config, num_tokens=4)
    logged: list[float] = []
    rates = iter([1.0, 10.0, 30.0, 20.0])
    monkeypatch.setattr("sfvlm.bootstrap.metrics_log.Rate.at", lambda self, step: logged.append(step) or next(rates))
    row = measure_bootstrap(
        teacher, config, open_photos(photo_folder), OPTIONS, Ceiling(operations, 1.0), repeats=3, warmups=1
    )
    assert logged == [STEPS_A_RUN * number for number in (1, 2, 3, 4)]
    found: dict[str, Any] = row["measures"]
    assert found["bootstrap_throughput"]["values"] == [10.0, 30.0, 20.0]
    dense, sparse = (found[f"{name}_macs"]["median"] for name in ("teacher", "student"))
    assert dense == macs(teacher.model, 32) and sparse == macs(inherit(teacher, config)[0], 32) < dense
    assert found["products_throughput"]["median"] == operations / 2 / (dense + 3 * sparse)
    assert found["floor_share"]["median"] == pytest.approx(20 / found[f"{slower}_throughput"]["median"])
    assert found["imagenet_pass_hours"]["median"] == pytest.approx(1_281_167 / 20 / 3600)


def test_decoding_is_timed_without_its_start(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    load = module.view_loader

    def counted(*arguments: Any) -> Any:
        for batch in load(*arguments):
            made.append(len(batch["pixels"]))
            yield batch

    times = iter([(1.0, 2), (3.0, 14)])  # the clock, and how many views there are by then

    def clock() -> float:
        now, views = next(times)
        assert sum(made) == views
        return now

    monkeypatch.setattr(module, "view_loader", counted)
    monkeypatch.setattr(module.time, "perf_counter", clock)
    assert decode_throughput(open_photos(photo_folder), 32, OPTIONS, 6) == 12 / 2.0


def test_a_published_size_has_the_same_random_weights_always(small_published_clip: str) -> None:
    first, second = open_dense(small_published_clip), open_dense(small_published_clip)
    assert first.config.hidden_size == 32 and not any(each.requires_grad for each in first.model.parameters())
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_command_measures_a_run(
    clip_folder: Path, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(rounds_module, "measure_ceiling", lambda device, dtype: Ceiling(2e9, 1e9))
    threads, out = torch.get_num_threads(), tmp_path / "speed.json"
    options = ["--photos", str(photo_folder), "--batch-sizes", "2", "--workers", "0", "--device", "cpu"]
    try:
        run(
            speed_command,
            SpeedCommand,
            [*options, "--bootstrap", f"{clip_folder}@4", "--repeats", "2", "--out", str(out)],
        )
    finally:
        torch.set_num_threads(threads)
    assert "share of the floor reached" in capsys.readouterr().out
    content = json.loads(out.read_text())
    (row,) = content["rows"]
    assert content["finished"] and row["batch_size"] == 2 and row["model"] == f"{clip_folder}@4"
    speeds = row["measures"]["bootstrap_throughput"]["values"]
    assert len(speeds) == 2 and row["measures"]["floor_share"]["median"] == pytest.approx(
        statistics.median(speeds)
        / min(row["measures"][f"{part}_throughput"]["median"] for part in ("products", "decode"))
    )
