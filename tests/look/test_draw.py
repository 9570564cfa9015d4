from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import randomize, tiny_model

from sfvlm.cli import COMMANDS, main, run
from sfvlm.encoder import roi
from sfvlm.look.draw import contact_sheet, draw_boxes, draw_focusing, save_picture, token_color


def test_a_box_is_drawn_where_it_is_and_nowhere_else() -> None:
    black = Image.new("RGB", (100, 50))
    drawn = np.asarray(draw_boxes(black, torch.tensor([[0.2, 0.4, 0.6, 0.8]])))
    rows, columns = np.nonzero(drawn.sum(-1))
    assert (columns.min(), columns.max()) == (20, 60)
    assert (rows.min(), rows.max()) == (20, 40)
    assert np.asarray(black).sum() == 0


def test_a_box_with_swapped_corners_is_drawn_all_the_same() -> None:
    black, box = Image.new("RGB", (100, 50)), torch.tensor([[0.2, 0.4, 0.6, 0.8]])
    for order in ([2, 1, 0, 3], [0, 3, 2, 1], [2, 3, 0, 1]):
        assert draw_boxes(black, box[:, order]) == draw_boxes(black, box)
    assert draw_boxes(black, box[:0], context=box[:, [2, 3, 0, 1]]) == draw_boxes(black, box[:0], context=box)


def test_tokens_have_colours_of_their_own() -> None:
    assert len({token_color(index, 49) for index in range(49)}) == 49


def test_only_the_asked_tokens_and_points_are_drawn() -> None:
    black = Image.new("RGB", (64, 64))
    tiles = roi.tile_layout(2)
    one = np.asarray(draw_boxes(black, tiles, tokens=[0]))
    assert one[:, 40:].sum() == 0
    points = np.asarray(draw_boxes(black, tiles, roi.glimpse_points(tiles[None], 2)[0]))
    assert points[8, 8].sum() > 0


def test_context_is_grey_and_below_the_tokens() -> None:
    black, corner = Image.new("RGB", (64, 64)), torch.tensor([[0.0, 0.0, 0.5, 0.5]])
    alone, beside = (np.asarray(draw_boxes(black, boxes, context=corner)) for boxes in (corner[:0], corner))
    assert np.ptp(alone[0, 0]) == 0 < alone[0, 0].min()
    assert np.ptp(beside[0, 0]) > 0


@pytest.mark.parametrize("focusing", ["inherited", "chosen", "fresh"])
def test_every_step_has_a_panel(focusing: str) -> None:
    model = randomize(tiny_model(focusing), scale=0.05)
    photo = Image.effect_noise((60, 40), 80).convert("RGB")
    picture = draw_focusing(model, photo, size=40, with_points=True)
    panels = 1 + len(model(torch.zeros(1, 3, 32, 32)).token_rois)
    assert picture.size == (panels * 46 - 6, 40)


def test_a_sheet_holds_its_pictures_row_by_row() -> None:
    sheet = contact_sheet([Image.new("RGB", (10, 8), color) for color in ("red", "green", "blue")], columns=2, gap=2)
    assert sheet.size == (22, 18)
    assert sheet.getpixel((0, 0)) == (255, 0, 0)
    assert sheet.getpixel((0, 12)) == (0, 0, 255)


def test_the_command_line_draws_and_names_what_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    Image.effect_noise((60, 40), 80).save(tmp_path / "photo.png")
    main(
        [
            "boxes",
            "--model",
            str(tmp_path / "model"),
            "--photo",
            str(tmp_path / "photo.png"),
            "--out",
            str(tmp_path / "b.png"),
        ]
    )
    assert Image.open(tmp_path / "b.png").height == 336
    main(["--help"])
    assert "sfvlm bootstrap" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["dance"])
    assert stopped.value.code == 2
    assert f"the commands are {', '.join(COMMANDS)}." in capsys.readouterr().err


def test_a_picture_may_go_into_a_folder_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "deeper" / "boxes.png"
    save_picture(Image.new("RGB", (3, 2)), path)
    assert Image.open(path).size == (3, 2)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("boxes", r"boxes has not the suffix of a picture that can be written: call it boxes\.png"),
        ("boxes.svg", "has not the suffix of a picture"),
        ("boxes.psd", "has not the suffix of a picture"),  # Pillow reads these alone
        ("boxes.h5", "cannot be written: HDF5 save handler not installed"),
        ("folder.png", "cannot be written: Is a directory"),
        ("file/boxes.png", "The folder .*file cannot be made"),
    ],
)
def test_a_picture_that_cannot_be_written_is_one_sentence(name: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=sentence):
        save_picture(Image.new("RGB", (3, 2)), tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"folder.png", "file"}


def test_boxes_of_a_model_on_the_hub_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model().save_pretrained(tmp_path / "cached")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path / "cached"))
    out = str(tmp_path / "boxes.png")
    main(["boxes", "--model", "somebody/sparse", "--photo", "scenes:1:0", "--out", out])
    assert Image.open(out).height == 336


@dataclass(frozen=True)
class Sized:
    batch_size: int = 8


@dataclass(frozen=True)
class Trained:
    resume: bool = False
    training: Sized = field(default_factory=Sized)


@dataclass(frozen=True)
class Plain:
    pass


LITTLE = "error: The device has too little memory"


@pytest.mark.parametrize(
    ("options", "error", "code", "said"),
    [
        (Sized, torch.OutOfMemoryError("CUDA"), 2, f"{LITTLE}: give a --batch-size under 8.\n"),
        (Trained, torch.OutOfMemoryError("CUDA"), 2, f"{LITTLE}: give a --batch-size under 8.\n"),
        (Plain, torch.OutOfMemoryError("CUDA"), 2, f"{LITTLE}.\n"),
        (Trained, KeyboardInterrupt(), 130, "\nInterrupted. What was reached is saved; continue with --resume.\n"),
        (Plain, KeyboardInterrupt(), 130, "\nInterrupted.\n"),
    ],
)
def test_what_ends_a_command_is_one_sentence_with_a_way_out_that_it_has(
    options: type[Any], error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(_: Any) -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run(act, options, [])
    assert stopped.value.code == code
    assert capsys.readouterr().err == said


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    def act(_: Any) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run(act, Plain, [])
