"""The command that writes an encoder as an .onnx file."""

from ..encoder.folder import open_student
from ..onnx.export import check_packages, export_onnx
from ..util.console import say
from ..zoo.names import folder_of
from .options.onnx import OnnxCommand


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
