"""How near a sparse tower keeps a host to what it says with its dense one: any photos, no labels, no benchmark.

    photos --> the dense host's own answers --> its next-word distributions at each word, dense and sparse --> divergence

A benchmark counts the answers that turned from right to wrong; this measures every word of every answer, changed or
nearly so. It says nothing of how good the host is.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..bootstrap.alignment import word_divergence
from ..bootstrap.targets.conversations import Conversations
from ..bootstrap.targets.interview import Interview, distinct_names
from ..hosts.reader import Texts
from ..photos.decode import UnreadablePhoto
from ..photos.sources import SomePhotos
from ..photos.views import ShowablePhotos, view_settings
from ..util.results import Row
from ..util.statistics import mean_interval, paired_comparison


@dataclass(frozen=True)
class Fidelity:
    """How near one tower keeps the host, by photo; photos of which nothing could be said are left out.

    Attributes:
        photos: (P,) their keys.
        divergence: (P,) nats a word from the dense host's next-word distribution, averaged over words, then answers.
        same_words: (P,) share of the words that come first with either tower, averaged alike.
    """

    photos: tuple[str, ...]
    divergence: tuple[float, ...]
    same_words: tuple[float, ...]


@torch.no_grad()
def measure_fidelity(
    interview: Interview,
    towers: Mapping[str, Any],
    photos: SomePhotos,
    answers: Path | None = None,
) -> dict[str, Fidelity]:
    """Asks a host about photos with its dense tower, and reads its answers again through others.

    Photos that cannot be shown, as `sfvlm.photos.views.too_long` says, are passed over like those that cannot be read.

    A photo is one sequence of tokens, seen as the host's processor shows it: padded to a square, the square in its middle, or
    for SigLIP all of it squashed. Of a host that cuts photos into tiles this is the overview alone.

    Args:
        interview: Of the dense host.
        towers: By name; `towers[name](pixels, output_hidden_states=True)` gives the states of the layers that the host reads,
            and their `config` says of which size and normalisation the pixels are.
        photos: Asked about.
        answers: File that keeps the answers, from which another call takes them.

    Raises:
        ValueError: None of the photos can be read or is answered with a word.
    """
    photos = ShowablePhotos(photos)
    with tempfile.TemporaryDirectory() as folder:
        turns = interview.answers(photos, answers or Path(folder) / "answers.jsonl")
    names = distinct_names(photos.key(index) for index in range(len(photos)))
    told = [index for index, each in enumerate(turns) if any(answer for _, answer in each)]
    conversations = Conversations(interview.processor, turns, interview.seed)
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in towers}
    keys: list[str] = []
    like = next(interview.dense.parameters())
    configs = [interview.dense.config, *(tower.config for tower in towers.values())]
    views = {_view(config): config for config in configs}  # most towers see a photo alike
    for start in tqdm(range(0, len(told), interview.at_once), desc="reading", unit="batch"):
        opened = _opened(photos, told[start : start + interview.at_once])
        if not opened:
            continue
        keys += [names[index] for index in opened]
        texts = conversations.batch(torch.tensor(list(opened)), torch.zeros(len(opened))).to(like.device)
        pixels = {view: interview.pixels(list(opened.values()), config) for view, config in views.items()}
        states = interview.dense(pixels[_view(interview.dense.config)]).hidden_states
        dense = _logits(interview, interview.dense.config, states, texts)
        for name, tower in towers.items():
            states = tower(pixels[_view(tower.config)], output_hidden_states=True).hidden_states
            ours = _logits(interview, tower.config, states, texts)
            same = (ours.argmax(dim=-1) == dense.argmax(dim=-1)).float()
            found[name].append((_by_photo(word_divergence(ours, dense), texts), _by_photo(same, texts)))
    if not keys:
        raise ValueError(f"The host says nothing of any of the {len(photos)} photos, or none of them can be read.")
    return {
        name: Fidelity(tuple(keys), *(tuple(torch.cat(each).tolist()) for each in zip(*batches, strict=True)))
        for name, batches in found.items()
    }


def fidelity_rows(found: Mapping[str, Fidelity], tokens: Mapping[str, int], dataset: str, host: str) -> list[Row]:
    """Rows of a results file, a tower each, with 95 % intervals; `difference` is paired with the first tower, photo by photo.

    Args:
        found: By the name of the tower.
        tokens: Of each tower.
        dataset, host: What the photos and the host are called.
    """
    first, rows = next(iter(found.values())), []
    for name, each in found.items():
        metrics: dict[str, float] = {"tokens": tokens[name], "photos": len(each.photos)}
        for measure in ("divergence", "same_words"):
            metrics |= mean_interval(getattr(each, measure), each.photos).metrics(measure)
        if each is not first:
            comparison = paired_comparison(first.divergence, each.divergence, each.photos)
            metrics |= comparison.difference.metrics("difference")
        rows.append(dict(dataset=dataset, model=name, pretrained=host, task="fidelity", metrics=metrics, language="en"))
    return rows


def passed_over(photos: SomePhotos, found: Fidelity) -> tuple[int, str]:
    """How many photos were not measured, and why the first of them was not."""
    names = distinct_names(photos.key(index) for index in range(len(photos)))
    measured = set(found.photos)
    left = [index for index, name in enumerate(names) if name not in measured]
    why = ""
    for index in left[:1]:
        try:
            ShowablePhotos(photos)[index]
            why = f"{names[index]}: the host says nothing of it"
        except UnreadablePhoto as error:
            why = str(error)
    return len(left), why


def _opened(photos: SomePhotos, indices: Sequence[int]) -> dict[int, Image.Image]:
    """Those that can be read still: answers may be older than what became of a photo."""
    found = {}
    for index in indices:
        with suppress(UnreadablePhoto):
            found[index] = photos[index].image
    return found


def _view(config: Any) -> tuple[Any, ...]:
    """What a tower's pixels depend on."""
    return config.image_size, *view_settings(config).values(), tuple(config.image_mean), tuple(config.image_std)


def _logits(interview: Interview, config: Any, states: Sequence[Tensor], texts: Texts) -> Tensor:
    """States of a tower of this configuration, (B, [1 +] N, D) -> (M, V) at each of the host's own words."""
    reader = interview.reader
    return reader.next_token_logits(reader.project(reader.select(states, int(config.has_cls_token))), texts)


def _by_photo(values: Tensor, texts: Texts) -> Tensor:
    """A value a word (M,), averaged over an answer's words, then over a photo's answers: (B,)."""
    sums, weights = (torch.zeros(len(texts.after), device=values.device) for _ in range(2))
    sums.index_add_(0, texts.row, values * texts.weight)
    return (sums / weights.index_add_(0, texts.row, texts.weight)).cpu()
