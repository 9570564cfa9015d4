"""The command that teaches a SparseFormer to make its teacher's dense map."""

from pathlib import Path

from torch import nn

from ...dense.guide import GuideConfig, open_guide
from ...dense.learning import train_guide
from ...encoder.folder import open_student
from ...photos.sources import open_and_say
from ...teachers.open import open_teacher
from ...teachers.student import check_descent
from ...util.alone import alone
from ...util.console import say
from ...util.devices import usable_device
from ...util.files import read_json
from ...zoo.names import resolve
from .options import TrainGuideCommand


def train_guide_command(command: TrainGuideCommand) -> None:
    """Opens the SparseFormer, its teacher and the photos, trains the guide, and says where it is."""
    folder = Path(resolve(command.model))
    if command.out is None and str(folder) != command.model:
        raise ValueError(f"{command.model} is a name of the zoo, whose files stay as they are: give a folder (--out).")
    out = folder if command.out is None else command.out
    model = open_student(folder).float()
    nn.Module.to(model, usable_device(command.device))  # transformers' own says of itself that it takes none
    teacher = open_teacher(command.teacher or _its_teacher(folder))
    check_descent(model.config, teacher, command.model)
    chosen = model.config.focusing == "chosen"
    if not chosen and (command.context_share is not None or command.context_blocks is not None):
        raise ValueError(
            f"Context is for encoders that choose patches, and {command.model} has {model.config.focusing} focusing."
        )
    config = GuideConfig.of(
        model.config,
        guide_size=command.guide_size,
        attending_blocks=command.attending_blocks,
        mixing_blocks=command.mixing_blocks,
        even_share=command.even_share if chosen else None,
        context_share=command.context_share,
        context_blocks=command.context_blocks,
    )
    earlier = None if command.start_from is None else open_guide(command.start_from, model.config)
    if command.start_from is not None and earlier is None:
        raise ValueError(f"There is no guide in {command.start_from}: name the folder that holds guide/.")
    photos = open_and_say(command.photos)
    with alone(out):
        train_guide(model, teacher, photos, out, command.training, config, earlier=earlier, resume=command.resume)
    say(f"Wrote {out / 'guide'}.")


def _its_teacher(folder: Path) -> str:
    """The teacher that a bootstrap names.

    Raises:
        ValueError: The folder says none.
    """
    described = folder / "bootstrap.json"
    name = read_json(described).get("teacher") if described.is_file() else None
    if not isinstance(name, str):
        raise ValueError(f"{folder} does not say what it was made from: name its teacher (--teacher).")
    return name
