"""Training: it learns, a killed run ends on the bits of a whole one, and what is asked to stay as it is does."""

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from tiny_masks import masked_shard
from transformers import AutoModelForSemanticSegmentation

from sfvlm.dense.masks import MaskedPhotos, checked, open_masked
from sfvlm.segmentation.batches import MaskedViews, batches
from sfvlm.segmentation.model import SparseFormerForSemanticSegmentation
from sfvlm.segmentation.options import SegmentationOptions
from sfvlm.segmentation.training import class_names, train

NAMES = ("red", "green", "blue")


def options(**changes) -> SegmentationOptions:
    fields = dict(steps=6, batch_size=4, label_side=16, save_every=2, log_every=1, device="cpu", warmup=0.1)
    return SegmentationOptions(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def photos(tmp_path: Path) -> MaskedPhotos:
    return checked(open_masked(masked_shard(tmp_path / "a.tar"))).photos


def model() -> SparseFormerForSemanticSegmentation:
    return SparseFormerForSemanticSegmentation.around(tiny_model("chosen"), NAMES)


def run(photos: MaskedPhotos, out: Path, asked: SegmentationOptions, **more) -> dict[str, float]:
    return train(model(), photos, photos, out, asked, {"train": "a"}, **more)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForSemanticSegmentation.from_pretrained(folder).state_dict()


def test_a_head_learns_and_the_tower_stays_as_it_is(photos: MaskedPhotos, tmp_path: Path):
    before = model().tower.state_dict()
    result = run(photos, tmp_path / "run", options(steps=60, learning_rate=0.02))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-2]["loss"] < 0.7 * lines[0]["loss"]
    assert result["miou"] > 0.5 and result["photos"] == 8
    after = weights(tmp_path / "run")
    assert all(torch.equal(tensor, after[f"tower.{name}"]) for name, tensor in before.items())
    said = json.loads((tmp_path / "run" / "segmentation.json").read_text())
    assert said["train"] == "a" and said["result"]["miou"] == pytest.approx(result["miou"])


@pytest.mark.parametrize("tune", ["head", "lora", "all"])
def test_a_run_that_was_killed_ends_on_the_bits_of_a_whole_one(photos: MaskedPhotos, tmp_path: Path, tune: str):
    asked = options(tune=tune)
    whole = run(photos, tmp_path / "whole", asked)
    run(photos, tmp_path / "killed", asked, stop_after=3)
    assert not (tmp_path / "killed" / "config.json").exists()
    assert run(photos, tmp_path / "killed", asked, resume=True) == whole
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("tune", ["lora", "all"])
def test_the_tower_learns_where_it_shall(photos: MaskedPhotos, tmp_path: Path, tune: str):
    before = model().tower.state_dict()
    run(photos, tmp_path / "run", options(tune=tune, steps=3, warmup=0.0))
    after = weights(tmp_path / "run")
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[f"tower.{name}"])}
    assert "blocks.0.attn.qkv.weight" in changed
    assert tune == "all" or all(name.startswith("blocks.") for name in changed)


def test_cached_views_are_those_of_every_epoch(photos: MaskedPhotos):
    views = MaskedViews(photos, model().config.sparse, options(cached_views=2))
    first, third = views[0, 3], views[2, 3]
    assert first[1] == third[1] == (3, 0)
    assert torch.equal(first[0].pixels, third[0].pixels) and not torch.equal(first[0].pixels, views[1, 3][0].pixels)


def test_batches_do_not_depend_on_where_a_run_begins(photos: MaskedPhotos):
    config = model().config.sparse
    from_start = batches(photos, config, options(), 0)
    wanted = [next(from_start) for _ in range(3)][2]
    found = next(batches(photos, config, options(), 2))
    assert torch.equal(found.pixels, wanted.pixels) and torch.equal(found.labels, wanted.labels)


def test_a_view_and_its_labels_are_one_crop_of_photo_and_mask(photos: MaskedPhotos):
    """Photos are coloured by their classes, so that a view says what its labels must be."""
    views = MaskedViews(photos, model().config.sparse, options(colour=0.0, label_side=32))
    for number in range(24):
        view = views[number, number % 8][0]
        inside = (
            (view.labels != 255) & (view.labels == view.labels.roll(1, 1)) & (view.labels == view.labels.roll(-1, 1))
        )
        seen = view.pixels.argmax(dim=0)
        assert (seen == view.labels)[inside].float().mean() > 0.97


def test_another_run_in_the_folder_or_other_settings_are_refused(photos: MaskedPhotos, tmp_path: Path):
    run(photos, tmp_path / "run", options(), stop_after=2)
    with pytest.raises(ValueError, match="continue it with --resume"):
        run(photos, tmp_path / "run", options())
    with pytest.raises(ValueError, match=r"learning_rate: 0\.001 then, 0\.5 now"):
        run(photos, tmp_path / "run", options(learning_rate=0.5), resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no run that made it"):
        run(photos, tmp_path / "other", options())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(steps=0), "steps is 0"),
        (dict(whole=1.5), "whole is 1.5"),
        (dict(smallest_crop=0), "smallest_crop is 0"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        options(**changes).check()


def test_classes_are_named_or_numbered():
    assert class_names(None, 2) == ("class 0", "class 1")
    assert class_names(("a", "b", "c"), 2) == ("a", "b", "c")
    with pytest.raises(ValueError, match="3 classes, and 2 are named"):
        class_names(("a", "b"), 3)
