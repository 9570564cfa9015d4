"""What a host looked at: the boxes of its sparse tower, step by step, and which of them its answer attended to.

    look(host, photo, question) -> Looked    boxes and points; the answer, and its words' attention to the tokens

Shapes: N tokens, P sampling points of each, A words of the answer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..encoder import roi
from ..encoder.sparseformer import SparseFormerModel
from ..hosts.host import Host
from ..hosts.reader import new_cache, remembering
from ..hosts.reply import Reply, Timings
from ..hosts.template import user_message

VIEW_SIDE = 672  # pixels of the pictures that are shown


class Attention(NamedTuple):
    """What the words of an answer attended to, in shares of all their attention, averaged over layers and heads."""

    tokens: Tensor  # (A, N) to each image token of the first view
    photo: Tensor  # (A,) to all that is read of the photo, further tiles included


@dataclass(frozen=True)
class Looked:
    """One answer about one photo, and how it came about.

    Attributes:
        view: The square that the tower saw, enlarged.
        boxes: After each step (N, 4), in fractions of the view; where the last step chooses, the first ones may be others.
        points: Where each look read the photo, (N, P, 2) a step.
        answer: What was answered.
        words: The answer's tokens as text.
        attention: Of these words; None where it could not be computed.
        timings: What the answer cost.
        chosen: Whether the tokens are those of the last step alone, where the first one has boxes of its own.
        context: (M, 4) boxes of what the last step saw beside the tokens; none where there is no such thing.
        tiled: Whether the answer was also read from tiles, of which the view is the first.
        failure: Why there is no attention.
    """

    view: Image.Image
    boxes: tuple[Tensor, ...]
    points: tuple[Tensor, ...]
    answer: str
    words: tuple[str, ...]
    attention: Attention | None
    timings: Timings
    chosen: bool = False
    context: Tensor | None = None
    tiled: bool = False
    failure: str = ""

    def given_to(self, word: int | None) -> tuple[Tensor, float]:
        """Attention of one word, or of all on average, to each token (N,) and to the whole photo.

        Raises:
            ValueError: There is none.
        """
        if self.attention is None:
            raise ValueError(f"What the answer attended to could not be computed: {self.failure}")
        tokens, photo = self.attention
        if not len(tokens):
            return torch.zeros(tokens.shape[1]), 0.0
        return (tokens.mean(0), photo.mean().item()) if word is None else (tokens[word], photo[word].item())

    def token_at(self, step: int, x: float, y: float) -> int:
        """The token whose box of that step lies nearest around a place, in fractions of the view."""
        boxes = self.boxes[step]
        place = boxes.new_tensor([x, y])
        center, size = roi.centers(boxes), roi.sizes(boxes).abs().clamp(min=1e-6)
        return int(((place - center) / size).abs().amax(-1).argmin())


def tower_of(host: Host) -> SparseFormerModel:
    """The host's tower.

    Raises:
        ValueError: It has no boxes.
    """
    tower = host.model.model.vision_tower
    if not isinstance(tower, SparseFormerModel):
        raise ValueError(f"The tower of {host.source} is a {type(tower).__name__}, which has no boxes to show.")
    return tower


def view_pixels(host: Host, image: Image.Image, side: int) -> Tensor:
    """What a host's processor makes of a photo, with more or fewer pixels: the same view, (1, 3, side, side).

    Raises:
        ValueError: The host cuts photos into tiles.
    """
    if host.tiled:
        raise ValueError(
            f"{host.source} cuts photos into tiles ({host.model.config.model_type}), which have no one view."
        )
    processor = host.processor.image_processor
    sizes = {
        name: {key: side for key, value in dict(old).items() if value is not None}
        for name in ("size", "crop_size")
        if (old := getattr(processor, name, None))
    }
    return processor(image, return_tensors="pt", **sizes)["pixel_values"]


def as_image(host: Host, pixels: Tensor) -> Image.Image:
    """Normalised pixels (3, H, W) as a picture again."""
    processor = host.processor.image_processor
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    values = ((pixels.float() * std + mean) * 255).round().clamp(0, 255).byte()
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def seen_view(host: Host, image: Image.Image, side: int = VIEW_SIDE) -> Image.Image:
    """The square of a photo that the tower sees; of a tiled host its first tile, which is the whole photo."""
    if not host.tiled:
        return as_image(host, view_pixels(host, image, side)[0])
    pixels = host.processor.image_processor(image, return_tensors="pt")["pixel_values"]  # (1, tiles, 3, H, W)
    return as_image(host, pixels[0, 0]).resize((side, side), Image.Resampling.BICUBIC)


class Looks(NamedTuple):
    """What a tower looked at in one view: boxes (N, 4) and points (N, P, 2) of each step, context (M, 4) of the last."""

    boxes: tuple[Tensor, ...]
    points: tuple[Tensor, ...]
    context: Tensor | None


@torch.no_grad()
def looks_of(host: Host, pixel_values: Tensor) -> Looks:
    """Where the tower looks in the first view of a host's pixels.

    Raises:
        ValueError: The tower has no boxes.
    """
    tower = tower_of(host)
    first = pixel_values[:1] if pixel_values.ndim == 4 else pixel_values[:1, 0]
    with host.turns:
        output = tower(first.to(tower.device))
    boxes, points = (tuple(each[0].cpu() for each in steps) for steps in (output.token_rois, output.sampling_points))
    return Looks(boxes, points, None if output.context_rois is None else output.context_rois[0].cpu())


def look(
    host: Host,
    image: Image.Image,
    question: str,
    *,
    max_new_tokens: int = 64,
    pixel_values: Tensor | None = None,
    **sampling: Any,
) -> Looked:
    """Answers a question about a photo, and tells where the tower looked and what the answer attended to.

    An answer that was written is returned even if its attention cannot be computed.

    Args:
        host: With a SparseFormer as its tower.
        image: The photo.
        question: What is asked.
        max_new_tokens: The longest answer.
        pixel_values: As in `Host.stream`.
        sampling: `stop`, `temperature` and `top_p`, as in `Host.stream`.

    Raises:
        ValueError: The tower has no boxes.
    """
    messages = [user_message(question, 1)]
    inputs = host.encode([messages], [[image]], pixel_values)
    looks = looks_of(host, inputs["pixel_values"])
    reply = host.stream(messages, [image], max_new_tokens=max_new_tokens, pixel_values=pixel_values, **sampling)
    answer = "".join(reply).strip()
    words = written_words(host, reply)
    attention, failure = None, ""
    try:
        attention = answer_attention(host, inputs, reply.tokens[: len(words)], len(looks.boxes[-1]))
    except Exception as error:
        failure = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    return Looked(
        seen_view(host, image),
        looks.boxes,
        looks.points,
        answer,
        words,
        attention,
        reply.timings,
        chosen=tower_of(host).config.focusing == "chosen",
        context=looks.context,
        tiled=host.tiled,
        failure=failure,
    )


def written_words(host: Host, reply: Reply) -> tuple[str, ...]:
    """A reply's tokens as text, each with the space in front of it; what ends a reply is no word.

    A letter of several tokens is the last one's: together the words are the reply.
    """
    special = set(host.processor.tokenizer.all_special_ids)
    tokens = reply.tokens
    count = next((number for number, token in enumerate(tokens) if token in special), len(tokens))
    decode = host.processor.tokenizer.decode
    texts = [decode(tokens[: number + 1]) for number in range(count)]
    whole = [text.rstrip("\ufffd") for text in texts[:-1]] + texts[-1:]  # half a letter decodes to that mark
    return tuple(text[len(before) :] for before, text in zip(["", *whole], whole, strict=False))


@torch.no_grad()
def answer_attention(host: Host, inputs: dict[str, Tensor], answer: list[int], num_tokens: int) -> Attention:
    """How much each token of an answer attended to the photo.

    The language model reads prompt and answer once more: up to the last token of the prompt as it always does, and the rest,
    where the words of the answer are chosen, with plain attention. That alone tells its weights, and would take memory
    with the square of the prompt.

    Args:
        host: Who answered.
        inputs: Of the prompt, from `Host.encode`.
        answer: Token ids.
        num_tokens: N image tokens of the first view.
    """
    if not answer:
        return Attention(torch.zeros(0, num_tokens), torch.zeros(0))
    ids = inputs["input_ids"]
    places = (ids[0] == host.model.config.image_token_id).nonzero()[:, 0]
    # The first view comes first; but behind a class token, where the host reads it.
    first = slice(num_tokens) if host.tiled else slice(len(places) - num_tokens, None)
    before = dict(inputs, input_ids=ids[:, :-1], attention_mask=torch.ones_like(ids[:, :-1]))
    # A word is chosen where the one before it stands.
    asked = torch.cat([ids[:, -1:], ids.new_tensor([answer[:-1]])], dim=1)
    mask = ids.new_ones(1, ids.shape[1] + len(answer) - 1)
    found: list[Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        found.append(output[1][0][..., places.to(output[1].device)].float().mean(0).cpu())  # (A, all of the photo)

    with host.turns:
        remembered = remembering(host.model, new_cache(host.model))
        host.model(**before, **remembered, logits_to_keep=1)
        with _plain_attention(host.model.model.language_model, keep):
            host.model(input_ids=asked, attention_mask=mask, **remembered, logits_to_keep=1)
    shares = torch.stack(found).mean(0)
    return Attention(shares[:, first], shares.sum(-1))


@contextmanager
def _plain_attention(language_model: Any, hook: Any) -> Iterator[None]:
    """Inside, the layers' attention is computed step by step, and handed to the hook with its weights."""
    before = language_model.config._attn_implementation
    layers = [module for name, module in language_model.named_modules() if name.endswith("self_attn")]
    hooks = [layer.register_forward_hook(hook) for layer in layers]
    language_model.set_attn_implementation("eager")
    try:
        yield
    finally:
        language_model.set_attn_implementation(before)
        for each in hooks:
            each.remove()
