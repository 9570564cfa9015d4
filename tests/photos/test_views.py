"""What a model sees of a photo."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_hosts import tiny_host
from tiny_photos import noise
from torchvision import transforms
from transformers import AutoProcessor

from sfvlm.alternatives.configuration import ReducedTowerConfig
from sfvlm.encoder.configuration import SparseFormerConfig
from sfvlm.encoder.folder import image_processor
from sfvlm.photos.views import evaluation_view, normalize, tower_pixels, tower_view, training_view
from sfvlm.teachers.open import open_teacher
from sfvlm.teachers.student import student_config


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
