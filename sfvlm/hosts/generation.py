"""How a host writes: from nothing but its token ids, whatever else its generation settings hold.

The settings of a chat forbid words, repeat none, search in beams or begin with a given one; and what is not set in a call,
transformers fills in from the model's own settings (`_prepare_generation_config`, 5.8 to 5.24). So a host is asked with settings
of which every one is known, and the model's own do not come near.
"""

import copy
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig
from transformers.utils.hub import cached_file

from ..util.files import read_json

FILE = "generation_config.json"


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end what a host says: those of its generation settings, else the tokenizer's one; none where there is none.

    Raises:
        ValueError: They are no ids.
    """
    given = model.generation_config.eos_token_id
    given = tokenizer.eos_token_id if given is None else given
    ends = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    if not all(type(end) is int and end >= 0 for end in ends):
        raise ValueError(
            f"The host's generation settings have the eos_token_id {given!r}, and an id is a whole number, or several in a "
            f"list: mend {FILE}."
        )
    return ends


def settings_for(model: Any, tokenizer: Any, max_new_tokens: int, **sampling: Any) -> GenerationConfig:
    """Settings for at most so many greedy words, or for drawn ones where `do_sample` and its kin are given."""
    ends = end_tokens(model, tokenizer)
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else tokenizer.pad_token_id,  # behind the end, where nothing is read
        bos_token_id=model.generation_config.bos_token_id,
        **({"do_sample": False} | sampling),
    )


def generate(model: Any, inputs: dict[str, Tensor], settings: GenerationConfig, **options: Any) -> Tensor:
    """What transformers' `generate` gives with these settings alone: the prompts (B, T) and the new words behind them.

    Args:
        model: The host.
        inputs: Tensors of the prompts.
        settings: From `settings_for`.
        options: Streamers and stopping criteria.
    """
    # The same modules with settings of their own: others may be asking the model meanwhile.
    asked = copy.copy(model)
    asked.generation_config = GenerationConfig()
    return asked.generate(**inputs, generation_config=settings, **options)


def up_to_end(words: list[int], ends: list[int]) -> list[int]:
    """The ids in front of the first one that ends them."""
    return words[: next((place for place, word in enumerate(words) if word in ends), len(words))]


def check_settings_file(source: str | Path) -> None:
    """Raises ValueError if a host's generation settings cannot be read, which transformers takes as if there were none."""
    path = cached_file(
        source, FILE, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    if path is not None:
        read_json(Path(path))
