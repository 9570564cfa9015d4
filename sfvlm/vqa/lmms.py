"""Registers hosts with lmms-eval (0.7), which brings the questions and judges the answers.

The entry point `lmms_eval.models` of this package names `manifest`; then

    python -m lmms_eval --model sfvlm --model_args pretrained=runs/llava-7b-49 --tasks pope,gqa --batch_size 8

asks the host of that folder by its own chat template, greedy. lmms-eval is not a dependency. It imports this module when
it starts, and the class only when it is asked for; importing sfvlm also registers our towers, so that its `llava_hf` opens
our hosts too.
"""

from typing import Any


def manifest() -> Any:
    """What lmms-eval asks of a plug-in: the model's name and where its class is."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest(model_id="sfvlm", chat_class_path="sfvlm.vqa.lmms_host.SfvlmHost")
