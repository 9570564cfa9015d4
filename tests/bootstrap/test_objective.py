from pathlib import Path

import pytest
from tiny_runs import run, same

from sfvlm.bootstrap.objective import Objective


def test_the_same_layer_counted_from_either_end_gives_the_same_student(
    clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    for focusing in ("chosen", "fresh"):  # the second has fewer blocks than the teacher's four
        trained = [
            run(
                clip_folder, photo_folder, tmp_path / f"{focusing}{layer}", focusing=focusing, steps=3, eval_every=0,
                objective=Objective(tokens=1.0, layer=layer),
            )
            for layer in (-1, 4, -2, 3)
        ]  # fmt: skip
        assert same(trained[0], trained[1]) and same(trained[2], trained[3])
        assert not same(trained[0], trained[2])
    run(
        clip_folder,
        photo_folder,
        tmp_path / "input",
        focusing="chosen",
        steps=1,
        objective=Objective(tokens=1.0, layer=0),
    )


@pytest.mark.parametrize(("focusing", "layer"), [("inherited", 5), ("inherited", -6), ("fresh", 0), ("fresh", -5)])
def test_a_layer_that_teacher_and_student_do_not_share_is_refused(
    focusing: str, layer: int, clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    depth = 4 if focusing == "inherited" else 3
    message = f"teacher's 4 blocks and the student's {depth} have hidden states -{depth + 1} to -1 in common"
    objective = Objective(tokens=1.0, layer=layer)
    with pytest.raises(ValueError, match=f"layer is {layer}, and the {message}"):
        run(clip_folder, photo_folder, tmp_path / "out", focusing=focusing, objective=objective)
    assert not (tmp_path / "out").exists()
