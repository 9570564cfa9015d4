"""Hosts in 4 and 8 bits by bitsandbytes: the language model alone is quantised, and a census says whether that is so.

transformers matches its list of modules to skip from the start of a module's full name, so that `"vision_tower"` matches
nothing, silently, and a list that is given replaces the one that would have kept `lm_head`
(transformers 5.23, `quantizers/quantizers_utils.py`). Hence full names, and counting afterwards.
"""

from collections import Counter
from typing import Any, Literal

import torch
from torch import nn

from ..util.errors import reason

KEPT_WHOLE = ("model.vision_tower", "model.multi_modal_projector", "lm_head")
QUANTIZED = ("Linear4bit", "Linear8bitLt")  # bitsandbytes' classes


def quantization(bits: Literal[4, 8] = 4, compute_dtype: torch.dtype = torch.bfloat16) -> Any:
    """A `BitsAndBytesConfig` for `from_pretrained(..., quantization_config=...)`: tower, projector and output layer whole.

    Raises:
        ValueError: Another number of bits, or bitsandbytes is not installed.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits is {bits}; bitsandbytes has 4 and 8.")
    try:
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"A host in {bits} bits needs the bitsandbytes package: pip install bitsandbytes.") from error
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(KEPT_WHOLE))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=list(KEPT_WHOLE),
    )


def census(model: nn.Module) -> dict[str, Counter[str]]:
    """Linear layers of each part of a host by class: `{"lm_head": Counter({"Linear": 1}), ...}`."""
    parts: dict[str, Counter[str]] = {name: Counter() for name in (*KEPT_WHOLE, "model.language_model")}
    for name, module in model.named_modules():
        part = next((part for part in parts if name == part or name.startswith(f"{part}.")), None)
        if part is not None and isinstance(module, nn.Linear):
            parts[part][type(module).__name__] += 1
    return parts


def check_census(model: nn.Module) -> dict[str, Counter[str]]:
    """The census of a quantised host.

    Raises:
        ValueError: Its tower, projector or output layer is quantised, or its language model is not.
    """
    found = census(model)
    wrong = {part: sum(found[part][name] for name in QUANTIZED) for part in KEPT_WHOLE}
    wrong = {part: count for part, count in wrong.items() if count}
    if wrong:
        listed = ", ".join(f"{count} layers of {part}" for part, count in wrong.items())
        raise ValueError(
            f"bitsandbytes quantised {listed}: load with quantization_config=sfvlm.hosts.quantized.quantization()."
        )
    if not any(found["model.language_model"][name] for name in QUANTIZED):
        raise ValueError("bitsandbytes quantised no layer of the language model.")
    return found


@torch.no_grad()
def check_products(model: nn.Module) -> None:
    """Multiplies once by a quantised layer of each shape: bitsandbytes has kernels that are not made for all of them.

    Raises:
        ValueError: One of them cannot be multiplied by on its device.
    """
    shapes: dict[tuple[int, int], str] = {}
    for name, module in model.named_modules():
        if type(module).__name__ in QUANTIZED and isinstance(module, nn.Linear):
            shapes.setdefault((module.out_features, module.in_features), name)
    for (outputs, inputs), name in shapes.items():
        layer = model.get_submodule(name)
        weight: Any = layer.weight
        try:
            layer(torch.zeros(1, inputs, device=weight.device, dtype=torch.bfloat16))
        except Exception as error:  # assertions too
            raise ValueError(
                f"bitsandbytes cannot multiply by {name}, {outputs} x {inputs}, on {weight.device} ({reason(error)}): give "
                "other bits, or none."
            ) from error
