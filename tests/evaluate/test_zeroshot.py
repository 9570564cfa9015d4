"""Classification, retrieval, and the command that measures models beside their teacher."""

import csv
import io
import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPModel, PreTrainedTokenizerFast, SiglipConfig, SiglipModel

from sfvlm.cli import run
from sfvlm.commands.options.zeroshot import ZeroShotCommand
from sfvlm.commands.zeroshot import zeroshot_command
from sfvlm.evaluate.classes import Classes, resolve_classes
from sfvlm.evaluate.encoding import EvaluationViews, encode_all
from sfvlm.evaluate.metrics import (
    Encoded,
    classification_metrics,
    confidence_interval,
    fidelity,
    retrieval_metrics,
    topk_accuracy,
)
from sfvlm.evaluate.texts import (
    build_classifier,
    fill,
    imagenet_indices,
    imagenet_names,
    imagenet_templates,
    open_text_encoder,
)
from sfvlm.evaluate.zeroshot import Candidate, classify, evaluate, open_evaluation_photos
from sfvlm.photos.scene_texts import COLORS
from sfvlm.photos.scenes import render_scene
from sfvlm.photos.sources import open_photos
from sfvlm.teachers.inherit import inherit
from sfvlm.teachers.open import open_teacher
from sfvlm.teachers.student import student_config
from sfvlm.util.results import check_json, short_names, write_results
from sfvlm.zoo.names import resolve

SIX_KEYS = {"dataset", "model", "pretrained", "task", "metrics", "language"}
HALVES = ((0.5,) * 3, (0.5,) * 3)


def encoded(pooled: torch.Tensor, logits: torch.Tensor | None = None, labels: tuple[int | None, ...] = ()) -> Encoded:
    return Encoded(pooled, logits, torch.arange(len(pooled)), labels, ((),) * len(pooled), ())


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """A word a token, between the start and end tokens of `conftest.TEXT`."""
    vocabulary = {"unknown": 0, "start": 97, "end": 98} | {word: number for number, word in enumerate(words, 1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="unknown"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="start $A end", special_tokens=[("start", 97), ("end", 98)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="unknown", bos_token="start", eos_token="end", pad_token="end"
    )


@pytest.fixture(scope="module")
def clip_source(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny CLIP with a tokenizer."""
    folder = tmp_path_factory.mktemp("teacher") / "clip-with-words"
    shutil.copytree(clip_folder, folder)
    word_tokenizer(["a", "photo", "of", *COLORS, "square", "circle", "is", "the", "left"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def open_clip_source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("teacher") / "open-clip"
    folder.mkdir()
    described = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": described, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    model = open_clip.CLIP(**described)
    save_file(
        {key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty rendered scenes, in the folder of their main object's colour; and one file that is no photo."""
    root = tmp_path_factory.mktemp("photos") / "by-colour"
    for index, photo in enumerate(open_photos("scenes:20")):
        folder = root / render_scene(0, index).objects[0].color
        folder.mkdir(parents=True, exist_ok=True)
        photo.image.resize((48, 48)).save(folder / f"{index:02d}.png")
    (next(root.iterdir()) / "broken.png").write_bytes(b"no photo")
    return root


@pytest.fixture(scope="module")
def make_student(tmp_path_factory: pytest.TempPathFactory) -> Callable[[object, str], Path]:
    def make(source: object, name: str) -> Path:
        teacher = open_teacher(str(source))
        student, _ = inherit(teacher, student_config(teacher.config, focusing="inherited", num_tokens=4))
        folder = tmp_path_factory.mktemp("students") / name
        student.save_pretrained(folder)
        (folder / "bootstrap.json").write_text(json.dumps({"teacher": str(source)}))
        return folder

    return make


# Metrics


def test_classification_metrics_are_those_counted_one_photo_at_a_time():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(50, 8, generator=generator), torch.randint(0, 6, (50,), generator=generator)
    first, five, by_class = 0, 0, {}
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        ranked = sorted(range(8), key=lambda number, row=row: -row[number])
        first += ranked[0] == label
        five += label in ranked[:5]
        by_class.setdefault(label, []).append(ranked[0] == label)
    recall = sum(sum(hits) / len(hits) for hits in by_class.values()) / len(by_class)
    wanted = {"acc1": first / 50, "acc5": five / 50, "mean_per_class_recall": recall}
    assert classification_metrics(scores, labels) == pytest.approx(wanted)


def test_a_perfect_classifier_scores_one():
    labels = torch.tensor([3, 0, 7, 7])
    assert set(classification_metrics(torch.eye(8)[labels], labels).values()) == {1.0}


def test_acc5_is_at_least_acc1_and_left_out_below_five_classes():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 4, (40,), generator=generator)
    numbers = classification_metrics(torch.randn(40, 5, generator=generator), labels)
    assert numbers["acc5"] == 1.0 >= numbers["acc1"]
    assert "acc5" not in classification_metrics(torch.randn(40, 4, generator=generator), labels)


def test_the_order_of_classes_does_not_matter():
    generator = torch.Generator().manual_seed(2)
    scores, labels = torch.randn(60, 9, generator=generator), torch.randint(0, 9, (60,), generator=generator)
    order = torch.randperm(9, generator=generator)
    shuffled = classification_metrics(scores[:, order], order.argsort()[labels])
    assert shuffled == pytest.approx(classification_metrics(scores, labels))
    assert topk_accuracy(scores, labels, 9) == 1.0


def test_the_confidence_interval_holds_the_mean_and_is_about_two_standard_errors_wide():
    hits = torch.arange(400) % 4 == 0
    low, high = confidence_interval(hits)
    assert (low, high) == confidence_interval(hits)
    assert low < 0.25 < high
    assert high - low == pytest.approx(2 * 1.96 * (0.25 * 0.75 / 400) ** 0.5, rel=0.1)
    assert confidence_interval(torch.ones(9)) == (1.0, 1.0)


def test_retrieval_agrees_with_clip_benchmark():
    # The numbers are what `clip_benchmark.metrics.zeroshot_retrieval.evaluate` gives for these vectors.
    images, owner = torch.eye(4, 8), torch.tensor([0, 0, 1, 2, 3, 3])
    texts = torch.tensor(
        [
            [9.0, -4, -3, -2, 6, 0, 7, -6],
            [11, -6, -8, 4, -6, 6, -7, 2],
            [3, -5, 5, -6, -4, -7, 4, 2],
            [-4, -5, 0, 1, 3, -8, 1, -2],
            [-6, 7, -2, -3, 0, 0, 3, -7],
            [3, 5, -6, 9, -3, 7, -2, -5],
        ]
    )
    wanted = {"image": {1: 1 / 2, 2: 2 / 3, 4: 1}, "text": {1: 1 / 2, 2: 3 / 4, 4: 3 / 4}}
    expected = {f"{what}_retrieval_recall@{k}": value for what, values in wanted.items() for k, value in values.items()}
    for chunk in (1, 3, 1024):
        assert retrieval_metrics(images, texts, owner, (1, 2, 4), chunk) == pytest.approx(expected)


def test_retrieval_is_that_counted_one_query_at_a_time():
    generator = torch.Generator().manual_seed(4)
    images, texts = torch.randn(12, 6, generator=generator), torch.randn(30, 6, generator=generator)
    owner = torch.randint(0, 12, (30,), generator=generator)
    numbers = retrieval_metrics(images, texts, owner, (1, 5), chunk=7)
    cosine = F.cosine_similarity(texts[:, None], images[None], dim=-1)
    for k in (1, 5):
        by_text = [int(owner[row]) in cosine[row].argsort(descending=True)[:k].tolist() for row in range(30)]
        by_image = [
            bool((owner[cosine[:, column].argsort(descending=True)[:k]] == column).any()) for column in range(12)
        ]
        assert numbers[f"image_retrieval_recall@{k}"] == pytest.approx(sum(by_text) / 30)
        assert numbers[f"text_retrieval_recall@{k}"] == pytest.approx(sum(by_image) / 12)


def test_a_k_beyond_the_candidates_is_left_out():
    numbers = retrieval_metrics(torch.eye(3), torch.eye(3).repeat(2, 1), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert numbers == {"image_retrieval_recall@1": 1.0, "text_retrieval_recall@1": 1.0, "text_retrieval_recall@5": 1.0}


def test_a_photo_without_captions_is_a_miss():
    assert retrieval_metrics(torch.eye(2), torch.eye(2)[:1], torch.tensor([0]), (1,))["text_retrieval_recall@1"] == 0.5


# Classes and texts


def test_the_text_classifier_is_open_clips(open_clip_source):
    encoder = open_text_encoder(open_clip_source)
    assert encoder is not None
    model, tokenizer = open_clip.create_model(open_clip_source).eval(), open_clip.get_tokenizer(open_clip_source)
    names, templates = imagenet_names()[:21], imagenet_templates()[:5]
    theirs = open_clip.build_zero_shot_classifier(model, tokenizer, names, templates)
    ours = build_classifier(encoder, names, templates, classes_at_once=4)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.norm(dim=0), torch.ones(21))
    assert encoder.classifier(names, templates) is encoder.classifier(names, templates)
    assert encoder.scale == pytest.approx(model.logit_scale.exp().item())


def test_templates_may_be_named_positional_or_functions():
    written = [fill(template, "cat") for template in ("a {c}.", "a {}.", lambda name: f"a {name}.")]
    assert written == ["a cat."] * 3
    assert fill("{c} {}", "{x}") == "{x} {x}"
    with pytest.raises(ValueError, match=r"no \{c\} or \{\}"):
        fill("a photo", "cat")


def test_a_transformers_text_tower_gives_unit_features_whatever_the_batch(clip_source, clip_model: CLIPModel):
    encoder = open_text_encoder(str(clip_source))
    assert encoder is not None
    texts = ["a red square", "a photo of the blue circle left of a square", "a"]
    features = encoder(texts)
    with torch.no_grad():
        alone = clip_model.get_text_features(input_ids=torch.tensor([[97, 1, 4 + list(COLORS).index("red"), 98]]))
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(3))
    encoder.batch_size = 1
    torch.testing.assert_close(encoder(texts), features, rtol=1e-4, atol=1e-5)
    one = F.normalize(alone if isinstance(alone, torch.Tensor) else alone.pooler_output, dim=-1)
    torch.testing.assert_close(encoder(["a red"]), one, rtol=1e-4, atol=1e-5)
    assert encoder.scale == pytest.approx(clip_model.logit_scale.exp().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_text_tower_that_is_stored_in_half_precision_computes_in_float32(clip_source, dtype, tmp_path):
    shutil.copytree(clip_source, tmp_path, dirs_exist_ok=True)
    model = CLIPModel.from_pretrained(clip_source, dtype=dtype)
    model.save_pretrained(tmp_path)
    encoder = open_text_encoder(str(tmp_path))
    assert encoder is not None
    with torch.no_grad():
        features: Any = model.float().get_text_features(**encoder.tokenize(["a red square"]))
    torch.testing.assert_close(encoder(["a red square"]), F.normalize(features.pooler_output, dim=-1))
    assert encoder.scale == pytest.approx(model.logit_scale.exp().item())


def test_siglip_texts_are_padded_to_the_full_length_without_a_mask(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config=sizes | {"vocab_size": 99, "max_position_embeddings": 12},
        vision_config=sizes | {"image_size": 16, "patch_size": 8},
    )
    torch.manual_seed(0)
    model = SiglipModel(config)
    torch.nn.init.constant_(model.logit_scale, 2.0)
    model.save_pretrained(tmp_path)
    word_tokenizer(["a", "cat"]).save_pretrained(tmp_path)
    encoder = open_text_encoder(str(tmp_path))
    assert encoder is not None
    tokens = encoder.tokenize(["a cat", "a"])
    assert set(tokens) == {"input_ids"}
    assert tokens["input_ids"].shape == (2, 12)
    assert encoder(["a cat"]).shape == (1, 32)
    assert encoder.scale == pytest.approx(model.logit_scale.exp().item())


@pytest.mark.parametrize("eos", [2, 98])
def test_a_text_tower_ends_texts_as_transformers_does_for_old_and_new_files(eos, clip_source, tmp_path):
    """Of old files the end token is 2 by name, and transformers looks for the largest id."""
    shutil.copytree(clip_source, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"] |= {"eos_token_id": eos, "hidden_act": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder, model = open_text_encoder(str(tmp_path)), CLIPModel.from_pretrained(tmp_path).eval()
    assert encoder is not None
    texts = ["a red square", "a", "a photo of " * 9]
    with torch.no_grad():
        theirs: Any = model.get_text_features(**encoder.tokenize(texts))
    torch.testing.assert_close(encoder(texts), F.normalize(theirs.pooler_output, dim=-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("text_model.final_layer_norm.bias", lambda tensor: tensor * torch.nan, "32 numbers that are not finite"),
        ("text_projection.weight", lambda tensor: tensor.to(torch.int8), "is int8: it is quantised"),
        (
            "text_model.embeddings.position_embedding.weight",
            lambda tensor: tensor[:8],
            "The text tower of .* cannot be",
        ),
    ],
)
def test_a_text_tower_without_weights_of_its_own_is_refused_by_name(name, change, message, clip_source, tmp_path):
    shutil.copytree(clip_source, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {name: change(tensors[name])}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        open_text_encoder(str(tmp_path))


def test_a_text_tower_is_not_opened_without_its_adapter_or_with_another_tokenizer(clip_source, tmp_path):
    shutil.copytree(clip_source, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:01\n")
    with pytest.raises(
        ValueError, match=r"tokenizer of .* cannot be opened: .*tokenizer\.json is a pointer of git-lfs"
    ):
        open_text_encoder(str(tmp_path))
    word_tokenizer([*"abcdefghij"] * 10 + ["cat"]).save_pretrained(tmp_path)
    encoder = open_text_encoder(str(tmp_path))
    assert encoder is not None
    with pytest.raises(ValueError, match=r"gives the token 101, and its text tower knows 99 \(vocab_size\)"):
        encoder(["a cat"])
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds an adapter, which would be left out"):
        open_text_encoder(str(tmp_path))


def test_an_open_clip_text_tower_is_refused_as_its_teacher_is(open_clip_source, tmp_path):
    folder = Path(open_clip_source.removeprefix("local-dir:"))
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tensors, file = load_file(tmp_path / "open_clip_model.safetensors"), tmp_path / "open_clip_model.safetensors"
    save_file(tensors | {"ln_final.bias": tensors["ln_final.bias"].to(torch.int8)}, file)
    with pytest.raises(ValueError, match=r"'ln_final\.bias' of .* is int8"):
        open_text_encoder(f"local-dir:{tmp_path}")
    file.unlink()
    with pytest.raises(ValueError, match="holds no weights that open_clip reads"):
        open_text_encoder(f"local-dir:{tmp_path}")


def test_a_teacher_without_texts_has_no_text_encoder(clip_folder, clip_model, tmp_path):
    assert open_text_encoder("timm:vit_tiny_patch16_224:/any.safetensors") is None
    clip_model.vision_model.save_pretrained(tmp_path / "vision")
    assert open_text_encoder(str(tmp_path / "vision")) is None
    with pytest.raises(ValueError, match="no tokenizer"):
        open_text_encoder(str(clip_folder))


def test_folders_named_by_wordnet_ids_are_imagenet_classes():
    names = ("n01440764", "n03417042", "n02102040")
    assert imagenet_indices(names) == (0, 569, 217)
    assert imagenet_indices(("n00000000",)) is None
    assert imagenet_indices(("cat",)) is None
    assert resolve_classes(names, Classes(), 1000) == (None, (0, 569, 217))
    assert resolve_classes(names, Classes(), None) == (imagenet_names(), (0, 569, 217))
    assert resolve_classes(("cat", "dog"), Classes(), None) == (("cat", "dog"), None)
    assert resolve_classes(None, Classes(), None) == (imagenet_names(), None)
    with pytest.raises(ValueError, match=r"2 classes, the teacher's classifier 1000.*--class-indices"):
        resolve_classes(("cat", "dog"), Classes(), 1000)


def test_as_many_names_as_folders_are_theirs_whatever_the_folders_are_called():
    folders, given = ("n01440764", "n03417042", "n02102040"), Classes(names=("fish", "pump", "dog"))
    assert resolve_classes(folders, given, None) == (given.names, None)
    assert resolve_classes(folders, given, 1000) == (None, (0, 569, 217))  # the teacher has a classifier of its own
    assert resolve_classes(folders, Classes(names=imagenet_names()), None) == (imagenet_names(), (0, 569, 217))


def test_names_and_indices_must_be_as_many_as_the_classes():
    two = ("red", "blue")
    assert resolve_classes(two, Classes(names=("x", "y", "z"), indices=(0, 2)), None) == (("x", "y", "z"), (0, 2))
    with pytest.raises(ValueError, match=r"photos have 2 classes, and 3 names are given: .*--class-indices"):
        resolve_classes(two, Classes(names=("x", "y", "z")), None)
    with pytest.raises(ValueError, match=r"photos have 2 classes, and --class-indices lists 3"):
        resolve_classes(two, Classes(indices=(0, 1, 2)), None)


def test_classes_that_measure_nothing_are_refused():
    with pytest.raises(ValueError, match=r"There is one class, '2024', .*--task fidelity"):
        resolve_classes(("2024",), Classes(), None)
    with pytest.raises(ValueError, match=r"2 classes are called by WordNet ids such as n01440764, .*--class-names"):
        resolve_classes(("n01440764", "n99999999"), Classes(), None)
    assert resolve_classes(("n01440764",), Classes(), None) == (imagenet_names(), (0,))


def test_rows_of_long_names_get_files_of_their_own(tmp_path):
    for long in ("x" * 250, "文" * 150):
        rows = [
            {"dataset": dataset, "model": "m", "pretrained": long, "task": "t", "metrics": {}, "language": "en"}
            for dataset in ("one", "two")
        ]
        files = list(write_results(tmp_path / f"{long[0]}.json", rows, {}, "cpu").iterdir())
        assert sorted(json.loads(file.read_text())["dataset"] for file in files) == ["one", "two"]


def test_a_name_is_the_last_part_of_the_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert short_names([".", "a/one::b/two", "c/three/"]) == [tmp_path.name, "one::two", "three"]


def test_without_timm_wordnet_ids_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.data.imagenet_info", None)
    assert imagenet_indices(("cat",)) is None
    with pytest.raises(ValueError, match=r"need timm: pip install 'sfvlm\[eval\]'\.$"):
        imagenet_indices(("n01440764",))


def test_labels_may_stand_for_some_classes_of_a_classifier():
    logits = torch.zeros(3, 9)
    logits[0, 4], logits[1, 7], logits[2, 0] = 1, 1, 1  # the last prefers an unlisted class
    logits[2, 7] = 0.5
    numbers, choices = classify(encoded(logits, logits, (0, 1, 1)), None, (4, 7))
    assert numbers["acc1"] == pytest.approx(2 / 3)
    assert numbers["acc1_restricted"] == 1.0
    assert choices.tolist() == [4, 7, 0]
    for labels, indices, message in [
        ((0, 1, 2), (4, 7), "from 0 to 2, but --class-indices lists 2"),
        ((0, 1, 9), None, "from 0 to 9, but the classifier has 9 classes"),
        ((0, 1, 1), (4, 70), "indices go from 4 to 70; the classifier has 9"),
        ((0, None, 1), None, "1 of 3 photos have no label"),
    ]:
        with pytest.raises(ValueError, match=message):
            classify(encoded(logits, logits, labels), None, indices)


def test_a_model_agrees_with_itself_and_not_with_another_teachers_student():
    one = encoded(torch.randn(5, 8))
    choices = torch.arange(5)
    assert fidelity(one, one, (choices, choices)) == pytest.approx({"cosine": 1.0, "agreement": 1.0})
    assert fidelity(one, encoded(-one.pooled), None) == pytest.approx({"cosine": -1.0})
    with pytest.raises(ValueError, match="8 features, its teacher's 6"):
        fidelity(one, encoded(torch.randn(5, 6)), None)


# Photos


def test_broken_photos_are_skipped_and_listed(clip_folder, class_folders):
    teacher = open_teacher(clip_folder)
    views = EvaluationViews(open_photos(class_folders, labelled=True), 32)
    found = encode_all(teacher.model, views, HALVES, batch_size=6)
    assert len(found.index) == len(found.labels) == 20
    assert found.pooled.shape == (20, 24)
    assert [skip["key"].endswith("broken.png") for skip in found.skipped] == [True]
    assert torch.equal(found.pooled, encode_all(teacher.model, views, HALVES, batch_size=6, workers=1).pooled)


def test_photos_beside_class_folders_are_kept_and_no_photo_has_a_label_then(tmp_path):
    for name in ("red/0.png", "blue/1.png", "loose.png"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    photos = open_evaluation_photos(str(tmp_path / "set"))
    assert [photo.label for photo in photos] == [None] * 3 and photos.class_names is None
    (tmp_path / "set" / "loose.png").unlink()
    photos = open_evaluation_photos(str(tmp_path / "set"))
    assert [photo.label for photo in photos] == [0, 1] and photos.class_names == ("blue", "red")


def test_a_limit_takes_photos_from_all_over():
    views = EvaluationViews(open_photos("scenes:20"), 32, limit=4)
    assert views.indices == [0, 5, 10, 15]
    with pytest.raises(ValueError, match="limit is 0"):
        EvaluationViews(open_photos("scenes:20"), 32, limit=0)


# The command


def command(*arguments: object) -> None:
    run(zeroshot_command, ZeroShotCommand, [str(argument) for argument in arguments])


def build_csv(folder: Path) -> list[dict[str, str]]:
    """What `clip_benchmark build` does with a folder."""
    rows = []
    for file in folder.glob("*.json"):
        data = json.loads(file.read_text())
        row = data["metrics"] | data | {"model_fullname": data["model"] + " " + data["pretrained"]}
        del row["metrics"]
        rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, sorted({key for row in rows for key in row}))
    writer.writeheader()
    writer.writerows(rows)
    return list(csv.DictReader(io.StringIO(text.getvalue())))


def test_the_command_measures_students_and_controls_beside_their_teacher(
    clip_source, make_student, class_folders, tmp_path, capsys
):
    student, out = make_student(clip_source, "sf4"), tmp_path / "results.json"
    templates = tmp_path / "templates.txt"
    templates.write_text("a photo of a {c}\na {} square\n")
    shared = ["--controls", "--out", out, "--templates", templates]
    command("--model", student, "--data", class_folders, "scenes:5", *shared)

    results = json.loads(out.read_text())
    assert {"command", "date", "versions", "skipped", "citations"} <= results.keys()
    assert [len(skips) for skips in results["skipped"].values()] == [1, 0]
    rows = results["results"]
    assert len(rows) == 2 * (1 + 1 + 5)
    for row in rows:
        assert row.keys() == SIX_KEYS
        assert row["task"] == "zeroshot_classification"
        numbers = row["metrics"]
        assert 0 <= numbers["acc1_low"] <= numbers["acc1"] <= numbers["acc1_high"] <= 1
        assert numbers["acc5"] >= numbers["acc1"]
    teacher, sparse = (row["metrics"] for row in rows[:2])
    assert teacher["agreement"] == teacher["cosine"] == pytest.approx(1)
    assert (teacher["tokens"], sparse["tokens"]) == (16, 4)
    assert sparse["gmacs"] < teacher["gmacs"]
    assert {row["model"] for row in rows} == {row["model"] for row in build_csv(tmp_path / "results")}
    assert len(build_csv(tmp_path / "results")) == len(rows)

    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith(("model ", "teacher ", "sf4@", "ToMe"))]
    assert len({len(line) for line in lines[: len(lines) // 2]}) == 1  # aligned
    assert "Skipped 1 broken photos" in printed


def test_the_command_retrieves_captions(open_clip_source, make_student, tmp_path):
    student, out = make_student(open_clip_source, "sf4"), tmp_path / "results.json"
    shard = tmp_path / "captioned.tar"
    with tarfile.open(shard, "w") as tar:
        for index in range(12):
            scene, file = render_scene(0, index, 32), io.BytesIO()
            scene.image.save(file, "png")
            captions = "\n".join(scene.captions[:2]).encode()
            for suffix, data in (("png", file.getvalue()), ("txt", captions)):
                member = tarfile.TarInfo(f"{index:04d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    command("--model", student, "--num-tokens", 4, 9, "--data", shard, "--out", out)
    rows = json.loads(out.read_text())["results"]
    assert [row["task"] for row in rows] == ["zeroshot_retrieval"] * 3
    assert [row["metrics"]["tokens"] for row in rows] == [16, 4, 9]
    assert rows[0]["dataset"] == "captioned"
    assert {f"{what}_retrieval_recall@{k}" for what in ("image", "text") for k in (1, 5, 10)} <= rows[1][
        "metrics"
    ].keys()


def test_photos_without_labels_or_captions_measure_fidelity(clip_folder, make_student, photo_folder, tmp_path):
    out = tmp_path / "results.json"
    command("--model", make_student(clip_folder, "sf4"), "--data", photo_folder, "--limit", 5, "--out", out)
    rows = json.loads(out.read_text())["results"]
    assert [row["task"] for row in rows] == ["fidelity"] * 2
    assert rows[1]["metrics"]["photos"] == 5
    assert "agreement" not in rows[1]["metrics"]  # a CLIP tower alone has no first choice


def test_what_is_passed_over_and_assumed_is_said_and_is_in_the_results(clip_source, class_folders, tmp_path, capsys):
    root, out, names = tmp_path / "set", tmp_path / "results.json", tmp_path / "names.txt"
    shutil.copytree(class_folders, root)
    (root / "red" / "clip.mp4").write_bytes(b"no photo")
    (root / "empty").mkdir()
    folders = sorted(entry.name for entry in root.iterdir() if entry.name != "empty")
    names.write_text("\n".join([*reversed(folders), "plaid"]))
    command("--teacher", clip_source, "--data", class_folders, root, "--class-names", names, "--out", out)
    results, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert results["passed_over"] == {str(class_folders): {}, str(root): {".mp4": 1}}
    said = results["remarks"][str(root)]
    for words in (
        "hold no photo are no classes: empty",
        "1 .mp4 (such as red/clip.mp4)",
        "found among --class-names",
        "'plaid'",
    ):
        assert any(words in remark for remark in said) and words in printed
    plain, other = (row["metrics"] for row in results["results"])
    assert plain["acc1"] == other["acc1"]


def test_the_order_in_which_names_are_given_does_not_matter_where_folders_have_them(
    clip_source, class_folders, tmp_path
):
    folders = sorted(entry.name for entry in class_folders.iterdir())
    found = []
    for order in (folders, folders[::-1], folders[3:] + folders[:3]):
        (tmp_path / "names.json").write_text(json.dumps(dict(zip(order, range(len(order)), strict=True))))
        shared = ["--class-names", tmp_path / "names.json", "--out", tmp_path / "results.json"]
        command("--teacher", clip_source, "--data", class_folders, *shared)
        found.append(json.loads((tmp_path / "results.json").read_text())["results"][0]["metrics"]["acc1"])
    assert len(set(found)) == 1


def write_shard(path: Path, extra: dict[str, bytes]) -> Path:
    """Six photos, each with these members beside it."""
    with tarfile.open(path, "w") as tar:
        for index in range(6):
            file = io.BytesIO()
            render_scene(0, index, 32).image.save(file, "png")
            for suffix, data in {"png": file.getvalue(), **extra}.items():
                member = tarfile.TarInfo(f"{index}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def test_labels_without_names_are_said_to_be_imagenets(clip_source, tmp_path, capsys):
    out = tmp_path / "results.json"
    command("--teacher", clip_source, "--data", write_shard(tmp_path / "s.tar", {"cls": b"3"}), "--out", out)
    assert "taken for the numbers of ImageNet's 1000 classes" in capsys.readouterr().out
    assert any("ImageNet's" in remark for remark in json.loads(out.read_text())["remarks"][str(tmp_path / "s.tar")])


def test_labels_and_captions_that_cannot_be_read_cost_only_those_who_need_them(open_clip_source, tmp_path, capsys):
    words = write_shard(tmp_path / "words.tar", {"cls": b"cat", "txt": b"a cat"})
    latin = write_shard(tmp_path / "latin.tar", {"txt": "Stra\u00dfe".encode("latin-1")})
    for source, task, message in [
        (
            words,
            "auto",
            r"The labels of 6 of the 6 photos cannot be read, the first of words.tar:0: its .cls says 'cat'",
        ),
        (words, "classification", r"measure without them by --task retrieval or fidelity"),
        (latin, "retrieval", r"The captions of 6 of the 6 photos cannot be read.*no UTF-8.*--task fidelity"),
    ]:
        with pytest.raises(SystemExit):
            command("--teacher", open_clip_source, "--data", source, "--task", task)
        assert re.search(message, capsys.readouterr().err)
    for source, task in ((words, "retrieval"), (words, "fidelity"), (latin, "fidelity"), (latin, "auto")):
        command("--teacher", open_clip_source, "--data", source, "--task", task)
    assert "The captions of 6 of the 6 photos cannot be read" in capsys.readouterr().out


def test_labels_that_cannot_be_read_are_refused_before_any_model_sees_a_photo(tmp_path):
    path = write_shard(tmp_path / "words.tar", {"cls": b"cat"})

    def never(pixels):
        raise AssertionError("a model was asked")

    candidate = Candidate("teacher", "nowhere", never, {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"The labels of 6 of the 6 photos cannot be read, the first of words\.tar:0"):
        evaluate([candidate], EvaluationViews(open_photos(path), 32), ((0.5,) * 3, (0.5,) * 3), lambda: None)


def test_names_of_classes_that_a_task_has_no_use_for_are_said(open_clip_source, tmp_path, capsys):
    told, names = write_shard(tmp_path / "told.tar", {"txt": b"a cat"}), tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    command("--teacher", open_clip_source, "--data", told, "--class-names", names)
    assert "--templates are not used: there are no classes in retrieval." in capsys.readouterr().out


def test_photos_without_captions_are_said_to_count_as_misses(open_clip_source, tmp_path, capsys):
    bare = write_shard(tmp_path / "bare.tar", {})
    told = write_shard(tmp_path / "told.tar", {"txt": b"a cat"})
    command("--teacher", open_clip_source, "--data", f"{bare}::{told}")
    assert "6 of the 12 photos have no caption: as queries, they count as misses." in capsys.readouterr().out


def test_a_broken_photo_whose_name_is_no_utf8_costs_no_results(clip_folder, photo_folder, tmp_path, monkeypatch):
    root = tmp_path / "photos"
    shutil.copytree(photo_folder, root)
    try:
        (root / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))  # strict, as most terminals
    command("--teacher", clip_folder, "--data", root, "--out", tmp_path / "results.json")
    assert len(json.loads((tmp_path / "results.json").read_text())["results"]) == 1


def test_what_stops_a_later_source_loses_nothing(clip_source, class_folders, photo_folder, tmp_path, capsys):
    out = tmp_path / "new" / "results.json"
    shared = ["--teacher", clip_source, "--task", "classification", "--out", out]
    with pytest.raises(SystemExit) as stop:
        command(*shared, "--data", class_folders, photo_folder)
    assert stop.value.code == 2 and "have no labels" in capsys.readouterr().err
    content = json.loads(out.read_text())
    assert [row["dataset"] for row in content["results"]] == [class_folders.name]
    assert len(content["skipped"][str(class_folders)]) == 1
    assert len(build_csv(tmp_path / "new" / "results")) == 1


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ValueError, match=rf"the folder {tmp_path} cannot be written"):
        check_json(tmp_path / "new" / "results.json")
    assert not (tmp_path / "new").exists()


def test_bad_input_ends_with_one_sentence_and_exit_code_2(
    clip_source, clip_folder, make_student, photo_folder, class_folders, tmp_path, capsys
):
    student = make_student(clip_source, "sf4")
    for name, fields in (("orphan", {}), ("typed", {"image_size": "224"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "sparseformer"} | fields))
    names = tmp_path / "names.txt"
    names.write_text("red\nblue\n")
    blank, unnamed, cut = tmp_path / "empty.txt", tmp_path / "unnamed", tmp_path / "cut"
    blank.write_text("\n")
    for folder, content in ((unnamed, "{}"), (cut, "{")):
        shutil.copytree(student, folder)
        (folder / "bootstrap.json").write_text(content)
    (tmp_path / "names").write_text("a file where results belong")
    (tmp_path / "folder.json").mkdir()
    folders = ["--model", student, "--data", class_folders]
    cases = [
        (["--model", student, "--data", tmp_path / "nothing"], "nothing"),
        (["--model", clip_folder, "--data", photo_folder], "is no SparseFormer folder: its config.json says 'clip'"),
        (
            ["--model", tmp_path / "absent", "--data", photo_folder],
            "is no SparseFormer folder: it holds no config.json",
        ),
        (["--model", tmp_path / "orphan", "--data", photo_folder], "cannot be opened"),
        (["--model", tmp_path / "typed", "--data", photo_folder], "describes no SparseFormer: image_size is '224'"),
        (["--model", student, "--data"], "give --data"),
        (["--data", photo_folder], "give --model, --teacher or both"),
        ([*folders, "--device", "gpu"], "The device 'gpu' cannot be used"),
        ([*folders, "--class-names", names], r"photos have \d+ classes, and 2 names are given"),
        ([*folders, "--class-names", blank], r"empty\.txt is empty"),
        ([*folders, "--templates", blank], r"empty\.txt is empty"),
        ([*folders, "--image-size", 0], "side is 0, no multiple"),
        ([*folders, "--crop-pct", 2, "--workers", 1], "^error: crop_pct is 2.0, but"),
        (["--model", unnamed, "--data", class_folders], r"bootstrap\.json names no teacher: give --teacher"),
        (["--model", cut, "--data", class_folders], r"bootstrap\.json is no JSON"),
        ([*folders, "--class-indices", "1,two"], "must be numbers and commas"),
        ([*folders, "--out", tmp_path / "results"], "must end in .json"),
        ([*folders, "--out", names.with_suffix(".json")], "names is a file where a folder of that name belongs"),
        ([*folders, "--out", tmp_path / "names" / "below" / "res.json"], "below cannot be made: .*names is a file"),
        ([*folders, "--out", tmp_path / "folder.json"], "folder.json, which is a folder"),
        ([*folders, "--image-size", 33], "no multiple of the teacher's patches of 8 pixels"),
        ([*folders, "--task", "retrieval"], "The photos have no captions"),
        (["--model", student, "--data", photo_folder, "--task", "classification"], "have no labels"),
        (["--teacher", clip_folder, "--data", class_folders, "--controls"], "needs a budget"),
        (["--teacher", clip_folder, "--data", class_folders], "no tokenizer"),
    ]
    for arguments, message in cases:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            command(*arguments)
        assert stop.value.code == 2
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(error) == 1
        assert re.search(message, error[0]), error[0]


def test_a_text_tower_whose_weights_are_not_found_is_no_random_one(tmp_path: Path) -> None:
    folder = tmp_path / "wrapped"
    shutil.copytree(resolve("clip-tiny"), folder)
    tensors = load_file(folder / "model.safetensors")
    wrapped = {f"module.{key}": tensor for key, tensor in tensors.items()}
    lost = {key: tensor for key, tensor in tensors.items() if key != "text_projection.weight"}
    for held, missing in ((wrapped, "module.logit_scale"), (lost, "missing keys: text_projection.weight")):
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"The tensors of .*wrapped do not fit its configuration .*{missing}"):
            open_text_encoder(str(folder))
