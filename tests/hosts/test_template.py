"""Chat templates of all makes, wherever a host keeps them, beside what transformers itself writes and tokenizes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_hosts import opened, photo
from tiny_llava import CHAT_TEMPLATE

from sfvlm.bootstrap.objective import Objective
from sfvlm.bootstrap.options import BootstrapOptions
from sfvlm.bootstrap.targets.conversations import Conversations, check_template
from sfvlm.commands.bootstrap import bootstrap_command
from sfvlm.commands.options.bootstrap import BootstrapCommand
from sfvlm.hosts.host import Host, open_host
from sfvlm.hosts.template import assistant_message, lacks_start, user_message, written

QUESTION = "How many circles?"
PARTS = [{"type": "image"}, {"type": "text", "text": QUESTION}]
TEXT = f"<image>\n{QUESTION}"
TURNS = "{% for m in messages %}"
LOOP = "{% for p in m.content %}"
# As LlamaFactory exports one for Vicuna, and as Mistral's own.
FACTORY = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set order = messages[0]['content'] %}"
    "{% else %}{% set turns = messages %}{% set order = 'A chat.' %}{% endif %}{{ '<s>' + order }}"
    "{% for m in turns %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ASSISTANT:' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + '</s>' }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}"
    + TURNS
    + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}"
    "{% endif %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}"
    "{{ m.content + eos_token }}{% else %}{{ raise_exception('Only user and assistant') }}{% endif %}{% endfor %}"
)

FOLLOWED: dict[str, tuple[str, Any]] = {  # and the content that it takes
    "parts": (CHAT_TEMPLATE, PARTS),
    "text that is added": (TURNS + "{{ m['role'] + ': ' + m['content'] + ' ' }}{% endfor %}ASSISTANT:", TEXT),
    "text that is printed": (TURNS + "{{ m['content'] }}{% endfor %}", TEXT),
    "text that is trimmed": (TURNS + "{{ m.content | trim }}</s>{% endfor %}A:", TEXT),
    "text that is asked for": (
        TURNS
        + "{% if m.content is not string %}{{ raise_exception('No lists') }}{% endif %}{{ m.content }}{% endfor %}",
        TEXT,
    ),
    "text that is JSON": (TURNS + "{{ m.content | tojson }}{% endfor %}", TEXT),
    "an export of LlamaFactory": (FACTORY, TEXT),
    "Mistral's": (MISTRAL, TEXT),
    "parts of text alone": (
        TURNS + LOOP + "{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}A:",
        [{"type": "text", "text": TEXT}],
    ),
    "the first part's text": (TURNS + "{{ m.content[0]['text'] }}{% endfor %}", [{"type": "text", "text": TEXT}]),
    "parts by OpenAI's names, or text": (
        TURNS + "{% if m.content is string %}{{ m.content }}{% else %}" + LOOP + "{% if p.type == 'image_url' %}<image>"
        "{% elif p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}",
        TEXT,
    ),
    "its own place for the photo": (TURNS + "{{ 'USER: <image>\n' + m.content }}{% endfor %}A:", QUESTION),
    "tools": ("{% if tools %}{{ tools | tojson }}{% endif %}" + TURNS + "{{ m.role + m.content }}{% endfor %}", TEXT),
    "a date": ("{{ strftime_now('%Y') }} " + TURNS + "{{ m.role + m.content }}{% endfor %}", TEXT),
}


def with_template(folder: Path, template: str) -> Host:
    model, processor = opened(folder)
    processor.chat_template = template
    return Host(model, processor)


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_question_is_written_as_transformers_writes_it_in_the_form_that_the_template_takes(
    name: str, hosts: dict[str, Path]
) -> None:
    template, content = FOLLOWED[name]
    host = with_template(hosts["llava"], template)
    theirs = host.processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert written(host.processor, [user_message(QUESTION, 1)]) == theirs
    assert theirs.count("<image>") == 1
    start = not theirs.startswith("<s>")
    expected = host.processor(text=[theirs], images=[photo()], add_special_tokens=start, return_tensors="pt")
    ours = host.encode([[user_message(QUESTION, 1)]], [[photo()]])
    assert torch.equal(ours["input_ids"], expected["input_ids"])
    assert (ours["input_ids"] == host.processor.tokenizer.bos_token_id).sum() <= 1
    assert len(host.answer([photo()], [QUESTION], max_new_tokens=2)) == 1


@pytest.mark.parametrize("name", ["parts", "an export of LlamaFactory", "Mistral's"])
def test_photos_stand_where_they_are_shown_in_every_turn(name: str, hosts: dict[str, Path]) -> None:
    processor = with_template(hosts["llava"], FOLLOWED[name][0]).processor
    text = written(processor, [user_message("Which?", 2), assistant_message("This."), user_message("And?", 1)])
    first, second, third, last = text.split("<image>")
    assert second.strip() == "" and "Which?" in third and "This." in third and "And?" in last and "Which?" not in first
    assert "<image>" not in written(processor, [user_message("No photo")])
    typed = written(processor, [user_message("What <ima<image>ge>color?", 1)])
    assert typed == written(processor, [user_message("What color?", 1)])


def test_a_photo_in_the_middle_of_a_text_stays_there(hosts: dict[str, Path]) -> None:
    processor = with_template(hosts["llava"], FACTORY).processor
    parts = [{"type": "text", "text": "Is "}, {"type": "image"}, {"type": "text", "text": "a dog?"}]
    assert "USER: Is <image>\na dog? ASSISTANT:" in written(processor, [{"role": "user", "content": parts}])


def test_each_role_has_the_form_that_its_template_takes(hosts: dict[str, Path]) -> None:
    mixed = TURNS + "{% if m.role == 'user' %}" + LOOP + "{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}"
    processor = with_template(
        hosts["llava"], mixed + "{% else %}{{ m.content + '|' }}{% endif %}{% endfor %}"
    ).processor
    system = {"role": "system", "content": "Be brief."}
    text = written(processor, [system, user_message("Why?", 1), assistant_message("So."), user_message("So?")])
    assert text == "Be brief.|<image>Why?So.|So?"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (MISTRAL, r"no place for a turn of the system: it ends in an error \(TemplateError: "),
        (
            TURNS + "{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            "no place for a turn of the system: it does not write what the system says",
        ),
    ],
)
def test_a_system_message_that_has_no_place_is_refused_and_not_lost(
    template: str, words: str, hosts: dict[str, Path]
) -> None:
    processor = with_template(hosts["llava"], template).processor
    with pytest.raises(ValueError, match=words):
        written(processor, [{"role": "system", "content": "Be brief."}, user_message("Why?", 1)])


REFUSED = {
    "another mark": (
        TURNS + "{% if m.content is string %}{{ m.content }}{% else %}" + LOOP
        + "{{ '<|image_pad|>' if p.type == 'image' else p.text }}{% endfor %}{% endif %}{% endfor %}",
        r"writes <image> 0 times where 1 photos are shown: '<\|image_pad\|>What",
    ),
    "two marks": (
        TURNS + LOOP + "{{ '<image><image>' if p.type == 'image' else p.text }}{% endfor %}{% endfor %}",
        "writes <image> 2 times where 1 photos",
    ),
    "no words": ("hello", "does not write what the user says, but 'hello'"),
    "a system message first": (
        "{% if messages[0].role != 'system' %}{{ raise_exception('Give an order') }}{% endif %}",
        "ends in an error .*Give an order",
    ),
    "an error": (TURNS + "{{ m.role }", "ends in an error .TemplateSyntaxError"),
    "an unknown name": ("{{ somebody.name }}", "ends in an error .UndefinedError"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_cannot_be_followed_is_refused_before_the_host_is_asked(
    name: str, hosts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    template, words = REFUSED[name]
    host = with_template(hosts["llava"], template)
    monkeypatch.setattr(type(host.model), "generate", lambda *_, **__: pytest.fail("the host was asked"))
    with pytest.raises(ValueError, match=f"chat template cannot be followed: it {words}"):
        host.answer([photo()], [QUESTION])
    with pytest.raises(ValueError, match="chat template cannot be followed"):
        check_template(host.processor)


def test_a_place_that_the_template_has_by_itself_is_not_left_without_a_photo(hosts: dict[str, Path]) -> None:
    processor = with_template(hosts["llava"], FOLLOWED["its own place for the photo"][0]).processor
    for count in (0, 2):
        with pytest.raises(ValueError, match=f"writes <image> 1 times where {count} photos are shown"):
            written(processor, [user_message(QUESTION, count)])


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def in_tokenizer(template: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "tokenizer_config.json", chat_template=template)


def in_file(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return write


NAMED = [{"name": "default", "template": CHAT_TEMPLATE}, {"name": "rag", "template": "x"}]
PLACES = {
    "tokenizer_config.json": in_tokenizer(CHAT_TEMPLATE),
    "tokenizer_config.json, by name": in_tokenizer(NAMED),
    "chat_template.json": in_file("chat_template.json", json.dumps({"chat_template": CHAT_TEMPLATE})),
    "chat_template.json, by name": in_file("chat_template.json", json.dumps({"chat_template": NAMED})),
    "chat_template.jinja with a mark at its start": in_file("chat_template.jinja", "\ufeff" + CHAT_TEMPLATE),
    "processor_config.json": lambda folder: change(folder / "processor_config.json", chat_template=CHAT_TEMPLATE),
}


@pytest.fixture
def silent(hosts: dict[str, Path], tmp_path: Path) -> Path:
    """A host without a chat template."""
    folder = shutil.copytree(hosts["llava"], tmp_path / "host")
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_a_template_is_found_wherever_a_host_keeps_it(place: str, silent: Path, hosts: dict[str, Path]) -> None:
    PLACES[place](silent)
    host, known = open_host(silent, device="cpu"), open_host(hosts["llava"], device="cpu")
    assert host.template == CHAT_TEMPLATE
    assert host.settings_fingerprint == known.settings_fingerprint
    asked = [photo()], [QUESTION]
    assert host.answer(*asked, max_new_tokens=4) == known.answer(*asked, max_new_tokens=4)


def test_the_processors_template_comes_before_its_tokenizers(silent: Path) -> None:
    in_file("chat_template.json", json.dumps({"chat_template": CHAT_TEMPLATE}))(silent)
    in_tokenizer(MISTRAL)(silent)
    assert open_host(silent, device="cpu").template == CHAT_TEMPLATE


@pytest.mark.parametrize(
    "place",
    [
        in_tokenizer([{"name": "vision", "template": CHAT_TEMPLATE}, {"name": "rag", "template": "x"}]),
        in_file("chat_template.json", json.dumps({"chat_template": [{"name": "vision", "template": CHAT_TEMPLATE}]})),
        in_file("additional_chat_templates/vision.jinja", CHAT_TEMPLATE),
    ],
)
def test_templates_with_names_but_no_default_are_refused_by_their_names(place: Any, silent: Path) -> None:
    place(silent)
    with pytest.raises(
        ValueError, match=r"templates named vision.*none named default.*save the one .* chat_template\.jinja"
    ):
        open_host(silent, device="cpu")


@pytest.mark.parametrize("nothing", ["", None])
def test_an_empty_template_is_none(nothing: Any, silent: Path) -> None:
    in_tokenizer(nothing)(silent)
    with pytest.raises(ValueError, match="has no chat template, and its tokenizer neither"):
        open_host(silent, device="cpu")


def test_answers_are_found_in_a_template_of_text(hosts: dict[str, Path]) -> None:
    host = with_template(hosts["llava"], FACTORY)
    check_template(host.processor)
    turns = [("Is there a dog in the photo?", "yes"), ("What color is the biggest object?", "a red circle")]
    texts = Conversations(host.processor, [turns], 0).batch(torch.tensor([0]), torch.tensor([0]))
    said = host.processor.tokenizer.decode(texts.after[0, texts.place])
    assert sorted(said.split("</s>")) == ["", "a red circle", "yes"]
    assert not lacks_start(host.processor, written(host.processor, [user_message("?", 1)]))


def test_a_prompt_that_does_not_end_as_an_answer_begins_is_refused(hosts: dict[str, Path]) -> None:
    turn = "{{ '<|' + m.role + '|>' }}" + LOOP + "{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}</s>"
    host = with_template(hosts["llava"], TURNS + turn + "{% endfor %}")
    with pytest.raises(ValueError, match=r"begins an answer by '<\|assistant\|>yes</s>'.*add_generation_prompt"):
        check_template(host.processor)


def test_a_tower_is_bootstrapped_for_a_host_whose_tokenizer_has_a_template_of_text(
    silent: Path, photo_folder: Path, tmp_path: Path
) -> None:
    in_tokenizer(FACTORY)(silent)
    training = BootstrapOptions(
        steps=1, batch_size=4, workers=0, held_back=2, eval_every=0, cpu=True, host_turns=2, objective=Objective()
    )
    command = BootstrapCommand(
        host=str(silent), photos=[str(photo_folder)], out=tmp_path / "tower", num_tokens=4, training=training
    )
    bootstrap_command(command)
    lines = (tmp_path / "tower" / "answers.train.jsonl").read_text().splitlines()
    assert any(json.loads(line)["turns"] for line in lines[1:])


def test_a_mark_that_the_model_does_not_read_is_refused(silent: Path) -> None:
    in_tokenizer(CHAT_TEMPLATE)(silent)
    described = json.loads((silent / "config.json").read_text())
    name = "image_token_id" if "image_token_id" in described else "image_token_index"
    change(silent / "config.json", **{name: 9})
    with pytest.raises(
        ValueError, match="writes <image> for a photo, which is token 3, and its model reads photos at token 9"
    ):
        open_host(silent, device="cpu")
