"""What is compared, by the name it has in the files and the one that people read; and the benchmarks."""

from .files import Results
from .forms import whole_percent

DENSE, SPARSE = "llava-tiny", "sparseformer-tiny-49"
WAYS = {
    SPARSE: "**sfvlm**",
    "reduce:resolution@49": "the photo at 112 px",
    "reduce:larger-patch@49": "32-px patches",
    "reduce:merging@49": "tokens merged in a third of the blocks (ToMe)",
    "reduce:merging-decreasing@49": "tokens merged, fewer from block to block (ToMe)",
    "reduce:merging-gradual@49": "tokens merged in every block (ToMe)",
    "reduce:stride@49": "the dense tower, then evenly spaced tokens",
    "reduce:average@49": "the dense tower, then averages",
    "reduce:diversity@49": "the dense tower, then the most diverse tokens",
    "reduce:cls-attention@49": "the dense tower, then the most attended tokens",
}
# Zero-shot controls, as eval/zeroshot.py begins their names.
CONTROLS = {
    "teacher": "clip-tiny, 196 tokens",
    SPARSE: "**sfvlm**",
    "lower resolution": "the photo at 112 px",
    "larger patch": "32-px patches",
    "ToMe, early": "tokens merged in a third of the blocks (ToMe)",
    "ToMe, decreasing": "tokens merged, fewer from block to block (ToMe)",
    "ToMe, gradual": "tokens merged in every block (ToMe)",
}
BUDGETS = (16, 25, 36, 49, 64, 100)
BENCHMARKS = ("captions", "daquar", "pope-like", "pope-captions", "scenes")
TITLES = {
    "captions": "captions",
    "daquar": "DAQUAR",
    "pope-like": "POPE-like",
    "pope-captions": "pope-captions",
    "scenes": "scenes",
}
TOWERS = "speed/llava-tiny-towers.json"


def tower_name(model: str) -> str:
    """What a tower of `eval/vqa.py` is called by `eval/speed.py --encoder`."""
    if model.startswith("reduce:"):
        return f"{DENSE}/{model}"
    return f"{SPARSE}@49" if model == SPARSE else model


def tower_macs(results: Results, model: str) -> float:
    """Multiply-adds a photo."""
    path = f"rows[model={tower_name(model)}].measures.encoder_macs.median"
    return results(TOWERS, path)


def work(results: Results, model: str) -> str:
    """A tower's multiply-adds by those of the dense one, as a share."""
    return whole_percent(tower_macs(results, model) / tower_macs(results, DENSE))
