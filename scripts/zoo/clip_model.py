"""The small CLIP before training: an ImageNet vision transformer in CLIP's form, and a new text tower.

CLIP norms its tokens once before the first block; the ImageNet transformer does not. The norm is made harmless: a constant,
several times larger than what the patches say, is added to all tokens along the one direction in which embedded patches hardly
differ. Every token then has nearly the same norm, and the norm's own weight and bias scale it back and take the constant
away. What the norm projects out is that direction alone. So the tower starts as the ImageNet transformer it is made of.
"""

import json
from collections.abc import Iterator

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from sfvlm.teachers.open import DenseTransformer

CONSTANT = 6.0  # against the embedded tokens' standard deviation; larger is nearer, but coarser in half precision
START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(texts: list[str], vocabulary: int) -> CLIPTokenizer:
    """A lower-case byte-pair tokenizer in CLIP's own format, of at most `vocabulary` entries.

    Raises:
        ValueError: The letters alone need more.
    """
    form = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = form.normalizer, form.pre_tokenizer
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    least = 2 * len(letters) + 2  # within a word and at its end, and the two marks
    if vocabulary < least:
        raise ValueError(f"vocabulary is {vocabulary}; letters and marks alone are {least} entries.")
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2 - len(letters),  # room for the two marks, and for letters that end a word
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    entries = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    entries += [f"{letter}</w>" for letter in letters if f"{letter}</w>" not in learned["vocab"]] + [START, END]
    return CLIPTokenizer(
        vocab={entry: number for number, entry in enumerate(entries)},
        merges=[tuple(pair) for pair in learned["merges"]],  # type: ignore[arg-type]
        model_max_length=77,
    )


def new_clip(teacher: DenseTransformer, tokenizer: CLIPTokenizer, mean: Tensor, pixels: Tensor) -> CLIPModel:
    """The untrained CLIP.

    Args:
        teacher: The ImageNet vision transformer.
        tokenizer: Of the text tower.
        mean: (D,) mean of the transformer's class tokens over photos. The last norm's bias takes it away, because
            what all photos share would make all photos alike.
        pixels: (B, 3, H, W) some photos, to see what embedded patches look like.
    """
    cortex = teacher.config
    width = cortex.hidden_size
    vision = {
        "hidden_size": width,
        "intermediate_size": cortex.intermediate_size,
        "num_hidden_layers": cortex.num_hidden_layers,
        "num_attention_heads": cortex.num_attention_heads,
        "image_size": cortex.image_size,
        "patch_size": cortex.teacher_patch_size,
        "hidden_act": cortex.hidden_act,
        "layer_norm_eps": cortex.layer_norm_eps,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=256))
    state = clip.state_dict() | {f"vision_model.{name}": tensor for name, tensor in vision_tensors(teacher, pixels)}
    state["vision_model.post_layernorm.bias"] = state["vision_model.post_layernorm.bias"] - mean
    state["visual_projection.weight"] = torch.nn.init.orthogonal_(torch.empty(256, width))
    state["logit_scale"] = torch.tensor(20.0).log()
    clip.load_state_dict(state)
    return clip


@torch.no_grad()
def vision_tensors(teacher: DenseTransformer, pixels: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The image tower's tensors under transformers' names; the patch bias is folded into the positions."""
    positions = teacher.positions.clone()
    assert teacher.cls_token is not None and teacher.patch.bias is not None
    positions[1:] += teacher.patch.bias
    constant, scale = harmless_norm(teacher.embed(pixels))
    yield "embeddings.class_embedding", teacher.cls_token
    yield "embeddings.patch_embedding.weight", teacher.patch.weight
    yield "embeddings.position_embedding.weight", positions + constant
    yield "pre_layrnorm.weight", scale.expand(len(constant)).clone()
    yield "pre_layrnorm.bias", -constant
    state = teacher.state_dict()
    for layer in range(teacher.config.num_hidden_layers):
        theirs, ours = f"blocks.{layer}.", f"encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            for name, part in zip("qkv", state[f"{theirs}attn.qkv.{kind}"].chunk(3), strict=True):
                yield f"{ours}self_attn.{name}_proj.{kind}", part.clone()
            yield f"{ours}self_attn.out_proj.{kind}", state[f"{theirs}attn.proj.{kind}"]
            for name, their_name in {
                "layer_norm1": "norm1",
                "layer_norm2": "norm2",
                "mlp.fc1": "mlp.fc1",
                "mlp.fc2": "mlp.fc2",
            }.items():
                yield f"{ours}{name}.{kind}", state[f"{theirs}{their_name}.{kind}"]
    yield "post_layernorm.weight", state["head.norm.weight"]
    yield "post_layernorm.bias", state["head.norm.bias"]


def harmless_norm(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Embedded tokens (B, N, D) to a constant (D,) to add, and the weight after which a norm gives the tokens back."""
    flat = tokens.flatten(0, 1)
    flat = flat - flat.mean(dim=-1, keepdim=True)  # no later norm sees a token's mean
    width = flat.shape[-1]
    away_from_mean = 100 * flat.var() * torch.ones(width, width)
    _, directions = torch.linalg.eigh((flat - flat.mean(0)).T.cov() + away_from_mean)
    quiet = directions[:, 0]
    constant = (CONSTANT * flat.std() * width**0.5 - (flat @ quiet).mean()) * quiet
    return constant, (flat + constant).square().mean(dim=-1).sqrt().mean()


def image_processor() -> CLIPImageProcessor:
    """What the tower expects of a photo: 224 pixels, mean and standard deviation 0.5."""
    half = [0.5, 0.5, 0.5]
    return CLIPImageProcessor(
        size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}, image_mean=half, image_std=half
    )
