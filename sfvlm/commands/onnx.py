"""The command that writes an encoder as an .onnx file."""

from dataclasses import dataclass
from pathlib import Path

from ..cli import say
from ..export import open_student
from ..onnx_export import check_packages, export_onnx
from ..zoo import folder_of


@dataclass(frozen=True)
class OnnxCommand:
    """Write an encoder as one .onnx file, and check what onnxruntime computes from it."""

    model: str
    """A SparseFormer: folder, hub id, or name of `sfvlm zoo`."""
    out: Path
    """The file to write."""
    num_tokens: int | None = None
    """Budget of the file; default the model's."""
    image_size: int | None = None
    """Side of its photos in pixels; default the model's."""
    layers: tuple[int, ...] = ()
    """Layers whose hidden states are outputs too: -2 for what a LLaVA reads."""
    opset: int = 18
    """Version of the ONNX operators, 18 to 23."""


def onnx_command(command: OnnxCommand) -> None:
    """Opens the model, writes the file, and says how near it is."""
    check_packages()
    model = open_student(folder_of(command.model)).float()
    report = export_onnx(
        model,
        command.out,
        num_tokens=command.num_tokens,
        image_size=command.image_size,
        layers=command.layers,
        opset=command.opset,
    )
    size, count = command.image_size or model.config.image_size, command.num_tokens or model.config.budget
    say(f"{count} tokens a photo of {size} x {size} pixels, any number of photos at once.")
    say(f"onnxruntime differs from the model by {report.difference:.1e} of an output's largest value at most.")
    say(f"Wrote {command.out}: {report.size / 1e6:.1f} MB, outputs {', '.join(report.differences)}.")
