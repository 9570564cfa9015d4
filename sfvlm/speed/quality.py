"""Which model of a results file is which of a file of speed: what a plot of quality against latency has to know.

    speeds, results = read_files([Path("speed.json"), Path("zeroshot.json"), Path("vqa.json")])
    spots, left_out = match(speeds, results)

It is the same if it has the same name or folder, is reduced in the same way if at all, and has as many tokens.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..alternatives.towers import REDUCE
from ..util.files import read_any_json
from .encoders import NAME
from .measure import Row

# What eval/zeroshot.py calls the controls that are methods of `sfvlm.alternatives.methods` too.
CONTROLS = {
    "lower resolution": "resolution",
    "larger patch": "larger-patch",
    "ToMe, early": "merging",
    "ToMe, decreasing": "merging-decreasing",
    "ToMe, gradual": "merging-gradual",
}
# What is plotted of a result, the first that it has, and how its axis is called.
QUALITIES = {
    "acc1": "top-1 accuracy",
    "image_retrieval_recall@1": "photo retrieval, recall at 1",
    "agreement": "same first choice as the teacher",
    "cosine": "cosine to the teacher's vector",
    "cider_d": "CIDEr-D",
}
NO_SHARES = ("cosine", "cider_d")  # whose 0.3 is not 30 %
ACCELERATED = re.compile(r" \+\w+$")  # the end of a name in a zero-shot file, such as "sf49@49 +int8"


class Identity(NamedTuple):
    """By what a model is known in all files: what it is or is made of, without folders; how; and its image tokens."""

    base: str
    way: str | None
    tokens: int | None

    @property
    def family(self) -> str:
        """All budgets of it together, for people."""
        if self.way is None:
            return self.base
        return self.way.removeprefix(REDUCE) if self.way.startswith(REDUCE) else f"{self.base}/{self.way}"


class Spot(NamedTuple):
    """A model in a plot of quality against latency."""

    identity: Identity
    panel: tuple[str, str]  # data set, metric
    quality: float
    low: float | None
    high: float | None
    speed: Row


def read_files(files: Sequence[Path]) -> tuple[list[Row], list[Row]]:
    """Rows of speed, one a model at the smallest batch measured, and rows of evaluations.

    Raises:
        ValueError: A file is neither, or one kind is missing.
    """
    speeds: list[Row] = []
    results: list[Row] = []
    for file in files:
        try:
            content = read_any_json(file)
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read as JSON: {error}") from error
        if not isinstance(content, dict) or not ("rows" in content or "results" in content):
            raise ValueError(f"{file} was written neither by eval/speed.py nor by eval/zeroshot.py or eval/vqa.py.")
        rows = [row for row in content.get("rows", []) if "panel" not in row and row.get("how") is None]
        batch = min((row["batch_size"] for row in rows), default=0)
        speeds += [row for row in rows if row["batch_size"] == batch]
        results += content.get("results", [])
    if not speeds or not results:
        missing = "eval/speed.py (encoders or hosts)" if not speeds else "eval/zeroshot.py or eval/vqa.py"
        raise ValueError(f"A plot of quality against latency needs a file of {missing} too.")
    return speeds, results


def match(speeds: Sequence[Row], results: Sequence[Row]) -> tuple[list[Spot], list[str]]:
    """Models that are in both, and a line for each that is not."""
    known: dict[Identity, Row] = {}
    for row in speeds:
        for identity in _ways_to_say(speed_identity(row), "@" in row["model"]):
            known.setdefault(identity, row)
    spots, left_out, used = [], [], set()
    for row in results:
        if ACCELERATED.search(row["model"]):
            left_out.append(f"{row['model']} ({row['dataset']}): accelerated")
            continue
        identity, metric = result_identity(row), headline(row)
        speed = next((known[each] for each in _ways_to_say(identity, "@" in row["model"]) if each in known), None)
        if speed is None or metric is None:
            left_out.append(f"{row['model']} ({row['dataset']}): no {'latency' if speed is None else 'quality'}")
            continue
        used.add(id(speed))
        low, high = (row["metrics"].get(f"{metric}_{end}") for end in ("low", "high"))
        spots.append(Spot(identity, (row["dataset"], metric), row["metrics"][metric], low, high, speed))
    return spots, left_out + [f"{row['model']}: no quality" for row in speeds if id(row) not in used]


def _ways_to_say(identity: Identity, asks_for_tokens: bool) -> list[Identity]:
    """An identity, and the same with any number of tokens, unless its name asks for one: tiles differ from photo to photo."""
    return [identity] if asks_for_tokens else [identity, identity._replace(tokens=None)]


def speed_identity(row: Row) -> Identity:
    """Of a row of eval/speed.py."""
    return _identity(row["model"], row["measures"].get("image_tokens", {}).get("median"))


def result_identity(row: Row) -> Identity:
    """Of a row of eval/zeroshot.py or eval/vqa.py."""
    name, source, tokens = row["model"], row["pretrained"], row["metrics"].get("tokens")
    for control, method in CONTROLS.items():
        if name.startswith(control):
            return _identity(f"{source}/{REDUCE}{method}@{tokens}", tokens)
    if name == "teacher":
        return _identity(source, tokens)
    host, _, tower = source.partition(" with ")
    return _identity(f"{host}/{tower}" if tower.startswith(REDUCE) else tower or name, tokens)


def _identity(name: str, tokens: float | None) -> Identity:
    """Of a name of `sfvlm.speed.encoders`, and the image tokens that were counted."""
    parts = NAME.fullmatch(name)
    if parts is None:
        return Identity(name, None, None if tokens is None else round(tokens))
    asked = parts["tokens"]
    count = int(asked) if asked and asked.isdecimal() else None if tokens is None else round(tokens)
    return Identity(Path(parts["base"]).name, parts["way"], count)


def headline(row: Row) -> str | None:
    """The metric that stands for a result: the one with an interval, else the first of `QUALITIES`."""
    metrics = row["metrics"]
    with_interval = [name for name in metrics if f"{name}_low" in metrics and name not in ("difference", "retained")]
    return next((name for name in (*with_interval, *QUALITIES) if name in metrics), None)
