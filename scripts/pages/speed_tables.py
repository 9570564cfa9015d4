"""Tables of what things cost, from files of `eval/speed.py`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .files import Results
from .forms import markdown, milliseconds, times, whole_percent
from .ways import BUDGETS, DENSE, SPARSE, TOWERS, WAYS, tower_name

SUITE, FORMS, HOST = "speed/suite.json", "speed/forms.json", "speed/host.json"
SCALING, BOOTSTRAP = "speed/scaling.json", "speed/bootstrap.json"
LOADS = (
    ("serve/load-llava-tiny.json", "the shipped LLaVA, float32"),
    ("serve/load-clip-l14-336.json", "LLaVA-1.5's tower, bfloat16"),
)
SHAPE = "speed/shape-7b.json"
BIG = "clip-l14-336"


def row(results: Results, file: str, model: str, batch: int = 1) -> Mapping[str, Any]:
    """The measures of a model at a batch size.

    Raises:
        ValueError: It was not measured.
    """
    for each in results(file, "rows"):
        if (each["model"], each["batch_size"]) == (model, batch):
            return each["measures"]
    raise ValueError(f"results/{file} has no {model} at batch {batch}")


def spread(found: Mapping[str, Any]) -> str:
    """A median time and its extremes; the time alone where there was one turn."""
    if found["min"] == found["max"]:
        return milliseconds(found["median"])
    low, high = (milliseconds(found[end]).removesuffix(" ms") for end in ("min", "max"))
    return f"{milliseconds(found['median'])} ({low} to {high})"


def less(found: Mapping[str, Any]) -> str:
    """How many times less than the first."""
    return "1" if found["times_less"] is None else times(found["times_less"])


def suite(results: Results) -> str:
    """Every tower that a CLIP ViT-L/14-336 can become."""
    rows = results(SUITE, "rows")
    whole = row(results, SUITE, BIG)["encoder_macs"]["median"]
    lines = [["tower", "image tokens", "GMACs", "times fewer", "time, batch 1", "times less"]]
    for each in rows:
        found = each["measures"]
        macs = found["encoder_macs"]["median"]
        lines.append([
            _suite_name(each["model"]), f"{found['image_tokens']['median']:.0f}", f"{macs * 1e-9:.3g}",
            times(whole / macs), spread(found["encode_seconds"]), less(found["encode_seconds"]),
        ])  # fmt: skip
    return markdown(lines)


def _suite_name(model: str) -> str:
    base, _, rest = model.partition("/")
    if rest.startswith("reduce:"):
        return WAYS[rest]
    if rest.startswith("inherited"):
        return "sfvlm, boxes that move (`--focusing inherited`)"
    return "CLIP ViT-L/14-336" if "@" not in base else "**sfvlm**, chosen patches"


FORM_NAMES = {
    BIG: "CLIP ViT-L/14-336",
    f"{BIG}@49": "its student for a LLaVA, 49 tokens",
    "sparseformer-clip-large": "official CLIP-large preset, 64 tokens",
}


def forms(results: Results) -> str:
    """Encoders as they are and in other forms, and how much less that is than the dense one as it is and in the same form."""
    rows = {each["model"]: each["measures"] for each in results(FORMS, "rows")}
    dense = rows[BIG]["encode_seconds"]["median"]
    lines = [
        [
            "encoder",
            "form",
            "GMACs",
            "time, batch 1",
            "times less",
            "than the dense one in this form",
            "share of the floor",
        ]
    ]
    for model, title in FORM_NAMES.items():
        for how in ("", " +packed", " +int8", " +bfloat16"):
            if model + how not in rows:
                continue
            found = rows[model + how]
            same = rows[BIG + how]["encode_seconds"]["median"] / found["encode_seconds"]["median"]
            floor = found.get("floor_share")
            lines.append([
                title, how.strip(" +") or "as it is", f"{rows[model]['encoder_macs']['median'] * 1e-9:.3g}",
                spread(found["encode_seconds"]), times(dense / found["encode_seconds"]["median"]), times(same),
                "" if floor is None else whole_percent(floor["median"]),
            ])  # fmt: skip
    return markdown(lines)


def towers(results: Results) -> str:
    """llava-tiny's tower and what stands for it."""
    names = {DENSE: "dense, 196 tokens"}
    names |= {f"{SPARSE}@{count}": f"**sfvlm**, {count} tokens" for count in BUDGETS}
    names |= {tower_name(model): title for model, title in WAYS.items() if model != SPARSE}
    lines = [["tower", "GMACs", "batch 1", "times less", "batch 8", "times less"]]
    for model, title in names.items():
        one, eight = (row(results, TOWERS, model, batch) for batch in (1, 8))
        times_of = [each["encode_seconds"] for each in (one, eight)]
        cells = [cell for each in times_of for cell in (milliseconds(each["median"]), less(each))]
        lines.append([title, f"{one['encoder_macs']['median'] * 1e-9:.3g}", *cells])
    return markdown(lines)


PARTS = {
    "prompt_tokens": "prompt tokens",
    "encode_seconds": "encode (tower and projector)",
    "prefill_seconds": "prefill",
    "first_token_seconds": "first word, preparing the photo included",
    "token_seconds": "each further word",
    "kv_cache_bytes": "keys and values kept",
}


def host(results: Results) -> str:
    """A reply of the shipped LLaVA, part by part."""
    models = list(dict.fromkeys(each["model"] for each in results(HOST, "rows")))
    batches = sorted({each["batch_size"] for each in results(HOST, "rows")})
    heads = [head for batch in batches for head in (f"dense, batch {batch}", "49 tokens", "times less")]
    lines = [["", *heads]]
    for part, title in PARTS.items():
        cells = []
        for batch in batches:
            dense, sparse = (row(results, HOST, model, batch)[part] for model in models[:2])
            cells += [_amount(part, dense["median"]), _amount(part, sparse["median"]), less(sparse)]
        lines.append([title, *cells])
    return markdown(lines)


def _amount(name: str, value: float) -> str:
    if name.endswith("seconds"):
        return milliseconds(value)
    return f"{value * 1e-6:.2f} MB" if name.endswith("bytes") else f"{value:.0f}"


def bootstrap(results: Results) -> str:
    """How fast students learn."""
    lines = [["student", "batch", "photos a second", "products allow", "decoding allows", "share of the floor"]]
    for each in _rows(results, BOOTSTRAP):
        found = each["measures"]
        numbers = [f"{found[f'{what}_throughput']['median']:.3g}" for what in ("bootstrap", "products", "decode")]
        lines.append(
            [f"`{each['model']}`", each["batch_size"], *numbers, whole_percent(found["floor_share"]["median"])]
        )
    return markdown(lines)


def shape(results: Results) -> str:
    """A reply of LLaVA-1.5-7B's sizes."""
    dense, sparse, picked = _rows(results, SHAPE)
    lines = [["", "dense, 576 tokens", "**sfvlm**, 49", "times less", "64 picked from the dense tower", "times less"]]
    for part, title in PARTS.items():
        first, ours, theirs = (each["measures"][part] for each in (dense, sparse, picked))
        amounts = [_amount(part, each["median"]) for each in (first, ours, theirs)]
        # A shape is shown pixels, so that no photo is made ready.
        lines.append([title.partition(",")[0], amounts[0], amounts[1], less(ours), amounts[2], less(theirs)])
    return markdown(lines)


def load(results: Results) -> str:
    """What two servers do beside each other."""
    lines = [
        [
            "model",
            "tokens of the prompt",
            "at once",
            "requests a second",
            "times more",
            "first word",
            "whole answer, 95 %",
        ]
    ]
    for file, name in LOADS:
        for each in _rows(results, file):
            side = "dense" if each["server"].startswith("dense") else "**49 tokens**"
            lines.append([
                f"{name}: {side}", f"{each['prompt_tokens']:.0f}", f"{each['concurrency']}", f"{each['requests_a_second']:.3g}",
                times(each["faster"]), f"{each['first_word_ms']:.0f} ms", f"{each['latency_95_ms']:.0f} ms",
            ])  # fmt: skip
    return markdown(lines)


def _rows(results: Results, file: str) -> Sequence[Mapping[str, Any]]:
    return results(file, "rows")


SPEED_TABLES: dict[str, Callable[[Results], str]] = {
    "speed-suite": suite,
    "speed-forms": forms,
    "speed-towers": towers,
    "speed-host": host,
    "speed-bootstrap": bootstrap,
    "serve-load": load,
    "speed-7b": shape,
}
