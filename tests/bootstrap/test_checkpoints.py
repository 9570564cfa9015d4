import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import command, lines, run, same

from sfvlm.bootstrap.checkpoints import list_checkpoints, save_checkpoint, uninterrupted
from sfvlm.bootstrap.targets.teacher import TeacherTargets


@pytest.mark.parametrize(
    "changes",
    [{}, {"ema_decay": 0.9}, {"tune": "lora"}, {"cached_views": 2}, {"cached_views": 2, "focusing": "chosen"}],
)
def test_a_resumed_run_ends_on_the_same_bits(
    changes: dict[str, object], clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    whole = run(clip_folder, photo_folder, tmp_path / "whole", **changes)
    run(clip_folder, photo_folder, tmp_path / "parts", stop_after=3, **changes)
    resumed = run(clip_folder, photo_folder, tmp_path / "parts", resume=True, **changes)
    assert whole is not None
    assert resumed is not None
    assert same(whole, resumed)
    keep = [{k: v for k, v in line.items() if k != "photos_a_second"} for line in lines(tmp_path / "whole")]
    assert keep == [{k: v for k, v in line.items() if k != "photos_a_second"} for line in lines(tmp_path / "parts")]


def test_a_killed_run_resumes_to_the_same_bits(clip_folder: Path, photo_folder: Path, tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    steps = ("--steps", "40")
    subprocess.run(
        command(clip_folder, photo_folder, tmp_path / "whole", *steps), check=True, env=environment, capture_output=True
    )
    process = subprocess.Popen(
        command(clip_folder, photo_folder, tmp_path / "killed", *steps),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list_checkpoints(tmp_path / "killed" / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    assert list_checkpoints(tmp_path / "killed" / "checkpoints")
    subprocess.run(
        command(clip_folder, photo_folder, tmp_path / "killed", *steps, "--resume"),
        check=True,
        env=environment,
        capture_output=True,
    )
    assert same(load_file(tmp_path / "whole/model.safetensors"), load_file(tmp_path / "killed/model.safetensors"))


def test_other_options_than_the_checkpoints_are_refused_by_name(
    clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    run(clip_folder, photo_folder, tmp_path / "out", stop_after=2)
    with pytest.raises(ValueError, match=r"batch_size: 4 then, 6 now"):
        run(clip_folder, photo_folder, tmp_path / "out", resume=True, batch_size=6)
    with pytest.raises(ValueError, match=r"image_size: 32 then, 48 now"):
        run(clip_folder, photo_folder, tmp_path / "out", resume=True, image_size=48)
    others = shutil.copytree(photo_folder, tmp_path / photo_folder.name)
    (others / "003.png").rename(others / "another.png")
    with pytest.raises(ValueError, match=r"photo_names: \w{64} then, \w{64} now"):
        run(clip_folder, others, tmp_path / "out", resume=True)
    (others / "another.png").rename(others / "003.png")
    for photo in others.iterdir():
        Image.open(photo).rotate(180).save(photo)
    with pytest.raises(ValueError, match=r"photo_samples: .* then, .* now"):
        run(clip_folder, others, tmp_path / "out", resume=True)
    with pytest.raises(ValueError, match="continue it with --resume"):
        run(clip_folder, photo_folder, tmp_path / "out")


def rewrite_fingerprint(out: Path, **changes: object) -> None:
    """Changes what the newest checkpoint says of how it was made; None: as if written before that was said."""
    state = list_checkpoints(out / "checkpoints")[-1] / "state.json"
    content = json.loads(state.read_text())
    fingerprint = content["fingerprint"] | changes
    content["fingerprint"] = {name: value for name, value in fingerprint.items() if value is not None}
    state.write_text(json.dumps(content))


def test_other_devices_than_the_checkpoints_are_refused(clip_folder: Path, photo_folder: Path, tmp_path: Path) -> None:
    run(clip_folder, photo_folder, tmp_path / "out", stop_after=2)
    rewrite_fingerprint(tmp_path / "out", device="cuda", processes=2)
    with pytest.raises(
        ValueError, match=r"\(device: cuda then, cpu now, processes: 2 then, 1 now\); give the same ones"
    ):
        run(clip_folder, photo_folder, tmp_path / "out", resume=True)
    rewrite_fingerprint(tmp_path / "out", device=None, processes=None)
    run(clip_folder, photo_folder, tmp_path / "out", resume=True)
    assert lines(tmp_path / "out")[-1]["step"] == 6


def test_a_second_ctrl_c_does_not_lose_what_the_first_one_saves(
    clip_folder: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    def save_under_another(*given: Any) -> Path:
        interrupted()
        return save_checkpoint(*given)

    monkeypatch.setattr(TeacherTargets, "__call__", interrupted)
    monkeypatch.setattr("sfvlm.bootstrap.checkpoints.save_checkpoint", save_under_another)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(clip_folder, photo_folder, tmp_path / "out")
    finally:
        signal.signal(signal.SIGINT, before)
    assert [path.name for path in list_checkpoints(tmp_path / "out" / "checkpoints")] == ["step-00000000"]


def test_ctrl_c_waits_for_the_end_of_what_belongs_together() -> None:
    done = []

    def interrupted() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("inside")
        done.append("after")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert done == ["inside"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a process in the background, which Ctrl-C is not meant for
        interrupted()
        assert done == ["inside", "inside", "after"]
    finally:
        signal.signal(signal.SIGINT, before)
