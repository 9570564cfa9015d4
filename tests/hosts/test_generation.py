"""Answers of hosts whose generation settings would have them say something else, beside a plain loop over the same host."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_hosts import photo

from sfvlm.hosts.host import Host, open_host
from sfvlm.hosts.reader import HostReader
from sfvlm.hosts.template import user_message, written

PROMPTS = ("What color?", "How many circles are there?", "Is there a dog?")
LONGEST = 8
WORDS = [*range(4, 320)]  # all that the tiny host can say

SETTINGS: dict[str, Any] = {
    "no word twice": {"no_repeat_ngram_size": 1, "repetition_penalty": 9.0},
    "words that are forbidden": {"suppress_tokens": WORDS[:300], "bad_words_ids": [[word] for word in WORDS[:300]]},
    "words that are forbidden at first": {"begin_suppress_tokens": WORDS[:300]},
    "a last word": {"forced_eos_token_id": 2},
    "words that are liked": {"sequence_bias": [[[70], 100.0]]},
    "lengths": {"min_length": 400, "min_new_tokens": 8, "max_length": 3, "max_new_tokens": 1},
    "a decay": {"exponential_decay_length_penalty": [1, 1e9]},
    "guidance": {"guidance_scale": 9.0},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "early_stopping": True, "length_penalty": 4.0},
    "a contrastive search": {"penalty_alpha": 0.6, "top_k": 4},
    "another cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "guesses": {"prompt_lookup_num_tokens": 3, "num_assistant_tokens": 2},
    "a watermark": {"watermarking_config": {"greenlist_ratio": 0.25, "bias": 50.0, "seeding_scheme": "selfhash"}},
    "strings that stop": {"stop_strings": ["a", "e", "\x1b"]},
    "sampling": {"do_sample": True, "temperature": 9.0, "top_k": 3, "top_p": 0.1, "min_p": 0.4, "typical_p": 0.2},
    "another result": {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True},
    "a time limit": {"max_time": 1e-9},
    "a field that nobody knows": {"of_somebody": 3, "pixel_values": None},
    "a word for padding": {"pad_token_id": 70},
    "padding that is no word": {"pad_token_id": -1},
    "an end twice": {"eos_token_id": [2, 2, 2]},
}


@torch.no_grad()
def likeliest_words(host: Host) -> list[str]:
    """The words that come first, one after another, without `generate` and without a cache."""
    found = []
    for number, prompt in enumerate(PROMPTS):
        text = written(host.processor, [user_message(prompt, 1)])
        inputs = host.processor(text=[text], images=[photo(number)], return_tensors="pt")
        said: list[int] = []
        while len(said) < LONGEST:
            ids = torch.cat([inputs["input_ids"], torch.tensor([said], dtype=torch.long)], dim=1)
            word = int(host.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -1].argmax())
            if word == host.processor.tokenizer.eos_token_id:
                break
            said.append(word)
        found.append(host.processor.tokenizer.decode(said, skip_special_tokens=True).strip())
    return found


def answers(host: Host) -> list[str]:
    return host.answer([photo(number) for number in range(len(PROMPTS))], PROMPTS, max_new_tokens=LONGEST)


def streamed(host: Host) -> list[str]:
    return [
        "".join(host.stream([user_message(prompt, 1)], [photo(number)], max_new_tokens=LONGEST)).strip()
        for number, prompt in enumerate(PROMPTS)
    ]


@pytest.fixture(scope="module")
def expected(hosts: dict[str, Path]) -> list[str]:
    return likeliest_words(open_host(hosts["llava"], device="cpu"))


@pytest.fixture
def folder(hosts: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(hosts["llava"], tmp_path / "host")


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_greedy_answer_has_the_likeliest_words_whatever_the_hosts_settings_say(
    name: str, folder: Path, expected: list[str]
) -> None:
    change(folder / "generation_config.json", **SETTINGS[name])
    host = open_host(folder, device="cpu")
    assert answers(host) == streamed(host) == expected
    assert len(set(expected)) == len(PROMPTS)


def test_the_settings_of_a_host_are_left_alone(folder: Path) -> None:
    change(folder / "generation_config.json", repetition_penalty=3.0)
    host = open_host(folder, device="cpu")
    before = host.model.generation_config.to_dict()
    answers(host)
    assert host.model.generation_config.to_dict() == before and before["repetition_penalty"] == 3.0


@pytest.mark.parametrize("of_its_own", [True, False])
def test_settings_in_the_hosts_configuration_are_not_taken_either(
    of_its_own: bool, folder: Path, expected: list[str]
) -> None:
    old = dict(do_sample=True, num_beams=3, repetition_penalty=9.0, no_repeat_ngram_size=1, use_cache=False)
    described = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", **old, text_config=described["text_config"] | old | {"min_length": 90})
    if not of_its_own:
        (folder / "generation_config.json").unlink()
    assert answers(open_host(folder, device="cpu")) == expected


def test_every_end_of_a_host_ends_its_answers_in_every_way_of_asking(folder: Path) -> None:
    host = open_host(folder, device="cpu")
    ids = host.processor.tokenizer(written(host.processor, [user_message("?", 1)]))["input_ids"]
    at = ids.index(host.processor.image_token_id)
    seen = torch.randn(1, 16, 32)

    def told() -> list[int]:
        reader = HostReader(host.model, host.processor)
        return reader.answer(seen, torch.tensor(ids[:at]), [[ids[at + 1 :]]], LONGEST)[0][0]

    first = told()[0]
    host.model.generation_config.eos_token_id = [2, first]
    assert told() == []
    question, image = [user_message(PROMPTS[1], 1)], [photo(1)]
    host.model.generation_config.eos_token_id = 2
    reply = host.stream(question, image, max_new_tokens=LONGEST)
    text, tokens = "".join(reply), reply.tokens
    assert text and len(tokens) > 1
    host.model.generation_config.eos_token_id = [2, tokens[0]]  # a word for the tokenizer, and an end for the host
    assert "".join(host.stream(question, image, max_new_tokens=LONGEST)) == ""
    assert host.answer(image, [PROMPTS[1]], max_new_tokens=LONGEST) == [""]


def test_a_host_that_names_no_end_ends_by_its_tokenizers(folder: Path, expected: list[str]) -> None:
    change(folder / "generation_config.json", eos_token_id=None)
    host = open_host(folder, device="cpu")
    assert answers(host) == expected
    end = host.processor.tokenizer.eos_token_id
    host.model.lm_head.register_forward_hook(lambda *_: torch.eye(320)[end].expand(1, 1, -1))
    reply = host.stream([user_message("?")], max_new_tokens=LONGEST)
    assert "".join(reply) == "" and reply.tokens == [end]


@pytest.mark.parametrize("end", ["2", -1, [2, "x"], True, [[2]]])
def test_an_end_that_is_no_token_is_refused(end: Any, folder: Path) -> None:
    change(folder / "generation_config.json", eos_token_id=end)
    with pytest.raises(ValueError, match=r"eos_token_id|cannot be opened"):
        open_host(folder, device="cpu")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"eos_token_id": 2'])
def test_settings_that_cannot_be_read_are_not_taken_for_none(text: str, folder: Path) -> None:
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"generation_config\.json (is no JSON|holds no JSON object|is empty)"):
        open_host(folder, device="cpu")


def test_a_host_without_settings_of_its_own_answers_by_its_configuration(folder: Path, expected: list[str]) -> None:
    (folder / "generation_config.json").unlink()
    assert answers(open_host(folder, device="cpu")) == expected
