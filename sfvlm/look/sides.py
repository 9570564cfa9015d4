"""The two sides of a comparison: one host with its dense tower and with a sparse one, which share all other weights.

    open_sides("runs/llava", "runs/sf49")     a dense host and a tower; or one folder that swap_llava_tower.py wrote
    write_together({"dense": reply, ...})     replies as they are written, piece by piece

A side is a `Host` like any other. The two take turns, so that each one's times are its own.
"""

import copy
import json
import queue
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoConfig, AutoModel

from ..alternatives.towers import REDUCE
from ..encoder.sparseformer import SparseFormerModel
from ..hosts.folders import DENSE, MANIFEST, TEMPLATES, read_manifest
from ..hosts.host import Host, open_host
from ..hosts.named_towers import put_tower
from ..hosts.reply import Reply
from ..hosts.swap import swap
from ..hosts.weights import bytes_hash, parts, tower_prefix
from ..teachers.open import open_teacher
from ..zoo.names import resolve
from ..zoo.weight_files import SAFE_INDEX, open_weights, read_tensors

DEFAULT_TOWERS = {"llava-tiny": "sparseformer-tiny-49"}  # for hosts whose tower it was made from
_CHANGED = ("config.json", "processor_config.json", MANIFEST)  # what a swapped folder has of its own


@dataclass(frozen=True)
class Sides:
    """A host twice; at least one of the two is there.

    Attributes:
        name: What the host is called.
        dense: With the tower it was trained with.
        sparse: With few tokens a photo.
        note: Why one of them is missing.
    """

    name: str
    dense: Host | None
    sparse: Host | None
    note: str = ""

    @property
    def hosts(self) -> dict[str, Host]:
        """Those that are there, by name."""
        found = {"dense": self.dense, "sparse": self.sparse}
        return {name: host for name, host in found.items() if host is not None}

    @property
    def tower(self) -> SparseFormerModel | None:
        """The sparse side's tower, where it is one with boxes."""
        tower = None if self.sparse is None else self.sparse.model.model.vision_tower
        return tower if isinstance(tower, SparseFormerModel) else None

    @property
    def has_budgets(self) -> bool:
        """Whether `at_budget` gives other numbers of tokens than the sparse side's own."""
        return self.dense is not None and self.tower is not None

    def warm_up(self) -> None:
        """Lets each side write a word, so that nobody's first reply is timed with what libraries set up once."""
        for host in self.hosts.values():
            host.answer([Image.new("RGB", (64, 64))], ["?"], max_new_tokens=2)

    def at_budget(self, num_tokens: int) -> Host:
        """The sparse side with another number of tokens a photo.

        Raises:
            ValueError: Its tower has no other, or the host cannot read so many.
        """
        if self.dense is None or self.tower is None:
            raise ValueError("This tower always gives the same number of tokens.")
        if num_tokens == self.tower.config.budget:
            assert self.sparse is not None
            return self.sparse
        return with_tower(self.dense, _sharing(self.tower), num_tokens)


def open_sides(
    source: str | Path, tower: str | Path | None = None, *, num_tokens: int | None = None, **options: Any
) -> Sides:
    """Opens a host and its sparse side; language model and projector are in memory once.

    Args:
        source: As `open_host` takes it; or a folder that was swapped, which holds both towers.
        tower: SparseFormer folder or name of the zoo; default the one shipped for the shipped host.
        num_tokens: Image tokens of the sparse side, default the tower's own budget.
        options: Of `open_host`.

    Raises:
        ValueError: The host cannot be opened, or the tower that was given does not fit.
    """
    folder = Path(resolve(source))
    if (folder / MANIFEST).is_file():
        if tower is not None:
            raise ValueError(f"{source} has its sparse tower inside: leave out the tower, or give the dense host.")
        return _open_swapped(folder, num_tokens, options)
    dense = open_host(source, **options)
    chosen = tower or DEFAULT_TOWERS.get(str(source))
    if chosen is None:
        return Sides(str(source), dense, None, f"There is no sparse tower for {source}: name one with --tower.")
    try:
        return Sides(str(source), dense, with_tower(dense, chosen, num_tokens))
    except ValueError as error:
        if tower is not None:
            raise
        return Sides(str(source), dense, None, f"The sparse side is missing. {error}")


def with_tower(dense: Host, tower: Any, num_tokens: int | None = None) -> Host:
    """A host with another tower beside it, of the same other weights in memory.

    Raises:
        ValueError: They do not fit.
    """
    twin = twin_of(dense)
    swap(twin.model, twin.processor, tower, num_tokens)
    return twin


def twins_with(host: Host, towers: Mapping[str, str]) -> dict[str, Host]:
    """Twins of a dense host, by name, each with another tower as `put_tower` takes it; a swap takes a host's own tower out of it.

    All of `reduce:` hold one copy of the dense tower.

    Raises:
        ValueError: One does not fit.
    """
    is_reduced = any(tower.startswith(REDUCE) for tower in towers.values())
    dense = open_teacher(host.source) if is_reduced else None
    twins = {}
    for name, tower in towers.items():
        twins[name] = twin_of(host)
        put_tower(twins[name], tower, dense)
    return twins


def twin_of(host: Host) -> Host:
    """A host of the same weights in memory, whose settings and tower can be changed for themselves."""
    model, processor = host.model, host.processor
    kept = [model.model.language_model, model.get_output_embeddings(), processor.tokenizer]
    shared = {id(each): each for each in (*kept, *model.parameters(), *model.buffers())}
    with host.turns:  # whoever has the turn hooks into the model
        twin, its_processor = copy.deepcopy(model, dict(shared)), copy.deepcopy(processor, dict(shared))
    return Host(twin, its_processor, host.source, host.turns)


def _sharing(tower: SparseFormerModel) -> SparseFormerModel:
    """A tower of the same weights in memory and settings of its own."""
    return copy.deepcopy(tower, {id(each): each for each in (*tower.parameters(), *tower.buffers())})


def _open_swapped(folder: Path, num_tokens: int | None, options: dict[str, Any]) -> Sides:
    """A swapped folder holds the dense tower; else the host that its manifest names, if the rest of it is the same; else there is
    no dense side."""
    before = Path(read_manifest(folder)["host"]["path"])
    if (folder / DENSE).is_dir():
        with _dense_again(folder) as linked:
            dense = open_host(linked, **options)
    elif (before / "config.json").is_file() and _same_but_for_the_tower(folder, before):
        dense = open_host(before, **options)
    else:
        why = "has other weights now" if before.is_dir() else "is not there"
        note = f"The dense side is missing: {folder} has no {DENSE}/ any more, and its host {before} {why}."
        _check_budget(folder, num_tokens, note)
        return Sides(folder.name, None, open_host(folder, **options), note)
    dense.source = folder.name
    return Sides(folder.name, dense, with_tower(dense, _tower_inside(folder), num_tokens))


def _same_but_for_the_tower(one: Path, other: Path) -> bool:
    """Whether two folders hold the same projector and language model, bit for bit."""
    digests = []
    for files in (open_weights(one), open_weights(other)):
        names = parts(files.where)
        digests.append(bytes_hash(read_tensors(files, names["multi_modal_projector"] + names["language_model"])))
    return digests[0] == digests[1]


def _check_budget(folder: Path, num_tokens: int | None, note: str) -> None:
    """Raises ValueError where a swapped folder alone is asked for another number of tokens than its own."""
    config: Any = AutoConfig.from_pretrained(folder)
    own = config.vision_config.budget
    if num_tokens not in (None, own):
        raise ValueError(f"{note} So its sparse side keeps its {own} tokens: leave out --num-tokens {num_tokens}.")


@contextmanager
def _dense_again(swapped: Path) -> Iterator[Path]:
    """The dense host of a swapped folder, as a temporary folder of links into it."""
    swapped = swapped.resolve()
    kept, dense = open_weights(swapped), open_weights(swapped / DENSE)
    where = {name: file for name, file in kept.where.items() if not name.startswith(tower_prefix(kept))} | dense.where
    names = {file: f"part-{number}.safetensors" for number, file in enumerate(dict.fromkeys(where.values()))}
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / swapped.name
        out.mkdir()
        for file in swapped.iterdir():
            if file.is_file() and file.name not in (*_CHANGED, SAFE_INDEX) and file.suffix != ".safetensors":
                (out / file.name).symlink_to(file)
        if (swapped / TEMPLATES).is_dir():
            (out / TEMPLATES).symlink_to(swapped / TEMPLATES)
        for file in (swapped / DENSE).glob("*.json"):
            (out / file.name).symlink_to(file)
        for file, name in names.items():
            (out / name).symlink_to(file)
        index = {"metadata": {}, "weight_map": {name: names[file] for name, file in where.items()}}
        (out / SAFE_INDEX).write_text(json.dumps(index))
        yield out


def _tower_inside(folder: Path) -> Any:
    """The tower of a swapped folder alone."""
    config: Any = AutoConfig.from_pretrained(folder)
    weights = open_weights(folder)
    names = parts(weights.where)["vision_tower"]
    tower: Any = AutoModel.from_config(config.vision_config)
    prefix = tower_prefix(weights)
    tower.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in read_tensors(weights, names)})
    return tower.eval()


@dataclass(frozen=True)
class Piece:
    """A part of one side's reply, or how it ended."""

    side: str
    text: str = ""
    error: BaseException | None = None
    ended: bool = False


def write_together(replies: Mapping[str, Reply], stop: threading.Event) -> Iterator[Piece]:
    """Reads several replies at once, piece by piece; leaving early returns at once, and ends them all at their next word.

    Args:
        replies: By the name of their side, all of which end when `stop` is set.
        stop: What they were started with.
    """
    pieces: queue.Queue[Piece] = queue.Queue()

    def read(side: str, reply: Reply) -> None:
        last = Piece(side, ended=True)
        try:
            for text in reply:
                pieces.put(Piece(side, text))
        except Exception as error:  # belongs to the one who asked
            last = replace(last, error=error)
        pieces.put(last)

    threads = [threading.Thread(target=read, args=each, daemon=True) for each in replies.items()]
    for thread in threads:
        thread.start()
    try:
        running = len(threads)
        while running:
            piece = pieces.get()
            running -= piece.ended
            yield piece
        for thread in threads:
            thread.join()
    finally:
        stop.set()
