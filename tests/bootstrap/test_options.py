from pathlib import Path

import pytest
from tiny import tiny_config
from tiny_runs import run

from sfvlm.bootstrap.objective import Objective
from sfvlm.bootstrap.options import BootstrapOptions

TOKENS = Objective(tokens=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(batch_size=0), "batch_size is 0; it must be at least 1"),
        (dict(log_every=0), "log_every is 0; it must be at least 1"),
        (dict(save_every=0), "save_every is 0; it must be at least 1"),
        (dict(keep_checkpoints=0), "keep_checkpoints is 0; it must be at least 1"),
        (dict(host_turns=0), "host_turns is 0; it must be at least 1"),
        (dict(lora_rank=0), "lora_rank is 0; it must be at least 1"),
        (dict(steps=-1), "steps is -1; it must be at least 0"),
        (dict(clip_grad_norm=-1.0), r"clip_grad_norm is -1\.0; it must be at least 0"),
        (dict(warmup=500), "warmup is 500; it is a share of the steps, from 0 to 1"),
        (dict(budgets=(4, 0)), "num_tokens is 0; a photo needs at least 1 token"),
        (dict(budgets=(4, 17), focusing="chosen"), "num_tokens is 17, and there are 16 patches to choose from"),
        (dict(budgets=(4, 5), objective=TOKENS), "need square budgets; 5 is none: try 4 or 9"),
        (
            dict(objective=Objective(salient="words")),
            "salient is words, and those are a host's answers, whose weight is 0",
        ),
        (
            dict(objective=Objective(answers=1.0, salient="words"), focusing="inherited"),
            "salient is words, and nothing is to guess them: its saliency is 1, the focusing inherited",
        ),
        (dict(budgets=(4, 8), objective=Objective(projected=1.0)), "need square budgets; 8 is none: try 4 or 9"),
        (dict(num_tokens=5, focusing="fresh", objective=TOKENS), "need square budgets; 5 is none: try 4 or 9"),
        (dict(ema_decay=1.5), "ema_decay is 1.5; it is from 0, for no average, to less than 1"),
        (dict(crop_scale=(0.5, 0.1)), "crop_scale is 0.5 to 0.1; shares of a photo rise"),
        (dict(crop_scale=(-1.0, 1.0)), "crop_scale is -1.0 to 1.0; shares of a photo rise"),
        (dict(image_size=48, focusing="chosen"), "image_size is 48; chosen focusing is trained at its teacher's 32"),
    ],
)
def test_what_no_run_can_do_is_refused_by_name_before_anything_is_written(
    changes: dict[str, object], message: str, clip_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(clip_folder, photo_folder, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_chosen_patches_may_be_any_number_that_there_is() -> None:
    BootstrapOptions(budgets=(1, 5, 16), objective=TOKENS).check(tiny_config("chosen", teacher_grid=4))
