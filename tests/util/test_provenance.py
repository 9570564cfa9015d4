"""How results came about: what every file of an evaluation says of its making."""

import json
from datetime import datetime
from pathlib import Path

import pytest
import torch

from sfvlm.util import provenance
from sfvlm.util.provenance import cpu_info, machine, making, recorded_command
from sfvlm.util.results import write_results


def test_a_results_file_says_how_it_came_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/home/me/checkout/eval/vqa.py", "--photos", "my photos", "--out", "a.json"])
    row = dict(dataset="d", model="m", pretrained="p", task="t", metrics={"acc1": 0.5}, language="en")
    write_results(tmp_path / "a.json", [row], {"limit": 3}, "cpu")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["command"] == "python eval/vqa.py --photos 'my photos' --out a.json"
    assert content["limit"] == 3
    assert content["machine"]["device"] == "cpu"
    assert content["machine"]["threads"] == torch.get_num_threads()
    assert content["machine"]["cores"] >= 1
    assert content["versions"].keys() >= {"sfvlm", "torch", "transformers", "python"}
    assert datetime.fromisoformat(content["date"]).tzinfo is not None


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["/opt/venv/bin/sfvlm", "retained", "a.json"], "sfvlm retained a.json"),
        (["/src/sfvlm/cli.py", "focus"], "sfvlm focus"),
        (["scripts/bootstrap_clip.py", "--out", "runs/a"], "python scripts/bootstrap_clip.py --out runs/a"),
    ],
)
def test_a_command_is_recorded_as_people_type_it(arguments: list[str], written: str) -> None:
    assert recorded_command(arguments) == written


def test_what_the_processor_can_do_is_read_from_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: A Processor\nflags\t\t: fpu avx2 avx512f avx512_bf16 zzz\n")
    monkeypatch.setattr(provenance, "CPU_INFO", info)
    found = machine()
    assert (found["cpu"], found["features"]) == ("A Processor", ["avx2", "avx512f", "avx512_bf16"])
    assert "device" not in found
    monkeypatch.setattr(provenance, "CPU_INFO", tmp_path / "absent")
    assert cpu_info("flags") == ""
    assert machine()["cpu"]


def test_what_no_device_matters_to_names_none() -> None:
    assert "device" not in making()["machine"]
