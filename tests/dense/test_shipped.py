"""The shipped guide: of the shipped encoder, and nearer to its teacher's map than boxes alone, on scenes that it never saw."""

from pathlib import Path

import torch

from sfvlm.alternatives.costs import macs
from sfvlm.dense.guide import Backbone, open_guide
from sfvlm.dense.maps import teacher_map
from sfvlm.encoder.folder import open_student
from sfvlm.photos.sources import open_photos
from sfvlm.photos.views import tower_pixels
from sfvlm.teachers.open import open_teacher
from sfvlm.zoo.names import resolve


def test_it_is_nearer_to_the_teachers_map_than_boxes_alone_at_less_than_half_of_the_work():
    folder = Path(resolve("sparseformer-tiny-49"))
    model, dense = open_student(folder).float(), open_teacher("clip-tiny").model
    guide = open_guide(folder, model.config)
    assert guide is not None
    scenes = open_photos(["scenes:4:77"])
    pixels = tower_pixels([scenes[number].image for number in range(4)], model.config, torch.zeros(1))
    with torch.no_grad():
        wanted = guide.scale(teacher_map(dense, pixels))
        for budget in (16, 49):  # of these simple scenes, many tokens say as much alone
            errors = [
                float((guide.scale(Backbone(model, each, budget)(pixels)[0]) - wanted).square().mean())
                for each in (guide, None)
            ]
            assert errors[0] < 0.97 * errors[1], (budget, errors)
    assert macs(Backbone(model, guide), 224) < 0.5 * macs(dense, 224)
