"""The demo through gradio_client, against a live server with a tiny random host."""

import itertools
import json
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_hosts import never_ends, tiny_tower

pytest.importorskip("gradio")

import httpx
from gradio_client import Client, handle_file
from live_demo import served

from sfvlm.encoder import roi
from sfvlm.hosts.host import Host, open_host
from sfvlm.hosts.reply import Timings
from sfvlm.look.looking import Attention, Looked, look
from sfvlm.look.sides import Sides, open_sides, with_tower
from sfvlm.photos.scenes import render_scene

QUESTION = "What color is the biggest object?"


@pytest.fixture(scope="module")
def sides(swapped_folder: Path) -> Sides:
    return open_sides(swapped_folder, device="cpu")


@pytest.fixture(scope="module")
def url(sides: Sides) -> Iterator[str]:
    with served(sides) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return connect(url)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Photos, and what is none."""
    folder = tmp_path_factory.mktemp("uploads")
    for index in range(2):
        render_scene(0, index, 96).image.save(folder / f"photo{index}.png")
    (folder / "broken.png").write_bytes((folder / "photo0.png").read_bytes()[:400])
    (folder / "text.jpg").write_text("no photo")
    Image.new("1", (10_000, 10_000)).save(folder / "huge.png")
    Image.new("1", (2, 3000)).save(folder / "line.png")
    return {path.stem: str(path) for path in folder.iterdir()}


def connect(url: str) -> Client:
    return Client(url, verbose=False, httpx_kwargs={"timeout": 60})


def ask(client: Client, text: str, photos: tuple[str, ...] = (), side: str = "sparse", longest: int = 6) -> Any:
    """The answer and its cost."""
    message = {"text": text, "files": [handle_file(path) for path in photos]}
    return client.predict(message, side, 0, 1, longest, "", api_name="/chat")


def expected(host: Host | None, photo: str, longest: int = 6) -> str:
    assert host is not None
    return host.answer([Image.open(photo)], [QUESTION], max_new_tokens=longest)[0]


def test_every_function_is_named_and_documented(client: Client) -> None:
    endpoints: Any = client.view_api(return_format="dict", print_info=False)
    found = endpoints["named_endpoints"]
    assert {"/chat", "/compare", "/look", "/focus", "/rank", "/segment"} == set(found)
    assert all(len(each["description"]) > 40 for each in found.values())


@pytest.mark.parametrize("side", ["dense", "sparse"])
def test_the_chat_answers_as_the_host_does(side: str, url: str, sides: Sides, files: dict[str, str]) -> None:
    answer, cost = ask(connect(url), QUESTION, (files["photo0"],), side)
    assert answer.strip() == expected(sides.hosts[side], files["photo0"])
    assert cost.startswith(f"{sides.hosts[side].token_budget} tokens a photo · encoded in ")


def test_a_conversation_goes_on_and_takes_several_photos(url: str, sides: Sides, files: dict[str, str]) -> None:
    client = connect(url)
    photos = (files["photo0"], files["photo1"])
    first, _ = ask(client, "Which?", photos)
    second, _ = ask(client, "And now?", (files["photo1"],))
    from sfvlm.hosts.template import assistant_message, user_message

    turns = [user_message("Which?", 2), assistant_message(first.strip()), user_message("And now?", 1)]
    images = [Image.open(path) for path in (*photos, files["photo1"])]
    assert sides.sparse is not None
    assert [second.strip()] == sides.sparse.answer_messages([turns], [images], max_new_tokens=6)


@pytest.mark.parametrize(
    ("text", "photos", "words"),
    [
        (QUESTION, ("broken",), "broken.png cannot be opened"),
        (QUESTION, ("text",), "not a JPEG, PNG"),
        (QUESTION, ("huge",), "10000 x 10000 pixels, and at most 64 million"),
        (QUESTION, ("line",), "line.png has 2 x 3000 pixels, and at most 20000 a side and 64 times as many"),
        ("  ", ("photo0",), "Write a question"),
        ("why? " * 700, (), "reads at most 512"),
    ],
)
def test_what_cannot_be_answered_becomes_a_message(
    text: str, photos: tuple[str, ...], words: str, url: str, files: dict[str, str]
) -> None:
    client = connect(url)
    answer, _ = ask(client, text, tuple(files[name] for name in photos))
    assert words in answer
    if photos:
        compared = client.predict(handle_file(files[photos[0]]), text, 4, api_name="/compare")
        assert words in compared[4] or "Write a question" in compared[4]
        looked = client.predict(handle_file(files[photos[0]]), text, 49, api_name="/look")
        assert words in looked[3] or "Write a question" in looked[3]
    assert ask(client, QUESTION)[1]  # and the page lives on


def test_an_error_of_the_model_becomes_a_message(
    client: Client, sides: Sides, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sides.sparse is not None

    def fail(**_: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate")

    with monkeypatch.context() as patched:
        patched.setattr(sides.sparse.model, "generate", fail)
        assert "ran out of memory" in ask(client, QUESTION, (files["photo0"],))[0]
        compared = client.predict(handle_file(files["photo0"]), QUESTION, 4, api_name="/compare")
        assert "ran out of memory" in compared[4]
    assert "⚠" not in ask(client, QUESTION, (files["photo0"],))[0]


def test_compare_answers_with_both_sides(client: Client, sides: Sides, files: dict[str, str]) -> None:
    dense, dense_cost, sparse, sparse_cost, verdict, _ = client.predict(
        handle_file(files["photo1"]), QUESTION, 6, api_name="/compare"
    )
    assert dense == expected(sides.dense, files["photo1"]) and sparse == expected(sides.sparse, files["photo1"])
    assert dense_cost.startswith("16 tokens a photo") and sparse_cost.startswith("49 tokens a photo")
    assert "from 49 instead of 16 tokens a photo" in verdict


def test_look_answers_at_any_budget_and_draws_the_boxes(client: Client, sides: Sides, files: dict[str, str]) -> None:
    photo = handle_file(files["photo0"])
    answer, cost, picture, caption, *_ = client.predict(photo, QUESTION, 49, api_name="/look")
    assert answer == expected(sides.sparse, files["photo0"], 64) and cost.startswith("49 tokens")
    assert "Step 2 of 2: 49 boxes" in caption
    path = picture["path"] if isinstance(picture, dict) else picture
    assert Image.open(path).size == (672, 672)
    answer, cost, _, caption, *_ = client.predict(photo, QUESTION, 30, api_name="/look")
    assert answer == expected(sides.at_budget(30), files["photo0"], 64)
    assert cost.startswith("30 tokens") and "30 boxes" in caption


def test_the_look_tab_shows_steps_tokens_and_attention(sides: Sides, files: dict[str, str]) -> None:
    from look_tab import ALL_WORDS, ATTENTION, BOXES, draw

    assert sides.sparse is not None
    looked = look(sides.sparse, Image.open(files["photo0"]), QUESTION, max_new_tokens=4)
    captions = [
        draw(looked, 1, BOXES, ALL_WORDS, None)[1],
        draw(looked, 2, BOXES, ALL_WORDS, 3)[1],
        draw(looked, 2, ATTENTION, ALL_WORDS, None)[1],
        draw(looked, 2, ATTENTION, 1, None)[1],
    ]
    for caption, words in zip(
        captions, ("Step 1 of 2: 49 boxes", "token 4 of 49", "the whole answer", "“"), strict=True
    ):
        assert words in caption
    assert draw(None, 1, BOXES, ALL_WORDS, None)[0] is None


def test_where_patches_are_chosen_the_tokens_are_those_of_the_last_step() -> None:
    from look_tab import ALL_WORDS, ATTENTION, BOXES, draw, draw_place

    boxes = (roi.tile_layout(2), roi.cell_boxes(torch.tensor([0, 3, 5, 15]), 4))
    points = (torch.zeros(4, 1, 2),) * 2
    attention, cost = Attention(torch.full((1, 4), 0.1), torch.tensor([0.4])), Timings(4, 9, 1, None, None, None, 0)
    looked = Looked(Image.new("RGB", (64, 64)), boxes, points, "a", ("a",), attention, cost, chosen=True)
    assert draw(looked, 1, BOXES, ALL_WORDS, None)[1].startswith("Step 1 of 2: 4 boxes")
    assert draw(looked, 1, BOXES, ALL_WORDS, 3)[1].startswith("Step 2 of 2, token 4 of 4: a box of 25% x 25%")
    assert draw(looked, 1, ATTENTION, ALL_WORDS, None)[1].startswith("Step 2 of 2. ")
    place: Any = SimpleNamespace(index=(24, 24))  # in the sixth patch, and in the first tile
    assert draw_place(looked, 1, BOXES, ALL_WORDS, place)[-1] == 2
    beside = replace(looked, context=roi.cell_boxes(torch.tensor([1, 2]), 4))
    picture, text = draw(beside, 2, BOXES, ALL_WORDS, None)
    assert "2 more, as context" in text and picture != draw(looked, 2, BOXES, ALL_WORDS, None)[0]
    assert "context" not in draw(beside, 1, BOXES, ALL_WORDS, None)[1]


def test_look_asks_for_the_towers_own_number_whatever_it_is(sides: Sides, files: dict[str, str]) -> None:
    from look_tab import Look, budget_range
    from page import build_page

    assert sides.dense is not None
    for tower, fewest, most in (
        (tiny_tower(9), 9, 100),
        (tiny_tower(121), 16, 121),
        (tiny_tower(16, focusing="chosen"), 15, 16),
    ):
        own = tower.config.budget
        mine = Sides("tiny", sides.dense, with_tower(sides.dense, tower))
        assert budget_range(tower.config) == (fewest, most)
        slider: Any = component(build_page(mine, "none"), "look-budget")
        assert slider.preprocess(own) == slider.value == own
        for asked, got in ((own, own), (1000, most)):
            answer, cost, *_ = Look(mine).look(files["photo0"], QUESTION, asked)
            assert cost.startswith(f"{got} tokens a photo")
        assert answer == expected(mine.at_budget(most), files["photo0"], 64)


def test_a_tower_that_looks_once_has_no_step_to_choose(sides: Sides, files: dict[str, str]) -> None:
    from look_tab import Look

    assert sides.dense is not None
    once = Sides("tiny", sides.dense, with_tower(sides.dense, tiny_tower(coarse_blocks=0)))
    _, _, picture, caption, looked, step, *_ = Look(once).look(files["photo0"], QUESTION, 49)
    assert picture is not None and looked is not None and "Step 1 of 1: 49 boxes" in caption
    assert (step.minimum, step.maximum, step.value, step.visible) == (1, 2, 1, False)


def test_a_look_that_failed_leaves_no_photo_behind(
    sides: Sides, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import look_tab

    def fail(*_: object) -> None:
        raise RuntimeError("no picture")

    outputs = look_tab.Look(sides).look(files["photo0"], QUESTION, 49)
    assert isinstance(outputs[4], Looked)
    assert look_tab.Look(sides).look(files["broken"], QUESTION, 49)[4] is None
    monkeypatch.setattr(look_tab, "draw", fail)
    failed = look_tab.Look(sides).look(files["photo0"], QUESTION, 49)
    assert failed[4] is None and "no picture" in failed[3] and len(failed) == len(outputs)


def test_a_clicked_token_gives_way_to_what_is_asked_for_next(sides: Sides, files: dict[str, str]) -> None:
    from look_tab import ALL_WORDS, ATTENTION, BOXES
    from page import build_page

    assert sides.sparse is not None
    seen = look(sides.sparse, Image.open(files["photo0"]), QUESTION, max_new_tokens=3)
    page = build_page(sides, "none")
    show, step, everything = (component(page, name) for name in ("look-show", "look-step", "look-all"))
    looking = next(each for each in page.fns.values() if each.api_name == "look")
    word, token = looking.outputs[6:8]

    def listener(block: Any, event: str) -> Any:
        return next(each for each in page.fns.values() if (block._id, event) in each.targets)

    for block, event, asked, words in (
        (show, "input", (seen, 2, ATTENTION, ALL_WORDS), "of all attention went to the photo"),
        (everything, "click", (seen, 2, BOXES, ALL_WORDS), "49 boxes"),
        (word, "input", (seen, 2, 1), "the more “"),
    ):
        found = listener(block, event)
        values = dict(zip(found.outputs, found.fn(*asked), strict=True))
        assert values[token] is None and words in values[component(page, "look-caption")]
    assert values[show] == ATTENTION
    assert token not in listener(step, "input").outputs


@pytest.mark.parametrize("kind", ["llava_next", "llava_onevision"])
def test_what_a_tiled_photo_was_given_is_told_with_its_tiles(
    kind: str, hosts: dict[str, Path], files: dict[str, str]
) -> None:
    from look_tab import ALL_WORDS, ATTENTION, draw
    from page import build_page

    dense = open_host(hosts[kind], device="cpu")
    tiled = Sides("tiny", dense, with_tower(dense, tiny_tower(kind=kind)))
    assert tiled.sparse is not None
    seen = look(tiled.sparse, Image.open(files["photo0"]), QUESTION, max_new_tokens=3)
    view, photo = seen.given_to(None)
    caption = draw(seen, 2, ATTENTION, ALL_WORDS, None)[1]
    assert (
        f"{photo:.0%} of all attention went to the photo" in caption
        and f"; {view.sum():.0%} to this view of it" in caption
    )
    assert photo > view.sum()
    page = json.dumps(build_page(tiled, "none").config["components"], default=str)
    for host in (dense, tiled.sparse):
        assert page.count(f"{host.token_budget} tokens a large square photo") == 2
        assert f"**{host.token_budget}**" in page


def test_an_answer_without_attention_says_why(sides: Sides, files: dict[str, str]) -> None:
    from look_tab import ALL_WORDS, ATTENTION, BOXES, draw

    assert sides.sparse is not None
    seen = look(sides.sparse, Image.open(files["photo0"]), QUESTION, max_new_tokens=2)
    without = replace(seen, attention=None, failure="RuntimeError: CUDA out of memory.")
    assert draw(without, 2, ATTENTION, ALL_WORDS, None)[1].endswith(
        "not be computed. RuntimeError: CUDA out of memory."
    )
    assert draw(without, 2, BOXES, ALL_WORDS, None) == draw(seen, 2, BOXES, ALL_WORDS, None)


def component(page: Any, name: str) -> Any:
    return next(each for each in page.blocks.values() if getattr(each, "elem_id", None) == name)


def test_focus_on_everything_is_the_whole_photo(client: Client, files: dict[str, str]) -> None:
    photo = handle_file(files["photo0"])
    whole, _, answer, cost, boxes, told = client.predict(photo, QUESTION, "0, 0, 100, 100", 100, api_name="/focus")
    assert answer == whole and cost.startswith("49 tokens")
    assert boxes and "at 56 x 56 pixels; the photo has 96 x 96" in told
    assert Image.open(boxes["path"] if isinstance(boxes, dict) else boxes).size == (672, 672)
    *_, told = client.predict(photo, QUESTION, "50, 0, 100, 50", 60, api_name="/focus")
    assert "at 96 x 96 pixels" in told
    for rectangle, words in (("50, 0, 40, 50", "is not on the view"), ("a, b", "must be four numbers")):
        assert words in client.predict(photo, QUESTION, rectangle, 100, api_name="/focus")[-1]


def test_the_focus_picture_is_sent_at_the_start_and_at_the_end_alone(sides: Sides, files: dict[str, str]) -> None:
    from focus_tab import Focus

    assert sides.sparse is not None
    shown = [each[4] for each in Focus(sides.sparse).ask(files["photo0"], QUESTION)]
    assert len(shown) > 4 and isinstance(shown[0], Image.Image) and shown[-1] is shown[0]
    assert not any(isinstance(each, Image.Image) for each in shown[1:-1])


def test_the_first_word_with_focus_comes_after_the_large_view_was_made(
    sides: Sides, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from focus_tab import Focus

    import sfvlm.look.focus

    def slow(*arguments: Any) -> torch.Tensor:
        time.sleep(1.5)
        return made(*arguments)

    made = sfvlm.look.focus.view_pixels
    monkeypatch.setattr(sfvlm.look.focus, "view_pixels", slow)
    assert sides.sparse is not None
    *_, (_, whole, _, cost, _, _) = Focus(sides.sparse).ask(files["photo0"], QUESTION)
    assert seconds_to_first_word(cost) >= 1.5 > 2 * seconds_to_first_word(whole)


def seconds_to_first_word(cost: str) -> float:
    number, unit = cost.split("first word after ")[1].split(" ·")[0].split()
    return float(number) / (1000 if unit == "ms" else 1)


def test_another_photo_has_no_rectangle_yet(sides: Sides) -> None:
    from focus_tab import MIDDLE
    from page import build_page

    for each in build_page(sides, "none").fns.values():
        if [component.elem_id for component in each.outputs] == ["focus-photo", "focus-rectangle"]:
            assert each.fn is not None and each.fn() == (None, MIDDLE)
            return
    pytest.fail("Nothing takes photo and rectangle away.")


def test_class_names_become_maps_of_the_photo(client: Client, files: dict[str, str]) -> None:
    photo = handle_file(files["photo0"])
    dense, sparse, legend, told = client.predict(
        photo, "red circle\nblue star, star\nwall", 16, "sclip", 0, api_name="/segment"
    )
    assert Image.open(dense).size == Image.open(sparse).size == (96, 96)
    assert "16 tokens instead of 196" in told and "% dense and " in legend
    *_, again = client.predict(photo, "red circle\nblue star", 100, "naclip", 0.2, api_name="/segment")
    assert "100 tokens instead of 196" in again
    assert "There are 1 classes" in client.predict(photo, "one", 49, "sclip", 0, api_name="/segment")[-1]
    assert (
        "cannot be opened"
        in client.predict(handle_file(files["broken"]), "a\nb", 49, "sclip", 0, api_name="/segment")[-1]
    )


def test_class_names_are_ranked(client: Client, files: dict[str, str]) -> None:
    dense, sparse, verdict = client.predict(
        handle_file(files["photo0"]), "red circle\nblue star", "a picture of a {c}", api_name="/rank"
    )
    for side in (dense, sparse):
        assert {each["label"] for each in side["confidences"]} == {"red circle", "blue star"}
    assert "say" in verdict
    assert "at least two" in client.predict(handle_file(files["photo0"]), "one", "{c}", api_name="/rank")[-1]


@pytest.fixture
def talker(sides: Sides) -> Iterator[SimpleNamespace]:
    """Makes the sparse side say "a a a ..." without end, slowly; counts the words."""
    assert sides.sparse is not None
    before = sides.sparse.model.lm_head
    never_ends(sides.sparse)
    count = SimpleNamespace(words=0)

    def slow(*_: object) -> None:
        count.words += 1
        time.sleep(0.02)

    sides.sparse.model.lm_head.register_forward_hook(slow)
    yield count
    sides.sparse.model.lm_head = before


def settles(value: Callable[[], int], limit: float = 8.0) -> int:
    """What a number is when it has not changed for half a second."""
    end = time.monotonic() + limit
    before = value()
    while time.monotonic() < end:
        time.sleep(0.5)
        if value() == before:
            return before
        before = value()
    raise AssertionError("the model computes on and on")


def test_stop_ends_the_models_work(url: str, talker: SimpleNamespace) -> None:
    client = connect(url)
    job = client.submit({"text": "hello", "files": []}, "sparse", 0, 1, 400, "", api_name="/chat")
    for _ in job:
        if talker.words > 5:
            break
    job.cancel()
    assert settles(lambda: talker.words) < 200


def test_who_leaves_frees_the_model(url: str, talker: SimpleNamespace, client: Client) -> None:
    session = uuid.uuid4().hex
    number = next(index for index, each in client.endpoints.items() if each.api_name == "/chat")
    data = [{"text": "hello", "files": []}, None, "sparse", 0, 1, 400, "", None]
    body = {"data": data, "fn_index": number, "session_hash": session}
    joined = httpx.post(f"{url}gradio_api/queue/join", json=body)
    assert joined.status_code == 200, joined.text
    with httpx.stream("GET", f"{url}gradio_api/queue/data", params={"session_hash": session}, timeout=30) as stream:
        for _ in stream.iter_lines():
            if talker.words > 5:
                break
    assert settles(lambda: talker.words) < 200


def test_ten_users_at_once_all_get_their_answers(url: str, sides: Sides, files: dict[str, str]) -> None:
    clients = [connect(url) for _ in range(10)]
    photos = [files[f"photo{number % 2}"] for number in range(10)]
    with ThreadPoolExecutor(10) as users:
        answers = list(users.map(lambda each: ask(each[0], QUESTION, (each[1],))[0], zip(clients, photos, strict=True)))
    right = {photo: expected(sides.sparse, photo) for photo in set(photos)}
    assert [answer.strip() for answer in answers] == [right[photo] for photo in photos]


def test_uploads_have_a_limit(client: Client, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(b"\0" * 21_000_000)
    with pytest.raises(ValueError, match="exceeds the maximum file size"):
        ask(client, QUESTION, (str(tmp_path / "large.png"),))
    sent = httpx.post(
        f"{client.src}gradio_api/upload", files={"files": (tmp_path / "large.png").read_bytes()}, timeout=60
    )
    assert sent.status_code == 413


def test_a_conversation_has_room_for_so_many_photos_and_pixels(
    sides: Sides, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import photos
    from chat_tab import Chat

    opened: list[str] = []

    def decode(data: bytes, most: int) -> Image.Image:
        opened.append("")
        return before(data, most)

    before = photos.decode_image
    monkeypatch.setattr(photos, "decode_image", decode)
    for number in range(3):
        Image.new("1", (7000, 7000)).save(tmp_path / f"large{number}.png")

    def said(paths: list[str], history: list[dict[str, Any]]) -> str:
        *_, (text, _, _) = Chat(sides.hosts).answer(
            {"text": "Which?", "files": paths}, history, "sparse", 0, 1, 2, "", {}
        )
        return text

    history = [{"role": "user", "content": [{"path": files["photo0"]}, "?"]}, {"role": "assistant", "content": "a"}]
    assert "has 17 photos, and at most 16 can be read: show fewer, or start a new one." in said(
        [files["photo0"]] * 16, history
    )
    assert not opened
    assert (
        "large2.png cannot be opened: it has 7000 x 7000 pixels, and at most 30 million more can be read in this"
        in said([str(tmp_path / f"large{number}.png") for number in range(3)], [])
    )
    assert "⚠" not in said([files["photo0"]], history)


def test_only_this_computer_is_served_unless_asked(url: str) -> None:
    from app import DemoCommand

    command = DemoCommand()
    assert url.startswith("http://127.0.0.1:")
    assert (command.server_name, command.share, command.auth, command.feedback) == ("127.0.0.1", False, [], None)


def test_a_password_is_asked_for_and_a_bad_one_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from app import DemoCommand, demo_command

    from sfvlm.cli import run

    with pytest.raises(SystemExit) as ended:
        run(demo_command, DemoCommand, ["--auth", "ada"])
    assert ended.value.code == 2
    assert "NAME:PASSWORD" in capsys.readouterr().err


def test_what_cannot_start_is_refused_before_models_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import app

    from sfvlm.cli import run

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("models were opened")

    monkeypatch.setattr(app, "open_sides", opened)
    monkeypatch.setitem(sys.modules, "mcp", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for flags, words in (
            (["--port", port], f"127.0.0.1:{port} cannot be listened on (Address already in use): give another --port"),
            (["--port", "70000"], "70000 cannot be listened on (bind(): port must be 0-65535): give another --port"),
            (["--feedback", str(tmp_path / "no" / "feedback.jsonl")], "feedback.jsonl, whose folder does not exist."),
            (["--mcp"], "--mcp needs the package mcp: pip install 'sfvlm[mcp]'."),
            (["--users", "0"], "--users is 0; it must be at least 1, or nobody is answered."),
            (["--waiting", "-1"], "--waiting is -1; it must be at least 1, or nobody is answered."),
        ):
            with pytest.raises(SystemExit) as ended:
                run(app.demo_command, app.DemoCommand, flags)
            said = capsys.readouterr().err
            assert ended.value.code == 2 and words in said and said.count("\n") == 1


def test_all_that_computes_shares_one_queue(sides: Sides) -> None:
    from page import build_page

    computing = [each for each in build_page(sides, "none", users=3).fns.values() if each.concurrency_limit == 3]
    assert {"chat", "compare", "look", "focus"} <= {each.api_name for each in computing}
    assert {each.concurrency_id for each in computing} == {"model"}


def test_replies_say_how_far_they_are(sides: Sides, files: dict[str, str]) -> None:
    from together import Progress, follow

    from sfvlm.hosts.template import user_message

    stop, image = threading.Event(), Image.open(files["photo0"])
    replies = {
        name: host.stream([user_message(QUESTION, 1)], [image], max_new_tokens=4, stop=stop)
        for name, host in sides.hosts.items()
    }
    seen = [Progress.start(replies), *follow(replies, stop)]
    assert seen[0].texts == seen[0].costs == {"dense": "", "sparse": ""}
    for before, after in itertools.pairwise(seen):
        assert before is not after
        assert all(after.texts[name].startswith(before.texts[name]) for name in replies)
    for name, host in sides.hosts.items():
        assert seen[-1].texts[name].strip() == expected(host, files["photo0"], 4)
        assert seen[-1].costs[name].startswith(f"{host.token_budget} tokens a photo")


def test_uploads_are_removed_after_a_day(sides: Sides) -> None:
    from page import build_page

    every, age = build_page(sides, "none").delete_cache
    assert 0 < every <= 3600 and age == 24 * 3600


def test_histories_of_the_page_and_of_clients_read_alike() -> None:
    from chat_tab import conversation

    page = [
        {"role": "user", "content": [{"type": "file", "file": {"path": "a.png", "url": None}, "alt_text": None}]},
        {"role": "user", "content": [{"type": "text", "text": "Which?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "This."}]},
    ]
    client = [
        {"role": "user", "content": [{"path": "a.png"}, "Which?"]},
        {"role": "assistant", "content": "This."},
    ]
    message = {"text": "And now?", "files": ["b.png"]}
    turns, paths = conversation(message, page, "Be brief.")
    assert (turns, paths) == conversation(message, client, "Be brief.")
    assert paths == ["a.png", "b.png"] and [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    unanswered, paths = conversation(message, client[:1], "")
    assert len(unanswered) == 1 and paths == ["a.png", "b.png"]
    assert sum(part["type"] == "image" for part in unanswered[0]["content"]) == 2


def test_what_failed_is_left_out_of_the_conversation() -> None:
    from chat_tab import conversation

    warning = {"role": "assistant", "content": "⚠ The photo a.png cannot be opened."}
    broken = [{"role": "user", "content": [{"path": "a.png"}, "Which?"]}, warning]
    turns, paths = conversation({"text": "And now?", "files": ["b.png"]}, broken, "")
    assert len(turns) == 1 and paths == ["b.png"]
    silent = [{"role": "user", "content": [{"path": "a.png"}]}, {"role": "assistant", "content": "⚠ Write a question."}]
    turns, paths = conversation({"text": "Which?", "files": []}, silent, "")
    assert len(turns) == 1 and paths == ["a.png"]


def test_what_broke_off_or_stayed_silent_is_left_out_of_the_conversation() -> None:
    from chat_tab import SILENT, WAITING, conversation

    asked = {"role": "user", "content": [{"path": "a.png"}, "Which?"]}
    message = {"text": "And now?", "files": ["b.png"]}
    half = {"role": "assistant", "content": "It is\n\n⚠ The model cannot go on.\n\nTry again."}
    turns, paths = conversation(message, [asked, half], "")
    assert len(turns) == 1 and paths == ["b.png"]
    turns, paths = conversation(message, [asked, {"role": "assistant", "content": SILENT}], "")
    assert len(turns) == 1 and paths == ["a.png", "b.png"]  # nobody has said anything about the first one yet
    stopped = {"role": "assistant", "content": WAITING}
    turns, paths = conversation(message, [asked, stopped, asked, half], "")
    assert len(turns) == 1 and paths == ["b.png"]  # what failed may have been either photo
    said = {"role": "assistant", "content": "This."}
    turns, paths = conversation(message, [asked, stopped, asked, said], "")
    assert len(turns) == 3 and paths == ["a.png", "a.png", "b.png"]
    assert sum(part["type"] == "image" for part in turns[0]["content"]) == 2


def test_a_thumb_is_about_the_side_that_wrote_the_answer(sides: Sides, tmp_path: Path) -> None:
    from chat_tab import Chat, Feedback

    chat, path = Chat(sides.hosts), tmp_path / "feedback.jsonl"
    history: list[dict[str, Any]] = []
    written: dict[int, str] = {}
    for side in ("dense", "sparse"):
        *_, (text, _, written) = chat.answer({"text": "Which?"}, history, side, 0, 1, 2, "", written)
        history += [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": text}]
    for index in (1, 3):
        liked: Any = SimpleNamespace(liked=True, index=index)
        Feedback(path, "tiny").add(history, written, liked)
    assert [json.loads(line)["side"] for line in path.read_text().splitlines()] == ["dense", "sparse"]


def test_feedback_is_written_only_where_it_was_asked_for(sides: Sides, tmp_path: Path) -> None:
    from chat_tab import Feedback
    from page import build_page

    def listens(page: Any) -> bool:
        return any(target[1] == "like" for each in page.config["dependencies"] for target in each["targets"])

    path = tmp_path / "feedback.jsonl"
    assert not listens(build_page(sides, "none"))
    assert listens(build_page(sides, "none", feedback=path))
    history = [{"role": "user", "content": [{"path": "a.png"}, "Which?"]}, {"role": "assistant", "content": "This."}]
    liked: Any = SimpleNamespace(liked=True, index=1)
    Feedback(path, "tiny").add(history, {0: "sparse"}, liked)
    Feedback(path, "tiny").add(history, {0: "sparse"}, liked)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 2 and lines[0]["liked"] and lines[0]["conversation"][0] == {
        "role": "user", "text": "Which?", "photos": 1
    }  # fmt: skip


def test_a_thumb_that_is_taken_back_is_neither_up_nor_down(tmp_path: Path) -> None:
    from chat_tab import Feedback

    path = tmp_path / "feedback.jsonl"
    history = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "This."}]
    for sent in (True, False, "", None):  # the page sends an empty text for a thumb that is taken back
        liked: Any = SimpleNamespace(liked=sent, index=1)
        Feedback(path, "tiny").add(history, {0: "sparse"}, liked)
    assert [json.loads(line)["liked"] for line in path.read_text().splitlines()] == [True, False, None, None]


def test_a_page_with_one_side_says_why(sides: Sides) -> None:
    from page import build_page

    page = build_page(Sides("tiny", sides.dense, None, "There is no sparse tower."), "There is no CLIP.")
    said = json.dumps(page.config["components"], default=str)
    assert said.count("There is no sparse tower.") >= 3 and "There is no CLIP." in said
