"""The flags of `sfvlm vqa`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...util.choices import Negatives, Split


@dataclass(frozen=True)
class VqaCommand:
    """Ask hosts a benchmark's questions and measure their answers, each beside the first on the same questions."""

    benchmark: str
    """vqav2, okvqa, textvqa, vizwiz, gqa, scienceqa, pope, mme, mmbench; or, made from photos alone, scenes,
    pope-like (boxes), pope-captions, captions, daquar."""
    model: list[str] = field(default_factory=list)
    """Hosts, transformers LLaVA, LLaVA-NeXT or LLaVA-OneVision: folders, hub ids or names of the zoo, one in memory at a
    time. The others are compared with the first."""
    tower: list[str] = field(default_factory=list)
    """Towers that take the place of the first host's, in memory: SparseFormer folders or names of the zoo, or reduce:METHOD
    for the host's own tower with few tokens; behind @ so many image tokens, as in runs/sf49@36 reduce:average@49."""
    server: list[str] = field(default_factory=list)
    """Servers of OpenAI's interface that are asked, behind the hosts: addresses such as http://127.0.0.1:8000/v1, whatever they
    run. See `sfvlm serve`."""
    server_model: list[str] = field(default_factory=list)
    """What each of them calls the model; default its only one."""
    concurrency: int = 8
    """Requests at once to a server."""
    key: str = "OPENAI_API_KEY"
    """The environment variable that holds the servers' key, where they want one."""
    questions: list[Path] = field(default_factory=list)
    """LLaVA's question files (JSON lines), or the benchmark's own."""
    annotations: list[Path] = field(default_factory=list)
    """The benchmark's own files, where the question files have no right answers."""
    photos: list[str] = field(default_factory=list)
    """Folders or tar shards with the photos; scenes: scenes:COUNT:SEED."""
    answers: list[Path] = field(default_factory=list)
    """Answer files, measured instead of asking hosts: LLaVA's, results of VQA, GQA or VizWiz, samples of lmms-eval, tables of
    VLMEvalKit."""
    rule: Literal["official", "m4c"] | None = None
    """How VQAv2, OK-VQA, TextVQA and VizWiz are normalised; default each one's own."""
    split: Split = "all"
    """Photos that all of these but scenes ask about; test: those held out of training."""
    negatives: Negatives = "matched"
    """How pope-like and pope-captions choose absent objects; matched: none can be guessed from its name."""
    seed: int = 0
    """Of the choices of these two."""
    limit: int | None = None
    """At most so many questions, spread evenly over all; those that only count together, as MME's two of a photo, stay so."""
    batch_size: int = 8
    """Questions at once."""
    max_new_tokens: int | None = None
    """The longest answer; default LLaVA's 128 (1024 for multiple choice), less for what is made from photos."""
    dtype: str | None = None
    """Default the checkpoint's own, but float32 on a CPU."""
    device: str | None = None
    """Default cuda where there is one."""
    bits: Literal[4, 8] | None = None
    """Loads the LLM by bitsandbytes; tower, projector and output layer stay whole."""
    only_ask: bool = False
    """Writes answers and measures nothing: for test questions whose right answers are not public."""
    shard: str | None = None
    """2/8: answers the second of eight parts. When all are answered, the same command without it joins them."""
    out: Path | None = None
    """A .json file to write; the folder of that name gets the answers, which an interrupted run continues."""
