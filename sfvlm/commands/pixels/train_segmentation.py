"""The command that trains a segmentation model from a tower and photos with masks."""

import shlex
from pathlib import Path

from ...dense.masks import Checked, checked, open_masked
from ...segmentation.model import SparseFormerForSemanticSegmentation
from ...segmentation.training import class_names, train
from ...teachers.open import DenseTransformer
from ...util.alone import alone
from ...util.console import say
from ...util.files import read_json
from ...zoo.names import resolve
from .options import TrainSegmentationCommand
from .towers import names_in, open_tower


def train_segmentation_command(command: TrainSegmentationCommand) -> None:
    """Opens the tower and the photos, counts the classes, trains, and says where the model is."""
    opened = open_tower(command.model, command.guide, boxes_alone=command.boxes_alone)
    given = names_in(command.classes)
    photos = open_masked(command.train, reduce_labels=command.reduce_labels, num_classes=len(given) if given else None)
    learned = _said(checked(photos))
    names = class_names(given or photos.class_names, learned.num_classes)
    val = _said(checked(open_masked(command.val, reduce_labels=command.reduce_labels, num_classes=len(names))))
    keys = {learned.photos.key(index) for index in range(len(learned.photos))}
    if both := sum(val.photos.key(index) in keys for index in range(len(val.photos))):
        say(
            f"{both} of the {len(val.photos)} photos to measure on are named as photos to learn from: the score will flatter."
        )
    model = SparseFormerForSemanticSegmentation.around(
        opened.tower,
        names,
        guide=opened.guide,
        num_tokens=command.num_tokens,
        reduce_labels=command.reduce_labels,
    )
    parts = {"head": "the head alone learns", "lora": "head and LoRA learn", "all": "everything learns"}
    say(
        f"{len(learned.photos)} photos to learn from and {len(val.photos)} to measure on, {len(names)} classes; "
        f"{_described(opened.tower, opened.guide is not None, command)}; {parts[command.training.tune]}."
    )
    unseen = [
        name for name, count in zip(names, learned.photos_of_class + (0,) * len(names), strict=False) if not count
    ]
    if unseen:
        say(f"No mask to learn from shows {', '.join(unseen[:8])}{' and others' if len(unseen) > 8 else ''}.")
    facts = {
        "model": command.model,
        "train": command.train,
        "val": command.val,
        "teacher": _teacher(command.model, opened.tower),
    }
    with alone(command.out):
        result = train(model, learned.photos, val.photos, command.out, command.training, facts, resume=command.resume)
    low, high = result["miou_low"], result["miou_high"]
    say(
        f"mIoU {result['miou']:.1%} ({low:.1%} to {high:.1%}) over the {result['classes_averaged']} classes that occur, accuracy "
        f"{result['accuracy']:.1%}, on {result['photos']} photos."
    )
    measure = shlex.join(["python", "eval/segmentation.py", "--model", str(command.out), "--data", str(command.val)])
    say(f"Wrote {command.out}. Measure it: {measure}")


def _said(found: Checked) -> Checked:
    for remark in found.remarks:
        say(remark)
    return found


def _described(tower: object, guided: bool, command: TrainSegmentationCommand) -> str:
    if isinstance(tower, DenseTransformer):
        return f"a dense tower of {tower.config.teacher_grid**2} tokens"
    budget = command.num_tokens or tower.config.budget  # type: ignore[attr-defined]
    return f"a SparseFormer of {budget} tokens, its map {'guided by the photo' if guided else 'from boxes alone'}"


def _teacher(source: str, tower: object) -> str | None:
    """The dense tower that a SparseFormer was made from, where its folder says it; of a dense tower itself."""
    if isinstance(tower, DenseTransformer):
        return source
    path = Path(resolve(source)) / "bootstrap.json"
    return read_json(path).get("teacher") if path.is_file() else None
