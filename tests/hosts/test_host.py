"""Talking to hosts: answers, streamed replies, and folders that are none. Tiny random LLaVAs, built here."""

import gc
import json
import shutil
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_hosts import held_up, never_ends, tiny_host, tiny_tower
from tiny_llava import CHAT_TEMPLATE, tiny_llava
from tokenizers.processors import TemplateProcessing
from torch import nn

from sfvlm.alternatives.towers import reduce_host
from sfvlm.hosts.host import Host, open_host
from sfvlm.hosts.reply import Clock
from sfvlm.hosts.swap import swap
from sfvlm.hosts.template import assistant_message, user_message
from sfvlm.look.words import budget_in_words
from sfvlm.photos.scenes import render_scene

PROMPTS = ["What color?", "How many circles are there in this picture, and where?", "a", "Is there a dog?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def host(folder: Path) -> Host:
    return open_host(folder, device="cpu")


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    return [render_scene(0, index, 64).image for index in range(4)]


def test_answers_are_those_of_generate(host: Host, photos: list[Image.Image]) -> None:
    prompt = f"USER: <image>\n{PROMPTS[1]} ASSISTANT:"
    inputs = host.processor(text=prompt, images=photos[1], return_tensors="pt")
    output = host.model.generate(**inputs, do_sample=False, max_new_tokens=8)
    expected = host.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert host.answer([photos[1]], [PROMPTS[1]], max_new_tokens=8) == [expected]


def test_a_photo_of_several_questions_is_encoded_once(host: Host, photos: list[Image.Image]) -> None:
    images, prompts = [photos[0], photos[1], photos[0], photos[0]], PROMPTS
    encoded: list[int] = []
    first = host.model.model.vision_tower.get_submodule("embeddings")
    hook = first.register_forward_pre_hook(lambda _, args: encoded.append(len(args[0])))
    together = host.answer(images, prompts, max_new_tokens=8)
    hook.remove()
    assert encoded == [2]
    assert together == [
        host.answer([image], [prompt], max_new_tokens=8)[0] for image, prompt in zip(images, prompts, strict=True)
    ]


def test_a_batch_says_what_one_at_a_time_says(host: Host, photos: list[Image.Image]) -> None:
    images = [*photos, None]
    prompts = [*PROMPTS, "No photo at all"]
    together = host.answer(images, prompts, max_new_tokens=8)
    alone = [host.answer([image], [prompt], max_new_tokens=8)[0] for image, prompt in zip(images, prompts, strict=True)]
    assert together == alone
    assert len(set(together)) > 1  # a model that says one thing would prove nothing
    assert host.answer([], []) == []


def test_the_photo_is_read(host: Host, photos: list[Image.Image]) -> None:
    assert len(set(host.answer(photos, ["What color?"] * 4, max_new_tokens=8))) > 1
    assert host.image_tokens(photos[0]) == 16


def test_padding_does_not_depend_on_how_the_tokenizer_was_saved(folder: Path, host: Host, photos: Any) -> None:
    other = open_host(folder, device="cpu")
    other.processor.tokenizer.padding_side = "right"
    assert other.answer(photos, PROMPTS, max_new_tokens=4) == host.answer(photos, PROMPTS, max_new_tokens=4)


def test_streamed_text_is_the_answer_and_has_its_timings(host: Host, photos: list[Image.Image]) -> None:
    reply = host.stream([user_message("What color?", 1)], photos[:1], max_new_tokens=8)
    text = "".join(reply)
    assert [text.strip()] == host.answer(photos[:1], ["What color?"], max_new_tokens=8)
    timings = reply.timings
    assert timings.tokens_per_image == 16
    assert timings.prompt_tokens > 16
    assert 1 <= timings.new_tokens <= 8
    assert timings.encode_ms is not None and timings.first_token_ms is not None
    assert 0 < timings.encode_ms < timings.first_token_ms


def test_a_text_without_photo_has_nothing_to_encode(host: Host) -> None:
    reply = host.stream([{"role": "user", "content": "hello"}], max_new_tokens=2)
    assert "".join(reply) is not None
    assert reply.timings.encode_ms is None and reply.timings.tokens_per_image == 0


def test_several_photos_and_turns(host: Host, photos: list[Image.Image]) -> None:
    messages = [user_message("Which?", 2), assistant_message("This one."), user_message("And now?", 1)]
    reply = host.stream(messages, photos[:3], max_new_tokens=3)
    streamed = "".join(reply).strip()
    assert reply.timings.tokens_per_image == 16 and reply.timings.prompt_tokens > 48
    assert host.answer_messages([messages], [photos[:3]], max_new_tokens=3) == [streamed]


def test_photos_and_places_must_be_as_many(host: Host, photos: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match="2 image parts, but 1 photos"):
        host.stream([user_message("Which?", 2)], photos[:1])


def test_a_placeholder_in_a_users_text_is_no_photo(host: Host, photos: list[Image.Image]) -> None:
    plain, odd = host.answer(photos[:1] * 2, ["What color?", "What <image>color?"], max_new_tokens=4)
    assert plain == odd


def test_a_placeholder_in_pieces_is_no_photo_either(host: Host, photos: list[Image.Image]) -> None:
    plain, odd = host.answer(photos[:1] * 2, ["What color?", "What <ima<im<image>age>ge>color?"], max_new_tokens=4)
    assert plain == odd


@pytest.fixture
def talker(folder: Path) -> Host:
    """A host that says "a a a a ..." and does not end by itself."""
    host = open_host(folder, device="cpu")
    never_ends(host)
    return host


def test_setting_the_event_ends_the_reply(talker: Host) -> None:
    stop = threading.Event()
    reply = talker.stream([user_message("hello")], max_new_tokens=400, stop=stop)
    for number, _ in enumerate(reply):
        if number == 2:
            stop.set()
    assert 3 <= reply.timings.new_tokens < 400


def test_the_callers_event_is_left_alone(talker: Host) -> None:
    stop = threading.Event()
    list(talker.stream([user_message("hello")], max_new_tokens=3, stop=stop))
    assert not stop.is_set()


def test_leaving_early_frees_the_host(talker: Host) -> None:
    reply = talker.stream([user_message("hello")], max_new_tokens=400)
    pieces = iter(reply)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert reply.timings.new_tokens < 400
    assert talker.answer([None], ["hello"], max_new_tokens=2)


def test_who_leaves_early_does_not_wait_for_the_word_that_is_written(talker: Host) -> None:
    with held_up(talker, after=4) as held:
        pieces = iter(talker.stream([user_message("hello")], max_new_tokens=400))
        next(pieces)
        assert held.waits.wait(10)
        before = time.monotonic()
        pieces.close()  # type: ignore[attr-defined]
        assert time.monotonic() - before < 2
    assert talker.answer([None], ["hello"], max_new_tokens=2)
    assert held.words < 12


def test_two_readers_take_turns(talker: Host) -> None:
    replies = [talker.stream([user_message(text)], max_new_tokens=12) for text in ("hello", "you")]
    texts: dict[int, str] = {}
    threads = [threading.Thread(target=lambda i=i: texts.update({i: "".join(replies[i])})) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts[0].split() == texts[1].split() == ["a"] * 12


def test_a_photo_of_another_reply_is_not_timed(talker: Host, photos: list[Image.Image]) -> None:
    reply = talker.stream([user_message("hello")], max_new_tokens=400)
    pieces = iter(reply)
    next(pieces)
    between = talker.stream([user_message("hello", 1)], photos[:1], max_new_tokens=2)
    list(between)
    pieces.close()  # type: ignore[attr-defined]
    # Still being written when the other one was done.
    assert reply.timings.new_tokens < 400
    assert reply.timings.encode_ms is None
    assert between.timings.encode_ms is not None


def test_an_error_while_writing_reaches_the_reader(talker: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(talker.model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(talker.stream([user_message("hello")]))


def test_what_a_failed_reply_computed_is_freed_at_once(talker: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[weakref.ref[torch.Tensor]] = []

    def fail(**_: object) -> None:
        cache = torch.zeros(8)
        computed.append(weakref.ref(cache))
        raise RuntimeError("out of memory")

    monkeypatch.setattr(talker.model, "generate", fail)
    reply = talker.stream([user_message("hello")])
    gc.disable()
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            list(reply)
        assert computed[0]() is None
    finally:
        gc.enable()


def test_temperature_samples(talker: Host) -> None:
    torch.manual_seed(0)
    reply = "".join(talker.stream([user_message("hello")], max_new_tokens=30, temperature=1.0))
    assert reply.split() != ["a"] * 30


def test_sampling_has_nothing_of_the_hosts_own_settings(talker: Host) -> None:
    own = talker.model.generation_config
    own.do_sample, own.top_k, own.num_beams = True, 1, 2
    greedy = "".join(talker.stream([user_message("hello")], max_new_tokens=6))
    assert greedy.split() == ["a"] * 6
    torch.manual_seed(0)
    drawn = "".join(talker.stream([user_message("hello")], max_new_tokens=30, temperature=1.0))
    assert drawn.split() != ["a"] * 30
    torch.manual_seed(0)
    own.top_k = 50  # as transformers has it where a host says nothing
    assert drawn == "".join(talker.stream([user_message("hello")], max_new_tokens=30, temperature=1.0))


def test_a_clock_that_ran_before_counts_what_was_done_since(talker: Host) -> None:
    early, clock = 5.0, Clock()
    clock._start -= early
    clock.stop()
    reply = talker.stream([user_message("hello")], max_new_tokens=2, clock=clock)
    list(reply)
    assert reply.timings.first_token_ms is not None and reply.timings.first_token_ms > 1000 * early


def test_a_template_that_writes_the_first_token_gets_no_second_one(folder: Path) -> None:
    host = open_host(folder, device="cpu")
    tokenizer = host.processor.tokenizer
    first = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{first[0]} $A", special_tokens=[first])
    counts = []
    for template in (CHAT_TEMPLATE, tokenizer.bos_token + CHAT_TEMPLATE):
        host.processor.chat_template = template
        counts.append(host.stream([user_message("hello")], max_new_tokens=1).timings.prompt_tokens)
    assert counts[0] == counts[1]


def test_the_fingerprint_follows_the_weights(folder: Path, host: Host, tmp_path: Path) -> None:
    assert open_host(folder, device="cpu").fingerprint == host.fingerprint
    assert open_host(tiny_llava(tmp_path, seed=1), device="cpu").fingerprint != host.fingerprint


def test_answers_are_greedy_whatever_a_chat_is_to_avoid(folder: Path, host: Host, photos: Any) -> None:
    chatty = open_host(folder, device="cpu")
    settings = chatty.model.generation_config
    settings.repetition_penalty, settings.no_repeat_ngram_size, settings.do_sample = 1.8, 1, True
    settings.min_new_tokens, settings.suppress_tokens = 8, [int(token) for token in range(40, 60)]
    assert chatty.answer(photos[:2], PROMPTS[:2], max_new_tokens=8) == host.answer(
        photos[:2], PROMPTS[:2], max_new_tokens=8
    )
    reply = "".join(chatty.stream([user_message(PROMPTS[0], 1)], photos[:1], max_new_tokens=8))
    assert reply.strip() == host.answer(photos[:1], PROMPTS[:1], max_new_tokens=8)[0]


def test_settings_tell_hosts_of_the_same_weights_apart(folder: Path, host: Host) -> None:
    def other(tower: Any = None, num_tokens: int | None = None) -> Host:
        found = open_host(folder, device="cpu")
        if tower is not None:
            swap(found.model, found.processor, tower, num_tokens)
        return found

    assert other().settings_fingerprint == host.settings_fingerprint
    grey = other()
    grey.processor.image_processor.image_mean = [0.5] * 3
    turned = other()
    turned.model.config.text_config.rope_parameters["rope_theta"] = 50.0
    methods = [other(reduce_host(folder, method, 9)) for method in ("average", "stride")]
    for one, two in ((host, grey), (host, turned), methods, (other(tiny_tower()), other(tiny_tower(), 16))):
        assert one.fingerprint == two.fingerprint
        assert one.settings_fingerprint != two.settings_fingerprint


@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision"])
def test_tiled_hosts_answer_too(kind: str, tmp_path: Path, photos: list[Image.Image]) -> None:
    host = open_host(tiny_host(kind, tmp_path), device="cpu")
    wide = photos[0].resize((112, 56))
    assert host.image_tokens(wide) > 16
    assert host.token_budget == host.image_tokens(photos[0].resize((600, 600))) > host.image_tokens(wide)
    assert budget_in_words(host) == f"{host.token_budget} tokens a large square photo"
    images, prompts = [photos[0], wide, None], PROMPTS[:3]
    alone = [host.answer([image], [prompt], max_new_tokens=4)[0] for image, prompt in zip(images, prompts, strict=True)]
    assert host.answer(images, prompts, max_new_tokens=4) == alone
    reply = host.stream([user_message("Which?", 1)], [wide], max_new_tokens=4)
    assert "".join(reply) is not None and reply.timings.encode_ms is not None


def test_a_processor_without_template_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "silent")
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        open_host(copy)


def test_a_device_that_cannot_be_used_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="The device 'gpu' cannot be used"):
        open_host(folder, device="gpu")


def test_a_folder_that_is_no_host_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the folder does not exist"):
        open_host(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"not a folder with a config\.json"):
        open_host(tmp_path)
    for content, words in (
        ({"model_type": "gpt2"}, "says 'gpt2', not llava"),
        ({"model_type": "llava", "mm_vision_tower": "openai/clip"}, "original llava package's layout"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=words):
            open_host(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="No host can be opened"):
        open_host(tmp_path)


def test_damaged_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(folder, tmp_path / "cut")
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cannot be opened"):
        open_host(cut)
    tensors = load_file(folder / "model.safetensors")
    name = next(key for key in tensors if "multi_modal_projector" in key)
    lacking = shutil.copytree(folder, tmp_path / "lacking")
    save_file(
        {key: value for key, value in tensors.items() if key != name}, lacking / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match=r"missing keys: .*multi_modal_projector"):
        open_host(lacking)
    more = shutil.copytree(folder, tmp_path / "more")
    save_file(tensors | {"stray": torch.zeros(1)}, more / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="unexpected keys: stray"):
        open_host(more)


def test_quantising_without_bitsandbytes_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        open_host(folder, bits=4)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_hosts_keep_tower_projector_and_output_whole(bits: Any, tmp_path: Path, photos: Any) -> None:
    pytest.importorskip("bitsandbytes")
    host = open_host(tiny_llava(tmp_path, text_width=256), device="cpu", bits=bits)
    quantized = {
        name
        for name, module in host.model.named_modules()
        if type(module).__name__.startswith("Linear") and type(module) is not nn.Linear
    }
    assert quantized and all(name.startswith("model.language_model.") for name in quantized)
    assert len(host.answer(photos[:2], PROMPTS[:2], max_new_tokens=2)) == 2
