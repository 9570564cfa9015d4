"""The command that makes a SparseFormer from a teacher and photos."""

import shlex
from dataclasses import replace

from ..bootstrap.alignment import for_host
from ..bootstrap.learner import place_of_host
from ..bootstrap.run import SKIPPED, bootstrap
from ..encoder.configuration import CHOICE, SparseFormerConfig
from ..encoder.folder import open_student
from ..hosts.facts import read_host
from ..hosts.host import open_host
from ..photos.batches import SkipLog
from ..photos.sources import open_and_say
from ..teachers.inherit import inherit, take_over
from ..teachers.open import Teacher, check_own_tower, open_teacher
from ..teachers.student import check_descent, student_config
from ..util.alone import alone
from ..util.console import say
from ..zoo.names import resolve
from .options.bootstrap import BootstrapCommand


def bootstrap_command(command: BootstrapCommand) -> None:
    """Opens the teacher and the photos, builds the student, trains it, and says where it is."""
    teacher = open_teacher(command.teacher or command.host or "clip-tiny")
    if command.teacher is not None and command.host is not None:
        check_own_tower(teacher, open_teacher(command.host))
    photos = open_and_say(command.photos)
    earlier = None if command.start_from is None else open_student(resolve(command.start_from)).float()
    if earlier is None:
        config = _student_config(command, teacher)
    else:
        check_descent(earlier.config, teacher, str(command.start_from))
        config = earlier.config
        config.aligned_layers = None  # a host sets its own
        for name in CHOICE:
            if getattr(command, name) is not None:
                setattr(config, name, getattr(command, name))
        config.check_choice()
    student, report = inherit(teacher, config, command.tuned_blocks, command.training.seed)
    if earlier is not None:
        report = take_over(student, report, earlier, str(command.start_from))
    say(f"{len(photos)} photos; teacher of {teacher.config.num_tokens} tokens, student of {config.num_tokens}.")
    say(report.summary())
    options, host = command.training, None
    if command.host is not None:
        host = open_host(command.host, **place_of_host(options))
        if not options.objective.needs_host:
            read = read_host(host.model.config, host.processor).layers
            options = replace(options, objective=for_host(options.objective, max(read)))
    with alone(command.out):
        result = bootstrap(teacher, student, report, photos, command.out, options, host=host, resume=command.resume)
    if lost := SkipLog(command.out / SKIPPED).count:
        say(f"{lost} photos cannot be read and were passed over: {command.out / SKIPPED} says why.")
    say(", ".join(f"{name} {value:.4f}" for name, value in result.items()))
    if command.host is None:
        say(
            f"Wrote {command.out}. Measure it: python eval/zeroshot.py --model {shlex.quote(str(command.out))} --data YOUR_DATA --controls"
        )
    else:
        places = shlex.join(["--host", command.host, "--tower", str(command.out)])
        say(f"Wrote {command.out}. Use it: python scripts/swap_llava_tower.py {places}")


def _student_config(command: BootstrapCommand, teacher: Teacher) -> SparseFormerConfig:
    given = {
        name: getattr(command, name)
        for name in ("coarse_blocks", "box_zoom", "glimpse_size", "proportional_attention", "image_size", *CHOICE)
    }
    return student_config(
        teacher.config,
        focusing=command.focusing,
        num_tokens=command.num_tokens,
        truncate=command.truncate,
        for_host=command.host is not None,
        **{name: value for name, value in given.items() if value is not None},
    )
