"""A LLaVA-NeXT of the shipped LLaVA's own weights: the tiles of a photo beside each other, and a random line end."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
)

from sfvlm.zoo.names import resolve

PINPOINTS = [[224, 448], [448, 224]]


def write_next_host(out: Path) -> Path:
    """Writes the folder of a LLaVA-NeXT."""
    source = str(resolve("llava-tiny"))
    model: Any = AutoModelForImageTextToText.from_pretrained(source)
    processor: Any = AutoProcessor.from_pretrained(source)
    known = model.config
    config = LlavaNextConfig(
        vision_config=known.vision_config.to_dict(),
        text_config=known.text_config.to_dict(),
        image_grid_pinpoints=PINPOINTS,
        image_token_index=known.image_token_id,
        vision_feature_layer=known.vision_feature_layer,
        vision_feature_select_strategy=known.vision_feature_select_strategy,
        tie_word_embeddings=known.tie_word_embeddings,
    )
    torch.manual_seed(0)
    host = LlavaNextForConditionalGeneration(config)
    missing, unknown = host.load_state_dict(model.state_dict(), strict=False)
    assert not unknown and [name.rpartition(".")[2] for name in missing] == ["image_newline"]
    photos = processor.image_processor
    side = {"height": 224, "width": 224}
    image_processor = LlavaNextImageProcessor(
        image_grid_pinpoints=PINPOINTS,
        image_mean=photos.image_mean,
        image_std=photos.image_std,
        size={"shortest_edge": 224},
        crop_size=side,
    )
    host.save_pretrained(out)
    LlavaNextProcessor(
        image_processor=image_processor,
        tokenizer=processor.tokenizer,
        patch_size=known.vision_config.patch_size,
        vision_feature_select_strategy=known.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=processor.chat_template,
    ).save_pretrained(out)
    return out
