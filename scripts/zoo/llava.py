"""Trains `llava-tiny`: the shipped CLIP's image tower, frozen, under a small language model.

    features    every photo through the tower once: the patch tokens the language model will read
    projector   alone, it learns to say the language model's words: patches of scenes are drawn to what stands there
    facts       the language model learns to look things up: short sentences about scenes
    scenes      everything that can be asked of scenes
    both        and of all photos

The patches' words stay a second loss to the end, and what was said of photos a third: some patch should say it. A language
model this small, new and briefly trained finds no use for patches it cannot read: it learns which colours there are, and
not which one it is looking at.

A photo's questions share one sequence: each sees the photo and itself, not the others, so that the photo, most of the
tokens, is read once for all of them. Every fourth photo is a conversation instead, in which later turns see earlier ones.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPModel, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from sfvlm.photos.batches import EpochSampler, Selection
from sfvlm.photos.decode import Photo
from sfvlm.photos.sources import names_hash
from sfvlm.photos.views import normalize
from sfvlm.util.devices import usable_device
from sfvlm.util.files import replacing, write_text

from .clip import HALF
from .llava_model import IMAGE, LAYER, new_llava, new_processor, train_tokenizer
from .loop import Stage, begin, train
from .patch_words import NO_WORD, object_words, photo_word_loss, word_loss
from .questions import (
    Turn,
    photo_turns,
    scene_facts,
    scene_objects,
    scene_turns,
    shares_shown,
    source_of,
    telling_words,
)
from .sources import IMAGENETTE, LLAVA_SCENES, TALKED_OF, Data, RecipeOptions, center_views

NO_LABEL = -100
LAID_OUT = ("ids", "labels", "turn", "positions", "weights")
# How often an epoch shows the photos of the small shards, by the start of their names.
REPEATS = {"daquar": 4, "coco": 4}
PHOTO_WORDS_WEIGHT = 0.2


@dataclass(frozen=True)
class LlavaOptions(RecipeOptions):
    """Train the shipped LLaVA."""

    clip: Path = Path("runs/clip-tiny/model")
    """The trained CLIP whose image tower it uses."""
    out: Path = Path("runs/llava-tiny")
    """Folder to write; also holds checkpoints. An interrupted run continues from them."""
    projector_steps: int = 300
    """Steps of the projector alone, which need no language model and take little."""
    facts_steps: int = 1000
    """Steps of projector and language model on short sentences about scenes."""
    scene_steps: int = 500
    """Steps on all questions about scenes."""
    both_steps: int = 3050
    """Steps on all photos."""
    batch: int = 16
    """Photos a step; half as many where each is asked three times as much."""


@dataclass(frozen=True)
class Lesson:
    """What a stage of training shows, and how it asks."""

    stage: Stage
    shown: list[int]
    """Photos of an epoch, by number; some more than once."""
    batch: int
    """Photos a step."""
    turns: Callable[..., list[Turn]] | None = None
    """(photo, generator=) -> turns; none where the patches alone are named."""
    prompt: str = "{} ASSISTANT:"
    """How a question is written in front of its answer."""


def build_llava(options: LlavaOptions) -> Path:
    """Trains from the newest checkpoints in `out`, or from nothing, and writes the folder `out/model`.

    Raises:
        ValueError: `out` holds a run of another recipe, `clip` is no folder of a CLIP, or something of `data` is missing or damaged.
    """
    torch.manual_seed(options.seed)
    device = usable_device(options.device)
    photos = Data(options.data).training_photos(TALKED_OF, options.scenes, LLAVA_SCENES)
    if not (options.clip / "config.json").is_file():
        raise ValueError(f"{options.clip} holds no CLIP: --clip is the folder OUT/model of `build_zoo.py clip`.")
    clip: Any = CLIPModel.from_pretrained(options.clip, dtype=torch.float32)
    tower = f"{float(sum(tensor.double().sum() for tensor in clip.vision_model.state_dict().values())):.6f}"
    begin(options.out, options.shared(photos) | {"tower": tower})
    tokens, said = photo_tokens(clip, photos, f"{tower} {names_hash(photos)}", options, device)
    whole = partial(photo_turns, class_names=IMAGENETTE, shown=shares_shown(said))
    tokenizer = _tokenizer(said, whole, options)
    some = torch.from_numpy(tokens[:: max(1, len(tokens) // 256)].astype(np.float32)).flatten(0, 1)
    llava = new_llava(clip, tokenizer, some.mean(0), some.std(0))
    learner = LlavaLearner(llava, tokenizer, options.autocast).to(device)
    language, projector = "llava.model.language_model", "llava.model.multi_modal_projector"
    everything = [index for index, photo in enumerate(said) for _ in range(_repeats(photo))]
    scenes = [index for index, photo in enumerate(said) if "objects" in photo.meta]
    together = {projector: 1e-3, language: 1e-3}
    batch = options.batch
    lessons = (
        Lesson(Stage("projector", options.projector_steps, {projector: 2e-3}), scenes, 2 * batch),
        Lesson(Stage("facts", options.facts_steps, together), scenes, batch // 2, scene_facts, "{}"),
        Lesson(Stage("scenes", options.scene_steps, together), scenes, batch // 2, partial(scene_turns, draws=4)),
        Lesson(Stage("both", options.both_steps, together), everything, batch, whole),
    )
    for lesson in lessons:
        examples = Conversations(tokens, said, lesson, tokenizer, options.seed)
        batches = partial(conversation_batches, examples, lesson.batch, options, lesson.stage.name)
        settings = {"precision": options.precision, "batch": lesson.batch}
        train(lesson.stage, learner, batches, learner.loss, options.out, device, settings)
    folder = options.out / "model"
    llava.half().float().save_pretrained(folder)  # as it will be shipped
    new_processor(tokenizer, clip.config.vision_config.patch_size).save_pretrained(folder)
    return folder


def _tokenizer(said: list[Photo], whole: Callable[..., list[Turn]], options: LlavaOptions) -> Any:
    """Trained on what will be asked and answered; a run that continues keeps its own."""
    folder = options.out / "tokenizer"
    if not folder.exists():
        drawn = (whole(photo, generator=random.Random(f"words {n}"), most=20) for n, photo in enumerate(said))
        texts = [f"USER: {question} ASSISTANT: {answer}" for turns in drawn for question, answer in turns]
        with replacing(folder) as temporary:
            train_tokenizer(texts, options.vocabulary).save_pretrained(temporary)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _repeats(photo: Photo) -> int:
    return REPEATS.get(source_of(photo), 1)


@torch.no_grad()
def photo_tokens(
    clip: Any, photos: Selection, key: str, options: LlavaOptions, device: torch.device
) -> tuple[np.ndarray, list[Photo]]:
    """Patch tokens (photos, patches, D) in half precision, on disk; and what is said of each photo, without its pixels."""
    vision = clip.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    file, described = options.out / "tokens.npy", options.out / "photos.json"
    if not (described.exists() and json.loads(described.read_text())["key"] == key):
        described.unlink(missing_ok=True)  # what it describes is about to change
        tower = clip.vision_model.to(device).eval()
        shape = (len(photos), patches, vision.hidden_size)
        tokens = np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=shape)
        said: list[dict[str, Any]] = []
        for batch in center_views(photos, options.workers):
            pixels = normalize(torch.stack([item.pop("pixels") for item in batch]).to(device), HALF, HALF)
            read = tower(pixels, output_hidden_states=True).hidden_states[LAYER][:, 1:]
            tokens[len(said) : len(said) + len(batch)] = read.half().cpu().numpy()
            said += batch
        tokens.flush()
        write_text(described, json.dumps({"key": key, "photos": said}))
    items = json.loads(described.read_text())["photos"]
    blank: Any = None
    kept = [Photo(blank, item["key"], item["label"], tuple(item["captions"]), item["meta"]) for item in items]
    return np.load(file, mmap_mode="r"), kept


class Conversations(Dataset[dict[str, Tensor]]):
    """One photo and its turns as token ids, by (epoch, place in the epoch).

    ids (T,), labels (T,) at the positions that are to be predicted, the turn each position belongs to (T,; 0 for what all
    share), positions (T,) and the weight of each label (T,), unless there are no turns; and the photo's patch tokens
    (patches, D), the ids of the words for what stands at each patch (patches, W), and those of what was said of the photo (S,)
    with their shares (S,): the rarer a word among the photos, the greater.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        photos: list[Photo],
        lesson: Lesson,
        tokenizer: PreTrainedTokenizerFast,
        seed: int,
    ) -> None:
        self.tokens, self.photos, self.lesson, self.seed = tokens, photos, lesson, seed
        self.tokenizer = tokenizer
        self.said = {index: self._telling_ids(photos[index]) for index in {*lesson.shown}}
        self.counts = Counter(word for words in self.said.values() for word in words)
        image = [tokenizer.convert_tokens_to_ids(IMAGE)] * tokens.shape[1]
        self.shared = [tokenizer.bos_token_id, *self._ids("USER: "), *image, *self._ids("\n")]

    def __len__(self) -> int:
        return len(self.lesson.shown)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        epoch, place = item
        index = self.lesson.shown[place]
        photo = self.photos[index]
        found = {
            "tokens": torch.from_numpy(self.tokens[index].astype(np.float32)),
            "words": object_words(scene_objects(photo), len(self.tokens[index]), self._ids),
            "said": torch.tensor(self.said[index], dtype=torch.long),
            "shares": torch.tensor(self._shares(self.said[index])),
        }
        if self.lesson.turns is not None:
            generator = random.Random(f"{self.seed} {epoch} {place}")
            laid = self._lay_out(self.lesson.turns(photo, generator=generator), together=generator.random() < 0.25)
            found |= {name: torch.tensor(values) for name, values in zip(LAID_OUT, laid, strict=True)}
        return found

    def _lay_out(self, turns: list[Turn], together: bool) -> tuple[list[int], ...]:
        shared = len(self.shared)
        ids, labels, turn_of = list(self.shared), [NO_LABEL] * shared, [0] * shared
        positions, weights = list(range(shared)), [0.0] * shared
        for number, (question, answer) in enumerate(turns, start=1):
            opening = "USER: " if together and number > 1 else ""
            asked = self._ids(opening + self.lesson.prompt.format(question))
            answered = [*self._ids(f" {answer}"), self.tokenizer.eos_token_id]
            begin = len(ids) if together else shared
            ids += asked + answered
            labels += [NO_LABEL] * len(asked) + answered
            turn_of += [1 if together else number] * (len(asked) + len(answered))
            positions += range(begin, begin + len(asked) + len(answered))
            weights += [0.0] * len(asked) + [len(answered) ** -0.5] * len(answered)  # a caption is not ten answers
        return ids, labels, turn_of, positions, weights  # type: ignore[return-value]

    def _telling_ids(self, photo: Photo) -> list[int]:
        """Of the first token of each word: most words are one."""
        return sorted({self._ids(f" {word}")[0] for word in telling_words(photo, IMAGENETTE)})

    def _shares(self, words: list[int]) -> list[float]:
        shares = [self.counts[word] ** -0.5 for word in words]
        return [share / sum(shares) for share in shares]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def conversation_batches(
    examples: Conversations, batch_size: int, options: LlavaOptions, name: str, step: int
) -> Iterator[dict[str, Tensor]]:
    seed = int.from_bytes(name.encode()[:4], "big") + options.seed  # every stage draws its own order
    sampler = EpochSampler(len(examples), batch_size, seed, start_step=step)
    pad: Any = examples.tokenizer.pad_token_id
    collate = partial(_collate, pad=pad)
    return iter(DataLoader(examples, batch_sampler=sampler, collate_fn=collate, num_workers=options.workers))  # type: ignore[arg-type]


def _collate(items: list[dict[str, Tensor]], pad: int) -> dict[str, Tensor]:
    fills = {"ids": pad, "labels": NO_LABEL, "turn": -1, "positions": 0, "weights": 0.0, "said": NO_WORD, "shares": 0.0}
    return {
        name: nn.utils.rnn.pad_sequence([item[name] for item in items], batch_first=True, padding_value=fills[name])
        if name in fills
        else torch.stack([item[name] for item in items])
        for name in items[0]
    }


class LlavaLearner(nn.Module):
    """The LLaVA with its losses: the words of the patches and of the photos, and the answers' next tokens.

    Args:
        llava: Trained in place.
        tokenizer: Its own.
        precision: Makes the context that the language model runs in.
    """

    def __init__(
        self,
        llava: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        super().__init__()
        self.llava, self.precision = llava, precision
        self.image: Any = tokenizer.convert_tokens_to_ids(IMAGE)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        model: Any = self.llava.model
        seen = model.multi_modal_projector(batch["tokens"])
        embeddings = model.get_input_embeddings().weight
        losses = {"words": word_loss(seen, batch["words"], embeddings)}
        if (batch["said"] != NO_WORD).any():
            said = photo_word_loss(seen, batch["said"], batch["shares"], embeddings)
            losses["photo_words"] = PHOTO_WORDS_WEIGHT * said
        return losses | ({"answers": self._answer_loss(batch, seen)} if "ids" in batch else {})

    def _answer_loss(self, batch: dict[str, Tensor], seen: Tensor) -> Tensor:
        model: Any = self.llava.model
        ids, turn = batch["ids"], batch["turn"]
        embedded = model.get_input_embeddings()(ids)  # (B, T, width)
        embedded = embedded.masked_scatter((ids == self.image)[..., None], seen.to(embedded.dtype))
        length = ids.shape[1]
        before = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        shared = (turn == 0)[:, None, :] | (turn[:, None, :] == turn[:, :, None])
        mask = (before & shared)[:, None]  # (B, 1, T, T); padding sees padding alone, so no row is empty
        with self.precision():
            said = model.language_model(
                inputs_embeds=embedded, attention_mask=mask, position_ids=batch["positions"], use_cache=False
            )
        hidden = said.last_hidden_state.float()
        # The prediction of position t stands at t - 1. A turn's first label follows its own question, so no turn is crossed.
        target = batch["labels"][:, 1:]
        asked = target != NO_LABEL
        scores = self.llava.lm_head(hidden[:, :-1][asked])
        weights = batch["weights"][:, 1:][asked]
        return (F.cross_entropy(scores, target[asked], reduction="none") * weights).sum() / weights.sum()
