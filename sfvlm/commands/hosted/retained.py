"""The command that joins results of several benchmarks: what is retained of the first model, and who is ahead."""

from dataclasses import asdict

from ...util.console import say
from ...util.files import write_json
from ...util.provenance import making
from ...util.results import aligned, check_json
from ...util.statistics import Interval
from ...vqa.retained import BenchmarkScores, Retained, is_scores, left_out, read_scores, retained
from .options import RetainedCommand

GUESSED = ("pope", "pope-like", "pope-captions")  # yes or no, as often: who guesses is right half of the time


def retained_command(command: RetainedCommand) -> None:
    """Reads the scores, draws photos, and prints a table and what must be known of it."""
    check_json(command.out)
    results = [path for path in command.results if not is_scores(path)]
    if not results:
        raise ValueError("There is nothing to join: give files that eval/vqa.py --out wrote.")
    files = [read_scores(path) for path in results]
    found = retained(files, command.of)
    of = next(each.model for each in found if each.lead is None)
    say(retained_table(files, found, of))
    say(
        f"\nShares of the score of {found[0].model}, in per cent, with 95 % intervals (photos are resampled, all models alike)."
    )
    for each in files:
        if each.benchmark in GUESSED:
            say(f"The share of {each.benchmark} is of accuracy, of which chance is half.")
    for name, benchmarks in left_out(files).items():
        say(f"Left out: {name}, which is not in the results of {', '.join(benchmarks)}.")
    if command.out is not None:
        benchmarks = [each.benchmark for each in files]
        facts = {"benchmarks": benchmarks, "of": of}
        command.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(command.out, {"retained": [asdict(each) for each in found], **facts, **making()})
        say(f"Wrote {command.out}.")


def retained_table(files: list[BenchmarkScores], found: list[Retained], of: str) -> str:
    """A row a model: its share a benchmark, the mean, and how far `of` is ahead of it."""
    lines = [["model", *(each.benchmark for each in files), "mean", f"{of} is ahead by"]]
    for each in found:
        shares = [_text(share) for share in (*each.shares, each.mean)]
        lines.append([each.model, *shares, "" if each.lead is None else _text(each.lead, "+")])
    return aligned(lines)


def _text(share: Interval, sign: str = "") -> str:
    return f"{100 * share.value:{sign}.1f} ({100 * share.low:{sign}.1f} to {100 * share.high:{sign}.1f})"
