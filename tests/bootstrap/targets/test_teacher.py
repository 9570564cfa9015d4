from pathlib import Path

import torch
from tiny_hosts import opened
from tiny_runs import TURNS, photos_of

from sfvlm.bootstrap.alignment import for_host
from sfvlm.bootstrap.objective import Objective
from sfvlm.bootstrap.targets.conversations import Conversations
from sfvlm.bootstrap.targets.teacher import TeacherTargets
from sfvlm.hosts.reader import HostReader
from sfvlm.photos.batches import ViewDataset, collate_views
from sfvlm.photos.views import normalize
from sfvlm.teachers.open import open_teacher
from sfvlm.teachers.student import student_config


def test_a_student_guesses_what_the_words_depend_on_or_the_attention(llava: Path, photo_folder: Path) -> None:
    model, processor = opened(llava)
    reader, teacher = HostReader(model, processor), open_teacher(llava)
    config = student_config(teacher.config, num_tokens=16, focusing="chosen", for_host=True)
    views = ViewDataset(photos_of(photo_folder, 2), 56, training=False, seed=0)
    batch = collate_views([views[0, 0], views[0, 1]])
    pixels = normalize(batch["pixels"], teacher.config.image_mean, teacher.config.image_std)
    conversations = Conversations(processor, [TURNS, TURNS], seed=0)
    found = {}
    for salient in ("words", "attention"):
        objective = for_host(Objective(salient=salient), -2)
        target = TeacherTargets(teacher.model, config, objective, None, reader)(batch, pixels, conversations)
        assert target.saliency is not None and target.logits is not None
        found[salient] = target.saliency
    assert not torch.allclose(found["words"], found["attention"], atol=1e-4)
    seen = reader.project(teacher.model(pixels).hidden_states[-2][:, 1:])
    texts = conversations.batch(batch["index"], batch["view"])
    torch.testing.assert_close(found["words"], torch.nn.functional.normalize(reader.read(seen, texts)[1], p=1, dim=1))
