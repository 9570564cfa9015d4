"""The small LLaVA before training: the CLIP's image tower, a two-layer projector and a new language model."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    CLIPModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from .clip_model import image_processor

LAYER = -2  # the tower's layer that the language model reads
START, END, PAD, IMAGE = "<s>", "</s>", "<pad>", "<image>"
# Messages whose content is a string, or a list of images and texts; as in LLaVA-1.5, the photo comes first.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% elif message['role'] == 'assistant' %} {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'user' %} ASSISTANT:{% elif message['role'] == 'assistant' %}{{ eos_token }}{% else %}\n{% endif %}"
    "{% endfor %}"
)


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level byte-pair tokenizer of at most `vocabulary` entries; digits stand alone.

    Raises:
        ValueError: The letters alone need more.
    """
    letters, marks = pre_tokenizers.ByteLevel.alphabet(), [START, END, PAD, IMAGE]
    if vocabulary < len(letters) + len(marks):
        raise ValueError(
            f"vocabulary is {vocabulary}; letters and marks alone are {len(letters) + len(marks)} entries."
        )
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=marks,
        initial_alphabet=letters,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learner.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, learner.token_to_id(START))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=learner,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[IMAGE],
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def new_llava(clip: CLIPModel, tokenizer: Any, mean: Tensor, std: Tensor) -> LlavaForConditionalGeneration:
    """The untrained LLaVA, about 6 M parameters beside its tower.

    Args:
        clip: Its image tower is the LLaVA's.
        tokenizer: Of the language model.
        mean, std: (D,) of the patch tokens the projector reads; its first layer starts by standardising them.
    """
    vision: Any = clip.config.vision_config
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},  # slow enough to compare what is 200 patches apart
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=LAYER,
        vision_feature_select_strategy="default",
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        tie_word_embeddings=True,
    )
    llava = LlavaForConditionalGeneration(config)
    tower, projector = llava.model.vision_tower, llava.model.multi_modal_projector
    wanted = tower.state_dict()
    given = {name.removeprefix("vision_model."): tensor for name, tensor in clip.vision_model.state_dict().items()}
    prefix = "vision_model." if next(iter(wanted)).startswith("vision_model.") else ""
    tower.load_state_dict({prefix + name: tensor for name, tensor in given.items()})
    weight, bias = projector.linear_1.weight.data, projector.linear_1.bias.data
    weight.normal_(std=mean.numel() ** -0.5).div_(std)
    bias.copy_(-(weight @ mean))
    projector.linear_2.weight.data.normal_(std=0.02 * 2 * weight.shape[0] ** -0.5)
    for layer in llava.model.language_model.layers:
        _attend_to_alike(layer.self_attn)
    return llava


def _attend_to_alike(attention: Any) -> None:
    """Keys start as the queries, so that a word looks for patches that say the same (arXiv 2305.09828, section 3)."""
    attention.q_proj.weight.data.normal_(std=0.04)
    attention.k_proj.weight.data.copy_(attention.q_proj.weight)


def new_processor(tokenizer: PreTrainedTokenizerFast, patch_size: int) -> LlavaProcessor:
    """Photos and messages to what the LLaVA reads."""
    return LlavaProcessor(
        image_processor=image_processor(),
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
