"""The words that belong to patches, and the losses that draw the projected patches to them.

Of a rendered scene it is known what stands at each patch. Of a photo it is known what people said of it, and not where that
is: some patch should say it.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sfvlm.photos.scene_texts import Box, SceneObject

from .questions import sides_of

NO_WORD = -1
# Of cosines. Without bounds the patches would grow to a hundred times the words' length, and hide the answers.
SCALE = 20.0
WORDS = 6


def object_words(objects: Sequence[SceneObject], patches: int, ids_of: Callable[[str], list[int]]) -> Tensor:
    """Ids of the words for the object at each patch (patches, WORDS); NO_WORD where there is none.

    A word of several tokens counts by its first, a letter or digit by its last: what stands before it is the space.

    Args:
        objects: Of one scene.
        patches: On a square grid, in rows.
        ids_of: Text -> token ids.
    """
    side = round(patches**0.5)
    centers = (torch.arange(side) + 0.5) / side
    words = torch.full((side, side, WORDS), NO_WORD)
    for item in sorted(objects, key=lambda item: item.box[0] - item.box[2]):  # what is small stands in front
        left, top, right, bottom = _at_least(item.box, 1 / side)
        across = (centers >= left) & (centers <= right)
        down = (centers >= top) & (centers <= bottom)
        ids = [ids_of(f" {word}")[0] for word in (item.size, item.color, item.shape, *sides_of(item))]
        ids.append(ids_of(f" {item.text.lower()}")[-1] if item.text else NO_WORD)
        words[down[:, None] & across[None, :]] = torch.tensor(ids)
    return words.flatten(0, 1)


def _at_least(box: Box, length: float) -> Box:
    """The box, widened about its middle where it is smaller than a patch, so that it holds the middle of one."""
    left, top, right, bottom = box
    wider, higher = max(0.0, length - (right - left)) / 2, max(0.0, length - (bottom - top)) / 2
    return left - wider, top - higher, right + wider, bottom + higher


def word_loss(seen: Tensor, words: Tensor, embeddings: Tensor) -> Tensor:
    """Cross-entropy of the cosines of projected patches with the word embeddings, against the words that stand there, all alike.

    Args:
        seen: (B, patches, width) projected.
        words: (B, patches, W) ids, NO_WORD where there is none.
        embeddings: (vocabulary, width).

    Returns:
        (): Zero where no patch has a word.
    """
    named = words[..., 0] != NO_WORD
    words = words[named]  # (N, W)
    there = words != NO_WORD
    cosines = F.normalize(seen[named], dim=-1) @ F.normalize(embeddings, dim=-1).T
    log_shares = (SCALE * cosines).log_softmax(-1).gather(1, words.clamp(min=0))
    losses = -(log_shares * there).sum(-1) / there.sum(-1)
    return losses.sum() / named.sum().clamp(min=1)


def photo_word_loss(seen: Tensor, said: Tensor, shares: Tensor, embeddings: Tensor) -> Tensor:
    """Cross-entropy of what the patches of a photo say, softly the most any of them does, against what was said of it.

    Multiple-instance learning: the photo is a bag of patches, the label is the bag's (Ilse et al., arXiv 1802.04712, section 2).

    Args:
        seen: (B, patches, width) projected.
        said: (B, S) word ids, NO_WORD where there is none.
        shares: (B, S) of the target each word has; of a photo of which something was said they sum to one.
        embeddings: (vocabulary, width).

    Returns:
        (): Zero where nothing was said of any photo.
    """
    told = (said != NO_WORD).any(-1)
    said, shares = said[told], shares[told]
    cosines = F.normalize(seen[told], dim=-1) @ F.normalize(embeddings, dim=-1).T  # (N, patches, vocabulary)
    log_shares = (SCALE * cosines).logsumexp(1).log_softmax(-1).gather(1, said.clamp(min=0))
    return -(log_shares * shares).sum() / told.sum().clamp(min=1)
