"""Views, samplers and the log of skipped photos."""

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_hosts import tiny_host
from torch.utils.data import DataLoader
from torchvision import transforms
from transformers import AutoProcessor

from sfvlm.alternatives.towers import ReducedTowerConfig
from sfvlm.encoder.configuration import SparseFormerConfig
from sfvlm.encoder.folder import image_processor
from sfvlm.photos.batches import EpochSampler, SkipLog, ViewDataset, collate_views, shard_indices
from sfvlm.photos.sources import open_photos
from sfvlm.photos.views import evaluation_view, normalize, tower_pixels, tower_view, training_view
from sfvlm.teachers.open import open_teacher
from sfvlm.teachers.student import student_config


def noise(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(40, 30), (31, 77), (224, 224), (500, 333), (333, 1001), (64, 7)])
@pytest.mark.parametrize("image_size", [32, 57])
def test_the_evaluation_view_is_that_of_torchvision(size, image_size):
    image = noise(*size)
    reference = transforms.Compose(
        [
            transforms.Resize(image_size, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(image_size),
            transforms.PILToTensor(),
        ]
    )
    assert np.array_equal(evaluation_view(image, image_size), np.asarray(reference(image)))


def test_crop_pct_cuts_the_centre_out_of_a_larger_picture():
    image = noise(300, 200)
    resize = transforms.Resize(64, transforms.InterpolationMode.BICUBIC)
    reference = transforms.Compose([resize, transforms.CenterCrop(56), transforms.PILToTensor()])
    view = evaluation_view(image, 56, crop_pct=0.875)
    assert np.array_equal(view, np.asarray(reference(image)))
    with pytest.raises(ValueError, match="crop_pct"):
        evaluation_view(image, 56, crop_pct=1.5)


@pytest.mark.parametrize("size", [(40, 30), (31, 77), (500, 333), (1600, 40)])
def test_siglip_photos_are_seen_as_its_own_preprocessor_makes_them(size):
    config = SparseFormerConfig(image_size=56, pooling="attention", image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
    image = noise(*size)
    theirs = image_processor(config)(image, return_tensors="pt").pixel_values
    # Their resize rounds bytes otherwise, here and there.
    assert (tower_pixels([image], config, torch.zeros(1)) - theirs).abs().max() < 2.5 / 127.5
    cropped = evaluation_view(image, 56)
    assert (normalize(cropped[None], (0.5,) * 3, (0.5,) * 3) - theirs).abs().mean() > 8 / 127.5


def test_a_siglip_without_its_head_is_shown_what_its_host_shows_it(tmp_path):
    folder = tiny_host("llava_onevision", tmp_path)
    config = open_teacher(folder).config
    assert config.pooling == "mean"
    image = noise(300, 150)
    overview = AutoProcessor.from_pretrained(folder).image_processor(image, return_tensors="pt")["pixel_values"][0, 0]
    assert (tower_pixels([image], config, torch.zeros(1))[0] - overview).abs().max() < 2.5 / 127.5
    assert student_config(config, num_tokens=4).squashes


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (1, 1)])
def test_a_hair_line_is_a_view_like_any_other(size):
    image = Image.new("RGB", size, "lime")
    for view in (evaluation_view(image, 32), training_view(image, 32, random.Random(0))):
        assert view.shape == (3, 32, 32) and view[1].min() == 255 and view[0].max() == 0


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "CMYK", "1", "I;16"])
def test_a_photo_of_any_mode_is_a_view_like_any_other(mode):
    image = Image.new(mode, (40, 30))
    for view in (evaluation_view(image, 32), training_view(image, 32, random.Random(0))):
        assert view.shape == (3, 32, 32)


def test_training_views_are_crops_of_the_asked_share_that_flip():
    # Red grows to the right and green downwards, so that a view's corners tell its box.
    ramp = np.zeros((240, 240, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(240)[None, :], np.arange(240)[:, None]
    image, generator = Image.fromarray(ramp), random.Random(0)
    shares, flips = [], 0
    for _ in range(200):
        view = training_view(image, 32, generator, scale=(0.5, 1.0)).float()
        width, height = (view[0, 0, -1] - view[0, 0, 0]).item(), view[1, -1, 0] - view[1, 0, 0]
        shares.append(abs(width) * float(height) / 240**2 * (32 / 31) ** 2)
        flips += width < 0
        assert 0.7 < abs(width) / height < 1.4
    assert 0.45 < min(shares) < 0.6 and 0.9 < max(shares) < 1.05
    assert 70 < flips < 130


def test_normalize_is_that_of_torchvision():
    pixels = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    mean, std = [0.48, 0.45, 0.40], [0.26, 0.25, 0.27]
    normalized = normalize(pixels, mean, std)
    assert normalized.dtype == torch.float32
    reference = transforms.Normalize(mean, std)(pixels.float() / 255)
    torch.testing.assert_close(normalized, reference)


def view_dataset(tmp_path: Path, count: int = 12, bad: tuple[int, ...] = (), **options):
    root = tmp_path / "photos"
    root.mkdir(exist_ok=True)
    for index in range(count):
        noise(seed=index).save(root / f"{index:02d}.png")
    for index in bad:
        (root / f"{index:02d}.png").write_bytes(b"")
    return ViewDataset(open_photos(root), 16, **{"training": True, "seed": 5, **options})


def test_the_bits_do_not_depend_on_the_workers(tmp_path):
    dataset = view_dataset(tmp_path, bad=(3,))

    def batches(workers: int):
        loader = DataLoader(
            dataset,
            batch_sampler=EpochSampler(12, 5, seed=1),
            num_workers=workers,
            collate_fn=collate_views,
        )
        return list(itertools.islice(loader, 4))

    for alone, together in zip(batches(0), batches(2), strict=True):
        assert alone["pixels"].shape == (5, 3, 16, 16) and alone["pixels"].dtype == torch.uint8
        assert torch.equal(alone["pixels"], together["pixels"])
        assert torch.equal(alone["index"], together["index"])
        assert torch.equal(alone["view"], together["view"])
        assert alone["skipped"] == together["skipped"]


def test_the_augmentation_follows_from_seed_epoch_and_index(tmp_path):
    dataset = view_dataset(tmp_path)
    view = dataset[2, 3]["pixels"]
    assert torch.equal(view, dataset[2, 3]["pixels"])
    assert not torch.equal(view, dataset[3, 3]["pixels"])
    assert not torch.equal(view, view_dataset(tmp_path, seed=6)[2, 3]["pixels"])
    plain = view_dataset(tmp_path, training=False)
    assert torch.equal(plain[0, 3]["pixels"], plain[1, 3]["pixels"])


def test_views_repeat_every_num_views_epochs(tmp_path):
    cycled, endless = view_dataset(tmp_path, num_views=3), view_dataset(tmp_path)
    for epoch in range(7):
        assert cycled[epoch, 4]["view"] == epoch % 3 and endless[epoch, 4]["view"] == epoch
        assert torch.equal(cycled[epoch, 4]["pixels"], endless[epoch % 3, 4]["pixels"])
    assert not torch.equal(endless[0, 4]["pixels"], endless[3, 4]["pixels"])
    batch = collate_views([cycled[epoch, 4] for epoch in range(4)])
    assert batch["view"].tolist() == [0, 1, 2, 0] and batch["view"].dtype == torch.int64
    with pytest.raises(ValueError, match="num_views is 0"):
        view_dataset(tmp_path, num_views=0)


def test_index_and_view_name_the_pixels_of_a_stand_in_too(tmp_path):
    dataset = view_dataset(tmp_path, count=4, bad=(1,), num_views=2)
    stand_in, own_turn = dataset[3, 1], dataset[5, 2]
    assert (stand_in["index"], stand_in["view"]) == (own_turn["index"], own_turn["view"]) == (2, 1)
    assert torch.equal(stand_in["pixels"], own_turn["pixels"])


def test_an_unreadable_photo_is_replaced_by_the_next_and_reported(tmp_path):
    dataset = view_dataset(tmp_path, count=4, bad=(0, 3))
    view = dataset[0, 3]
    assert view["index"] == 1
    assert [skip["key"] for skip in view["skipped"]] == ["photos/03.png", "photos/00.png"]
    batch = collate_views([dataset[0, index] for index in range(4)])
    assert batch["index"].tolist() == [1, 1, 2, 1]
    assert len(batch["skipped"]) == 3 and batch["skipped"][0]["reason"] == "the file is empty"


def test_a_dataset_without_one_readable_photo_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"None of the 2 photos is readable; .*is empty"):
        view_dataset(tmp_path, count=2, bad=(0, 1))[0, 0]


def steps(sampler: EpochSampler, count: int) -> list[list[tuple[int, int]]]:
    return list(itertools.islice(sampler, count))


def test_every_photo_comes_once_an_epoch_and_none_is_dropped():
    seen = list(itertools.chain(*steps(EpochSampler(10, 4, seed=0), 15)))
    assert sorted(seen) == [(epoch, index) for epoch in range(6) for index in range(10)]
    assert [epoch for epoch, _ in seen] == sorted(epoch for epoch, _ in seen)
    orders = {tuple(index for at, index in seen if at == epoch) for epoch in range(6)}
    assert len(orders) == 6


def test_a_resumed_sampler_continues_exactly():
    whole = steps(EpochSampler(10, 4, seed=3), 30)
    for start in (1, 2, 17):
        assert steps(EpochSampler(10, 4, seed=3, start_step=start), 5) == whole[start : start + 5]
    assert steps(EpochSampler(10, 4, seed=4), 30) != whole


def test_two_ranks_share_the_batches_of_one_process():
    alone = steps(EpochSampler(11, 6, seed=0), 9)
    ranks = [steps(EpochSampler(11, 3, seed=0, rank=rank, world_size=2), 9) for rank in (0, 1)]
    assert [first + second for first, second in zip(*ranks, strict=True)] == alone


def test_a_batch_larger_than_the_data_wraps_over_epochs():
    batch = steps(EpochSampler(3, 8, seed=0), 1)[0]
    assert [epoch for epoch, _ in batch] == [0, 0, 0, 1, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="length=0"):
        EpochSampler(0, 8, seed=0)


def test_evaluation_shards_cover_everything_once():
    shards = [shard_indices(10, rank, 4) for rank in range(4)]
    assert sorted(itertools.chain(*shards)) == list(range(10))
    assert list(shards[1]) == [1, 5, 9]


def test_the_skip_log_writes_each_photo_once_also_after_a_resume(tmp_path):
    path = tmp_path / "skipped.jsonl"
    log = SkipLog(path)
    assert log.count == 0 and not path.exists()
    assert log.add([{"key": "a", "reason": "x"}, {"key": "a", "reason": "x"}]) == 1
    with path.open("a") as file:
        file.write('{"key": "b", "rea')  # an interrupted run
    log = SkipLog(path)
    assert log.add([{"key": "a", "reason": "x"}, {"key": "ü", "reason": "y"}]) == 1
    assert log.count == 2 == SkipLog(path).count
    assert json.loads(path.read_text().splitlines()[-1]) == {"key": "ü", "reason": "y"}


@pytest.mark.parametrize(("rounding", "left"), [("even", 2), ("down", 1)])
def test_what_is_left_over_goes_to_the_side_that_was_asked_for(rounding: str, left: int) -> None:
    image = noise(35, 32)
    assert np.array_equal(
        evaluation_view(image, 32, rounding=rounding), np.asarray(image).transpose(2, 0, 1)[..., left : left + 32]
    )


def test_a_dense_tower_and_its_reduction_see_what_its_teacher_does(tmp_path: Path) -> None:
    config = SparseFormerConfig(image_size=32, crop_pct=0.8, resample="bilinear", crop_rounding="even", squash=False)
    image = noise(101, 60)
    resize = transforms.Resize(40, transforms.InterpolationMode.BILINEAR)
    reference = transforms.Compose([resize, transforms.CenterCrop(32), transforms.PILToTensor()])(image)
    assert torch.equal(tower_view(image, config), reference)
    assert torch.equal(tower_view(image, ReducedTowerConfig(dense_config=config.to_dict(), num_tokens=4)), reference)
