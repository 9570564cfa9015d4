"""What a reply of a host costs, part by part.

    prepare   photos and prompts to tensors on the device (the processor)
    encode    vision tower and projector                      -> features
    prefill   language model over prompt and features         -> first word, KV cache
    decode    language model, one word after another          -> the next words

The parts are those that `generate` runs for greedy words, called one by one without its bookkeeping; words come out the same.
Every reply has the same length: no host stops early. Shapes: B replies, T words of a prompt, its image tokens included, W width
of the language model, F features of all photos.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..alternatives.costs import macs, macs_a_photo
from ..hosts.facts import HOSTS
from ..hosts.host import Host
from ..hosts.reader import next_word
from ..hosts.template import user_message
from ..util.choices import SPEED_PROMPT
from .energy import Meter
from .measure import Measures, Phases, Row, cost_rows, in_turns

PHOTO_INPUTS = ("pixel_values", "image_sizes", "batch_num_images")  # what a processor makes of photos


@dataclass(frozen=True)
class Subject:
    """A host to measure.

    Attributes:
        name, source: What it is called in tables and in files.
        model: A LLaVA, LLaVA-NeXT or LLaVA-OneVision `...ForConditionalGeneration`.
        inputs: (B, turn) -> the tensors that it reads, on its device: of B replies, others every turn.
        is_prepared: Whether these were tensors all along, so that making them is no part of a reply.
    """

    name: str
    source: str
    model: Any
    inputs: Callable[[int, int], dict[str, Tensor]]
    is_prepared: bool = False


@dataclass(frozen=True)
class Written:
    """A batch of replies so far: the last word of each (B, 1), the cache, and where the prompts are padded, if anywhere."""

    word: Tensor
    cache: Any
    mask: Tensor | None  # (B, T), 0 where padded

    @property
    def cache_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(tensor.nbytes for layer in self.cache.layers for tensor in (layer.keys, layer.values))


class Parts:
    """The parts of a host, to be run one by one.

    Raises:
        ValueError: It is no LLaVA, LLaVA-NeXT or LLaVA-OneVision.
    """

    def __init__(self, model: Any) -> None:
        if model.config.model_type not in HOSTS:
            raise ValueError(f"The host is of type {model.config.model_type!r}; those measured are {', '.join(HOSTS)}.")
        self.model = model

    def encode(self, inputs: dict[str, Tensor]) -> Tensor:
        """Photos to what the language model reads of them: (F, W)."""
        photos = {name: inputs[name] for name in PHOTO_INPUTS if name in inputs}
        return torch.cat(list(self.model.model.get_image_features(**photos).pooler_output))

    def prefill(self, inputs: dict[str, Tensor], features: Tensor) -> Written:
        """Prompts (B, T) and features (F, W) to the first words."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        embedded = self.model.get_input_embeddings()(ids)
        places = (ids == self.model.config.image_token_id)[..., None]
        embedded = embedded.masked_scatter(places, features.to(embedded.dtype))
        return self._read(embedded, None, None if bool(mask.all()) else mask)

    def decode(self, written: Written) -> Written:
        """One more word of each reply."""
        mask = written.mask
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        return self._read(self.model.get_input_embeddings()(written.word), written.cache, mask)

    def _read(self, embedded: Tensor, cache: Any, mask: Tensor | None) -> Written:
        """Embedded words (B, t, W) behind those in the cache to the word after them."""
        return Written(*next_word(self.model, embedded, cache, mask), mask)


def host_subject(host: Host, name: str, photos: Sequence[Image.Image], prompt: str = SPEED_PROMPT) -> Subject:
    """An open host that is asked one prompt about one photo after another."""

    def inputs(count: int, turn: int) -> dict[str, Tensor]:
        chosen = [photos[(turn * count + number) % len(photos)] for number in range(count)]
        return host.encode([[user_message(prompt, 1)]] * count, [[photo] for photo in chosen])

    return Subject(name, host.source, host.model, inputs)


@torch.inference_mode()
def reply(subject: Subject, batch_size: int, turn: int, new_tokens: int) -> tuple[Measures, Tensor]:
    """Writes a batch of replies of that length: what it cost, and the words (B, new_tokens).

    `first_token_seconds` is prepare, encode and prefill together; `token_seconds` is of one decoding step for the whole batch.
    On CUDA, `weights_bytes` is the model and `*_peak_bytes` the most that was in use, the model included and other models in
    the same process left out.
    """
    parts = Parts(subject.model)
    phases = Phases(subject.model.device)
    with phases.phase("prepare"):
        inputs = subject.inputs(batch_size, turn)
    with phases.phase("encode"):
        features = parts.encode(inputs)
    with phases.phase("prefill"):
        written = parts.prefill(inputs, features)
    cache_bytes = written.cache_bytes
    words = [written.word]
    with phases.phase("decode"):
        for _ in range(new_tokens - 1):
            written = parts.decode(written)
            words.append(written.word)
    ids = inputs["input_ids"]
    seconds = dict(phases.seconds)
    step = seconds.pop("decode") / (new_tokens - 1)
    if subject.is_prepared:
        del seconds["prepare"]
    measures: Measures = {
        "image_tokens": int((ids == subject.model.config.image_token_id).sum()) / batch_size,
        "prompt_tokens": ids.shape[1],
        "kv_cache_bytes": cache_bytes,
        **{f"{name}_seconds": each for name, each in seconds.items()},
        "first_token_seconds": sum(seconds.values()),
        "token_seconds": step,
    }
    if phases.peaks:
        weights = _weight_bytes(subject.model)
        measures["weights_bytes"] = weights
        measures |= {f"{name}_peak_bytes": weights + peak for name, peak in phases.peaks.items() if name != "prepare"}
    return measures, torch.cat(words, dim=1)


def _weight_bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensors in (model.parameters(), model.buffers()) for tensor in tensors)


def host_facts(subject: Subject) -> Measures:
    """Parameters, and multiply-adds for the first photo: of the tower, of tower and projector, of the prefill.

    Raises:
        ValueError: The prompt has places for another number of image tokens than the tower gives.
    """
    model, parts = subject.model, Parts(subject.model)
    tower = model.model.vision_tower
    language_model = {*model.model.language_model.parameters(), *model.get_output_embeddings().parameters()}
    inputs = {photos: _repeated(subject.inputs(1, 0), photos) for photos in (1, 2)}
    pixels = inputs[1]["pixel_values"]  # (1, 3, H, W), or (1, tiles, 3, H, W)
    with torch.no_grad():
        features = {photos: parts.encode(each) for photos, each in inputs.items()}
    places = int((inputs[1]["input_ids"] == model.config.image_token_id).sum())
    if places != len(features[1]):
        raise ValueError(
            f"The prompt of {subject.name} has places for {places} image tokens, and its tower gives {len(features[1])}: "
            "its processor is another host's."
        )
    return {
        "tower_parameters": sum(parameter.numel() for parameter in tower.parameters()),
        "language_model_parameters": sum(parameter.numel() for parameter in language_model),
        "all_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tower_macs": macs(tower, pixels.shape[-1]) * pixels.shape[:-3].numel(),
        "encode_macs": macs_a_photo(lambda photos: parts.encode(inputs[photos])),
        "prefill_macs": macs_a_photo(lambda photos: parts.prefill(inputs[photos], features[photos])),
    }


def _repeated(inputs: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The inputs of one reply, so many times."""
    return {name: tensor.repeat(count, *[1] * (tensor.ndim - 1)) for name, tensor in inputs.items()}


def measure_hosts(
    subjects: Sequence[Subject],
    batch_size: int,
    facts: Sequence[Measures],
    *,
    repeats: int = 5,
    new_tokens: int = 32,
    warmups: int = 1,
    meter: Meter | None = None,
) -> list[Row]:
    """Measures hosts in turns, each turn on other photos, the same for all hosts.

    Args:
        subjects: The hosts; ratios are against the first.
        batch_size: Replies at once.
        facts: Of each, from `host_facts`.
        repeats: Measured replies of each host.
        new_tokens: Words of a reply.
        warmups: Replies of each host before those.
        meter: Where the device counts what it draws: then also `reply_joules`, of one reply of the batch.

    Returns:
        Rows of `cost_rows`.

    Raises:
        ValueError: A number is too small to measure anything.
    """
    check_numbers(batch_size=batch_size, repeats=repeats)
    if new_tokens < 2:
        raise ValueError(f"new_tokens is {new_tokens}; the time of a further token needs at least 2.")

    def action(subject: Subject, turn: int) -> Measures:
        before = 0.0 if meter is None else meter()
        measures, _ = reply(subject, batch_size, turn, new_tokens)
        return measures if meter is None else measures | {"reply_joules": (meter() - before) / batch_size}

    runs = in_turns([partial(action, subject) for subject in subjects], repeats, warmups)
    return cost_rows([(subject.name, subject.source) for subject in subjects], batch_size, facts, runs)


def check_numbers(**numbers: int) -> None:
    """Raises ValueError for a number below 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1.")
