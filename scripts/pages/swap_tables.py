"""Tables of a LLaVA with few tokens: what it keeps, word by word, and what focus gives."""

from collections.abc import Callable, Mapping
from typing import Any

from .files import Results
from .forms import markdown, percent, with_interval
from .ways import BENCHMARKS, BUDGETS, DENSE, SPARSE, TITLES, WAYS, tower_macs, work

RETAINED = "swap/retained.json"
README_WAYS = ("stride", "diversity", "average", "merging-gradual", "resolution")


def _kept(results: Results, model: str) -> Mapping[str, Any]:
    return results(RETAINED, f"retained[model={model}]")


def _shares(results: Results, model: str) -> list[str]:
    """What is kept of each benchmark, in the order of `BENCHMARKS`."""
    order, shares = results(RETAINED, "benchmarks"), _kept(results, model)["shares"]
    return [percent(shares[order.index(name)]["value"]) for name in BENCHMARKS]


def measured_ways(results: Results) -> list[str]:
    """All ways, by what their towers work, the least first; ours before all."""
    measured = [each["model"] for each in results(RETAINED, "retained")]
    others = (name for name in WAYS if name != SPARSE and name in measured)
    return [SPARSE, *sorted(others, key=lambda name: round(tower_macs(results, name) / 1e7))]


def swap(results: Results) -> str:
    """A row a way: the tower's work, what is kept on average, at least, and how far ours is ahead."""
    lines = [["way to 49 tokens", "tower's work", "kept on average (95 % interval)", "least kept", "sfvlm is ahead by"]]
    for name in measured_ways(results):
        found = _kept(results, name)
        lead = "" if found["lead"] is None else with_interval(found["lead"])
        least = percent(min(share["value"] for share in found["shares"]))
        lines.append([WAYS[name], work(results, name), mean_kept(found), least, lead])
    return markdown(lines)


def mean_kept(found: Mapping[str, Any]) -> str:
    """What is kept on average, as 97.7 % (95.7 to 100.1)."""
    low, high = 100 * found["mean"]["low"], 100 * found["mean"]["high"]
    return f"{percent(found['mean']['value'])} ({low:.1f} to {high:.1f})"


def readme_ways(results: Results) -> str:
    """Few rows for the first page: ours, the best of the others, and the cheapest."""
    shown = ("captions", "daquar", "pope-captions", "scenes")
    titles = ("captions", "questions about rooms", "yes or no", "scenes")
    lines = [["way to 49 tokens", "tower's work", *titles, "kept on average (95 % interval)"]]
    for name in (SPARSE, *(f"reduce:{way}@49" for way in README_WAYS)):
        shares = dict(zip(BENCHMARKS, _shares(results, name), strict=True))
        lines.append(
            [WAYS[name], work(results, name), *(shares[each] for each in shown), mean_kept(_kept(results, name))]
        )
    return markdown(lines)


def swap_benchmarks(results: Results) -> str:
    """A row a way, a column a benchmark: what is kept of the dense one's score."""
    lines = [["way to 49 tokens", *(TITLES[name] for name in BENCHMARKS), "mean"]]
    for name in measured_ways(results):
        lines.append([WAYS[name], *_shares(results, name), percent(_kept(results, name)["mean"]["value"])])
    return markdown(lines)


def measured_budgets(results: Results) -> dict[int, str]:
    """Numbers of tokens of the one checkpoint, and what each is called in the files."""
    measured = [each["model"] for each in results(RETAINED, "retained")]
    names = {count: SPARSE if count == 49 else f"{SPARSE}@{count}" for count in BUDGETS}
    return {count: name for count, name in names.items() if name in measured}


def budgets(results: Results) -> str:
    """A row a number of tokens of the one checkpoint."""
    lines = [["tokens", *(TITLES[name] for name in BENCHMARKS), "mean (95 % interval)"]]
    for count, model in measured_budgets(results).items():
        lines.append(
            [f"{count}, {work(results, model)} of the work", *_shares(results, model), mean_kept(_kept(results, model))]
        )
    return markdown(lines)


def swap_scores(results: Results) -> str:
    """A row a benchmark: what was asked, and both scores."""
    lines = [["", "questions", "photos", "dense, 196 tokens", "sfvlm, 49 tokens", "kept"]]
    for name in BENCHMARKS:
        file = f"swap/{name}.json"
        dense, sparse = (results(file, f"results[model={model}].metrics") for model in (DENSE, SPARSE))
        score = "cider_d" if "cider_d" in dense else "accuracy"
        form, factor = ("{:.3f}", 1) if score == "cider_d" else ("{:.1f}", 100)
        cells = [with_interval(each, score, form, factor) for each in (dense, sparse)]
        kept = with_interval(sparse, "retained")
        title = f"{TITLES[name]}, {'CIDEr-D' if score == 'cider_d' else '%'}"
        lines.append([title, dense["questions"], dense["photos"], *cells, kept])
    return markdown(lines)


FOCUS = "focus/small-objects.json"
FOCUS_WAYS = {
    "whole photo": ("sfvlm, whole photo", 49),
    "100% of the tokens": ("**sfvlm, all tokens in the rectangle**", 49),
    "50% of the tokens": ("sfvlm, half of them", 49),
    "cut out": ("sfvlm, the rectangle cut out as a photo", 49),
    "dense, whole photo": ("dense, whole photo", 196),
    "dense, cut out": ("dense, the rectangle cut out as a photo", 196),
}


def focus(results: Results) -> str:
    """A row a way to look at small things."""
    kinds = ("color", "shape", "read", "count")
    lines: list[list[Any]] = [["", "tokens", "right (95 % interval)", *kinds]]
    for model, (title, tokens) in FOCUS_WAYS.items():
        found = results(FOCUS, f"results[model={model}].metrics")
        lines.append(
            [title, tokens, with_interval(found, "accuracy"), *(percent(found[f"accuracy/{kind}"]) for kind in kinds)]
        )
    return markdown(lines)


SWAP_TABLES: dict[str, Callable[[Results], str]] = {
    "readme-ways": readme_ways,
    "swap": swap,
    "swap-benchmarks": swap_benchmarks,
    "swap-budgets": budgets,
    "swap-scores": swap_scores,
    "focus": focus,
}
