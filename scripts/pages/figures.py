"""The figures in prose, by name: which file each comes from, where in it, and how it is written."""

from collections.abc import Callable
from functools import partial

from .files import Results
from .forms import percent, times, whole_percent
from .speed_tables import BIG, FORMS, LOADS, SCALING, row
from .swap_tables import FOCUS, RETAINED, mean_kept
from .ways import DENSE, SPARSE, TOWERS, work
from .zeroshot_tables import SETS, row_of

SOAK = "serve/soak.json"
Figure = Callable[[Results], str]


def _value(file: str, path: str, form: Callable[[float], str], results: Results) -> str:
    return form(results(file, path))


def value(file: str, path: str, form: Callable[[float], str]) -> Figure:
    """A number of a file, in a form."""
    return partial(_value, file, path, form)


def mean_interval(model: str) -> Figure:
    """What a way to few tokens keeps on average, as 97.7 % (95.7 to 100.1)."""

    def of(results: Results) -> str:
        return mean_kept(results(RETAINED, f"retained[model={model}]"))

    return of


def lead(model: str) -> Figure:
    """How many points ours keeps more than another way on average, with the interval."""

    def of(results: Results) -> str:
        found = results(RETAINED, f"retained[model={model}].lead")
        value, low, high = (100 * found[key] for key in ("value", "low", "high"))
        return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"

    return of


def work_of(model: str) -> Figure:
    """A tower's multiply-adds by those of the dense one."""
    return lambda results: work(results, model)


def zeroshot(file: str, begins: str, metric: str = "acc1", form: Callable[[float], str] = percent) -> Figure:
    """Accuracy on a set of the model whose name begins so."""

    def of(results: Results) -> str:
        found = row_of(results, file, begins)
        if found is None:
            raise ValueError(f"results/{file} has no {begins}")
        return form(found[metric])

    return of


def focused(model: str) -> Figure:
    """What is answered of small things."""
    return value(FOCUS, f"results[model={model}].metrics.accuracy", whole_percent)


def times_less(model: str) -> Figure:
    """How many times less time an encoder takes than the dense one as it is: by medians, as in the table."""

    def of(results: Results) -> str:
        dense, other = (row(results, FORMS, each)["encode_seconds"]["median"] for each in (BIG, model))
        return f"{times(dense / other)} times"

    return of


def macs_fewer(model: str) -> Figure:
    """How many times fewer multiply-adds it does."""

    def of(results: Results) -> str:
        dense, other = (row(results, FORMS, each)["encoder_macs"]["median"] for each in (BIG, model))
        return f"{times(dense / other)} times"

    return of


def time_share(results: Results) -> str:
    """The time of the shipped tower by that of the dense one, batch 1."""
    dense, sparse = (row(results, TOWERS, each)["encode_seconds"]["median"] for each in (DENSE, f"{SPARSE}@49"))
    return whole_percent(sparse / dense)


def scaled(panel: str, what: str, *, is_sparse: bool = True) -> Figure:
    """Of the lines through measured times: `explained` (R²), or `last_by_first`."""

    def of(results: Results) -> str:
        sparse = results(SCALING, "rows")[0]["model"]
        found = [fit for fit in results(SCALING, "fits") if fit["panel"] == panel]
        (fit,) = (each for each in found if (each["model"] == sparse) == is_sparse)
        return f"{fit[what]:.2f}" if what == "explained" else times(fit[what])

    return of


def soak_memory(share: float) -> Figure:
    """What the engine's processes held after such a share of the time."""

    def of(results: Results) -> str:
        found = results(SOAK, "memory_mb")
        return f"{found[round(share * (len(found) - 1))]:,}"

    return of


def served_more(concurrency: int) -> Figure:
    """How many times the requests a second of the dense one, at LLaVA-1.5's encoder size."""

    def of(results: Results) -> str:
        rows = results(LOADS[1][0], "rows")
        return times(max(each["faster"] for each in rows if each["concurrency"] == concurrency))

    return of


FIGURES: dict[str, Figure] = {
    "soak-requests": value(SOAK, "requests", "{:,.0f}".format),
    "soak-median": value(SOAK, "photo_seconds_median", "{:.2f}".format),
    "soak-memory-middle": soak_memory(0.5),
    "soak-memory-end": soak_memory(1),
    "served-more": served_more(4),
    "llava-49-retained": mean_interval(SPARSE),
    "llava-stride-retained": mean_interval("reduce:stride@49"),
    "llava-49-work": work_of(SPARSE),
    "lead-stride": lead("reduce:stride@49"),
    "lead-diversity": lead("reduce:diversity@49"),
    "lead-average": lead("reduce:average@49"),
    "lead-merging-gradual": lead("reduce:merging-gradual@49"),
    "lead-resolution": lead("reduce:resolution@49"),
    "zeroshot-scenes-sparse": zeroshot(SETS["scenes, 100 names"], SPARSE),
    "zeroshot-scenes-dense": zeroshot(SETS["scenes, 100 names"], "teacher"),
    "zeroshot-imagenette-sparse": zeroshot(SETS["Imagenette, 10 names"], SPARSE),
    "zeroshot-imagenette-dense": zeroshot(SETS["Imagenette, 10 names"], "teacher"),
    "imagenet-1000-sparse": zeroshot(SETS["imagenet-sample, 1000 names"], SPARSE, form=whole_percent),
    "imagenet-1000-dense": zeroshot(SETS["imagenet-sample, 1000 names"], "teacher", form=whole_percent),
    "focus-sparse-whole": focused("whole photo"),
    "focus-sparse-in": focused("100% of the tokens"),
    "focus-dense-whole": focused("dense, whole photo"),
    "l14-49-macs-fewer": macs_fewer(f"{BIG}@49"),
    "l14-49-times-less": times_less(f"{BIG}@49"),
    "l14-49-packed-times-less": times_less(f"{BIG}@49 +packed"),
    "l14-49-int8-times-less": times_less(f"{BIG}@49 +int8"),
    "tiny-tower-time-share": time_share,
    "scaling-tokens": scaled("tokens", "explained"),
    "scaling-photos": scaled("photos", "explained"),
    "scaling-size-sparse": scaled("image size", "last_by_first"),
    "scaling-size-dense": scaled("image size", "last_by_first", is_sparse=False),
}
