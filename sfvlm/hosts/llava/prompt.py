"""Tokenizer and chat template of a converted checkpoint, and whether a prompt has the ids that the llava package gives it.

The package tokenises the text before and after a photo apart. With sentencepiece tokenizers each piece then begins with a
space; transformers, with `<image>` as a token of its own, leaves out the space after it. The templates here write that space
where the ids would differ otherwise.

Source: haotian-liu/LLaVA, `llava/conversation.py` (conv_vicuna_v1, conv_mistral_instruct), `llava/mm_utils.py`
(tokenizer_image_token), `llava/eval/model_vqa_loader.py` (the photo's place in a question).
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AddedToken, AutoTokenizer, PreTrainedConfig
from transformers.utils.import_utils import is_protobuf_available, is_sentencepiece_available

from ...util.errors import reason
from ...util.files import read_json, read_text
from ..template import lacks_start, with_start
from .config import Original

IMAGE, IMAGE_START, IMAGE_END = "<image>", "<im_start>", "<im_end>"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_PARTS = (
    "{%- macro said(content) -%}"
    "{%- if content is string -%}{{ content }}{%- else -%}"
    "{%- for part in content if part['type'] == 'image' -%}{{ 'PHOTO' }}{%- endfor -%}"
    "{%- for part in content if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}"
    "{%- endif -%}"
    "{%- endmacro -%}"
)
_TEMPLATES = {
    "vicuna-v1": _PARTS
    + "{%- if messages[0]['role'] != 'system' -%}{{ "
    + json.dumps(SYSTEM + " ")
    + " }}{%- endif -%}"
    + "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ said(message['content']) + ' ' }}"
    "{%- elif message['role'] == 'user' -%}{{ 'USER: ' + said(message['content']) + ' ' }}"
    "{%- else -%}{{ 'ASSISTANT: ' + said(message['content']) + '</s>' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}",
    "mistral-instruct": _PARTS + "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{ '[INST] ' + said(message['content']) + ' [/INST]' }}"
    "{%- elif message['role'] == 'assistant' -%}{{ ' ' + said(message['content']) + ' </s>' }}"
    "{%- else -%}{{ raise_exception('This template has no place for a system message.') }}{%- endif -%}"
    "{%- endfor -%}",
}
TEMPLATES = tuple(_TEMPLATES)
_ASKED = (
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What color is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "It is red."}]},
    {"role": "user", "content": [{"type": "text", "text": "Are you sure?"}]},
)


class Prompt(NamedTuple):
    """A chat template in the forms that may give the package's ids, the plain one first.

    Attributes:
        name: Of `TEMPLATES`, or "given".
        forms: Jinja templates.
    """

    name: str
    forms: tuple[str, ...]


def open_tokenizer(folder: Path, original: Original) -> Any:
    """The checkpoint's tokenizer as it is stored; one without padding token pads by its unknown one, else by its end.

    Raises:
        ValueError: It cannot be opened, or lacks tokens that the checkpoint's prompts have.
    """
    needs_packages = (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file()
    if needs_packages and not (is_sentencepiece_available() and is_protobuf_available()):
        raise ValueError(f"The tokenizer in {folder} is a tokenizer.model: pip install 'sfvlm[convert]'.")
    path = folder / "tokenizer_config.json"
    described = read_json(path) if path.is_file() else {}
    # The class is what the checkpoint says; of transformers' choice by model type, some models' vocabularies would grow.
    options: dict[str, Any] = {"config": PreTrainedConfig() if "tokenizer_class" in described else original.text}
    if needs_packages and "add_bos_token" not in described:
        options["add_bos_token"] = True  # LLaMA's default in the package's transformers 4, and not in 5
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # missing files and packages, damaged files: many kinds
        raise ValueError(f"The tokenizer in {folder} cannot be opened: {reason(error)}") from error
    if not len(tokenizer) or tokenizer.eos_token is None:
        raise ValueError(f"{folder} holds no tokenizer, or one without an end token.")
    if original.marks_photos and (lost := {IMAGE_START, IMAGE_END} - tokenizer.get_vocab().keys()):
        raise ValueError(
            f"config.json of {folder} asks for {' and '.join(sorted(lost))} around photos (mm_use_im_start_end), and its "
            "tokenizer has no such token."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def add_image_token(tokenizer: Any) -> int:
    """Makes `<image>` a token of its own, where it is none, and returns its id."""
    tokenizer.add_tokens(AddedToken(IMAGE, special=True, normalized=False), special_tokens=True)
    return tokenizer.convert_tokens_to_ids(IMAGE)


def choose_prompt(original: Original, tokenizer: Any, given: str | None) -> Prompt:
    """The chat template: a given one, or Vicuna's where config.json and tokenizer say LLaVA-1.5.

    Args:
        original: From `read_original`.
        tokenizer: Its tokenizer.
        given: One of `TEMPLATES`, a file, or the text of a Jinja template.

    Raises:
        ValueError: None is given, and the checkpoint does not look like LLaVA-1.5; or the given one cannot be read.
    """
    llama = original.fields["model_type"] in ("llava_llama", "llava")
    if given is None:
        if not (llama and original.projector == "mlp2x_gelu" and tokenizer.eos_token == "</s>"):
            raise ValueError(
                "config.json does not say how this checkpoint is asked, and it is no LLaVA-1.5 (a LLaMA with </s> as its end "
                f"token and mlp2x_gelu): give --chat-template, {' or '.join(TEMPLATES)} or a file with a Jinja template."
            )
        given = "vicuna-v1"
    if given in _TEMPLATES:
        photo = f"{IMAGE_START}{IMAGE}{IMAGE_END}" if original.marks_photos else IMAGE
        forms = tuple(_TEMPLATES[given].replace("PHOTO", f"{photo}{between}\\n") for between in ("", " "))
        return Prompt(given, forms)
    if "{{" in given or "{%" in given:
        return Prompt("given", (given,))
    if not Path(given).is_file():
        raise ValueError(
            f"The chat template {given!r} is neither {' nor '.join(TEMPLATES)}, nor a file, nor the text of a Jinja template."
        )
    return Prompt("given", (read_text(Path(given)),))


def fit_template(processor: Any, stored: Any, prompt: Prompt) -> tuple[str, bool]:
    """The form of the template that gives the ids of the llava package, and whether there is one; else the plain form.

    A template of ours writes what prompts start with, for servers of chats add nothing to it; a given one stays as it is.

    Args:
        processor: The converted checkpoint's, opened from its folder: a tokenizer may change as it is saved.
        stored: The checkpoint's own tokenizer.
        prompt: From `choose_prompt`.

    Raises:
        ValueError: The template cannot be rendered, or has not one place for one photo.
    """
    wanted = _package_ids(stored, _render(processor, prompt.forms[0]), processor.image_token_id)
    ours = prompt.name != "given" and processor.tokenizer.bos_token_id in wanted[:1]
    for form in (*map(with_start, prompt.forms if ours else ()), *prompt.forms):
        text = _render(processor, form)
        if processor.tokenizer(text, add_special_tokens=lacks_start(processor, text)).input_ids == wanted:
            return form, True
    return prompt.forms[0], False


def _render(processor: Any, template: str) -> str:
    try:
        text = processor.apply_chat_template(
            list(_ASKED), chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # of Jinja: syntax, undefined names, the template's own
        raise ValueError(f"The chat template cannot be rendered ({type(error).__name__}): {error}") from error
    if text.count(IMAGE) != 1:
        raise ValueError(f"The chat template writes {IMAGE} {text.count(IMAGE)} times for one photo, and not once.")
    return text


def _package_ids(tokenizer: Any, text: str, image_token: int) -> list[int]:
    """Ids as the llava package makes them: the pieces around a photo apart."""
    first, *others = text.split(IMAGE)
    ids = list(tokenizer(first).input_ids)
    for piece in others:
        ids += [image_token, *tokenizer(piece, add_special_tokens=False).input_ids]
    return ids
