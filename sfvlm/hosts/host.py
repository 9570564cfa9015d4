"""Talks to a host, a LLaVA as transformers opens it: photos and prompts to answers, or messages to streamed text.

    open_host -> Host -> answer(images, prompts)    many short answers at once, greedy: evaluation
                      -> stream(messages, images)   one reply in pieces, with timings: the demo

Messages are transformers' own: {"role", "content"}, where content is a text or a list of {"type": "image"} and
{"type": "text", "text"} parts. Prompts are built by the host's own chat template.
"""

import hashlib
import json
import shlex
import sys
import threading
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
)

from ..util.devices import usable_device
from ..util.errors import reason
from ..util.files import stand_ins
from ..util.tensors import check_loaded, equal_rows_once
from ..zoo.names import resolve
from .facts import CLASS_TOKENS, HOSTS, dense_tokens
from .generation import check_settings_file, end_tokens, generate, settings_for, up_to_end
from .quantized import check_census, check_products, quantization
from .reply import Clock, Reply, Turns
from .template import (
    Message,
    assistant_message,
    check_mark,
    lacks_start,
    parts_of,
    template_of,
    user_message,
    written,
)

__all__ = ["Host", "Message", "assistant_message", "check_host", "open_host", "user_message"]

COMPUTED = ("position_ids", "rotary_emb.inv_freq")
ADAPTER = "adapter_config.json"
LARGE = 2048  # pixels a side of a large photo: more than all tiles of a LLaVA-NeXT have, and nearly as many as a OneVision's


class Host:
    """A LLaVA and its processor, ready for questions; replies that are asked for at once are written in turns.

    Args:
        model: A LlavaForConditionalGeneration, LlavaNext... or LlavaOnevision....
        processor: Its processor; the tokenizer gets a padding token if it has none.
        source: What it is called in results.
        turns: Shared by hosts that share weights; default its own.

    Raises:
        ValueError: There is no chat template, or model and processor mean different tokens by a photo; or what ends an answer
            is no token.
    """

    def __init__(self, model: Any, processor: Any, source: str = "host", turns: Turns | None = None) -> None:
        self.template = template_of(processor, source)
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        check_mark(model, processor, source)
        end_tokens(model, processor.tokenizer)
        self.model, self.processor, self.source = model.eval(), processor, source
        self.turns = turns or Turns()

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with the weights: names, shapes and a sample of values of all of them."""
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            if not tensor.is_meta:  # offloaded
                flat = tensor.flatten()
                places = torch.linspace(0, len(flat) - 1, min(len(flat), 64), dtype=torch.float64).long()
                digest.update(str(flat[places.to(flat.device)].double().tolist()).encode())
        return digest.hexdigest()[:12]

    @cached_property
    def settings_fingerprint(self) -> str:
        """Twelve hex digits that change with what answers depend on besides weights: budgets and methods of towers among it."""
        config, processor = self.model.config, self.processor
        facts = [
            _settings_of(config.vision_config),
            _settings_of(config.get_text_config()),
            self.model.generation_config.eos_token_id,
            config.vision_feature_layer,
            config.vision_feature_select_strategy,
            _settings_of(processor.image_processor),
            template_of(processor),
            str(self.model.dtype),
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]

    @property
    def tiled(self) -> bool:
        """Whether it cuts photos into tiles, more of them for larger ones."""
        return self.model.config.model_type != "llava"

    @cached_property
    def token_budget(self) -> int:
        """Tokens the LLM reads for a photo; where photos are tiled, for a large square one."""
        side = LARGE if self.tiled else 64
        return self.image_tokens(Image.new("RGB", (side, side)))

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of all layers."""
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * config.num_hidden_layers * heads * width * self.model.dtype.itemsize

    def image_tokens(self, image: Image.Image) -> int:
        """Tokens the LLM reads for this photo."""
        return self._image_tokens(self.encode([[user_message("", 1)]], [[image]]))

    def answer(
        self, images: Sequence[Image.Image | None], prompts: Sequence[str], *, max_new_tokens: int = 64
    ) -> list[str]:
        """Greedy answers to prompts about one photo each, or about none; a batch says what one at a time would."""
        photos = [[] if image is None else [image] for image in images]
        conversations = [[user_message(prompt, len(shown))] for prompt, shown in zip(prompts, photos, strict=True)]
        return self.answer_messages(conversations, photos, max_new_tokens=max_new_tokens)

    def answer_messages(
        self,
        conversations: Sequence[Sequence[Message]],
        images: Sequence[Sequence[Image.Image]],
        *,
        max_new_tokens: int = 64,
    ) -> list[str]:
        """The next turn of each conversation, greedy; `images` holds the photos of each.

        Raises:
            ValueError: A conversation has so many places for photos, but so many others are given.
        """
        if not conversations:
            return []
        inputs = self.encode(conversations, images)
        tower = self.model.model.vision_tower
        with self.turns, equal_rows_once(tower, "pixel_values"):
            settings = settings_for(self.model, self.processor.tokenizer, max_new_tokens)
            output = generate(self.model, inputs, settings)
        ends = end_tokens(self.model, self.processor.tokenizer)
        new = [up_to_end(row, ends) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]
        return [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]

    def stream(
        self,
        messages: Sequence[Message],
        images: Sequence[Image.Image] = (),
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: threading.Event | None = None,
        pixel_values: Tensor | None = None,
        clock: Clock | None = None,
    ) -> Reply:
        """The next turn of one conversation, as it is written.

        Args:
            messages: The conversation, with as many image parts as there are photos.
            images: The photos, in the order of those parts.
            max_new_tokens: The longest reply.
            temperature: 0 is greedy.
            top_p: Share of the probability that is sampled from.
            stop: Setting it ends the reply after the token that is being written.
            pixel_values: Takes the place of what the processor makes of the photos, such as the same views with more pixels.
            clock: What the reply is timed by; one that was made before also counts what was done since, such as those pixels.

        Raises:
            ValueError: Photos and image parts differ in number, or the conversation is longer than the model reads.
        """
        clock = clock or Clock()
        clock.go_on()
        sampling: dict[str, Any] = {}
        if temperature > 0:
            sampling = dict(do_sample=True, temperature=temperature, top_p=top_p, top_k=0)
        inputs = self.encode([messages], [images], pixel_values)
        longest = min(max_new_tokens, self._room(inputs["input_ids"].shape[1]))
        settings = settings_for(self.model, self.processor.tokenizer, longest, **sampling)
        tokens_per_image = self._image_tokens(inputs) / max(len(images), 1)
        return Reply(self, inputs, settings, stop or threading.Event(), clock, tokens_per_image)

    def encode(
        self,
        conversations: Sequence[Sequence[Message]],
        images: Sequence[Sequence[Image.Image]],
        pixel_values: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Tensors for `generate`, padded on the left: input_ids (B, T), attention_mask, pixel_values, ...

        Given `pixel_values` take the place of what the processor makes of the photos.
        """
        texts = []
        for messages, shown in zip(conversations, images, strict=True):
            places = sum(part["type"] == "image" for turn in messages for part in parts_of(turn))
            if places != len(shown):
                raise ValueError(f"The messages have {places} image parts, but {len(shown)} photos are given.")
            texts.append(written(self.processor, messages))
        # A list a conversation: OneVision tiles a photo that stands alone, and not those that come together.
        photos = [list(shown) for shown in images if shown]
        inputs = self.processor(
            text=texts,
            images=photos or None,
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=lacks_start(self.processor, texts[0]),
        )
        if pixel_values is not None:
            inputs["pixel_values"] = pixel_values
        return dict(inputs.to(self.model.device, self.model.dtype))

    def _room(self, prompt_tokens: int) -> int:
        """Tokens that a reply may have after so long a prompt."""
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if longest is not None and prompt_tokens >= longest:
            raise ValueError(
                f"The conversation takes {prompt_tokens} tokens, and this model reads at most {longest}: start a new one, or "
                "show fewer photos."
            )
        return sys.maxsize if longest is None else longest - prompt_tokens

    def _image_tokens(self, inputs: dict[str, Tensor]) -> int:
        return int((inputs["input_ids"] == self.processor.image_token_id).sum())


def open_host(
    source: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    bits: Literal[4, 8] | None = None,
) -> Host:
    """Opens a host, strictly.

    Args:
        source: A folder, hub id or name of the zoo: a transformers LLaVA, LLaVA-NeXT or LLaVA-OneVision, with any tower.
        dtype: Default the checkpoint's own, but float32 on a CPU.
        device: Default cuda where there is one.
        device_map: Spreads the host over several devices instead.
        bits: Quantises the LLM by bitsandbytes; tower, projector and output layer stay whole.

    Raises:
        ValueError: It is no host, it is damaged, or bitsandbytes is not installed or cannot do it here.
    """
    name, source = str(source), check_host(source)
    device = str(usable_device(device))
    if dtype is None:
        dtype = "float32" if device == "cpu" and device_map is None and bits is None else "auto"
    check_settings_file(source)
    if (Path(source) / ADAPTER).is_file() and find_spec("peft") is None:
        raise ValueError(
            f"{name} holds an adapter, which without the package peft is left out: pip install peft, or merge it."
        )
    options: dict[str, Any] = {"dtype": getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype}
    if bits is not None:
        options |= {"quantization_config": quantization(bits), "device_map": device_map or {"": device}}
    elif device_map is not None:
        options["device_map"] = device_map
    try:
        opened: Any = AutoModelForImageTextToText.from_pretrained(source, output_loading_info=True, **options)
        processor = AutoProcessor.from_pretrained(source)
    except Exception as error:  # readers of damaged files raise their own kinds
        raise ValueError(f"The host {name} cannot be opened: {reason(error)}{stand_ins(source)}") from error
    model, info = opened
    check_loaded(info, f"of the host {name}", COMPUTED)
    if bits is not None:
        check_census(model)
        check_products(model)
    elif device_map is None:
        model.to(device)
    host = Host(model, processor, name)
    _check_places(host)
    return host


def _check_places(host: Host) -> None:
    """Raises ValueError if a prompt has places for another number of tokens than the host's own dense tower gives."""
    config, processor = host.model.config, host.processor
    if host.tiled or config.vision_config.model_type not in CLASS_TOKENS:
        return  # the number depends on the photo, or a swap has set both
    tokens = dense_tokens(config)
    names = ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy")
    settings = ", ".join(f"{name} {getattr(processor, name, None)}" for name in names)
    try:
        shown = processor(text=[processor.image_token], images=[Image.new("RGB", (64, 64))])
        places = shown["input_ids"][0].count(processor.image_token_id)
    except TypeError:  # old files have no patch_size
        places = 0
    if places != tokens:
        raise ValueError(
            f"The processor of {host.source} has places for {places} tokens of a photo ({settings}), and its model reads {tokens} "
            f"(vision_feature_select_strategy {config.vision_feature_select_strategy} in config.json): make them agree."
        )


def _settings_of(configuration: Any) -> dict[str, Any]:
    kept = configuration.to_dict()
    return {name: value for name, value in kept.items() if name[0] != "_" and name != "transformers_version"}


def check_host(source: str | Path) -> Path | str:
    """The host's folder or hub id; refuses what is no host by its configuration, before anything large is read.

    Raises:
        ValueError: There is nothing, or something else.
    """
    source = resolve(source)
    folder = Path(source)
    if folder.exists() and not (folder / "config.json").is_file():
        raise ValueError(f"{source} is no host: it is not a folder with a config.json.")
    if not folder.exists() and (isinstance(source, Path) or folder.is_absolute() or len(folder.parts) > 2):
        raise ValueError(f"There is no host in {source}: the folder does not exist.")
    try:
        config, _ = PreTrainedConfig.get_config_dict(source)
    except Exception as error:  # no such folder, no such hub id, no network, no JSON
        raise ValueError(f"No host can be opened from {source}: {reason(error)}") from error
    if "mm_vision_tower" in config:
        raise ValueError(
            f"{source} has the original llava package's layout: convert it first "
            f"(sfvlm convert --checkpoint {shlex.quote(str(source))} --out DIR)."
        )
    if config.get("model_type") not in HOSTS:
        raise ValueError(
            f"{source} is no host: its config.json says {config.get('model_type')!r}, not {', '.join(HOSTS)}."
        )
    return source
