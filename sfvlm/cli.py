"""The `sfvlm` command: flags from dataclasses, and one clear sentence for bad input."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar, cast

import tyro

from .util.console import say, write_no_more
from .util.errors import of_files

Options = TypeVar("Options")

# Name -> options in the module of that name in `sfvlm.commands.options`, action in that of `sfvlm.commands`. Each is imported
# when it is asked for: the action, which needs torch, when the flags have been read.
COMMANDS = {
    "make": ("MakeCommand", "make_command"),
    "bootstrap": ("BootstrapCommand", "bootstrap_command"),
    "zeroshot": ("ZeroShotCommand", "zeroshot_command"),
    "swap": ("SwapCommand", "swap_command"),
    "vqa": ("VqaCommand", "vqa_command"),
    "retained": ("RetainedCommand", "retained_command"),
    "fidelity": ("FidelityCommand", "fidelity_command"),
    "serve": ("ServeCommand", "serve_command"),
    "convert": ("ConvertCommand", "convert_command"),
    "speed": ("SpeedCommand", "speed_command"),
    "boxes": ("BoxesCommand", "boxes_command"),
    "focus": ("FocusCommand", "focus_command"),
    "onnx": ("OnnxCommand", "onnx_command"),
    "train-guide": ("TrainGuideCommand", "train_guide_command"),
    "train-segmentation": ("TrainSegmentationCommand", "train_segmentation_command"),
    "segmentation": ("SegmentationCommand", "segmentation_command"),
    "segment": ("SegmentCommand", "segment_command"),
    "zoo": ("ZooCommand", "zoo_command"),
}
# Commands that lie in a room of their own within `sfvlm.commands`, their flags in its `options`.
ROOMS = {
    **dict.fromkeys(("fidelity", "retained", "serve"), "hosted"),
    **dict.fromkeys(("train-guide", "train-segmentation", "segmentation", "segment"), "pixels"),
}
REST = "engine_flags"  # the field of a command that hands flags on which are none of its own


def main(arguments: list[str] | None = None) -> None:
    """The `sfvlm` command: `sfvlm bootstrap --help` and so on."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        for known in COMMANDS:
            say(f"sfvlm {known:<18} {(_options(known).__doc__ or '').splitlines()[0]}")
    elif name in COMMANDS:
        command(name, rest)
    else:
        sys.stderr.write(f"error: There is no command {name!r}; the commands are {', '.join(COMMANDS)}.\n")
        raise SystemExit(2)


def command(name: str, arguments: list[str] | None = None) -> None:
    """One of `COMMANDS`, with its flags: by default those of the process, for a script that is this command."""

    def action(parsed: Any) -> None:
        getattr(importlib.import_module(modules_of(name)[1]), COMMANDS[name][1])(parsed)

    run(action, _options(name), arguments)


def modules_of(name: str) -> tuple[str, str]:
    """The modules of a command's flags and of its action."""
    if name in ROOMS:
        return f"sfvlm.commands.{ROOMS[name]}.options", f"sfvlm.commands.{ROOMS[name]}.{name.replace('-', '_')}"
    return f"sfvlm.commands.options.{name}", f"sfvlm.commands.{name}"


def _options(name: str) -> type:
    return getattr(importlib.import_module(modules_of(name)[0]), COMMANDS[name][0])


def run(action: Callable[[Any], None], options: type[Options], arguments: list[str] | None = None) -> None:
    """Parses flags into `options` and acts; bad input ends with one sentence and exit code 2, Ctrl-C with 130.

    So does what the system says of files and disks. Mistakes of the program stay what they are.
    """
    parsed = _parsed(options, arguments)
    try:
        action(parsed)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    except OSError as error:
        said = of_files(error)
        if said is None:
            raise
        sys.stderr.write(f"error: {said}\n")
        raise SystemExit(2) from None
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which not every command imports
            raise
        size = getattr(getattr(parsed, "training", parsed), "batch_size", 1)  # the bootstrap's flags are in `training`
        way_out = f": give a --batch-size under {size}" if size > 1 else ""
        sys.stderr.write(f"error: The device has too little memory{way_out}.\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        way_on = " What was reached is saved; continue with --resume." if hasattr(parsed, "resume") else ""
        sys.stderr.write(f"\nInterrupted.{way_on}\n")
        raise SystemExit(130) from None


def _parsed(options: type[Options], arguments: list[str] | None) -> Options:
    """The flags; whoever reads only the start of the help may."""
    try:
        try:
            configuration = (tyro.conf.CascadeSubcommandArgs,)
            if REST not in {each.name for each in fields(options)}:  # type: ignore[arg-type]
                return tyro.cli(options, args=arguments, config=configuration)
            parsed, rest = tyro.cli(options, args=arguments, config=configuration, return_unknown_args=True)
            return replace(cast(Any, parsed), **{REST: tuple(word for word in rest if word != "--")})
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        write_no_more()
        raise SystemExit(0) from None
