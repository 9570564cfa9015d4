"""Maps from class names alone, dense and sparse: the same where the sparse tower looks everywhere, and what is refused."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import randomize, tiny_model

from sfvlm.dense.guide import Guide, GuideConfig
from sfvlm.dense.vocabulary import WAYS, Vocabulary, Way
from sfvlm.encoder.sparseformer import SparseFormerModel
from sfvlm.evaluate.texts import TextEncoder
from sfvlm.segmentation.names import BACKGROUND, KNOWN, first_names, read_names
from sfvlm.segmentation.open_vocabulary import NamedMap, spread, vocabulary
from sfvlm.segmentation.painter import Painter, agreement
from sfvlm.teachers.inherit import inherit
from sfvlm.teachers.open import Teacher, open_teacher
from sfvlm.teachers.student import student_config


@pytest.fixture(scope="module")
def teacher(clip_folder: Path) -> Teacher:
    return open_teacher(clip_folder)


@pytest.fixture(scope="module")
def everywhere(teacher: Teacher) -> SparseFormerModel:
    """An untrained student that looks at every patch once: the teacher itself."""
    config = student_config(teacher.config, focusing="chosen", num_tokens=16, coarse_blocks=1)
    return inherit(teacher, config, None, 0)[0].eval()


def words(count: int = 5) -> Vocabulary:
    texts = F.normalize(torch.randn(24, count, generator=torch.Generator().manual_seed(2)), dim=0)
    return Vocabulary(texts, torch.arange(count), count)


def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("way", WAYS)
def test_a_student_that_looks_everywhere_sees_what_its_teacher_does(
    teacher: Teacher, everywhere: SparseFormerModel, way: Way
):
    with torch.no_grad():
        dense = NamedMap(teacher.model, words(), way)(pixels())
        sparse = NamedMap(everywhere, words(), way, 16)(pixels())
    assert dense.shape == (2, 5, 4, 4)
    torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("focusing", ["inherited", "chosen", "fresh"])
@pytest.mark.parametrize("way", WAYS)
def test_every_focusing_stage_gives_a_map_of_cosines(focusing: str, way: Way):
    with torch.no_grad():
        found = NamedMap(tiny_model(focusing), words(), way)(pixels())
    assert found.shape == (2, 5, 4, 4) and found.abs().max() <= 1.0001


def test_a_guide_spreads_tokens_over_what_is_like_them():
    """Two halves that the guide tells apart: each takes the vector of the token that lies in it, near the border too."""
    dense = torch.zeros(1, 2, 4, 4)
    dense[:, 0, :, :1], dense[:, 1, :, 1:] = 1, 1
    boxes = torch.tensor([[[0.0, 0.25, 0.25, 0.5], [0.75, 0.25, 1.0, 0.5]]])
    found = spread(torch.eye(2)[None], boxes, dense)
    assert (found[0].argmax(dim=0) == torch.tensor([0, 1, 1, 1])).all()


def test_a_guided_map_of_names_is_that_of_its_guide():
    tower = tiny_model("chosen")
    guide = randomize(Guide(GuideConfig.of(tower.config, guide_size=16)))
    with torch.no_grad():
        guided = NamedMap(tower, words(), "sclip", 4, guide)(pixels())  # type: ignore[arg-type]
        alone = NamedMap(tower, words(), "sclip", 4)(pixels())
    assert guided.shape == alone.shape and not torch.allclose(guided, alone)


def test_towers_that_share_no_space_with_texts_are_refused():
    with pytest.raises(ValueError, match="give a CLIP"):
        NamedMap(tiny_model("chosen", projection_dim=0), words(), "sclip")


def text_encoder() -> TextEncoder:
    """Texts to vectors by their letters."""

    def tower(tokens: list[str]) -> torch.Tensor:
        vectors = [torch.randn(24, generator=torch.Generator().manual_seed(sum(map(ord, each)))) for each in tokens]
        return torch.stack(vectors)

    class Texts(list[str]):
        def to(self, device: object) -> "Texts":
            return self

    return TextEncoder(Texts, tower, 1.0)


def test_every_name_of_a_class_is_a_text():
    found = vocabulary(text_encoder(), (("sky",), ("person", "man")), threshold=0.2, templates=("a {c}.",))
    assert found.texts.shape == (24, 3) and found.owner.tolist() == [0, 1, 1] and found.background == 0


def test_a_painter_sees_by_both_towers(teacher: Teacher, everywhere: SparseFormerModel):
    painter = Painter(teacher.model, text_encoder(), everywhere)
    found = painter.paint(Image.new("RGB", (50, 30), (9, 120, 60)), ["sky", "grass, lawn", "", "cat"], num_tokens=16)
    assert {side: each.tokens for side, each in found.items()} == {"dense": 16, "sparse": 16}
    assert found["dense"].classes.shape == (30, 50)
    assert sum(found["sparse"].shares.values()) == pytest.approx(1)
    assert agreement(found) > 0.9
    unsure = painter.paint(Image.new("RGB", (50, 30)), ["sky", "cat"], threshold=0.999)
    assert not unsure["dense"].shares


def test_a_painter_refuses_too_few_classes_and_budgets(teacher: Teacher, everywhere: SparseFormerModel):
    painter, photo = Painter(teacher.model, text_encoder(), everywhere), Image.new("RGB", (50, 30))
    with pytest.raises(ValueError, match="There are 1 classes"):
        painter.paint(photo, ["sky", " "])
    with pytest.raises(ValueError, match="17"):
        painter.paint(photo, ["sky", "cat"], num_tokens=17)
    with pytest.raises(ValueError, match="made from"):
        Painter(teacher.model, text_encoder(), tiny_model("chosen", projection_dim=8))


def test_known_lists_have_the_classes_of_their_data_sets():
    assert {name: len(names) for name, names in KNOWN.items()} == {"voc": 21, "coco-objects": 81, "camvid": 11}
    assert first_names(KNOWN["voc"])[:3] == ("background", "aeroplane", "bicycle")
    assert KNOWN["coco-objects"][0] == BACKGROUND and KNOWN["coco-objects"][80] == ("toothbrush",)


def test_names_are_read_from_a_file_with_a_line_a_class(tmp_path: Path):
    path = tmp_path / "names.txt"
    path.write_text("sky, cloud\nperson\n")
    assert read_names(str(path)) == (("sky", "cloud"), ("person",))
    path.write_text("sky\n\nperson\n")
    with pytest.raises(ValueError, match="Line 2 of"):
        read_names(str(path))
    with pytest.raises(ValueError, match="neither a file of class names nor one of voc"):
        read_names("cityscapes")
