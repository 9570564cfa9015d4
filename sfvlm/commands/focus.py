"""The command that measures what focus is worth on rendered scenes."""

from ..look.focus import Case, ask_crops, ask_scenes, scene_cases
from ..look.sides import open_sides
from ..util.console import say
from ..util.results import Row, check_json, write_results
from ..vqa.ask import compare, measure, result_row
from ..vqa.metrics import Score
from .options.focus import FocusCommand
from .vqa import vqa_table


def focus_command(command: FocusCommand) -> None:
    """Asks each way, the whole photo first, and prints a table."""
    check_json(command.out)
    for share in command.share:
        if not 0 < share <= 1:
            raise ValueError(f"--share is {share}; it is a share of the tokens, above 0 and at most 1.")
    sides = open_sides(command.host, command.tower, device=command.device)
    if sides.sparse is None or sides.tower is None:
        raise ValueError(sides.note or f"The tower of {command.host} has no boxes to send anywhere.")
    if sides.sparse.tiled:
        raise ValueError(
            f"{command.host} cuts photos into tiles, and focus is for hosts that see a photo as one square."
        )
    cases = scene_cases(
        command.scenes, command.seed, image_size=command.image_size, small_objects=command.small_objects
    )
    if not cases:
        raise ValueError(f"{command.scenes} scenes have no question of these kinds: take more.")
    answers = {"whole photo": ask_scenes(sides.sparse, cases, None)}
    for share in command.share:
        answers[f"{share:.0%} of the tokens"] = ask_scenes(sides.sparse, cases, share, margin=command.margin)
    answers["cut out"] = ask_crops(sides.sparse, cases, margin=command.margin)
    if sides.dense is not None:
        answers["dense, whole photo"] = ask_scenes(sides.dense, cases, None)
        answers["dense, cut out"] = ask_crops(sides.dense, cases, margin=command.margin)
    rows = _rows(command, cases, answers)
    shown = sorted({name for row in rows for name in row["metrics"] if name.startswith("accuracy/")})
    say(f"\n{len(cases)} questions about objects of {command.scenes} scenes, {command.image_size} pixels wide")
    say(vqa_table(rows, "accuracy", shown))
    if command.out is not None:
        write_results(command.out, rows, {}, sides.sparse.model.device)
        say(f"\nWrote {command.out}.")


def _rows(command: FocusCommand, cases: list[Case], answers: dict[str, list[str]]) -> list[Row]:
    questions = [case.question for case in cases]
    scores: dict[str, Score] = {name: measure("scenes", questions, texts) for name, texts in answers.items()}
    first = next(iter(scores.values()))
    return [
        result_row(
            "scenes",
            name,
            command.host,
            score,
            comparison=None if score is first else compare(first, score),
            facts=_by_size(cases, score),
        )
        for name, score in scores.items()
    ]


def _by_size(cases: list[Case], score: Score) -> dict[str, float]:
    """Accuracy on small things and on the others."""
    found: dict[str, list[float]] = {}
    for case, unit in zip(cases, score.units, strict=True):
        found.setdefault("small" if case.is_small else "larger", []).append(float(unit))
    return {f"accuracy/{size}": sum(units) / len(units) for size, units in found.items()}
