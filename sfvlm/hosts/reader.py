"""What a host reads from image tokens: its own projector and language model, frozen.

    hidden states --select--> tokens --project--> what the language model sees --+-- with a text --> next-token logits
                                                                                 +-- with prompts --> answers

Dense and sparse tokens go the same way, so that what the host says of one can be the target of the other.
Shapes: B photos, N image tokens, D width of the tower, W width of the language model, M predicted tokens, V vocabulary.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from .facts import HostFacts, read_host
from .generation import end_tokens

Answers = list[list[list[int]]]  # ids, by photo and prompt


@dataclass(frozen=True)
class Texts:
    """Conversations about the photos of a batch, cut where the photo stands, which is the same place in all of them.

    Attributes:
        before: (T0,) ids in front of the photo's tokens.
        after: (B, T1) ids behind them, padded on the right.
        row, place: (M,) where the host's own words stand in `after`.
        weight: (M,) of each, so that every answer counts the same.
    """

    before: Tensor
    after: Tensor
    row: Tensor
    place: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> "Texts":
        return Texts(*(getattr(self, name).to(device) for name in ("before", "after", "row", "place", "weight")))


class HostReader:
    """The projector and language model of a host; nothing of them is trained.

    A photo is read as LLaVA-1.5 reads it, one sequence of tokens. Of a host that cuts photos into tiles (LLaVA-NeXT,
    LLaVA-OneVision) this is the overview tile alone, without the marks of line ends.

    Args:
        model: A LlavaForConditionalGeneration, LlavaNext... or LlavaOnevision..., with its dense tower.
        processor: Its processor.

    Raises:
        ValueError: It is no such host, its tower was replaced already, or it reads photos as no tower here shows them.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.facts = read_host(model.config, processor)
        _check_readable(self.facts, processor.image_processor)
        self.model, self.processor = model.eval().requires_grad_(False), processor

    def to(self, device: torch.device) -> "HostReader":
        self.model.to(device)
        return self

    def select(self, hidden_states: Sequence[Tensor], class_tokens: int) -> Tensor:
        """The tokens the host reads: states of (B, class_tokens + N, D) -> (B, [1 +] N, D x layers)."""
        first = 0 if self.facts.reads_cls else class_tokens
        return torch.cat([hidden_states[layer][:, first:] for layer in self.facts.layers], dim=-1)

    def project(self, tokens: Tensor) -> Tensor:
        """(B, N, D x layers) -> (B, N, W)."""
        projector = self.model.model.multi_modal_projector
        return projector(tokens.to(next(projector.parameters()).dtype))

    def next_token_logits(self, seen: Tensor, texts: Texts) -> Tensor:
        """What the language model expects at each of the host's own words: (B, N, W) -> (M, V)."""
        embed = self.model.get_input_embeddings()
        before = embed(texts.before).expand(len(seen), -1, -1)
        inputs = torch.cat([before, seen.to(before.dtype), embed(texts.after)], dim=1)
        # Attention is causal and padding stands at the end: no word that counts sees it.
        hidden = self.model.model.language_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        start = inputs.shape[1] - texts.after.shape[1]
        return self.model.get_output_embeddings()(hidden[texts.row, start + texts.place - 1])

    def read(self, seen: Tensor, texts: Texts) -> tuple[Tensor, Tensor]:
        """The same logits, and how much the host's own words depend on each of the tokens: (B, N, W) -> (M, V), (B, N).

        That is the length of each token times the gradient of the words' log-probability, feature by feature: to first order,
        what is lost without the token. (Summed over the features instead, large parts of both signs cancel each other.)
        """
        with torch.enable_grad():
            seen = seen.detach().requires_grad_()
            logits = self.next_token_logits(seen, texts)
            said = logits.float().log_softmax(dim=-1).gather(1, texts.after[texts.row, texts.place][:, None])[:, 0]
            (gradient,) = torch.autograd.grad((said * texts.weight).sum(), seen)
        return logits.detach(), (gradient.float() * seen.detach().float()).square().sum(dim=-1).sqrt()

    @torch.no_grad()
    def answer(self, seen: Tensor, before: Tensor, prompts: Sequence[Sequence[Sequence[int]]], longest: int) -> Answers:
        """Greedy answers to several prompts about each photo, which is read once for all of its prompts.

        Args:
            seen: (B, N, W).
            before: (T0,) ids in front of the photo's tokens.
            prompts: For each photo, ids of what stands behind them, prompt by prompt.
            longest: Tokens an answer is cut off at.

        Returns:
            Ids of each answer, by photo and prompt, without what ends it.
        """
        device, language_model = seen.device, self.model.model.language_model
        embed = self.model.get_input_embeddings()
        photo = torch.tensor([number for number, asked in enumerate(prompts) for _ in asked], device=device)
        rows = [list(ids) for asked in prompts for ids in asked]
        if not rows:
            return [[] for _ in prompts]
        width = max(map(len, rows))
        after = torch.tensor(
            [[0] * (width - len(ids)) + ids for ids in rows], device=device
        )  # (R, S) padded on the left
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in rows], device=device)
        prefix = torch.cat([embed(before).expand(len(seen), -1, -1), seen.to(embed.weight.dtype)], dim=1)
        cache = new_cache(self.model)
        language_model(inputs_embeds=prefix, **remembering(language_model, cache))
        cache.batch_select_indices(photo)
        mask = torch.cat([mask.new_ones(len(rows), prefix.shape[1]), mask], dim=1)
        ends = torch.tensor(end_tokens(self.model, self.processor.tokenizer), device=device, dtype=torch.long)
        said, finished = [], torch.zeros(len(rows), dtype=torch.bool, device=device)
        word = after
        for _ in range(longest):
            word, cache = next_word(self.model, embed(word), cache, mask)
            finished |= torch.isin(word[:, 0], ends)
            said.append(word[:, 0].masked_fill(finished, -1))
            if finished.all():
                break
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        texts = [[token for token in row if token >= 0] for row in torch.stack(said, dim=1).tolist()]
        answers = iter(texts)
        return [[next(answers) for _ in asked] for asked in prompts]


def _check_readable(facts: HostFacts, photos: Any) -> None:
    """Raises ValueError for what such a host does with a photo and nothing here follows."""
    if facts.loses_patch:
        raise ValueError(
            f"The host reads {facts.tokens} of its tower's {facts.tokens + 1} patches: its vision_feature_select_strategy is "
            '"default", which leaves the class token out, and its tower has none. What it says without its first patch cannot be '
            'learned: set "full" in config.json and in the processor\'s configuration if it was trained so.'
        )
    size, crop = (dict(getattr(photos, name, None) or {}) for name in ("size", "crop_size"))
    resized, cropped = size.get("shortest_edge") or size.get("height"), crop.get("height")
    crops = getattr(photos, "do_center_crop", False)
    if not getattr(photos, "do_resize", True) or (crops and not facts.tiles and resized != cropped):
        raise ValueError(
            f"The host's processor makes photos by do_resize {getattr(photos, 'do_resize', True)}, size {resized} and crop_size "
            f"{cropped if crops else None}; a tower learns from whole photos, or from their middles, resized to one size."
        )


def next_word(model: Any, embedded: Tensor, cache: Any, mask: Tensor | None) -> tuple[Tensor, Any]:
    """The greedy word (B, 1) after embedded ones (B, t, W) behind those in a cache (None: there are none), and the cache.

    Args:
        model: The host.
        embedded: What is read now.
        cache: Of what was read before.
        mask: (B, all so far), 0 where padded; None without padding.
    """
    places = None if mask is None else (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -embedded.shape[1] :]
    language_model, cache = model.model.language_model, new_cache(model) if cache is None else cache
    output = language_model(
        inputs_embeds=embedded, attention_mask=mask, position_ids=places, **remembering(language_model, cache)
    )
    logits = model.get_output_embeddings()(output.last_hidden_state[:, -1:])  # (B, 1, vocabulary)
    return logits.argmax(dim=-1), cache


def new_cache(model: Any) -> DynamicCache:
    """For the keys and values of a host's words; there are none yet."""
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def remembering(model: Any, cache: DynamicCache) -> dict[str, Any]:
    """The arguments by which a model reads a cache and adds to it; transformers renamed one in 5.24."""
    return {_cache_name(type(model)): cache, "use_cache": True}


@functools.cache
def _cache_name(kind: type) -> str:
    return cache_name(kind.forward) or "past_key_values"


def cache_name(method: Callable[..., Any]) -> str | None:
    """The name by which a model's method takes its cache; None where it names none."""
    parameters = inspect.signature(method).parameters
    return next((name for name in ("cache", "past_key_values") if name in parameters), None)
