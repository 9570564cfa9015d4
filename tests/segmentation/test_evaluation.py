"""The measurement: all candidates on the same photos at the masks' own size, photos that misfit counted, windows, costs and overlays."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_config, tiny_model
from tiny_masks import COLOURS, masked, masked_shard
from tiny_photos import encoded, write_tar

from sfvlm.dense.masks import open_masked
from sfvlm.dense.metrics import IGNORED, Tally, scores
from sfvlm.dense.probe import ProbeOptions
from sfvlm.segmentation.evaluation import Candidate, Windows, ahead, costs, evaluate
from sfvlm.segmentation.overlays import Layer, colour_of, overlay, panel
from sfvlm.segmentation.probing import material, probe
from sfvlm.segmentation.towers import MapOf

NAMES = ("red", "green", "blue")
CONFIG = tiny_config()


def by_colour(pixels: torch.Tensor) -> torch.Tensor:
    """Knows the classes of `tiny_masks` from their colours: (B, 3, H, W) normalised -> scores (B, 3, H, W)."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (CONFIG.image_mean, CONFIG.image_std))
    seen = pixels * std + mean
    colours = torch.tensor(COLOURS[:3]).float() / 255
    return -(seen[:, None] - colours[None, :, :, None, None]).square().sum(dim=2)


def always_red(pixels: torch.Tensor) -> torch.Tensor:
    return torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(len(pixels), 3, 2, 2)


def candidates() -> list[Candidate]:
    return [Candidate("eye", "eye", by_colour, CONFIG), Candidate("red", "red", always_red, CONFIG, cost={"tokens": 1})]


def test_all_are_measured_on_the_same_photos_at_the_masks_size(tmp_path: Path):
    found = evaluate(candidates(), open_masked(masked_shard(tmp_path / "a.tar")), NAMES, batch_size=3, show=False)
    eye, red = (row["metrics"] for row in found.rows)
    assert eye["miou"] > 0.9 and eye["photos"] == 8
    tally = Tally(3)
    for seed in range(8):
        mask = np.asarray(masked(seed)[1]).astype(np.int64)
        tally.add(np.zeros_like(mask), mask)
    assert red["miou"] == pytest.approx(scores(tally).miou.value)
    assert red["tokens"] == 1 and eye["kept"] == 1
    assert red["kept"] == pytest.approx(red["miou"] / eye["miou"])
    assert red["kept_low"] < red["kept"] < red["kept_high"]
    difference, low, high = ahead(found, "eye", "red")
    assert low < difference < high and difference == pytest.approx(eye["miou"] - red["miou"])


def test_what_is_kept_is_of_the_candidate_that_is_named(tmp_path: Path):
    eye, red = candidates()
    third = Candidate("red again", "", always_red, CONFIG, against="red")
    rows = evaluate([eye, red, third], open_masked(masked_shard(tmp_path / "a.tar")), NAMES, show=False).rows
    assert rows[1]["metrics"]["kept"] < 1 and rows[2]["metrics"]["kept"] == 1


def test_windows_see_a_photo_in_its_own_aspect_ratio(tmp_path: Path):
    photos = open_masked(masked_shard(tmp_path / "a.tar", width=90, height=40))
    seen: list[torch.Size] = []

    def run(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels.shape)
        return by_colour(pixels)

    found = evaluate([Candidate("eye", "", run, CONFIG)], photos, NAMES, windows=Windows(32, 16), show=False)
    assert {*seen} == {(1, 3, 32, 32)} and len(seen) == 8 * 4  # 72 x 32 pixels: at 0, 16, 32 and 40
    assert found.rows[0]["metrics"]["miou"] > 0.9


def test_misfits_are_counted_and_the_rest_is_measured(tmp_path: Path):
    members = {}
    for seed in range(3):
        photo, mask = masked(seed)
        members |= {
            f"{seed}.jpg": encoded(photo, "JPEG"),
            f"{seed}.png": encoded(mask if seed else mask.resize((9, 9))),
        }
    found = evaluate(candidates(), open_masked(write_tar(tmp_path / "a.tar", members)), NAMES, show=False)
    assert [each["key"] for each in found.skipped] == ["a.tar:0"]
    assert "another size" in found.skipped[0]["reason"] and found.rows[0]["metrics"]["skipped"] == 1


def test_photos_of_which_none_can_be_used_are_refused(tmp_path: Path):
    photo, mask = masked(0)
    shard = write_tar(tmp_path / "a.tar", {"a.jpg": encoded(photo, "JPEG"), "a.png": encoded(mask.resize((9, 9)))})
    with pytest.raises(ValueError, match=r"No photo of .* can be used"):
        evaluate(candidates(), open_masked(shard), NAMES, show=False)


def test_a_probe_of_a_frozen_tower_learns_and_leaves_it_as_it_is(tmp_path: Path):
    photos = open_masked(masked_shard(tmp_path / "a.tar"))
    tower = MapOf(tiny_model("chosen")).eval()
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    options = ProbeOptions(epochs=40, batch_size=4, learning_rate=0.02, warm_up=2, loss_side=16)
    head = probe(tower, material(photos, CONFIG), 3, CONFIG, options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tower.state_dict().items())
    probed = Candidate("probe", "", torch.nn.Sequential(tower, head).eval(), CONFIG)
    rows = evaluate([probed, *candidates()], photos, NAMES, show=False).rows
    assert rows[0]["metrics"]["miou"] > rows[2]["metrics"]["miou"] + 0.2


def test_costs_are_of_the_map_too():
    tower = tiny_model("chosen")
    found = costs({"four": MapOf(tower, None, 4), "nine": MapOf(tower, None, 9)}, 32, rounds=1)
    assert 0 < found["four"]["gmacs"] < found["nine"]["gmacs"]
    assert found["four"]["milliseconds"] > 0


def test_an_overlay_colours_classes_and_leaves_what_is_ignored():
    photo = Image.new("RGB", (4, 2), (100, 100, 100))
    classes = np.array([[0, 0, 1, IGNORED]] * 2)
    pixels = np.asarray(overlay(photo, classes, strength=1.0))
    assert tuple(pixels[0, 0]) == colour_of(0) and tuple(pixels[0, 2]) == colour_of(1)
    assert tuple(pixels[0, 3]) == (100, 100, 100)
    with pytest.raises(ValueError, match="photo has"):
        overlay(photo, classes.T)


def test_classes_have_colours_of_their_own():
    colours = [colour_of(number) for number in range(81)]
    assert len({*colours}) == 81


def test_a_panel_shows_every_map_and_the_legend_of_what_is_in_them():
    photo, mask = masked(0, width=80, height=60)
    classes = np.asarray(mask).astype(int)
    wide = panel(photo, [Layer("mask", classes), Layer("a model", classes)], NAMES, side=100)
    assert wide.width > 3 * 100 and wide.height > 75
    assert (np.asarray(wide) == colour_of(int(classes[5, 5]))).all(axis=-1).any()
