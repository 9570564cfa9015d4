"""The model as transformers has them: one head for every kind of tower, saved and reopened, and called by transformers' own pipeline."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import randomize, tiny_config, tiny_model
from tiny_masks import masked
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from sfvlm.alternatives.methods import METHODS
from sfvlm.alternatives.towers import reduce
from sfvlm.dense.guide import Backbone, Guide, GuideConfig
from sfvlm.segmentation.configuration import SegmenterConfig
from sfvlm.segmentation.model import SparseFormerForSemanticSegmentation, label_names, processor_of
from sfvlm.segmentation.training import export
from sfvlm.teachers.open import DenseTransformer

NAMES = ("road", "car", "sky")
TOWERS = ("inherited", "chosen", "fresh", "guided", "dense", *(f"reduce:{name}" for name in METHODS))


def segmenter(kind: str, **options) -> SparseFormerForSemanticSegmentation:
    if kind == "guided":
        tower = tiny_model("chosen")
        guide = randomize(Guide(GuideConfig.of(tower.config, guide_size=16)))
        return SparseFormerForSemanticSegmentation.around(tower, NAMES, guide=guide, **options)  # type: ignore[arg-type]
    if kind in ("inherited", "chosen", "fresh"):
        return SparseFormerForSemanticSegmentation.around(tiny_model(kind), NAMES, **options)
    torch.manual_seed(0)
    dense = randomize(DenseTransformer(tiny_config())).eval()
    if kind == "dense":
        return SparseFormerForSemanticSegmentation.around(dense, NAMES)  # type: ignore[arg-type]
    tower = reduce(dense, kind.removeprefix("reduce:"), 9, read_layer=-1)  # type: ignore[arg-type]
    return SparseFormerForSemanticSegmentation.around(tower, NAMES)


def pixels(height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", TOWERS)
def test_every_kind_of_tower_gives_logits_and_is_the_same_when_reopened(kind: str, tmp_path: Path):
    model = segmenter(kind)
    randomize(model, seed=3)
    with torch.no_grad():
        before = model(pixels()).logits
    assert before.shape == (2, 3, 4, 4)
    model.save_pretrained(tmp_path)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert isinstance(again, SparseFormerForSemanticSegmentation)
    with torch.no_grad():
        torch.testing.assert_close(again(pixels()).logits, before)


@pytest.mark.parametrize("kind", ["inherited", "chosen", "fresh", "guided", "dense"])
def test_any_size_and_aspect_ratio_is_taken(kind: str):
    with torch.no_grad():
        output = segmenter(kind)(pixels(32, 72), labels=torch.randint(3, (2, 17, 41)))
    assert output.logits.shape[:2] == (2, 3) and torch.isfinite(output.loss)


def test_the_loss_is_transformers_own():
    """`SegformerForSemanticSegmentation`: logits enlarged to the labels, cross-entropy without the ignored pixels."""
    model, labels = segmenter("chosen"), torch.randint(3, (2, 20, 28))
    labels[:, :5] = model.config.semantic_loss_ignore_index
    with torch.no_grad():
        output = model(pixels(), labels=labels)
    enlarged = F.interpolate(output.logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(output.loss, F.cross_entropy(enlarged, labels, ignore_index=255))


def test_the_number_of_tokens_is_asked_for_in_the_call_or_by_the_configuration():
    model = segmenter("chosen")
    with torch.no_grad():
        four, nine = model(pixels()).logits, model(pixels(), num_tokens=9).logits
        torch.testing.assert_close(segmenter("chosen", num_tokens=9)(pixels()).logits, nine)
    assert not torch.equal(four, nine)


def test_a_budget_that_a_tower_does_not_have_is_refused():
    with pytest.raises(ValueError, match="a dense tower has one number of tokens"):
        segmenter("dense")(pixels(), num_tokens=9)
    with pytest.raises(ValueError, match="there are 16 patches"):
        segmenter("chosen")(pixels(), num_tokens=17)


def test_its_map_is_that_of_a_backbone_as_mmsegmentation_calls_it():
    model = segmenter("chosen")
    with torch.no_grad():
        output = model(pixels(), output_hidden_states=True)
        (dense,) = Backbone(model.tower)(pixels())  # type: ignore[arg-type]
    torch.testing.assert_close(output.hidden_states[0], dense)


def test_a_plain_tuple_is_given_where_it_is_asked_for():
    model = segmenter("chosen")
    with torch.no_grad():
        loss, logits = model(pixels(), labels=torch.zeros(2, 8, 8), return_dict=False)
    assert loss.ndim == 0 and logits.shape == (2, 3, 4, 4)


def test_classes_have_names_in_the_configuration(tmp_path: Path):
    model = segmenter("chosen")
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.num_labels, label_names(config)) == (3, NAMES)
    assert config.label2id == {"road": 0, "car": 1, "sky": 2}


def test_the_processor_squashes_masks_as_photos_and_enlarges_maps_to_photos():
    model = segmenter("chosen")
    processor, (photo, mask) = processor_of(model.config), masked(0)
    inputs = processor(photo, segmentation_maps=mask, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 32, 32) and inputs["labels"].shape == (1, 32, 32)
    assert {*inputs["labels"].unique().tolist()} <= {*np.unique(np.asarray(mask)).tolist()}
    with torch.no_grad():
        output = model(**inputs)
    (found,) = processor.post_process_semantic_segmentation(output, target_sizes=[photo.size[::-1]])
    assert found.shape == photo.size[::-1]


def test_reduced_labels_are_the_processors_matter_too():
    config = segmenter("chosen", reduce_labels=True).config
    mask = np.array([[0, 1], [2, 255]], np.uint8)
    processor = processor_of(config)
    labels = processor(masked(0)[0].resize((2, 2)), segmentation_maps=mask, return_tensors="pt", do_resize=False)[
        "labels"
    ]
    assert labels.tolist() == [[[255, 0], [1, 255]]]


def test_transformers_own_pipeline_segments_a_photo(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    export(segmenter("guided"), tmp_path / "model", {})
    photo = masked(0)[0]
    found = pipeline("image-segmentation", model=str(tmp_path / "model"))(photo)
    assert found and {each["label"] for each in found} <= {*NAMES}
    assert sum(np.asarray(each["mask"]).astype(bool).sum() for each in found) == photo.width * photo.height
    assert not [each for each in caplog.records if "not supported" in each.message]
    assert AutoImageProcessor.from_pretrained(tmp_path / "model").size["height"] == 32


def test_every_parameter_of_a_fresh_model_is_initialised():
    """Built on the meta device, as transformers does, no parameter is left as memory had it."""
    config = segmenter("guided").config
    with torch.device("meta"):
        model = SparseFormerForSemanticSegmentation(config)
    model.to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.fill_(torch.nan) if tensor.is_floating_point() else None
    model.init_weights()
    assert not [name for name, tensor in model.named_parameters() if not torch.isfinite(tensor).all()]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(tower="round"), "tower is 'round'"),
        (dict(map="drawn"), "map is 'drawn'"),
        (dict(map="guided"), "a guided map has one"),
        (dict(tower="dense", map="guided", guide_config={}), "the guide is for sparse ones"),
        (dict(num_tokens=0), "num_tokens is 0"),
        (dict(tower="dense", num_tokens=9), "a dense tower has one number of tokens"),
    ],
)
def test_configurations_that_contradict_themselves_are_refused(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SegmenterConfig(**(dict(tower_config=tiny_config().to_dict()) | fields))


def test_labels_of_another_form_and_single_classes_are_refused():
    with pytest.raises(ValueError, match=r"labels has shape \(2, 3, 8, 8\)"):
        segmenter("chosen")(pixels(), labels=torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="at least 2"):
        SparseFormerForSemanticSegmentation.around(tiny_model("chosen"), ["all"])
