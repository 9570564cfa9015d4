"""The plots of the pages: what each is drawn from, and how. The same numbers give the same bytes on the same matplotlib.

Colours are those of Okabe and Ito, which all eyes tell apart. A picture carries a hash of what it was drawn from.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from sfvlm.util.files import replacing

from .files import Results
from .speed_tables import SCALING
from .swap_tables import RETAINED, measured_budgets, measured_ways
from .ways import DENSE, SPARSE, tower_macs

HASH = "drawn-from"
BLUE, GREY, ORANGE, GREEN = "#0072B2", "#777777", "#D55E00", "#009E73"
STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.axisbelow": True, "font.family": "DejaVu Sans", "savefig.facecolor": "white",
}  # fmt: skip
# Which side of its dot a label stands on, where it would lie on another one.
SHORT = {
    "reduce:resolution@49": "photo at 112 px",
    "reduce:larger-patch@49": "32-px patches",
    "reduce:merging@49": "merged early",
    "reduce:merging-decreasing@49": "merged, fewer and fewer",
    "reduce:merging-gradual@49": "merged in every block",
    "reduce:stride@49": "evenly spaced",
    "reduce:average@49": "averages",
    "reduce:diversity@49": "most diverse",
    "reduce:cls-attention@49": "most attended",
}


@dataclass(frozen=True)
class Plot:
    """What a plot is drawn from, and who draws it onto an axis."""

    data: Callable[[Results], Any]
    paint: Callable[[Any, Any], None]
    panels: int = 1
    size: tuple[float, float] = (7.2, 3.8)  # inches

    def draw(self, data: Any, path: Path, digest: str) -> None:
        """Writes the picture, in few colours."""
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        with rc_context(STYLE):
            figure = Figure(figsize=self.size, layout="constrained", dpi=150)
            axes = figure.subplots(1, self.panels)
            self.paint(axes, data)
            drawn = io.BytesIO()
            figure.savefig(drawn, metadata={"Software": None})
        picture = Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE)
        notes = PngImagePlugin.PngInfo()
        notes.add_text(HASH, digest)
        with replacing(path) as temporary:
            picture.save(temporary, "PNG", optimize=True, pnginfo=notes)


def drawn_from(path: Path) -> str | None:
    """The hash of what a picture was drawn from; None where there is no picture, or one of another kind."""
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        return str(picture.info.get(HASH))


def _kept(results: Results, model: str) -> dict[str, float]:
    found = results(RETAINED, f"retained[model={model}].mean")
    share = tower_macs(results, model) / tower_macs(results, DENSE)
    return {"work": share, "value": found["value"], "low": found["low"], "high": found["high"]}


def _swap_data(results: Results) -> dict[str, Any]:
    return {
        "sfvlm": {str(count): _kept(results, model) for count, model in measured_budgets(results).items()},
        "others": {model: _kept(results, model) for model in measured_ways(results) if model != SPARSE},
    }


def _paint_swap(axis: Any, data: dict[str, Any]) -> None:
    """What is kept on average over the tower's work; bars are 95 % intervals."""
    ours = data["sfvlm"]
    x = [100 * each["work"] for each in ours.values()]
    axis.plot(x, [100 * each["value"] for each in ours.values()], "-", color=BLUE, linewidth=1.5, zorder=3)
    for found, colour, marker in [
        *((each, BLUE, "o") for each in ours.values()),
        *((each, ORANGE, "s") for each in data["others"].values()),
    ]:
        place, value = 100 * found["work"], 100 * found["value"]
        ends = [[value - 100 * found["low"]], [100 * found["high"] - value]]
        axis.errorbar([place], [value], yerr=ends, color=colour, marker=marker, markersize=5, elinewidth=1, alpha=0.8)
    for count, each in ours.items():
        axis.annotate(
            count,
            (100 * each["work"], 100 * each["value"]),
            (5, -11),
            textcoords="offset points",
            fontsize=8,
            color=BLUE,
        )
    whole = sorted((each["value"], name) for name, each in data["others"].items() if each["work"] > 0.95)
    for name, each in data["others"].items():
        if each["work"] <= 0.95:
            axis.annotate(
                SHORT[name],
                (100 * each["work"], 100 * each["value"]),
                (7, 0),
                textcoords="offset points",
                fontsize=8,
                color=ORANGE,
                va="center",
            )
    if whole:
        listed = "\n".join(SHORT[name] for _, name in reversed(whole))
        axis.annotate(
            f"of the dense tower's\ntokens, from above:\n{listed}",
            (104, 100 * whole[len(whole) // 2][0]),
            fontsize=8,
            color=ORANGE,
            va="center",
            annotation_clip=False,
        )
    axis.axhline(100, color=GREY, linewidth=1, linestyle=":")
    axis.set_xlim(0, 130)
    axis.set_xticks([0, 20, 40, 60, 80, 100])
    axis.set_xlabel("multiply-adds of the tower, % of the dense one's")
    axis.set_ylabel("kept of the dense score, mean of five, %")
    axis.plot(
        [],
        [],
        "o-",
        color=BLUE,
        label=f"sfvlm, {' to '.join(dict.fromkeys((next(iter(ours)), list(ours)[-1])))} tokens",
    )
    axis.plot([], [], "s", color=ORANGE, label="other ways to 49 tokens, nothing trained")
    axis.legend(loc="lower right", fontsize=8, frameon=False)


def _scaling_data(results: Results) -> dict[str, Any]:
    rows = results(SCALING, "rows")
    return {
        "sparse": rows[0]["model"],
        "points": [
            [
                row["panel"],
                row["model"],
                row["x"],
                *(row["measures"]["encode_seconds"][key] for key in ("median", "min", "max")),
            ]
            for row in rows
        ],
    }


def _paint_scaling(axes: Any, data: dict[str, Any]) -> None:
    """Time over tokens, photos at once and the photo's side; bands are extremes."""
    panels = {
        "tokens": "image tokens of a photo",
        "photos": "photos at once",
        "image size": "side of the photo, pixels",
    }
    for axis, (panel, title) in zip(axes, panels.items(), strict=True):
        points = [point for point in data["points"] if point[0] == panel]
        for model in dict.fromkeys(point[1] for point in points):
            chosen = sorted(point[2:] for point in points if point[1] == model)
            x, median, low, high = (
                [factor * value for value in column]
                for factor, column in zip((1, 1e3, 1e3, 1e3), zip(*chosen, strict=True), strict=True)
            )
            colour, label = (BLUE, "sfvlm") if model == data["sparse"] else (GREY, "the dense encoder")
            axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
            axis.plot(x, median, "o-", color=colour, markersize=4, linewidth=1.3, label=label)
        axis.set_xlabel(title)
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("time, ms")
    axes[2].legend(fontsize=8, frameon=False)


PLOTS: dict[str, Plot] = {
    "kept-over-work": Plot(_swap_data, _paint_swap),
    "scaling": Plot(_scaling_data, _paint_scaling, panels=3, size=(9, 2.9)),
}
