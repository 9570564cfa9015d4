import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from tiny_photos import write_tar
from tiny_runs import command, run


def test_corrupt_photos_among_good_ones_are_listed_and_the_run_finishes(
    clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in photo_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "cut.png").write_bytes((folder / "003.png").read_bytes()[:300])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no photo")
    Image.new("L", (40, 40)).save(folder / "grey.png")
    run(clip_folder, folder, tmp_path / "out", steps=16)
    skipped = {json.loads(line)["key"] for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()}
    assert {Path(key).name for key in skipped} == {"cut.png", "empty.jpg", "text.jpg"}
    facts = json.loads((tmp_path / "out" / "bootstrap.json").read_text())
    assert facts["photos_skipped"] == 3


def test_labels_that_nobody_needs_and_files_that_are_no_photos_are_passed_over_and_said(
    clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photo_folder, folder)
    (folder / "film.mp4").write_bytes(b"no photo")
    (folder / "cut.jpg").write_bytes(b"no photo")
    os.mkfifo(folder / "pipe.jpg")
    photo = (photo_folder / "003.png").read_bytes()
    members = {"a.png": photo, "a.cls": b"cat", "b.png": photo, "b.json": b"[1]", "b.npy": b""}
    shard = write_tar(tmp_path / "labelled.tar", members)
    words = command(clip_folder, folder, tmp_path / "out", "--steps", "16")
    words[words.index("--photos") + 1 : words.index("--out")] = [str(folder), str(shard)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 .mp4 (such as film.mp4)" in done.stdout and "1 .npy (such as b.npy)" in done.stdout
    assert "1 photos cannot be read and were passed over: " in done.stdout
    facts = json.loads((tmp_path / "out" / "bootstrap.json").read_text())
    assert facts["files_passed_over"] == {".mp4": 1, "pipes, sockets and devices": 1, ".npy": 1}
    assert facts["photos_skipped"] == 1


def test_all_processes_tell_which_photos_they_skipped(clip_folder: Path, photo_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photo_folder, folder)
    broken = {f"broken{number}.jpg" for number in range(8)}
    for name in broken:
        (folder / name).touch()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    # With guesses that are not trained, for which two processes would wait if they were left among what is.
    flags = ("--steps", "8", "--workers", "0", "--focusing", "chosen", "--objective.saliency", "0")
    subprocess.run(
        [*launcher, *command(clip_folder, folder, tmp_path / "out", *flags)[1:]],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
    )
    skipped = [json.loads(line)["key"] for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert sorted(Path(key).name for key in skipped) == sorted(broken)
    assert json.loads((tmp_path / "out" / "bootstrap.json").read_text())["photos_skipped"] == 8
