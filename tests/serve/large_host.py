"""Writes a LLaVA whose tower and photos have LLaVA-1.5's sizes, of random weights, dense and with 49 tokens: for load alone.

    python tests/serve/large_host.py --out runs/large

CLIP ViT-L/14 at 336 px and its 49-token SparseFormer; a LLaMA of 12 blocks of width 1024 (about 158 M); the shipped tokenizer.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from sfvlm.encoder.sparseformer import SparseFormerModel
from sfvlm.hosts.swap import swap_folder
from sfvlm.speed.shapes import CLIPS, dense_config
from sfvlm.teachers.student import student_config
from sfvlm.zoo.names import resolve

LANGUAGE = dict(
    hidden_size=1024, intermediate_size=2816, num_hidden_layers=12, num_attention_heads=16, num_key_value_heads=16,
    max_position_embeddings=2048,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.manual_seed(0)
    processor: Any = AutoProcessor.from_pretrained(resolve("llava-tiny"))
    tokenizer, vision = processor.tokenizer, CLIPVisionConfig(**CLIPS["clip-l14-336"])
    ids = dict(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    text = LlamaConfig(vocab_size=len(tokenizer), **ids, **LANGUAGE)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=processor.image_token_id, image_seq_length=576
    )
    host = LlavaForConditionalGeneration(config).to(torch.bfloat16)
    student = student_config(dense_config(CLIPS["clip-l14-336"]), num_tokens=49, for_host=True)
    photos = processor.image_processor
    photos.image_mean, photos.image_std = list(student.image_mean), list(student.image_std)
    side = {"height": 336, "width": 336}
    photos.size, photos.crop_size = {"shortest_edge": 336}, side
    processor.patch_size, processor.num_additional_image_tokens = 14, 1
    processor.vision_feature_select_strategy = "default"
    host.save_pretrained(out / "dense")
    processor.save_pretrained(out / "dense")
    swap_folder(out / "dense", SparseFormerModel(student), out / "sparse-49")


if __name__ == "__main__":
    main()
