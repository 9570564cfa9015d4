"""Plots of results files: quality against latency, and how cost grows.

    plot_quality([Path("speed.json"), Path("zeroshot.json"), Path("vqa.json")], Path("quality.png"))    -> what was left out
    plot_scaling(rows, Path("scaling.png"))

Needs matplotlib: `pip install 'sfvlm[plot]'`. Colours are those of Okabe and Ito, which all eyes tell apart.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..alternatives.towers import REDUCE
from ..util.files import replacing
from .measure import Row
from .quality import NO_SHARES, QUALITIES, Spot, match, read_files
from .scaling import fits

DENSE, SPARSE = "#222222", ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
OTHERS = (
    ("#E69F00", "s"), ("#56B4E9", "v"), ("#CC79A7", "P"), ("#009E73", "X"), ("#999999", "D"), ("#D55E00", "<"),
    ("#7A6C00", "^"), ("#004F7A", "h"), ("#882255", ">"), ("#332288", "p"),
)  # fmt: skip
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e5e5",
    "axes.edgecolor": "#888888",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "savefig.dpi": 160,
    "savefig.facecolor": "white",
}
WIDTH = 9.2  # inches
A_ROW = 4  # panels at most
SUFFIXES = (".png", ".svg", ".pdf")
LATENCIES = {"first_token_seconds": "time to the first word, ms", "encode_seconds": "encoder latency, ms"}


def check_plot(path: Path) -> None:
    """What can be said of a plot before anything is measured.

    Raises:
        ValueError: It cannot be written there, or matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES or path.is_dir() or not path.parent.is_dir():
        raise ValueError(
            f"--plot is {path}; it must be a file in a folder that exists, ending in {', '.join(SUFFIXES)}."
        )
    _figure_class()


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("Plots need the package matplotlib: pip install 'sfvlm[plot]'.") from None
    return Figure


@contextmanager
def _figure(path: Path, panels: int, height: float) -> Iterator[tuple[Any, list[Any]]]:
    """A figure and its panels, written at the end, whole or not at all; a row's height is in inches."""
    figure_class = _figure_class()
    rows = math.ceil(panels / A_ROW)
    columns = math.ceil(panels / rows)
    from matplotlib import rc_context

    with rc_context(STYLE):
        size = (WIDTH if columns > 1 else 0.7 * WIDTH, rows * height)
        figure = figure_class(figsize=size, layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis in axes[panels:]:
            axis.remove()
        yield figure, axes[:panels]
        with replacing(path) as temporary:
            figure.savefig(temporary)


def plot_quality(files: Sequence[Path], path: Path) -> list[str]:
    """Draws quality against latency, a panel a data set, from files of `eval/speed.py` and of the evaluations.

    A model of one is a model of the other if it has the same name or source and as many tokens. Encoders that were
    accelerated (`eval/speed.py --accelerate`) have no quality of their own and are not drawn.

    Returns:
        A line for each model that is in only one kind of file.

    Raises:
        ValueError: A file is none of these, no model is in both kinds, or hosts and encoders are to be in one plot.
    """
    speeds, results = read_files(files)
    spots, left_out = match(speeds, results)
    if not spots:
        raise ValueError(
            f"No model is both in a file of eval/speed.py ({', '.join(row['model'] for row in speeds)}) and in one of an "
            f"evaluation ({', '.join(dict.fromkeys(row['model'] for row in results))})."
        )
    panels = list(dict.fromkeys(spot.panel for spot in spots))
    latency = next((name for name in LATENCIES if all(name in spot.speed["measures"] for spot in spots)), None)
    if latency is None:
        hosts, encoders = (
            ", ".join(dict.fromkeys(spot.speed["model"] for spot in spots if name in spot.speed["measures"]))
            for name in LATENCIES
        )
        raise ValueError(
            f"Of hosts ({hosts}) the time to the first word was measured, and of encoders ({encoders}) their own: plot one kind "
            "at a time."
        )
    looks = _looks(spots)
    with _figure(path, len(panels), 4.3 if len(panels) <= A_ROW else 3.6) as (figure, axes):
        for axis, panel in zip(axes, panels, strict=True):
            _draw_quality(axis, [spot for spot in spots if spot.panel == panel], looks, latency)
        _legend(figure, axes)
    return left_out


def _legend(figure: Any, axes: Sequence[Any]) -> None:
    """One below all panels."""
    found: dict[str, Any] = {}
    for axis in axes:
        found |= {name: handle for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=min(4, len(found)), fontsize=8)


def _looks(spots: Sequence[Spot]) -> dict[str, tuple[str, str, str]]:
    """Family -> what kind it is, its colour and its marker."""
    most = max(spot.identity.tokens or 0 for spot in spots)
    looks: dict[str, tuple[str, str, str]] = {}
    counts = {"sparse": 0, "alternative": 0}
    for spot in spots:
        family, way = spot.identity.family, spot.identity.way
        if family in looks:
            continue
        if way is not None and way.startswith(REDUCE):
            colour, marker = OTHERS[counts["alternative"] % len(OTHERS)]
            kind, looks[family] = "alternative", ("alternative", colour, marker)
        elif spot.identity.tokens == most:
            looks[family] = ("dense", DENSE, "*")
            continue
        else:
            kind, looks[family] = "sparse", ("sparse", SPARSE[counts["sparse"] % len(SPARSE)], "o")
        counts[kind] += 1
    return looks


def _draw_quality(axis: Any, spots: Sequence[Spot], looks: dict[str, tuple[str, str, str]], latency: str) -> None:
    dataset, metric = spots[0].panel
    for family, (kind, colour, marker) in looks.items():
        members = [spot for spot in spots if spot.identity.family == family]
        if not members:
            continue
        members.sort(key=lambda spot: spot.speed["measures"][latency]["median"])
        x = [spot.speed["measures"][latency]["median"] * 1e3 for spot in members]
        y = [spot.quality for spot in members]
        low = [spot.quality if spot.low is None else spot.low for spot in members]
        high = [spot.quality if spot.high is None else spot.high for spot in members]
        for place, *ends in zip(x, low, high, strict=True):
            axis.plot([place, place], ends, color=colour, linewidth=1, alpha=0.35)
        tokens = ", ".join(str(spot.identity.tokens) for spot in members) if len(members) == 1 else ""
        size = {"dense": 11, "sparse": 6.5, "alternative": 5.5}[kind]
        line = "-" if kind == "sparse" else "none"
        title = f"{family}, {tokens} tokens" if tokens else family
        look: dict[str, Any] = dict(
            linestyle=line, color=colour, marker=marker, markersize=size, markeredgecolor="white"
        )
        axis.plot(x, y, **look, label=title)
        if len(members) > 1:
            for place, value, spot in zip(x, y, members, strict=True):
                axis.annotate(
                    str(spot.identity.tokens), (place, value), (4, -10), textcoords="offset points", fontsize=7.5,
                    color=colour,
                )  # fmt: skip
    axis.set_xlim(left=0)
    if metric not in NO_SHARES and max(spot.quality for spot in spots) <= 1:
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.set_title(dataset)
    axis.set_xlabel(LATENCIES[latency])
    axis.set_ylabel(QUALITIES.get(metric, metric.replace("_", " ")))


def plot_scaling(rows: Sequence[Row], path: Path) -> None:
    """Draws rows of `sfvlm.speed.scaling`: latency and multiply-adds over tokens, photos at once, and the photo's side."""
    titles = {
        "tokens": ("Tokens", "image tokens of a photo"),
        "photos": ("Photos", "photos at once"),
        "image size": ("Image size", "side of the photo, pixels"),
    }
    lines = {(fit["panel"], fit["model"]): fit for fit in fits(rows)}
    panels = [name for name in titles if any(row["panel"] == name for row in rows)]
    sparse = next(row["model"] for row in rows if row["panel"] == panels[0])
    with _figure(path, len(panels), 3.3) as (figure, axes):
        for axis, panel in zip(axes, panels, strict=True):
            _draw_scaling(axis, [row for row in rows if row["panel"] == panel], lines, sparse)
            fit = lines[panel, sparse]
            axis.set_title(titles[panel][0] + ("" if panel == "image size" else f", R² = {fit['explained']:.3f}"))
            axis.set_xlabel(titles[panel][1])
        axes[0].set_ylabel("latency, ms")
        _legend(figure, axes)


def _draw_scaling(axis: Any, rows: Sequence[Row], lines: dict[tuple[str, str], dict[str, Any]], sparse: str) -> None:
    """One panel: medians with their extremes and, where tokens or photos are counted, the line through them.

    Multiply-adds are dotted, on the axis at the right.
    """
    panel, right = rows[0]["panel"], axis.twinx()
    for model in dict.fromkeys(row["model"] for row in rows):
        chosen = [row for row in rows if row["model"] == model]
        colour, marker = (SPARSE[0], "o") if model == sparse else (DENSE, "s")
        x = [row["x"] for row in chosen]
        medians, low, high = (
            [row["measures"]["encode_seconds"][key] * 1e3 for row in chosen] for key in ("median", "min", "max")
        )
        axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        is_line = panel != "image size"
        look: dict[str, Any] = dict(color=colour, marker=marker, markersize=5, markeredgecolor="white", label=model)
        axis.plot(x, medians, linestyle="none" if is_line else "-", **look)
        if is_line:
            fit = lines[panel, model]
            ends = [0, max(x)]
            axis.plot(
                ends, [1e3 * (fit["at_zero"] + fit["slope"] * end) for end in ends], "--", color=colour, linewidth=1,
                label="least-squares line",
            )  # fmt: skip
        else:
            axis.set_xticks(x)
        work = [row["measures"]["encode_macs"]["median"] * 1e-9 for row in chosen]
        right.plot(x, work, ":", color=colour, linewidth=1.2)
    axis.plot([], [], ":", color="#888888", linewidth=1.2, label="GMACs (right axis)")
    right.set_ylim(bottom=0)
    right.grid(False)
    right.tick_params(colors="#888888", labelsize=8)
    axis.set_ylim(bottom=0)
    if panel != "image size":
        axis.set_xlim(left=0)
