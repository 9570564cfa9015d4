"""An original llava checkpoint to transformers' layout: LLaVA, or LLaVA-NeXT where photos are cut into tiles.

    config.json, model*.safetensors        what `from_pretrained` of LlavaForConditionalGeneration or LlavaNext... opens
    generation_config.json
    processor_config.json, tokenizer*      photos as the checkpoint takes them; the tokenizer with `<image>`
    chat_template.jinja
    conversion.json                        the manifest: what was read, made, dropped, and what differs

Every tensor is written as it is stored, in its own dtype, but for three:

embedding, lm_head   get rows where `<image>` has none, up to a multiple of 64. The new ones are the mean of the others: no
                     photo's token is looked up in them, and a mean of logits is never the greatest, so that none is said.
linear projector     transformers' projector has two layers. The first is the checkpoint's, the activation between is none,
                     and the second is the identity without bias.

Photos: with `image_aspect_ratio` "pad", transformers' LlavaImageProcessor pads to a square in the mean colour, as the package
does, where CLIP's own (and the released llava-hf checkpoints) would crop. Both resize by bicubic interpolation, the package by
Pillow and transformers by torchvision, whose pixels differ by rounding.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlavaImageProcessor,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
)

from ...util.files import appearing, check_absent, read_json
from ...util.provenance import provenance
from ...zoo.downloads import hub_folder
from ...zoo.names import resolve
from ...zoo.weight_files import WeightFiles, read_tensor, read_tensors
from .config import Original, host_config, known_fields, read_original
from .prompt import Prompt, add_image_token, choose_prompt, fit_template, open_tokenizer
from .weights import (
    TOWER_IN_CHECKPOINT,
    Renamed,
    Shapes,
    ShardWriter,
    check_complete,
    expected_shapes,
    open_checkpoint,
    rename_checkpoint,
    rename_tower,
)

MANIFEST = "conversion.json"
EMBEDDING, LAST_NORM = "model.embed_tokens.weight", "model.norm.weight"
VOCABULARY = (EMBEDDING, "lm_head.weight")
ROWS = 64  # new vocabularies are multiples of this, as in released llava-hf checkpoints
_SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def convert_original(
    folder: str | Path, out: str | Path, vision_tower: str | Path | None = None, chat_template: str | None = None
) -> dict[str, Any]:
    """Writes an original llava checkpoint to a new folder in transformers' layout, and returns its manifest.

    Args:
        folder: Folder or hub id of the checkpoint: model_type llava, llava_llama, llava_mistral or llava_qwen.
        out: The folder to write; it must not exist, and appears only when it is complete.
        vision_tower: Folder, hub id or name of the zoo of the CLIP it reads; default what config.json names. Where the checkpoint
            holds a tower itself, that one's weights are taken, and from here only its configuration.
        chat_template: vicuna-v1, mistral-instruct, a file or the text of a Jinja template; default Vicuna's for LLaVA-1.5.

    Raises:
        ValueError: It is no such checkpoint, a part is missing, damaged or unknown, or `out` exists. Nothing is written then.
    """
    out = Path(out)
    check_absent(out)
    folder = _folder(folder, f"The checkpoint {folder}")
    original, weights = read_original(folder), open_checkpoint(folder)
    _check_no_delta(folder, weights)
    tower = _tower_folder(original, vision_tower)
    vision, clip_processor = _open_tower(tower)
    stored = open_tokenizer(folder, original)
    prompt = choose_prompt(original, stored, chat_template)
    tokenizer = open_tokenizer(folder, original)
    image_token = add_image_token(tokenizer)

    embedding = read_tensor(weights, EMBEDDING)
    rows = _rows(len(embedding), len(tokenizer))
    config = host_config(original, vision, image_token, rows, embedding.dtype)
    shapes = expected_shapes(config)
    sources = [(weights, rename_checkpoint(weights, config, shapes))]
    if not any(name.startswith(TOWER_IN_CHECKPOINT) for name in weights.where):
        tower_weights = open_checkpoint(tower)
        sources.append((tower_weights, rename_tower(tower_weights, shapes)))
    made = _made(original)
    check_complete((renamed for _, renamed in sources), made, shapes)
    generation, generation_left_out = _generation(folder, original, tokenizer)

    with appearing(out) as temporary:
        temporary.mkdir()
        _write_weights(sources, made, shapes, config, rows - len(embedding), temporary)
        config.architectures = [_architecture(original)]
        config.save_pretrained(temporary)
        generation.save_pretrained(temporary)
        processor = _processor(original, vision, clip_processor, tokenizer, prompt)
        same_ids = _save_processor(processor, stored, prompt, temporary)
        manifest = {
            "checkpoint": {"path": str(folder), "type": original.fields["model_type"]},
            "host": original.kind,
            "tower": {
                "name": original.tower,
                "path": str(tower),
                "weights": "the tower's folder" if len(sources) == 2 else "the checkpoint",
            },
            "tensors": {
                "written": len(shapes),
                "made": made,
                "dropped": {name: reason for _, renamed in sources for name, reason in renamed.dropped.items()},
            },
            "vocabulary": {
                "rows_before": len(embedding),
                "rows_after": rows,
                "new_rows": "the mean of the others" if rows > len(embedding) else None,
                "image_token_id": image_token,
            },
            "photos": _photos(original),
            "prompt": {"template": prompt.name, "ids_as_in_the_llava_package": same_ids},
            "left_out": {"config.json": list(original.left_out), "generation_config.json": generation_left_out},
            **provenance("sfvlm", "torch", "transformers", "safetensors"),
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _folder(source: str | Path, what: str) -> Path:
    """A local folder, or the hub's after download: safetensors where there are any, else pickles."""
    return Path(source) if Path(source).is_dir() else hub_folder(str(source), what, pickles=True)


def _check_no_delta(folder: Path, weights: WeightFiles) -> None:
    """Refuses LLaVA's deltas by their name, or by gains of the last norm that are near 0: LLaMA's are near 1 or above."""
    name = folder.parent.parent.name if folder.parent.name == "snapshots" else folder.name
    named = "delta" in name.lower().replace("_", "-").split("-")
    gain = read_tensor(weights, LAST_NORM).float().abs().mean().item()
    if named or gain < 0.05:
        raise ValueError(
            f"{folder} holds a delta, the difference to a LLaMA, and no model "
            f"({'by its name' if named else f'the gains of its last norm are {gain:.4f} on average'}): add it to its base with "
            "the llava package's llava.model.apply_delta, and convert what that writes."
        )


def _tower_folder(original: Original, given: str | Path | None) -> Path:
    hint = " that config.json names" if given is None else ""
    try:
        source = resolve(original.tower if given is None else given)
    except ValueError as error:
        raise ValueError(f"There is no vision tower{hint}: {error} Another: --vision-tower.") from error
    if str(source).startswith("sfvlm:"):
        raise ValueError(
            f"config.json names the sparse tower {source}: give the dense one by --vision-tower, and swap after converting."
        )
    return _folder(source, f"The vision tower {source}{hint} (another: --vision-tower)")


def _open_tower(folder: Path) -> tuple[CLIPVisionConfig, CLIPImageProcessor]:
    """Configuration and image processor of a CLIP or its vision tower; ValueError for other models."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"The vision tower {folder} holds no config.json, so that it is no transformers model.")
    fields = read_json(path)
    if fields.get("model_type") == "clip":
        fields = fields.get("vision_config", {})
    elif fields.get("model_type") != "clip_vision_model":
        raise ValueError(
            f"The vision tower {folder} is of type {fields.get('model_type')!r}; checkpoints with CLIP towers can be converted."
        )
    vision = CLIPVisionConfig(**known_fields(CLIPVisionConfig, fields))
    try:
        processor = CLIPImageProcessor.from_pretrained(folder)
    except Exception as error:  # missing and damaged files raise several kinds
        raise ValueError(
            f"The vision tower {folder} has no readable preprocessor_config.json: copy the one of its CLIP."
        ) from error
    side = dict(processor.crop_size or {})
    if side != {"height": vision.image_size, "width": vision.image_size}:
        raise ValueError(f"The tower {folder} reads {vision.image_size} pixels, and its processor makes {side}.")
    return vision, processor


def _rows(stored: int, needed: int) -> int:
    """Rows of the vocabulary: as stored where `<image>` has one, else up to a multiple of `ROWS`."""
    return stored if needed <= stored else -(-needed // ROWS) * ROWS


def _made(original: Original) -> dict[str, str]:
    """Tensors that transformers' model has and the checkpoint has not, and what they are."""
    second = "multi_modal_projector.linear_2"
    return {f"{second}.weight": "identity", f"{second}.bias": "zero"} if original.projector == "linear" else {}


def _write_weights(
    sources: list[tuple[WeightFiles, Renamed]],
    made: dict[str, str],
    shapes: Shapes,
    config: Any,
    new_rows: int,
    out: Path,
) -> None:
    """Writes all tensors, file by file."""
    writer = ShardWriter(out, shapes)
    for weights, renamed in sources:
        for file in weights.files:
            names = [name for name in renamed.names if weights.where[name] == file]
            for name, tensor in read_tensors(weights, names):
                writer.add(renamed.names[name], _extended(tensor, new_rows) if name in VOCABULARY else tensor)
    width, dtype = config.text_config.hidden_size, config.dtype
    for name, what in made.items():
        writer.add(name, torch.eye(width, dtype=dtype) if what == "identity" else torch.zeros(width, dtype=dtype))
    writer.close()


def _extended(tensor: Tensor, rows: int) -> Tensor:
    if not rows:
        return tensor
    mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(rows, -1)])


def _processor(
    original: Original, vision: CLIPVisionConfig, clip: CLIPImageProcessor, tokenizer: Any, prompt: Prompt
) -> Any:
    fields = ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor", "do_convert_rgb")
    shared = {name: _plain(getattr(clip, name)) for name in fields}
    if original.kind == "llava_next":
        kind: Any = LlavaNextProcessor
        photos: Any = LlavaNextImageProcessor(
            **shared, image_grid_pinpoints=[list(size) for size in original.pinpoints]
        )
    else:
        kind, photos = LlavaProcessor, LlavaImageProcessor(**shared, do_pad=original.pads)
    return kind(
        image_processor=photos,
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=original.strategy,
        num_additional_image_tokens=1,  # the class token
        chat_template=prompt.forms[0],
    )


def _save_processor(processor: Any, stored: Any, prompt: Prompt, out: Path) -> bool:
    """Saves the processor with the form of its template that fits; whether prompts have the package's ids then."""
    processor.save_pretrained(out)
    processor.chat_template, same_ids = fit_template(AutoProcessor.from_pretrained(out), stored, prompt)
    processor.save_pretrained(out)
    return same_ids


def _generation(folder: Path, original: Original, tokenizer: Any) -> tuple[GenerationConfig, list[str]]:
    """Token ids, and sampling where it is switched on; and the names of the other fields that were set."""
    path = folder / "generation_config.json"
    given = read_json(path) if path.is_file() else {}
    fields = {name: given.get(name, getattr(original.text, name, None)) for name in _TOKENS}
    fields["eos_token_id"] = fields["eos_token_id"] if fields["eos_token_id"] is not None else tokenizer.eos_token_id
    if fields["pad_token_id"] is None or fields["pad_token_id"] < 0:  # old LLaMA files say -1
        fields["pad_token_id"] = tokenizer.pad_token_id
    if given.get("do_sample"):
        fields |= {name: given[name] for name in _SAMPLING if name in given}
    ignored = ("_from_model_config", "transformers_version")
    return GenerationConfig(**fields), sorted(name for name in given if name not in fields and name not in ignored)


def _photos(original: Original) -> dict[str, Any]:
    return {
        "image_aspect_ratio": original.fields.get("image_aspect_ratio"),
        "now": (
            "cut into tiles" if original.pinpoints else "padded to a square" if original.pads else "cropped to a square"
        ),
        "difference": "resized by torchvision instead of Pillow: pixels differ by rounding",
    }


def _architecture(original: Original) -> str:
    return "LlavaNextForConditionalGeneration" if original.kind == "llava_next" else "LlavaForConditionalGeneration"


def _plain(value: Any) -> Any:
    """A field of an image processor as its constructor takes it."""
    return {key: side for key, side in dict(value).items() if side is not None} if hasattr(value, "items") else value
