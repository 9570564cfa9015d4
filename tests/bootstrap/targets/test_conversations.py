import json
from pathlib import Path

import pytest
import torch
from tiny_hosts import opened
from tiny_runs import TURNS

from sfvlm.bootstrap.targets.conversations import Conversations


def test_words_that_count_are_the_answers_and_their_ends(llava: Path) -> None:
    _, processor = opened(llava)
    texts = Conversations(processor, [TURNS, TURNS[:1]], seed=0).batch(torch.tensor([0, 1]), torch.tensor([0, 0]))
    tokenizer = processor.tokenizer
    said = [tokenizer.decode(texts.after[row, texts.place[texts.row == row]]) for row in (0, 1)]
    assert sorted(part.strip() for part in said[0].split("</s>")) == ["", "a red circle", "yes"]
    assert said[1].strip() == "yes</s>"
    assert texts.weight.sum().item() == pytest.approx(3)  # one an answer
    assert tokenizer.decode(texts.before) == "USER: "


def test_a_template_may_put_other_space_in_front_of_an_answer_than_it_asks_with(llava: Path) -> None:
    _, processor = opened(llava)
    conversations = Conversations(processor, [TURNS], seed=0)
    # As that of llava-hf/llava-onevision-qwen2-7b-ov-hf does.
    turn = "{{ message['role'] + ': ' }}{% for part in message['content'] %}{{ {body} }}{% endfor %}</s>".replace(
        "{body}", "'<image>' if part['type'] == 'image' else '\\n' + part['text']"
    )
    asks = "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
    processor.chat_template = f"{{% for message in messages %}}{turn}{{% endfor %}}{asks}"
    texts = conversations.batch(torch.tensor([0]), torch.tensor([0]))
    said = processor.tokenizer.decode(texts.after[0, texts.place])
    assert sorted(part.strip() for part in said.split("</s>")) == ["", "a red circle", "yes"]


def test_turns_change_places_from_epoch_to_epoch(llava: Path) -> None:
    conversations = Conversations(opened(llava)[1], [TURNS], seed=0)
    rows = [conversations.batch(torch.tensor([0]), torch.tensor([epoch])).after.tolist() for epoch in range(8)]
    assert rows == [conversations.batch(torch.tensor([0]), torch.tensor([epoch])).after.tolist() for epoch in range(8)]
    assert len({json.dumps(row) for row in rows}) == 2
