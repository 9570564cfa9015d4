"""Zero-shot evaluation: photos and texts to classification, retrieval, and how near a model stays to its teacher.

    photos -> encode_all -> pooled (N, E), logits (N, K) --+
                                                           +-> classify | retrieve, and fidelity -> numbers by name
    names, templates -> TextEncoder.classifier -> (E, K) --+

Shapes: B batch, N photos, T texts, K classes, E width of the shared space.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..photos.folders import NoLabels
from ..photos.scene_texts import CLASS_NAMES, class_prompt
from ..photos.sources import FolderPhotos, Photos, ScenePhotos, open_photos
from ..util.choices import Task
from ..util.results import Row
from .classes import Classes, absent_classes, mapped_labels, resolve_classes
from .encoding import EvaluationViews, encode_all
from .metrics import (
    Encoded,
    Numbers,
    classification_metrics,
    confidence_interval,
    fidelity,
    nearest,
    retrieval_metrics,
)
from .texts import Template, TextEncoder, imagenet_templates


def open_evaluation_photos(source: str) -> Photos:
    """Opens photos with what labels there are: a folder's subfolders are its classes, if every photo is in one.

    Why there are no labels is among the remarks.

    Raises:
        ValueError: There are no photos.
    """
    try:
        labelled = open_photos(source, labelled=True)
    except NoLabels as error:
        every = open_photos(source)
        every.notes += (str(error),)
        return every
    if any(isinstance(each, FolderPhotos) for each in labelled.sources):
        every = open_photos(source)
        if beside := len(every) - len(labelled):
            every.notes += (
                f"{beside} of the {len(every)} photos of {source} lie beside its class folders, so that none has a label: move them "
                "for a classification.",
            )
            return every
    return labelled


def class_names_of(photos: Photos) -> tuple[str, ...] | None:
    """The names the source itself gives its classes."""
    if all(isinstance(source, ScenePhotos) for source in photos.sources):
        return tuple(CLASS_NAMES)
    return photos.class_names


def templates_of(photos: Photos) -> tuple[Template, ...]:
    """The sentences for the source's class names: its own, or the 80 of CLIP."""
    if all(isinstance(source, ScenePhotos) for source in photos.sources):
        return (class_prompt,)
    return photos.templates or imagenet_templates()


def classify(
    encoded: Encoded, classifier: Tensor | None, class_indices: Sequence[int] | None
) -> tuple[Numbers, Tensor]:
    """Classification through a text classifier (E, K), or the model's own: numbers, and first choices (N,).

    With `class_indices` (label -> class), `acc1_restricted` chooses among the listed classes alone.

    Raises:
        ValueError: Labels do not fit, or there is no classifier of either kind.
    """
    scores = encoded.logits if classifier is None else F.normalize(encoded.pooled, dim=-1) @ classifier
    if scores is None:
        raise ValueError("The teacher has neither a text tower nor a classifier, so that photos cannot be classified.")
    labels = mapped_labels(encoded.labels, class_indices, scores.shape[-1])
    choices = scores.argmax(dim=-1)
    numbers = classification_metrics(scores, labels)
    numbers["acc1_low"], numbers["acc1_high"] = confidence_interval(choices == labels)
    if class_indices is not None:
        listed = torch.tensor(sorted({index for index in class_indices if index >= 0}))
        numbers["acc1_restricted"] = (listed[scores[:, listed].argmax(-1)] == labels).double().mean().item()
    return numbers, choices


def retrieve(encoded: Encoded, texts: Tensor, owner: Tensor) -> tuple[Numbers, Tensor]:
    """Retrieval between photos and captions (T, E) owned by photos (T,): numbers, each photo's first caption (N,)."""
    return retrieval_metrics(encoded.pooled, texts, owner), torch.cat(nearest(encoded.pooled, texts, 1))[:, 0]


@dataclass(frozen=True)
class Candidate:
    """A model to be measured: the teacher, a `Student` or a control, with what is known of it already."""

    name: str
    pretrained: str  # where its weights come from
    module: nn.Module
    cost: Numbers  # tokens, mean_tokens, gmacs


class Evaluation(NamedTuple):
    """What was measured, on what not, and what was assumed."""

    rows: list[Row]
    skipped: tuple[dict[str, str], ...]  # {"key", "reason"} of each broken photo
    remarks: tuple[str, ...]  # sentences


def evaluate(
    candidates: Sequence[Candidate],
    views: EvaluationViews,
    mean_std: tuple[Sequence[float], Sequence[float]],
    text: Callable[[], TextEncoder | None],
    *,
    dataset: str = "photos",
    task: Task = "auto",
    classes: Classes | None = None,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    workers: int = 0,
) -> Evaluation:
    """Measures all candidates on the same views, the first of which is the teacher.

    Raises:
        ValueError: The photos do not fit the task, or the candidates one another.
    """
    _check_read(task, views)
    encode = partial(encode_all, views=views, mean_std=mean_std, batch_size=batch_size, device=device, workers=workers)
    teacher = encode(candidates[0].module, title=candidates[0].name)
    remarks = list(views.photos.remarks)
    name, measure = choose_task(task, teacher, views.photos, text, classes or Classes(), remarks)
    teacher_choices = None
    rows: list[Row] = []
    for candidate in candidates:
        encoded = encode(candidate.module, title=candidate.name) if rows else teacher
        # Before the task, which would only stumble over what this explains.
        near = fidelity(encoded, teacher, None)
        numbers, choices = measure(encoded)
        teacher_choices = teacher_choices if rows else choices
        if choices is not None and teacher_choices is not None:
            near = fidelity(encoded, teacher, (choices, teacher_choices))
        metrics = {**numbers, **near, **candidate.cost, "photos": len(encoded.index), "skipped": len(encoded.skipped)}
        rows.append(
            {
                "dataset": dataset,
                "model": candidate.name,
                "pretrained": candidate.pretrained,
                "task": name,
                "metrics": metrics,
                "language": "en",
            }
        )
    return Evaluation(rows, teacher.skipped, tuple(remarks))


def choose_task(
    task: Task,
    teacher: Encoded,
    photos: Photos,
    text: Callable[[], TextEncoder | None],
    classes: Classes,
    remarks: list[str],
) -> tuple[str, Callable[[Encoded], tuple[Numbers, Tensor | None]]]:
    """The task's name in result files, and what measures it: labels come first, then captions, then the teacher alone.

    `remarks` receives what is assumed.

    Raises:
        ValueError: What the task needs is not there.
    """
    labelled = any(label is not None for label in teacher.labels)
    captioned = any(teacher.captions)
    has_classifier = teacher.logits is not None
    if task == "auto":
        can_classify = labelled and (has_classifier or text() is not None)
        task = "classification" if can_classify else "retrieval" if captioned and text() is not None else "fidelity"
        if task == "fidelity" and (lost := [each for each in teacher.unread if "captions" in each]):
            remarks.append(_unread("captions", lost[0], len(lost), len(teacher.index)))
        if task == "retrieval":
            _refuse_unread("captions", [each for each in teacher.unread if "captions" in each], len(teacher.index))
    if task != "classification" and (classes.names or classes.indices or classes.templates):
        remarks.append(f"--class-names, --class-indices and --templates are not used: there are no classes in {task}.")
    if task == "classification":
        if not labelled:
            raise ValueError(
                f"The photos of {', '.join(photos.origins)} have no labels: put each class into a folder of its own."
            )
        encoder = None if has_classifier else text()
        outputs = teacher.logits.shape[-1] if teacher.logits is not None else None
        names, indices = resolve_classes(class_names_of(photos), classes, outputs, remarks)
        remarks += absent_classes(teacher.labels, names, indices, outputs)
        classifier = None
        if encoder is not None and names is not None:
            classifier = encoder.classifier(names, classes.templates or templates_of(photos))
        name = "classification" if has_classifier else "zeroshot_classification"
        return name, partial(classify, classifier=classifier, class_indices=indices)
    if task == "retrieval":
        encoder = text()
        if not captioned or encoder is None:
            what = "The teacher has no text tower" if encoder is None else "The photos have no captions"
            raise ValueError(f"{what}, so that there is no retrieval to measure.")
        if bare := sum(not captions for captions in teacher.captions):
            remarks.append(
                f"{bare} of the {len(teacher.captions)} photos have no caption: as queries, they count as misses."
            )
        texts = encoder([caption for captions in teacher.captions for caption in captions])
        owner = torch.tensor([number for number, captions in enumerate(teacher.captions) for _ in captions])
        return "zeroshot_retrieval", partial(retrieve, texts=texts, owner=owner)
    return "fidelity", lambda encoded: ({}, None if encoded.logits is None else encoded.logits.argmax(-1))


def _check_read(task: Task, views: EvaluationViews) -> None:
    """Raises ValueError where photos have what the task needs and it cannot be read; before any model sees one."""
    what = {"auto": "label", "classification": "label", "retrieval": "captions"}.get(task)
    if what is None:
        return
    said = ({"key": views.photos.key(index), **views.photos.unread(index)} for index in views.indices)
    lost = [(number, each) for number, each in enumerate(said) if what in each]
    if any("pixels" in views[number] for number, _ in lost):  # of broken photos nothing is asked
        _refuse_unread(what, [each for _, each in lost], len(views))


def _refuse_unread(what: str, lost: Sequence[Mapping[str, str]], count: int) -> None:
    way_out = "--task retrieval or fidelity" if what == "label" else "--task fidelity"
    if lost:
        raise ValueError(
            f"{_unread(what, lost[0], len(lost), count)} Repair them, or measure without them by {way_out}."
        )


def _unread(what: str, first: Mapping[str, str], lost: int, count: int) -> str:
    """A sentence of the photos of which a "label" or "captions" are there but cannot be read."""
    plural = "labels" if what == "label" else what
    return f"The {plural} of {lost} of the {count} photos cannot be read, the first of {first['key']}: {first[what]}."
