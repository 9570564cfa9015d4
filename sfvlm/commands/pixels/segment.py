"""The command that draws what each pixel of a photo shows."""

from collections.abc import Sequence
from typing import get_args

import torch
from PIL import Image

from ...dense.maps import resized
from ...dense.vocabulary import Way
from ...encoder.sparseformer import SparseFormerModel
from ...evaluate.texts import open_text_encoder
from ...look.draw import save_picture
from ...photos.sources import open_and_say
from ...segmentation.model import label_names
from ...segmentation.overlays import Layer, panel
from ...segmentation.painter import Painter, agreement, shares_of, shown_size
from ...segmentation.views import normalized, whole_view
from ...util.console import say
from .options import SegmentCommand
from .towers import is_segmenter, open_segmenter, open_tower, teacher_of


def segment_command(command: SegmentCommand) -> None:
    """Opens the model and the photo, and writes the picture."""
    trained = is_segmenter(command.model)
    if trained == bool(command.names):
        raise ValueError(
            f"{command.model} was trained with classes of its own: leave out --names."
            if trained
            else "Say what to look for: --names cat grass sky."
        )
    for flag in ("teacher", "guide", "threshold"):
        if trained and getattr(command, flag):
            raise ValueError(f"--{flag} is of maps from names, and {command.model} was trained: leave it out.")
    if command.way not in get_args(Way):
        raise ValueError(f"There is no way {command.way!r}; the ways are {', '.join(get_args(Way))}.")
    photo = open_and_say(command.photo)[0].image
    height, width = shown_size(photo)
    small = photo.resize((width, height))
    if trained:
        layers, names = _by_model(command, photo)
    else:
        layers, names = _by_names(command, photo)
    save_picture(panel(small, layers, names), command.out)
    say(f"Wrote {command.out}.")


def _by_names(command: SegmentCommand, photo: Image.Image) -> tuple[list[Layer], Sequence[str]]:
    teacher, opened = teacher_of([command.model], command.teacher), open_tower(command.model, command.guide)
    text = open_text_encoder(teacher.source)
    if text is None or not isinstance(opened.tower, SparseFormerModel):
        what = (
            f"The teacher {teacher.source} has no text tower" if text is None else f"{command.model} is no SparseFormer"
        )
        raise ValueError(f"{what}: names need a SparseFormer that was made from a CLIP.")
    painter = Painter(teacher.model, text, opened.tower, opened.guide)
    way: Way = command.way  # type: ignore[assignment]
    found = painter.paint(photo, command.names, way, command.num_tokens, command.threshold)
    for side, painted in found.items():
        listed = ", ".join(f"{name} {share:.0%}" for name, share in [*painted.shares.items()][:8])
        say(f"{side}, {painted.tokens} tokens: {listed or 'nothing is sure'}")
    say(f"They call {agreement(found):.0%} of the pixels the same.")
    layers = [Layer(f"{side}, {painted.tokens} tokens", painted.classes) for side, painted in found.items()]
    return layers, [line.split(",")[0].strip() for line in command.names if line.strip(" ,;")]


@torch.inference_mode()
def _by_model(command: SegmentCommand, photo: Image.Image) -> tuple[list[Layer], Sequence[str]]:
    model = open_segmenter(command.model)
    config, names = model.config.sparse, label_names(model.config)
    pixels = normalized(whole_view(photo, config)[None], config)
    logits = resized(model(pixels, num_tokens=command.num_tokens).logits.float(), shown_size(photo))
    classes = logits.argmax(dim=1)[0].numpy()
    listed = ", ".join(f"{name} {share:.0%}" for name, share in [*shares_of(classes, names).items()][:8])
    say(f"{command.model}: {listed}")
    return [Layer(command.model, classes)], names
