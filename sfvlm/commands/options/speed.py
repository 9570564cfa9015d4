"""The flags of `sfvlm speed`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...util.choices import SCALING_IMAGE_SIZES, SPEED_PROMPT


@dataclass(frozen=True)
class SpeedCommand:
    """Time LLaVAs part by part, or encoders alone, beside the first of them; without either, a SparseFormer beside a CLIP."""

    host: list[str] = field(default_factory=list)
    """Hosts, transformers LLaVA, LLaVA-NeXT or LLaVA-OneVision, swapped or not: folders, hub ids or names of the zoo."""
    shape: str | None = None
    """Instead of hosts: 7b, a random LLaVA-1.5-7B beside the same with 49 sparse tokens and with 64 that are picked by
    class attention; made for a GPU (about 15 GB in bfloat16). tiny: a few blocks, to see it run."""
    encoder: list[str] = field(default_factory=list)
    """Instead of hosts, encoders: clip-b16, clip-l14-336 or a preset, of random weights; folders, names of the zoo, .onnx
    files. Of a dense one D also D@49 (its student), D/inherited@49 and D/reduce:average@49."""
    suite: str | None = None
    """A dense encoder, its student at --budgets, and every cheap alternative at 49 tokens."""
    scaling: list[str] = field(default_factory=list)
    """How a sparse encoder's cost grows with tokens, photos and their size; behind it the dense one that photos of every
    size are shown too, by default that of which it is made: clip-l14-336 for clip-l14-336@49."""
    bootstrap: str | None = None
    """A student D@49 or D/inherited@49 of a dense encoder: how fast it is bootstrapped, beside what its multiply-adds and its
    photos allow."""
    server: list[str] = field(default_factory=list)
    """Instead of all these, servers of OpenAI's interface under load, such as http://127.0.0.1:8000/v1: see `sfvlm serve`."""
    concurrency: tuple[int, ...] = (1, 4, 16)
    """Requests at once to each server."""
    requests: int = 32
    """Of a round of --repeats, each with another photo; at least twice as many as at once."""
    accelerate: list[str] = field(default_factory=list)
    """Ways to run encoders faster, each beside every encoder as it is: packed, int8, bfloat16, compile, graph. For --bootstrap
    compile alone, of student and teacher."""
    photos: list[str] = field(default_factory=list)
    """What hosts are shown, or a student learns from: folders, images or tar shards; default rendered scenes."""
    workers: int = 1
    """Processes that decode the photos of --bootstrap."""
    prompt: str = SPEED_PROMPT
    """What hosts are asked of every photo."""
    new_tokens: int = 32
    """Words of every reply."""
    batch_sizes: tuple[int, ...] | None = None
    """Photos at once; default 1 8, for encoders on a GPU 1 8 64, for --scaling 1 2 4 8, for --bootstrap 32."""
    budgets: tuple[int, ...] | None = None
    """Tokens of a suite's students, default 16 25 36 49 64 100; or of --scaling, default every square from 16 to 196."""
    image_sizes: tuple[int, ...] = SCALING_IMAGE_SIZES
    """Sides of the photos of --scaling."""
    repeats: int = 5
    """Timed runs of each side."""
    warmups: int = 1
    """Runs of each side before those."""
    threads: int = 1
    """CPU threads."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of all sides; default a host's own, bfloat16 for a shape or --bootstrap, but float32 on a CPU and for encoders."""
    device: str | None = None
    """Default cuda where there is one."""
    out: Path | None = None
    """Also write JSON there, of encoders after every round."""
    results: list[Path] = field(default_factory=list)
    """Measures nothing: files of this command and of eval/zeroshot.py or eval/vqa.py, for --plot."""
    plot: Path | None = None
    """A .png, .svg or .pdf: of --scaling, or of the quality of --results over their latency."""
