"""What a server has to be told of a host's folder, read from its files; no weights are read."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..alternatives.configuration import ReducedTowerConfig
from ..encoder.configuration import SparseFormerConfig
from ..hosts.facts import CLASS_TOKENS, HOSTS
from ..hosts.template import start_is_left_to_tokenizer, template_of, with_start
from ..util.errors import reason
from ..util.files import read_json
from ..zoo.weight_files import open_weights

Tower = Literal["sparse", "reduced", "dense", "unknown"]
# transformers 4 writes the inside of a dense tower under this name and vLLM's classes read it; transformers 5 leaves it out.
OLD_NAME = "vision_model."
PHOTO = "PHOTO"  # in the place of what a shell puts there


@dataclass(frozen=True)
class ServedFolder:
    """A host's folder, as a server sees it.

    Attributes:
        tower: What kind of tower it has.
        tokens: Image tokens a photo or tile; None where that is the engine's to know.
        backend: Whether it opens by the engine's transformers backend alone.
        template: A chat template in place of the folder's, which leaves the start of prompts to the tokenizer; None where it does not.
    """

    tower: Tower
    tokens: int | None
    backend: bool
    template: str | None

    @property
    def flags(self) -> list[str]:
        """What the engine is told beside the folder; a template is a file, and the launcher's to write."""
        # The folder's own generation settings may forbid words, and change greedy answers.
        return ["--generation-config", "vllm", *(["--model-impl", "transformers"] if self.backend else [])]


def read_served(folder: Path) -> ServedFolder:
    """Reads a folder.

    Raises:
        ValueError: It is no folder that a server opens, or its processor cannot be opened.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} cannot be served: it is no folder with a config.json.")
    config = read_json(path)
    if "mm_vision_tower" in config:
        raise ValueError(
            f"{folder} has the original llava package's layout, which servers do not open: convert it first (sfvlm convert)."
        )
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{folder} holds an adapter: merge it into its host (PEFT's merge_and_unload), and serve that."
        )
    kind = config.get("model_type")
    if kind in (SparseFormerConfig.model_type, ReducedTowerConfig.model_type):
        raise ValueError(f"{folder} is a tower alone, and a server needs a host: put it into one first (sfvlm swap).")
    if kind not in HOSTS:
        return ServedFolder("unknown", None, False, None)
    vision = config.get("vision_config") or {}
    tower = _tower(vision.get("model_type"))
    backend = tower == "dense" and not _has_old_names(open_weights(folder).where)
    return ServedFolder(tower, _tokens(vision, tower), backend, _template(folder))


def _tower(kind: Any) -> Tower:
    if kind == SparseFormerConfig.model_type:
        return "sparse"
    if kind == ReducedTowerConfig.model_type:
        return "reduced"
    return "dense" if kind in CLASS_TOKENS else "unknown"


def _tokens(vision: dict[str, Any], tower: Tower) -> int | None:
    if tower == "reduced":
        return ReducedTowerConfig.from_dict(dict(vision)).budget
    return SparseFormerConfig.from_dict(dict(vision)).budget if tower == "sparse" else None


def _has_old_names(names: Sequence[str] | dict[str, Any]) -> bool:
    return any(f"vision_tower.{OLD_NAME}" in name for name in names)


def _template(folder: Path) -> str | None:
    """The folder's template with the start of prompts, where it leaves that to the tokenizer."""
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder)
    except Exception as error:  # readers of damaged files raise their own kinds
        raise ValueError(f"The processor of {folder} cannot be opened: {reason(error)}") from error
    template = template_of(processor, str(folder))
    return with_start(template) if start_is_left_to_tokenizer(processor) else None


def request(model: str, question: str = "What is in the photo?") -> str:
    """The body of a first question to a server, about photo.jpg, as JSON between a shell's single quotes."""
    photo = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{PHOTO}"}}
    content = [photo, {"type": "text", "text": question}]
    body = {"model": model, "max_tokens": 64, "temperature": 0, "messages": [{"role": "user", "content": content}]}
    quoted = json.dumps(body).replace("'", "'\\''")
    return quoted.replace(f"base64,{PHOTO}", "base64,'$(base64 -w0 photo.jpg)'")
