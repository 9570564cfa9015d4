"""Tiny random hosts beside `tiny_llava`: LLaVA-NeXT and LLaVA-OneVision, and towers for all of them."""

import copy
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from tiny import randomize
from tiny_llava import CHAT_TEMPLATE, tiny_llama_config, tiny_llava, tiny_tokenizer
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    SiglipVisionConfig,
)

from sfvlm import SparseFormerConfig, SparseFormerModel
from sfvlm.photos.scenes import render_scene

SIDE = 56
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
KINDS = ("llava", "llava_next", "llava_onevision")
PROMPT = "USER: <image>\nIs there a dog in the photo? ASSISTANT:"


def never_ends(host: Any) -> None:
    """Makes an opened host of width 32 say "a a a ...", whatever it is asked."""
    head = nn.Linear(32, len(host.processor.tokenizer))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    with torch.no_grad():
        head.bias[host.processor.tokenizer.encode(" a", add_special_tokens=False)[-1]] = 1
    host.model.lm_head = head


@contextmanager
def held_up(host: Any, after: int) -> Iterator[SimpleNamespace]:
    """Inside, the host stands still behind so many words; `words` counts them, and `waits` is set once it does."""
    held, go_on = SimpleNamespace(words=0, waits=threading.Event()), threading.Event()

    def wait(*_: object) -> None:
        held.words += 1
        if held.words > after:
            held.waits.set()
            assert go_on.wait(20)

    host.model.lm_head.register_forward_hook(wait)
    try:
        yield held
    finally:
        go_on.set()


def tiny_host(kind: str, tmp_path: Path) -> Path:
    """A saved host: 56-px photos or tiles of 16 patches; CLIP at layer -2, or SigLIP at -1 without class token."""
    if kind == "llava":
        return tiny_llava(tmp_path)
    folder = tmp_path / kind
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<video>"]})
    text = tiny_llama_config(tokenizer, positions=2048)
    blocks: dict[str, Any] = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=14
    )
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    shared: dict[str, Any] = dict(
        text_config=text.to_dict(), image_token_index=image_token, image_grid_pinpoints=PINPOINTS
    )
    torch.manual_seed(0)
    square = {"height": SIDE, "width": SIDE}
    if kind == "llava_next":
        vision = CLIPVisionConfig(**blocks, projection_dim=16)
        config = LlavaNextConfig(vision_config=vision.to_dict(), image_seq_length=16, **shared)
        model: Any = LlavaNextForConditionalGeneration(config)
        processor: Any = LlavaNextProcessor(
            image_processor=LlavaNextImageProcessor(
                size={"shortest_edge": SIDE}, crop_size=square, image_grid_pinpoints=PINPOINTS
            ),
            tokenizer=tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=CHAT_TEMPLATE,
        )
    else:
        siglip = SiglipVisionConfig(**blocks, vision_use_head=False)
        config = LlavaOnevisionConfig(
            vision_config=siglip.to_dict(), video_token_index=tokenizer.convert_tokens_to_ids("<video>"), **shared
        )
        model = LlavaOnevisionForConditionalGeneration(config)
        half: dict[str, Any] = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
        processor = LlavaOnevisionProcessor(
            image_processor=LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=PINPOINTS, **half),
            video_processor=LlavaOnevisionVideoProcessor(size=square, **half),
            tokenizer=tokenizer,
            num_image_tokens=16,
            vision_feature_select_strategy="full",
            chat_template=CHAT_TEMPLATE,
        )
    model = randomize(model).eval()
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def tiny_tower(num_tokens: int = 49, kind: str = "llava", **overrides: Any) -> SparseFormerModel:
    """A random tower that fits the tiny host of that kind; its boxes move from photo to photo."""
    fields: dict[str, Any] = dict(
        image_size=SIDE,
        num_tokens=num_tokens,
        teacher_patch_size=14,
        teacher_grid=4,
        glimpse_size=8,
        coarse_blocks=1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        projection_dim=0,
    )
    if kind == "llava_onevision":
        fields |= dict(pooling="mean", pre_norm=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    torch.manual_seed(1)
    return randomize(SparseFormerModel(SparseFormerConfig(**(fields | overrides))), seed=1, scale=0.05).eval()  # type: ignore[return-value]


def photo(index: int = 0, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A rendered scene of (width, height) pixels."""
    return render_scene(0, index, 64).image.resize(size)


def opened(folder: Path, **options: Any) -> tuple[Any, Any]:
    """Model and processor of a folder, to be changed at will."""
    return _opened(folder, **options) if options else copy.deepcopy(_opened_once(folder))


def _opened(folder: Path, **options: Any) -> tuple[Any, Any]:
    return AutoModelForImageTextToText.from_pretrained(folder, **options).eval(), AutoProcessor.from_pretrained(folder)


_opened_once = functools.cache(_opened)


@torch.no_grad()
def logits(model: Any, processor: Any, prompt: str = PROMPT, photos: tuple[Image.Image, ...] = ()) -> torch.Tensor:
    """The host's logits for a prompt and its photos, by default the first scene."""
    inputs = processor(text=[prompt], images=list(photos) or [photo()], return_tensors="pt")
    return model(**inputs).logits
