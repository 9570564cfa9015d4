"""The shipped models do what their cards say, on a few scenes nobody trained on."""

import pytest
import torch
from torch import Tensor

from sfvlm.encoder.folder import open_student
from sfvlm.evaluate.texts import open_text_encoder
from sfvlm.photos.scene_texts import CLASS_NAMES, class_prompt
from sfvlm.photos.scenes import render_scene
from sfvlm.photos.views import evaluation_view, normalize
from sfvlm.teachers.open import open_teacher
from sfvlm.zoo import names as zoo

SCENES = [render_scene(7, index) for index in range(24)]
LABELS = torch.tensor([scene.label for scene in SCENES])


@pytest.fixture(scope="module")
def classifier() -> Tensor:
    encoder = open_text_encoder("clip-tiny")
    assert encoder is not None
    return encoder.classifier(tuple(CLASS_NAMES), (class_prompt,))


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    half = (0.5, 0.5, 0.5)
    return normalize(torch.stack([evaluation_view(scene.image, 224) for scene in SCENES]), half, half)


def test_they_fit_into_the_package_and_each_has_its_card():
    sizes = zoo.shipped()
    assert {"clip-tiny", "sparseformer-tiny-49"} <= sizes.keys() and sum(sizes.values()) < 45e6
    for name in sizes:
        card = (zoo.WEIGHTS / name / "README.md").read_text()
        assert card.startswith(f"# {name}\n") and "RESULTS_HERE" not in card


@torch.no_grad()
def test_the_clip_and_the_sparseformer_made_from_it_name_scenes(pixels, classifier):
    teacher = open_teacher("clip-tiny")
    dense = teacher.model(pixels).pooled
    sparse = open_student(zoo.resolve("sparseformer-tiny-49"))(pixels)
    assert sparse.token_rois[-1].shape[1] == 49
    right = [((pooled @ classifier).argmax(-1) == LABELS).float().mean() for pooled in (dense, sparse.pooler_output)]
    assert right[0] > 0.9 and right[1] > 0.8  # among 100 classes
