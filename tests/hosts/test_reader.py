from pathlib import Path

import torch
from tiny_hosts import opened
from tiny_runs import TURNS

from sfvlm.bootstrap.targets.conversations import Conversations
from sfvlm.hosts.reader import HostReader
from sfvlm.teachers.open import open_teacher


def test_dense_tokens_are_read_as_the_host_itself_reads_them(llava: Path) -> None:
    model, processor = opened(llava)
    reader, teacher = HostReader(model, processor), open_teacher(llava)
    texts = Conversations(processor, [TURNS], seed=0).batch(torch.tensor([0]), torch.tensor([0]))
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        seen = reader.project(reader.select(teacher.model(pixels).hidden_states, 1))
        logits = reader.next_token_logits(seen, texts)
        image = torch.full((16,), processor.image_token_id)
        ids = torch.cat([texts.before, image, texts.after[0]])[None]
        whole = model(input_ids=ids, pixel_values=pixels).logits[0]
    places = len(texts.before) + 16 + texts.place
    torch.testing.assert_close(logits, whole[places - 1], atol=1e-4, rtol=1e-4)


def test_what_the_words_depend_on_is_the_length_of_their_gradient_times_each_token(llava: Path) -> None:
    model, processor = opened(llava)
    reader = HostReader(model.double(), processor)
    texts = Conversations(processor, [TURNS, TURNS[:1]], seed=0).batch(torch.tensor([0, 1]), torch.tensor([0, 0]))
    seen = torch.randn(2, 3, model.config.text_config.hidden_size, dtype=torch.float64)
    logits, depends = reader.read(seen, texts)
    torch.testing.assert_close(logits, reader.next_token_logits(seen, texts))
    assert not logits.requires_grad and not depends.requires_grad

    def said(tokens: torch.Tensor) -> torch.Tensor:
        shares = reader.next_token_logits(tokens, texts).log_softmax(-1)
        return (shares[range(len(shares)), texts.after[texts.row, texts.place]] * texts.weight).sum()

    steps = []
    for feature in range(seen.shape[2]):  # what a hundredth more or less of one feature of a token changes
        more, less = seen.clone(), seen.clone()
        more[1, 2, feature] *= 1 + 1e-2
        less[1, 2, feature] *= 1 - 1e-2
        steps.append((said(more) - said(less)) / 2e-2)
    torch.testing.assert_close(depends[1, 2].double(), torch.stack(steps).norm(), rtol=2e-3, atol=1e-6)
