from pathlib import Path

from tiny_runs import run


def test_tensorboard_gets_every_line(clip_folder: Path, photo_folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(clip_folder, photo_folder, tmp_path / "out", report_to="tensorboard")
    events = EventAccumulator(str(tmp_path / "out" / "sfvlm")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("eval_cosine")] == [3, 6]
