"""The figures in prose, by name: which file each comes from, where in it, and how it is written."""

from collections.abc import Callable, Sequence
from functools import partial

from .files import Results
from .forms import percent, times, whole_percent, with_interval
from .speed_tables import BIG, FORMS, HOST, SCALING, row
from .swap_tables import FOCUS, RETAINED
from .ways import BENCHMARKS, DENSE, SPARSE, tower_macs, work
from .zeroshot_tables import row_of

Figure = Callable[[Results], str]


def _value(file: str, path: str, form: Callable[[float], str], results: Results) -> str:
    return form(results(file, path))


def value(file: str, path: str, form: Callable[[float], str]) -> Figure:
    """A number of a file, in a form."""
    return partial(_value, file, path, form)


def _retained(path: str) -> Figure:
    return value(RETAINED, f"retained[model={SPARSE}].{path}", percent)


def mean_interval(results: Results) -> str:
    """As 97.7 % (95.7 to 100.1)."""
    found = results(RETAINED, f"retained[model={SPARSE}].mean")
    return f"{percent(found['value'])} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def lead(model: str) -> Figure:
    """How far ours is ahead of another way, with its interval."""
    return lambda results: with_interval(results(RETAINED, f"retained[model={model}].lead"))


def mean_of(model: str) -> Figure:
    """What another way keeps on average."""
    return value(RETAINED, f"retained[model={model}].mean.value", percent)


def asked(what: str) -> Figure:
    """Questions, or photos and scenes, of all benchmarks together; photos that two benchmarks share count once."""

    def count(results: Results) -> str:
        numbers = {name: results(f"swap/{name}.json", f"results[model={DENSE}].metrics.{what}") for name in BENCHMARKS}
        if what == "photos":  # the captions' photos are those of pope-captions too
            numbers["captions"] = max(numbers["captions"], numbers.pop("pope-captions"))
        return f"{sum(numbers.values()):,}"

    return count


def count_of(benchmark: str, what: str) -> Figure:
    """Questions or photos of one benchmark."""
    return value(f"swap/{benchmark}.json", f"results[model={DENSE}].metrics.{what}", "{:,.0f}".format)


def zeroshot(name: str, begins: str, metric: str = "acc1") -> Figure:
    """A model's accuracy or recall on a set."""

    def of(results: Results) -> str:
        found = row_of(results, name, begins)
        if found is None:
            raise ValueError(f"results/{name} has no {begins}")
        return percent(found[metric])

    return of


def focused(model: str) -> Figure:
    """What is answered of small things, but for counting: colours, shapes and signs, each weighing by its questions."""

    def of(results: Results) -> str:
        found = results(FOCUS, f"results[model={model}].metrics")
        return whole_percent(found["accuracy/object"]) if "accuracy/object" in found else percent(found["accuracy"])

    return of


def times_less(model: str, how: str = "") -> Figure:
    """How many times less time than the dense encoder as it is: by medians, as in the table."""

    def of(results: Results) -> str:
        dense = row(results, FORMS, BIG)["encode_seconds"]["median"]
        return times(dense / row(results, FORMS, model + how)["encode_seconds"]["median"])

    return of


def macs_less(model: str) -> Figure:
    """How many times fewer multiply-adds than the dense encoder."""

    def of(results: Results) -> str:
        dense, sparse = (row(results, FORMS, each)["encoder_macs"]["median"] for each in (BIG, model))
        return times(dense / sparse)

    return of


def of_reply(part: str, batch: int = 1) -> Figure:
    """How many times less a part of a reply is with 49 tokens."""

    def of(results: Results) -> str:
        models: Sequence[str] = list(dict.fromkeys(each["model"] for each in results(HOST, "rows")))
        return times(row(results, HOST, models[1], batch)[part]["times_less"])

    return of


def scaled(panel: str, what: str, which: int = 0) -> Figure:
    """Of the lines through measured times: `explained` (R²), or `last_by_first`."""

    def of(results: Results) -> str:
        found = [fit for fit in results(SCALING, "fits") if fit["panel"] == panel]
        sparse = results(SCALING, "rows")[0]["model"]
        chosen = [fit for fit in found if (fit["model"] == sparse) == (which == 0)]
        return f"{chosen[0][what]:.2f}" if what == "explained" else times(chosen[0][what])

    return of


def work_of_all(results: Results) -> str:
    """Our tower's work at 49 tokens, by the dense one's."""
    return work(results, SPARSE)


def gmacs(model: str) -> Figure:
    """A tower's multiply-adds in billions."""
    return lambda results: f"{tower_macs(results, model) * 1e-9:.3g}"


FIGURES: dict[str, Figure] = {
    "swap-mean": _retained("mean.value"),
    "swap-mean-interval": mean_interval,
    "swap-work": work_of_all,
    "swap-questions": asked("questions"),
    "swap-photos": asked("photos"),
}
