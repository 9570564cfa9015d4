"""A tiny random LLaVA with its processor, built and saved here: nothing is downloaded."""

from pathlib import Path

import torch
from tiny import randomize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<image>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ ' ' if message['role'] == 'user' else '</s>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
SENTENCES = (
    "What color is the biggest object? red green blue yellow",
    "How many circles are there? one two three",
    "Is there a dog in the photo? yes no",
    "a picture of a red circle and a blue star on a plain background",
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 320 words: every text has tokens, and every token is text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )


def tiny_llama_config(tokenizer: PreTrainedTokenizerFast, width: int = 32, positions: int = 512) -> LlamaConfig:
    """A LLaMA of two layers."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def tiny_llava_model(
    tokenizer: PreTrainedTokenizerFast, seed: int = 0, text_width: int = 32
) -> LlavaForConditionalGeneration:
    """CLIP of two blocks, 56 pixels in patches of 14 (16 tokens at layer -2), and a LLaMA of two layers."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        projection_dim=16,
    )
    text = tiny_llama_config(tokenizer, text_width)
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=16,
    )
    model = LlavaForConditionalGeneration(config)
    return randomize(model, seed).eval()  # type: ignore[return-value]


def tiny_llava(tmp_path: Path, seed: int = 0, text_width: int = 32) -> Path:
    """Saves model and processor; the folder opens with stock `from_pretrained`."""
    folder = tmp_path / "llava"
    tokenizer = tiny_tokenizer()
    model = tiny_llava_model(tokenizer, seed, text_width)
    side = {"height": 56, "width": 56}
    image_processor = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=side)
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
