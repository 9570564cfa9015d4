"""The swap of a folder: a host's folder and a tower to a new folder, and back.

The new folder holds

    config.json, processor_config.json     the host's, changed
    model-*.safetensors                    projector and language model, bit for bit; the tower in the last file
    swap.json                              the manifest: hashes, token counts, every changed setting with its old value
    dense/                                 the dense tower and the files that were changed, as they were
    everything else                        the host's files, byte for byte

The dense tower stays inside (a CLIP ViT-L/14 in half precision: 0.6 GB beside 14 GB of a 7B model), so that undoing
needs nothing but the folder: the host it came from may since have been moved, updated, or cleared from a cache.
"""

import json
import shlex
import shutil
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoProcessor

from ..alternatives.towers import ReducedTower
from ..encoder.folder import open_student
from ..encoder.sparseformer import SparseFormerModel
from ..util.errors import reason
from ..util.files import appearing, check_absent, read_json, stand_ins
from ..util.provenance import provenance
from ..util.tensors import tensor_hash
from ..zoo.weight_files import WeightFiles, open_weights, read_tensors
from .facts import read_host
from .plan import Plan, Setting, apply_plan, plan_swap, restore
from .template import start_is_left_to_tokenizer
from .tower import TowerConfig, check_dtype
from .weights import bytes_hash, parts, tower_prefix, write_weights

MANIFEST, DENSE = "swap.json", "dense"
# What processor_config.json of transformers 5 holds inside itself, older versions keep in files of their own.
_IMAGE_SETTINGS = ("preprocessor_config.json", "video_preprocessor_config.json")
TEMPLATES = "additional_chat_templates"  # the one folder that transformers reads settings from
_CHANGED = ("config.json", "processor_config.json", *_IMAGE_SETTINGS)
OpenTower = SparseFormerModel | ReducedTower


def swap_folder(
    host: str | Path, tower: str | Path | OpenTower, out: str | Path, num_tokens: int | None = None
) -> dict[str, Any]:
    """Writes a host with another tower to a new folder, and returns its manifest.

    Args:
        host: A folder of a transformers LLaVA, LLaVA-NeXT or LLaVA-OneVision with safetensors weights.
        tower: A SparseFormer folder, or an open model: a SparseFormer or a reduced dense tower.
        out: The folder to write; it must not exist, and appears only when it is complete and verified.
        num_tokens: Image tokens a photo or tile; default the tower's own budget.

    Raises:
        ValueError: They do not fit, a file is missing or damaged, or `out` exists. Nothing is written then.
    """
    host, out = Path(host), Path(out)
    check_absent(out)
    config, processor = _open_host(host)
    facts, weights = read_host(config, processor), open_weights(host)
    model = open_student(tower) if isinstance(tower, str | Path) else tower
    plan = plan_swap(facts, model.config, num_tokens)
    dtype = _dtype_of_host(config, weights)
    check_dtype(model, dtype)
    settings = apply_plan(plan, config, processor, model.config)
    of_tower = Setting.of(model.config, "dtype", dtype)
    try:
        tensors = {f"{tower_prefix(weights)}{key}": tensor for key, tensor in _cast(model, dtype).items()}
        with appearing(out) as temporary:
            _copy_files(host, temporary)
            _write_settings(config, processor, temporary)
            write_weights(weights, lambda name: not name.startswith(tower_prefix(weights)), tensors, temporary)
            _keep_dense(host, weights, temporary / DENSE)
            manifest = _manifest(host, tower, model, plan, settings, weights, open_weights(temporary))
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    finally:
        restore((*settings, of_tower))
    _warn_of_start(processor, host)
    return manifest


def _warn_of_start(processor: Any, host: Path) -> None:
    with suppress(ValueError):  # a host without a template can be swapped, and not be chatted with
        if start_is_left_to_tokenizer(processor):
            warnings.warn(
                f"The chat template of {host} leaves {processor.tokenizer.bos_token}, which prompts start with, to the tokenizer, and "
                "servers of chats add nothing to a template: serve the folder by `sfvlm serve`, which writes it, or put "
                "{{ bos_token }} in front of the template.",
                stacklevel=3,
            )


def plan_folder(host: str | Path, tower: TowerConfig, num_tokens: int | None = None) -> Plan:
    """What `swap_folder` would change for a tower of this configuration: the reasons to refuse come before the tower is made.

    Raises:
        ValueError: They do not fit, or the folder is no host whose tower can be replaced.
    """
    config, processor = _open_host(Path(host))
    _dtype_of_host(config, open_weights(Path(host)))
    return plan_swap(read_host(config, processor), tower, num_tokens)


def undo_folder(swapped: str | Path, out: str | Path) -> dict[str, Any]:
    """Writes the dense host again from a swapped folder, and returns the manifest of the swap that is undone.

    Raises:
        ValueError: It is no swapped folder, is damaged, or its projector or language model were changed since; or `out`
            exists.
    """
    swapped, out = Path(swapped), Path(out)
    check_absent(out)
    if not (swapped / MANIFEST).is_file() or not (swapped / DENSE / "config.json").is_file():
        raise ValueError(f"{swapped} is no swapped host: it lacks {MANIFEST} or {DENSE}/config.json.")
    manifest = read_manifest(swapped)
    weights, dense = open_weights(swapped), open_weights(swapped / DENSE)
    tensors = load_file(dense.files[0])
    with appearing(out) as temporary:
        _copy_files(swapped, temporary, skip=(MANIFEST, *_CHANGED))
        for file in (swapped / DENSE).glob("*.json"):
            shutil.copyfile(file, temporary / file.name)
        write_weights(weights, lambda name: not name.startswith(tower_prefix(weights)), tensors, temporary)
        written = open_weights(temporary)
        found = bytes_hash(read_tensors(written, written.where))
        if found != manifest["host"]["sha256"]:
            raise ValueError(
                f"The weights in {swapped} with the dense tower have the sha256 {found[:16]}, and the host had "
                f"{manifest['host']['sha256'][:16]}: they were changed after the swap, so that it cannot be undone."
            )
    return manifest


def read_manifest(swapped: Path) -> dict[str, Any]:
    """What a swap wrote about itself; ValueError if it does not say where the host was and what its weights were."""
    manifest = read_json(swapped / MANIFEST)
    host = manifest.get("host")
    if not isinstance(host, dict) or not all(isinstance(host.get(name), str) for name in ("path", "sha256")):
        raise ValueError(f"{swapped / MANIFEST} is no manifest of a swap: it says nothing of the host.")
    return manifest


def _open_host(folder: Path) -> tuple[Any, Any]:
    """Configuration and processor of a host's folder."""
    path = folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{folder} holds an adapter, which would be lost: merge it into its host (PEFT's merge_and_unload), and swap "
            "what that saves."
        )
    if not path.is_file():
        raise ValueError(f"The host {folder} is no folder with a config.json.")
    described = read_json(path)
    if "mm_vision_tower" in described:
        raise ValueError(
            f"{folder} is in the original llava package's layout: convert it first "
            f"(sfvlm convert --checkpoint {shlex.quote(str(folder))} --out DIR)."
        )
    quantised = described.get("quantization_config") or {}
    quantised = quantised.get("quant_method", "bitsandbytes") if isinstance(quantised, dict) else quantised
    if quantised != "bitsandbytes":
        raise ValueError(f"{folder} is quantised by {quantised!r}: swap the host it was made from, and quantise after.")
    try:
        config, processor = AutoConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    except Exception as error:  # missing files, unknown types and bad fields raise many kinds
        raise ValueError(f"The host {folder} cannot be opened: {reason(error)}{stand_ins(folder)}") from error
    return config, processor


def _dtype_of_host(config: Any, weights: WeightFiles) -> torch.dtype:
    """What the host computes in by default: its configuration's dtype, else its projector's as stored."""
    names = parts(weights.where)["multi_modal_projector"]
    if not names:
        raise ValueError(f"{weights.files[0].parent} holds no projector (multi_modal_projector) in its weights.")
    stored = {tensor.dtype for _, tensor in read_tensors(weights, names)}
    if len(stored) > 1 or not next(iter(stored)).is_floating_point:
        raise ValueError(
            f"The host's projector is stored as {', '.join(sorted(map(str, stored)))}, and a tower gives it floating point: "
            "swap the host it was made from, and keep the projector out of quantisation."
        )
    return config.dtype or stored.pop()


def _cast(model: OpenTower, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tower's tensors in the host's dtype; boxes stay float32, as in the model itself."""
    exact = ("token_roi.weight",)
    return {
        key: (tensor if key.endswith(exact) else tensor.to(dtype)).detach().cpu().contiguous()
        for key, tensor in model.state_dict().items()
    }


def _copy_files(source: Path, out: Path, skip: tuple[str, ...] = _IMAGE_SETTINGS) -> None:
    """Everything but weights and folders, of which only that of chat templates, byte for byte.

    Permissions stay behind: some of the copies are written to, and a host may be one that nobody can write.
    """
    weights = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".h5", ".msgpack")
    for folder in (folder for folder in (source, source / TEMPLATES) if folder.is_dir()):
        copy = out / folder.relative_to(source)
        copy.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.iterdir()):
            if file.is_file() and not file.name.endswith(weights) and file.name not in skip:
                shutil.copyfile(file, copy / file.name)


def _write_settings(config: Any, processor: Any, out: Path) -> None:
    """`config.json` and `processor_config.json`; the tokenizer's files stay the host's own."""
    quantised = getattr(config, "quantization_config", None)
    if quantised:  # the tower is new, so it is not among what was quantised
        kept = quantised.get("llm_int8_skip_modules") or []
        quantised["llm_int8_skip_modules"] = [*kept, *({"model.vision_tower"} - set(kept))]
    config.save_pretrained(out)
    scratch = out / ".processor"
    processor.save_pretrained(scratch)
    path = out / "processor_config.json"  # the host's, so far
    # Written back as a file of its own, the host's template would lose against an older one that is there.
    template = json.loads(path.read_text(encoding="utf-8")).get("chat_template") if path.is_file() else None
    written = json.loads((scratch / path.name).read_text(encoding="utf-8"))
    written |= {"chat_template": template} if template else {}
    path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.rmtree(scratch)


def _keep_dense(host: Path, weights: WeightFiles, out: Path) -> None:
    """The dense tower and the changed files, for `undo_folder`."""
    out.mkdir()
    names = parts(weights.where)["vision_tower"]
    save_file(dict(read_tensors(weights, names)), out / "model.safetensors", metadata={"format": "pt"})
    for name in _CHANGED:
        if (host / name).is_file():
            shutil.copyfile(host / name, out / name)


def _manifest(
    host: Path,
    tower: str | Path | OpenTower,
    model: OpenTower,
    plan: Plan,
    settings: tuple[Setting, ...],
    before: WeightFiles,
    after: WeightFiles,
) -> dict[str, Any]:
    """What was done; raises ValueError if a bit of projector or language model is not what it was."""
    untouched = {}
    names_before, names_after = parts(before.where), parts(after.where)
    for part in ("multi_modal_projector", "language_model"):
        digests = [
            bytes_hash(read_tensors(files, names[part]))
            for files, names in ((before, names_before), (after, names_after))
        ]
        if digests[0] != digests[1]:
            raise ValueError(f"The copy of the host's {part} is not what was read: check the disk.")
        untouched[part] = {
            "tensors": len(names_before[part]), "sha256_before": digests[0], "sha256_after": digests[1]
        }  # fmt: skip
    facts = plan.host
    return {
        "host": {
            "path": str(host),
            "type": facts.kind,
            "sha256": bytes_hash(read_tensors(before, before.where)),
            "layers": list(facts.layers),
            "tower": f"{facts.depth} blocks of width {facts.width}",
        },
        "tower": {
            "path": str(tower) if isinstance(tower, str | Path) else None,
            **({"method": model.config.method} if isinstance(model, ReducedTower) else {}),
            "sha256": tensor_hash(model.state_dict()),
            "blocks": model.config.num_hidden_layers,
        },
        "tokens": {"before": facts.tokens, "after": plan.tokens, "of_each": "tile" if facts.tiles else "photo"},
        "untouched": untouched,
        "changed": {
            f"{type(each.owner).__name__}.{each.name}": [_plain(each.before), _plain(each.after)]
            for each in settings
            if each.name != "vision_config" and each.before != each.after
        },
        **provenance("sfvlm", "torch", "transformers", "safetensors"),
    }


def _plain(value: Any) -> Any:
    """A setting as JSON."""
    return value if isinstance(value, str | int | float | list | None) else dict(value)
