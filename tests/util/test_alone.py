"""Two runs in one folder: the second is refused, and a killed one leaves nothing that refuses."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sfvlm.cli import command
from sfvlm.util.alone import LOCK, alone

HOLD = """
import sys, time
from pathlib import Path
from sfvlm.util.alone import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_told_who_holds_the_folder_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    process = holder(folder)
    with (
        pytest.raises(ValueError, match=rf"Another run \(process {process.pid} on .+\) writes to .*mine: wait for it"),
        alone(folder),
    ):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / LOCK).exists()
    with alone(folder):
        assert str(os.getpid()) in (folder / LOCK).read_text()
    assert not folder.exists()


def test_what_a_run_wrote_stays_and_its_lock_goes(tmp_path: Path) -> None:
    def run() -> None:
        with alone(tmp_path / "out"):
            (tmp_path / "out" / "checkpoint").touch()
            raise KeyError

    with pytest.raises(KeyError):
        run()
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["checkpoint"]


def test_other_processes_of_one_run_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = holder(tmp_path)
    monkeypatch.setenv("RANK", "1")
    with alone(tmp_path):
        pass
    process.kill()
    process.wait()


@pytest.mark.parametrize("name", ["make", "bootstrap"])
def test_commands_refuse_a_folder_in_which_another_runs(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = holder(tmp_path / "mine")
    with pytest.raises(SystemExit) as ended:
        command(name, ["--photos", "scenes:8", "--steps", "1", "--out", str(tmp_path / "mine")])
    process.kill()
    process.wait()
    assert ended.value.code == 2
    assert f"error: Another run (process {process.pid} on " in capsys.readouterr().err
