"""The whole way, what ends it, and how it goes on."""

import json
import resource
import signal
from collections import namedtuple
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_hosts import tiny_host
from tiny_makes import marks, near, recipe, weights
from tiny_runs import same

from sfvlm.bootstrap.run import bootstrap
from sfvlm.cli import main
from sfvlm.hosts.host import open_host
from sfvlm.make.place import open_place
from sfvlm.make.run import make
from sfvlm.util.errors import NotWritten

pytestmark = pytest.mark.usefixtures("short")
STEPS = ["tower", "llava", "fidelity", "speed", "examples"]


def test_a_run_leaves_a_llava_measurements_and_a_report(made: Path) -> None:
    assert [name for name, mark in marks(made).items() if mark["done"]] == STEPS
    assert open_host(made / "llava", device="cpu").token_budget == 4
    names = ["sfvlm", "stride", "average"]
    assert [row["model"] for row in json.loads((made / "fidelity.json").read_text())["results"]] == names
    assert [row["model"] for row in json.loads((made / "speed.json").read_text())["rows"]] == ["dense", *names]
    assert len(list((made / "examples").glob("*.jpg"))) == 4
    assert (made / "report.html").stat().st_size > 10_000


def test_what_is_measured_on_was_never_learned_from(made: Path) -> None:
    held_back = set((made / "held-back.txt").read_text().splitlines())
    parts = {}
    for name in ("train", "held_back"):
        lines = (made / "tower" / f"answers.{name}.jsonl").read_text().splitlines()[1:]
        parts[name] = {json.loads(line)["key"] for line in lines}
    measured = {json.loads(line)["key"] for line in (made / "fidelity" / "answers.jsonl").read_text().splitlines()[1:]}
    assert measured == held_back and len(held_back) == 4
    assert not held_back & (parts["train"] | parts["held_back"])
    assert len(parts["train"] | parts["held_back"]) == 20


def test_a_llava_of_tiles_is_made_too_and_the_page_says_what_was_measured_of_them(
    photo_folder: Path, tmp_path: Path
) -> None:
    make(recipe(tiny_host("llava_next", tmp_path), photo_folder, alternatives=["stride"]), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "tokens a tile" in page and "of the overview that comes with a photo" in page
    tokens = [
        row["measures"]["image_tokens"]["median"]
        for row in json.loads((tmp_path / "out" / "speed.json").read_text())["rows"]
    ]
    assert tokens[0] > 16 and tokens[0] > tokens[1] > 4  # of all tiles


def test_the_command_of_the_step_alone_measures_the_same(
    made: Path, llava: Path, photo_folder: Path, tmp_path: Path
) -> None:
    towers = [str(made / "tower"), "reduce:stride@4", "reduce:average@4"]
    flags = ["--only", str(made / "held-back.txt"), "--limit", "0", "--turns", "2", "--device", "cpu"]
    words = ["--host", str(llava), "--photos", str(photo_folder), "--tower", *towers, *flags]
    main(["fidelity", *words, "--out", str(tmp_path / "fidelity.json")])
    assert near(tmp_path) == near(made)


def test_a_whole_run_is_not_done_again(
    made: Path, llava: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("make_tower", "put_into", "measure_nearness", "measure_costs", "show_examples", "measure_pace"):
        monkeypatch.setattr(f"sfvlm.make.run.{name}", lambda *_: pytest.fail("done again"))
    before = marks(made)
    make(recipe(llava, photo_folder, workers=1), made)
    assert marks(made) == before
    assert capsys.readouterr().out.count("done before, in") == 5


def test_a_tower_that_was_interrupted_ends_where_an_uninterrupted_one_does(
    made: Path, llava: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halfway(*given: Any, **named: Any) -> None:
        bootstrap(*given, **named, stop_after=2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sfvlm.make.tower.bootstrap", halfway)
        with pytest.raises(KeyboardInterrupt):
            make(recipe(llava, photo_folder), tmp_path / "out")
    mark = marks(tmp_path / "out")["tower"]
    assert mark["done"] is None and mark["seconds"] > 0
    make(recipe(llava, photo_folder), tmp_path / "out")
    assert same(weights(made), weights(tmp_path / "out"))
    assert near(made) == near(tmp_path / "out")


@pytest.mark.parametrize(
    ("step", "work"),
    [
        ("llava", "put_into"),
        ("fidelity", "measure_nearness"),
        ("speed", "measure_costs"),
        ("examples", "show_examples"),
    ],
)
def test_what_was_done_before_a_step_failed_is_kept(
    step: str, work: str, llava: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for each, name in zip(
        STEPS, ("make_tower", "put_into", "measure_nearness", "measure_costs", "show_examples"), strict=True
    ):
        monkeypatch.setattr(f"sfvlm.make.run.{name}", lambda *_, each=each: done.append(each))
    monkeypatch.setattr("sfvlm.make.run.write_report", lambda *_: done.append("report"))
    monkeypatch.setattr("sfvlm.make.run._say_plan", lambda *_: None)  # which times this machine
    with monkeypatch.context() as patch:
        patch.setattr(f"sfvlm.make.run.{work}", partial(_fails, NotWritten(tmp_path / "x", "No space left on device")))
        with pytest.raises(NotWritten):
            make(recipe(llava, photo_folder), tmp_path / "out")
    assert done == STEPS[: STEPS.index(step)]
    make(recipe(llava, photo_folder), tmp_path / "out")
    assert done == [*STEPS, "report"]


def _fails(error: BaseException, *_: object) -> None:
    raise error


def test_time_of_a_run_that_was_killed_counts_as_at_least(llava: Path, photo_folder: Path, tmp_path: Path) -> None:
    place = open_place(tmp_path / "out", {"host": "a"})
    working = place.step("tower")
    working.__enter__()  # killed in here: nothing after is run
    again = open_place(tmp_path / "out", {"host": "a"})
    assert again.spent("tower").at_least and not again.is_done("tower")
    with again.step("tower"):
        pass
    assert again.is_done("tower") and open_place(tmp_path / "out", {"host": "a"}).spent("tower").at_least


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Lets no file be larger than so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_is_a_sentence_and_the_same_command_goes_on(
    made: Path,
    llava: Path,
    photo_folder: Path,
    tmp_path: Path,
    small_disk: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = (
        "--num-tokens 4 --steps 4 --batch-size 4 --held-back 4 --workers 0 --cpu --alternatives stride average".split()
    )
    words = ["make", "--host", str(llava), "--photos", str(photo_folder), *flags, "--out", str(tmp_path / "out")]
    small_disk(60_000)  # too few for a checkpoint
    with pytest.raises(SystemExit) as stopped:
        main(words)
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2
    assert error.startswith("error: ") and "cannot be written" in error and "the same command goes on" in error
    small_disk(resource.RLIM_INFINITY)
    main(words)
    assert same(weights(made), weights(tmp_path / "out"))
    assert f"Open {tmp_path / 'out' / 'report.html'}" in capsys.readouterr().out


def test_no_room_for_the_llava_is_said_before_anything_is_learned(
    llava: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("sfvlm.make.estimate.shutil.disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(ValueError, match=r"gets a copy of the LLaVA, .* GB, and its disk has 0\.0 GB left"):
        make(recipe(llava, photo_folder), tmp_path / "out")
    assert not (tmp_path / "out" / "tower").exists()


def test_ctrl_c_says_how_to_go_on(
    llava: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sfvlm.make.run.make_tower", partial(_fails, KeyboardInterrupt()))
    monkeypatch.setattr("sfvlm.make.run._say_plan", lambda *_: None)
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "make",
                "--host",
                str(llava),
                "--photos",
                str(photo_folder),
                "--num-tokens",
                "4",
                "--out",
                str(tmp_path / "o"),
            ]
        )
    assert stopped.value.code == 130
    assert "saved; the same command goes on" in capsys.readouterr().err
