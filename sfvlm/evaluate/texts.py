"""The text side of an evaluation: text towers, class names and templates, and the classifier they make.

    names, templates -> fill -> texts -> TextEncoder -> build_classifier -> (E, K)

Shapes: T texts, K classes, E width of the shared space.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..teachers.facts import check_no_adapter
from ..teachers.formats import open_clip_model
from ..teachers.tables import check_values
from ..util.errors import reason
from ..util.files import stand_ins
from ..util.tensors import check_loaded
from ..zoo.names import resolve
from ..zoo.weight_files import open_weights, read_tensors

Template = str | Callable[[str], str]


@torch.no_grad()
def build_classifier(
    encode_text: Callable[[Sequence[str]], Tensor],
    class_names: Sequence[str],
    templates: Sequence[Template],
    classes_at_once: int = 16,
) -> Tensor:
    """Class names in templates to a linear classifier: unit vectors, averaged over templates, made unit again: (E, K).

    Args:
        encode_text: Texts -> (T, E).
        class_names: K of them; they need not be unique.
        templates: With `{c}` or `{}` where the name goes, or functions of the name.
        classes_at_once: Classes whose texts are encoded together.
    """
    columns = []
    starts = range(0, len(class_names), classes_at_once)
    for start in tqdm(starts, desc="classes", disable=len(starts) < 4):
        names = class_names[start : start + classes_at_once]
        features = encode_text([fill(template, name) for name in names for template in templates])
        features = F.normalize(features, dim=-1).unflatten(0, (len(names), len(templates)))  # (names, templates, E)
        columns.append(F.normalize(features.mean(dim=1), dim=-1))
    return torch.cat(columns).T


def fill(template: Template, name: str) -> str:
    """Puts a class name into a template; one without a place for it raises ValueError."""
    if callable(template):
        return template(name)
    if "{c}" not in template and "{}" not in template:
        raise ValueError(f"The template {template!r} has no {{c}} or {{}} where a class name could go.")
    return template.replace("{c}", name).replace("{}", name)


@dataclass
class TextEncoder:
    """A frozen text tower with its tokenizer: texts -> unit vectors (T, E), on the CPU.

    `scale` is the factor between cosines and logits that it was trained with (arXiv 2103.00020, section 2.3).
    """

    tokenize: Callable[[list[str]], Any]
    tower: Callable[[Any], Tensor]
    scale: float
    device: str | torch.device = "cpu"
    batch_size: int = 256
    classifiers: dict[Any, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        starts = range(0, len(texts), self.batch_size)
        parts = [
            self.tower(self.tokenize(list(texts[start : start + self.batch_size])).to(self.device)) for start in starts
        ]
        return F.normalize(torch.cat(parts).float(), dim=-1).cpu()

    def classifier(self, class_names: tuple[str, ...], templates: tuple[Template, ...]) -> Tensor:
        """`build_classifier`, once for the same names and templates: (E, K)."""
        key = class_names, templates
        if key not in self.classifiers:
            self.classifiers[key] = build_classifier(self, class_names, templates)
        return self.classifiers[key]


def open_text_encoder(source: str, device: str | torch.device = "cpu") -> TextEncoder | None:
    """The text tower that belongs to a teacher's source; None for one without, such as timm's.

    Raises:
        ValueError: There is a text tower, but no tokenizer; or its weights are not those of its configuration.
    """
    source = str(resolve(source))
    if source.startswith("timm:"):
        return None
    if source.startswith(("open_clip:", "local-dir:")):
        import open_clip

        name = source.split(":", 2)[1] if source.startswith("open_clip:") else source
        clip: Any = open_clip_model(source).eval().requires_grad_(False).to(device)
        return TextEncoder(open_clip.get_tokenizer(name), clip.encode_text, float(clip.logit_scale.exp()), device)
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    check_no_adapter(Path(source))
    config: Any = AutoConfig.from_pretrained(source)
    if config.model_type not in ("clip", "siglip"):
        return None
    files = ("tokenizer.json", "vocab.json", "spiece.model")
    if Path(source).is_dir() and not any((Path(source) / file).is_file() for file in files):
        raise ValueError(f"The folder {source} holds a text tower but no tokenizer: save the model's own into it.")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"The tokenizer of {source!r} cannot be opened: {reason(error)}{stand_ins(source)}") from error
    # A checkpoint in half precision too: so is the teacher beside it.
    _check_text_values(source)
    try:
        opened: Any = AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # readers of damaged files raise their own kinds
        raise ValueError(
            f"The text tower of {source!r} cannot be opened: {reason(error)}{stand_ins(source)}"
        ) from error
    check_loaded(opened[1], f"of {source}", computed=("position_ids",))
    model = opened[0].eval().requires_grad_(False).to(device)
    siglip = config.model_type == "siglip"  # trained with its texts filled up to the full length, and no mask

    def tokenize(texts: list[str]) -> Any:
        length = config.text_config.max_position_embeddings
        padding = "max_length" if siglip else True
        tokens = tokenizer(texts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
        known, largest = config.text_config.vocab_size, int(tokens["input_ids"].max())
        if largest >= known:
            raise ValueError(
                f"The tokenizer of {source!r} gives the token {largest}, and its text tower knows {known} (vocab_size): save the "
                "model's own tokenizer into it."
            )
        tokens.pop("token_type_ids", None)
        if siglip:
            tokens.pop("attention_mask", None)
        return tokens

    def tower(tokens: Any) -> Tensor:
        features = model.get_text_features(**tokens)
        return features if isinstance(features, Tensor) else features.pooler_output

    return TextEncoder(tokenize, tower, float(model.logit_scale.exp()), device)


def _check_text_values(source: str) -> None:
    """Raises ValueError if a tensor of a folder's text tower holds no weights, which transformers would take for them."""
    if not Path(source).is_dir():
        return
    weights = open_weights(Path(source), pickles=True)
    names = [name for name in weights.where if "vision_model." not in name and not name.endswith("position_ids")]
    for name, tensor in read_tensors(weights, names):
        check_values({name: tensor}, source)


def imagenet_names() -> tuple[str, ...]:
    """ImageNet's 1000 class names, in the order of its labels. Not unique: two names stand for two classes each."""
    return tuple(_open_clip().IMAGENET_CLASSNAMES)


def imagenet_templates() -> tuple[Template, ...]:
    """The 80 templates CLIP was published with."""
    return tuple(_open_clip().OPENAI_IMAGENET_TEMPLATES)


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise ValueError(
            "ImageNet's class names and templates come with open_clip: pip install 'sfvlm[eval]'."
        ) from error
    return open_clip


def are_wordnet_ids(class_names: Sequence[str]) -> bool:
    """Whether all classes are called like ImageNet's folders, n01440764."""
    return all(re.fullmatch(r"n\d{8}", name) for name in class_names)


def imagenet_indices(class_names: Sequence[str]) -> tuple[int, ...] | None:
    """The ImageNet classes of folders that are named by WordNet ids (n01440764); None when they are not."""
    if not class_names or not are_wordnet_ids(class_names):
        return None
    try:
        from timm.data.imagenet_info import ImageNetInfo
    except ImportError as error:
        raise ValueError("Folders named by WordNet ids need timm: pip install 'sfvlm[eval]'.") from error
    place = {name: number for number, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    return tuple(place[name] for name in class_names) if set(class_names) <= place.keys() else None
