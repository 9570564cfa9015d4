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

from .chat import Host, user_message
from .chat_reply import Reply, Timings
from .sparseformer import SparseFormerModel

VIEW_SIDE = 672  # pixels of the pictures that are shown


@dataclass(frozen=True)
class Looked:
    """One answer about one photo, and how it came about.

    Attributes:
        view: The square that the tower saw, enlarged.
        boxes: After each step (N, 4), in fractions of the view; where the last step chooses, the first ones may be others.
        points: Where each look read the photo, (N, P, 2) a step.
        answer: What was answered.
        words: The answer's tokens as text.
        attention: (A, N), the share of its attention that each word gave to each token, averaged over layers and heads.
        timings: What the answer cost.
        chosen: Whether the tokens are those of the last step alone, where the first one has boxes of its own.
        context: (M, 4) boxes of what the last step saw beside the tokens; none where there is no such thing.
    """

    view: Image.Image
    boxes: tuple[Tensor, ...]
    points: tuple[Tensor, ...]
    answer: str
    words: tuple[str, ...]
    attention: Tensor
    timings: Timings
    chosen: bool = False
    context: Tensor | None = None

    def given_to(self, word: int | None) -> Tensor:
        """Attention to each token of one word, or of all on average: (N,)."""
        if not len(self.attention):
            return torch.zeros(self.attention.shape[1])
        return self.attention.mean(0) if word is None else self.attention[word]

    def token_at(self, step: int, x: float, y: float) -> int:
        """The token whose box of that step lies nearest around a place, in fractions of the view."""
        boxes = self.boxes[step]
        place = boxes.new_tensor([x, y])
        center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)
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
    if host.model.config.model_type != "llava":
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
    if host.model.config.model_type == "llava":
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
    attention = answer_attention(host, inputs, reply.tokens[: len(words)], len(looks.boxes[-1]))
    chosen = tower_of(host).config.focusing == "chosen"
    return Looked(
        seen_view(host, image),
        looks.boxes,
        looks.points,
        answer,
        words,
        attention,
        reply.timings,
        chosen,
        looks.context,
    )


def written_words(host: Host, reply: Reply) -> tuple[str, ...]:
    """A reply's tokens as text, each with the space in front of it; what ends a reply is no word."""
    special = set(host.processor.tokenizer.all_special_ids)
    tokens = reply.tokens
    count = next((number for number, token in enumerate(tokens) if token in special), len(tokens))
    decode = host.processor.tokenizer.decode
    texts = [decode(tokens[: number + 1]) for number in range(count)]
    return tuple(text[len(before) :] for before, text in zip(["", *texts], texts, strict=False))


@torch.no_grad()
def answer_attention(host: Host, inputs: dict[str, Tensor], answer: list[int], num_tokens: int) -> Tensor:
    """How much each token of an answer attended to each image token of the first view: (A, N), all shares of 1.

    The language model reads prompt and answer once more with plain attention, the only kind that tells its weights.

    Args:
        host: Who answered.
        inputs: Of the prompt, from `Host.encode`.
        answer: Token ids.
        num_tokens: N image tokens.
    """
    if not answer:
        return torch.zeros(0, num_tokens)
    ids, length = inputs["input_ids"], inputs["input_ids"].shape[1]
    places = (ids[0] == host.model.config.image_token_id).nonzero()[:, 0]
    if host.model.config.model_type == "llava":
        places = places[len(places) - num_tokens :]  # behind a class token, where the host reads it
    added = ids.new_tensor([answer[:-1]])
    inputs = dict(inputs, input_ids=torch.cat([ids, added], dim=1))
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    rows = slice(length - 1, length - 1 + len(answer))  # a word is chosen where the one before it stands
    found: list[Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        found.append(output[1][0, :, rows][..., places[:num_tokens].to(output[1].device)].float().mean(0).cpu())

    with host.turns, _plain_attention(host.model.model.language_model, keep):
        host.model(**inputs, use_cache=False)
    return torch.stack(found).mean(0)


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
