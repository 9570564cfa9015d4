"""The adapter in the original `llava` package itself, against transformers' LLaVA on the same weights.

    pip install --no-deps llava-torch, or PYTHONPATH=/path/of/LLaVA
    python -m pytest -m reference tests/test_llava_reference.py

Beside what sfvlm needs, the package imports `requests` and its `model_vqa_loader` `shortuuid`. A transformers for which this
passed is written into the table of docs/llava-package.md.
"""

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import randomize
from tiny_hosts import PINPOINTS, opened, photo, tiny_tower
from torch import nn

from sfvlm.hosts.llava.package import register, unregister
from sfvlm.hosts.llava.tower import LlavaTower
from sfvlm.hosts.swap import swap

pytestmark = [
    pytest.mark.reference,
    pytest.mark.skipif(importlib.util.find_spec("llava") is None, reason="the llava package is not on the path"),
]
QUESTION = "<image>\nIs there a dog in the photo?"


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register()
    yield
    unregister()


def original_name(name: str) -> str:
    """A tensor of transformers' LLaVA or LLaVA-NeXT by the name that the original package gives it."""
    for old, new in (
        ("model.language_model.", "model."),
        ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name  # lm_head.weight, model.image_newline


def original_checkpoint(host: Any, processor: Any, tower_name: str, folder: Path, **fields: Any) -> Path:
    """A host's projector and language model in the original layout, with the name of a tower."""
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

    text = {k: v for k, v in host.config.text_config.to_dict().items() if k not in ("model_type", "architectures")}
    shared = dict(mm_hidden_size=32, mm_projector_type="mlp2x_gelu", mm_vision_select_layer=-2, use_mm_proj=True)
    flags = dict(mm_vision_select_feature="patch", mm_use_im_start_end=False, mm_use_im_patch_token=False)
    config = LlavaConfig(**text, **shared, **flags, **fields)
    config.mm_vision_tower = tower_name
    model = LlavaLlamaForCausalLM(config)
    state = {original_name(k): v for k, v in host.state_dict().items() if "vision_tower" not in k}
    model.load_state_dict(state, strict=True)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    return folder


def prepared(kind: str, hosts: dict[str, Path], tmp_path: Path, **fields: Any) -> tuple[Any, Any, Path]:
    """transformers' host with our tower, its processor, and the same host in the original layout."""
    model, processor = opened(hosts[kind])
    for parameter in model.parameters():  # the package opens checkpoints in half precision: no bit may be lost by that
        parameter.data = parameter.data.half().float()
    tiny_tower(kind=kind).save_pretrained(tmp_path / "tower")
    swap(model, processor, tiny_tower(kind=kind))
    name = f"sfvlm:{tmp_path / 'tower'}"
    return model, processor, original_checkpoint(model, processor, name, tmp_path / "llava-v1-tiny", **fields)


def package_opens(folder: Path) -> tuple[Any, Any, Any]:
    """The package's own loading, then float32: the tokens of two random models in half precision may differ by rounding."""
    from llava.model.builder import load_pretrained_model
    from llava.utils import disable_torch_init

    reset = torch.nn.Linear.reset_parameters, torch.nn.LayerNorm.reset_parameters
    disable_torch_init()
    try:
        tokenizer, model, processor, _ = load_pretrained_model(str(folder), None, folder.name, device="cpu")
    finally:
        torch.nn.Linear.reset_parameters, torch.nn.LayerNorm.reset_parameters = reset
    return tokenizer, model.float().eval(), processor


@torch.no_grad()
def answers(
    model: Any, tokenizer: Any, processor: Any, picture: Any, host: Any, image_inputs: dict[str, Any]
) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image tokens, and logits and greedy tokens of the package's model and of transformers'."""
    from llava.constants import IMAGE_TOKEN_INDEX
    from llava.mm_utils import process_images, tokenizer_image_token

    ids = tokenizer_image_token(f"USER: {QUESTION} ASSISTANT:", tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
    images = process_images([picture], processor, model.config)
    asked = dict(images=images, image_sizes=[picture.size])
    embeds = model.prepare_inputs_labels_for_multimodal(ids[None], None, None, None, None, **asked)[4]
    count = embeds.shape[1] - len(ids) + 1
    place = int((ids == IMAGE_TOKEN_INDEX).nonzero())
    filled = torch.full((count,), host.config.image_token_id)
    theirs = torch.cat([ids[:place], filled, ids[place + 1 :]])[None]
    mask = torch.ones_like(theirs)
    inputs = dict(input_ids=theirs, attention_mask=mask, pixel_values=images, **image_inputs)
    logits = model(input_ids=ids[None], **asked).logits, host(**inputs).logits
    greedy = dict(do_sample=False, max_new_tokens=12, min_new_tokens=12)
    tokens = model.generate(ids[None], **asked, **greedy)
    reference = host.generate(**inputs, **greedy)[:, theirs.shape[1] :]
    return count, *logits, tokens[:, -12:], reference


def test_a_photo_becomes_49_tokens_and_the_answer_is_transformers_own(hosts: dict[str, Path], tmp_path: Path) -> None:
    host, _, folder = prepared("llava", hosts, tmp_path, image_aspect_ratio="pad")
    tokenizer, model, processor = package_opens(folder)
    tower = model.get_vision_tower()
    assert isinstance(tower, LlavaTower) and tower.is_loaded and processor is tower.image_processor
    count, logits, expected, tokens, reference = answers(model, tokenizer, processor, photo(size=(80, 60)), host, {})
    assert count == 49
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(tokens, reference)


@pytest.mark.parametrize(
    ("size", "count"),
    [((112, 112), 49 + 14 * 15), ((50, 100), 49 + 14 * 8), ((60, 120), 49 + 14 * 8)],
)
def test_tiles_of_49_tokens_give_the_answer_of_transformers_llava_next(
    hosts: dict[str, Path], tmp_path: Path, size: tuple[int, int], count: int
) -> None:
    fields = dict(image_aspect_ratio="anyres", mm_patch_merge_type="spatial_unpad", image_grid_pinpoints=PINPOINTS)
    host, _, folder = prepared("llava_next", hosts, tmp_path, **fields)
    tokenizer, model, processor = package_opens(folder)
    picture = photo(size=size)
    sizes = dict(image_sizes=torch.tensor([[size[1], size[0]]]))
    found, logits, expected, tokens, reference = answers(model, tokenizer, processor, picture, host, sizes)
    assert found == count
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(tokens, reference)


CONVERSATIONS = {
    "one photo": ["USER: <image>\nIs there a dog? ASSISTANT:"],
    "two photos": ["USER: <image>\n<image>\nHow many? ASSISTANT:"],
    "no photo": ["USER: How many? ASSISTANT:"],
    "a batch": [
        "USER: <image>\nIs there a dog? ASSISTANT:",
        "USER: <image>\nWhat color is the biggest object? ASSISTANT:",
    ],
}
GREEDY, BEAMS = dict(do_sample=False), dict(do_sample=False, num_beams=3)


def padded(rows: list[torch.Tensor], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids filled up on the left, (B, T), and where they are."""
    length = max(len(row) for row in rows)
    ids = torch.stack([nn.functional.pad(row, (length - len(row), 0), value=value) for row in rows])
    return ids, torch.stack([torch.arange(length) >= length - len(row) for row in rows])


@torch.no_grad()
@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ("one photo", GREEDY), ("one photo", BEAMS), ("one photo", BEAMS | dict(num_return_sequences=3)),
        ("one photo", dict(do_sample=True, temperature=0.7, top_p=0.9)), ("one photo", GREEDY | dict(use_cache=False)),
        ("two photos", GREEDY), ("no photo", GREEDY), ("a batch", GREEDY), ("a batch", BEAMS),
    ],
)  # fmt: skip
def test_every_way_to_generate_gives_the_tokens_of_transformers_own(
    hosts: dict[str, Path], tmp_path: Path, asked: str, options: dict[str, Any]
) -> None:
    from llava.constants import IMAGE_TOKEN_INDEX
    from llava.mm_utils import process_images, tokenizer_image_token

    host, _, folder = prepared("llava", hosts, tmp_path, image_aspect_ratio="pad")
    tokenizer, model, processor = package_opens(folder)
    model.config.tokenizer_padding_side = "left"
    ours = [
        tokenizer_image_token(text, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt") for text in CONVERSATIONS[asked]
    ]
    spread = [torch.where(row == IMAGE_TOKEN_INDEX, 49, 1) for row in ours]  # tokens that each id stands for
    theirs = [row.where(row != IMAGE_TOKEN_INDEX, host.config.image_token_id) for row in ours]
    theirs = [row.repeat_interleave(times) for row, times in zip(theirs, spread, strict=True)]
    photos = [photo(index, (80, 60)) for index in range(sum(text.count("<image>") for text in CONVERSATIONS[asked]))]
    images = process_images(photos, processor, model.config) if photos else None
    given = dict(images=images, image_sizes=[each.size for each in photos]) if photos else {}
    pixels = dict(pixel_values=images) if photos else {}
    for each in (model, host):
        each.generation_config.pad_token_id, each.generation_config.eos_token_id = tokenizer.pad_token_id, [2]
    lengths: list[int] = []
    model.model.layers[0].register_forward_hook(lambda _, inputs, hidden: lengths.append(hidden.shape[1]))
    options = options | dict(max_new_tokens=12, min_new_tokens=12)

    ids, mask = padded(ours, tokenizer.pad_token_id)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        torch.manual_seed(0)
        tokens = model.generate(ids, attention_mask=mask, **given, **options)
    ids, mask = padded(theirs, tokenizer.pad_token_id)
    torch.manual_seed(0)
    reference = host.generate(input_ids=ids, attention_mask=mask.long(), **pixels, **options)
    assert torch.equal(tokens[:, -12:], reference[:, ids.shape[1] :])
    assert lengths == [ids.shape[1]] + [1] * 11  # transformers reads embedded prompts with a cache, whatever is asked


@torch.no_grad()
@pytest.mark.parametrize("options", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_a_mistral_of_the_package_gives_the_tokens_of_transformers_own(options: dict[str, Any]) -> None:
    from llava.model.language_model.llava_mistral import LlavaMistralConfig, LlavaMistralForCausalLM
    from transformers import MistralConfig, MistralForCausalLM

    sizes = dict(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=4, pad_token_id=0,
    )  # fmt: skip
    host = randomize(MistralForCausalLM(MistralConfig(**sizes))).eval()
    model = LlavaMistralForCausalLM(LlavaMistralConfig(**sizes)).eval()
    model.load_state_dict(host.state_dict())
    ids = torch.randint(5, 90, (2, 9))
    options = options | dict(attention_mask=torch.ones_like(ids), max_new_tokens=12, min_new_tokens=12)
    assert torch.equal(model.generate(ids, **options)[:, -12:], host.generate(ids, **options)[:, 9:])


def test_a_streamed_answer_is_the_answer(
    hosts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from llava.mm_utils import process_images, tokenizer_image_token
    from transformers import TextStreamer

    _, _, folder = prepared("llava", hosts, tmp_path, image_aspect_ratio="pad")
    tokenizer, model, processor = package_opens(folder)
    ids = tokenizer_image_token(QUESTION, tokenizer, return_tensors="pt")[None]
    images = process_images([photo()], processor, model.config)
    capsys.readouterr()
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    tokens = model.generate(ids, images=images, image_sizes=[(64, 64)], streamer=streamer, max_new_tokens=12, **GREEDY)
    text = tokenizer.decode(tokens[0], skip_special_tokens=True).strip()
    assert text and capsys.readouterr().out.strip() == text


def test_without_registration_the_package_says_that_it_knows_no_such_tower(
    hosts: dict[str, Path], tmp_path: Path
) -> None:
    _, _, folder = prepared("llava", hosts, tmp_path)
    unregister()
    with pytest.raises(ValueError, match="Unknown vision tower: sfvlm:"):
        package_opens(folder)


def command(arguments: list[str], given: str = "", before: str = "") -> subprocess.CompletedProcess[str]:
    """The runner in a process of its own; `before` is code that this process runs first."""
    code = f"{before}\nimport sys\nfrom sfvlm.llava_package import main\nmain(sys.argv[1:])"
    start = ["-c", code] if before else ["-m", "sfvlm.llava_package"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *start, *arguments], input=given, capture_output=True, text=True, env=environment, check=False
    )


def test_the_chat_on_the_command_line_runs_unedited(hosts: dict[str, Path], tmp_path: Path) -> None:
    _, _, folder = prepared("llava", hosts, tmp_path)
    photo().save(tmp_path / "photo.png")
    flags = "--device cpu --temperature 0 --max-new-tokens 5"
    paths = ["--model-path", str(folder), "--image-file", str(tmp_path / "photo.png")]
    done = command(["llava.serve.cli", *paths, *flags.split()], given="What color is it?\n\n")
    assert done.returncode == 0, done.stderr
    assert "exit..." in done.stdout
    assert done.stdout.split("ASSISTANT:")[1].split("USER:")[0].strip()


# The script sends its inputs to "cuda"; here that name stands for the CPU.
CPU_FOR_CUDA = """
import torch
to = torch.Tensor.to
torch.Tensor.to = lambda self, *a, **k: to(self, *a, **(k | {"device": "cpu"} if k.get("device") == "cuda" else k))
"""


def test_an_evaluation_script_runs_unedited_with_a_tower_given_on_its_command_line(
    hosts: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("shortuuid")
    _, _, folder = prepared("llava", hosts, tmp_path, image_aspect_ratio="pad")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mm_vision_tower": "openai/clip-vit-large-patch14"}))
    photo().save(tmp_path / "photo.png")
    questions = [{"question_id": 7, "image": "photo.png", "text": "Is there a dog?"}]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions))
    out = tmp_path / "answers" / "out.jsonl"
    paths = ["--model-path", str(folder), "--image-folder", str(tmp_path), "--answers-file", str(out)]
    paths += ["--question-file", str(tmp_path / "questions.jsonl"), "--temperature", "0", "--max_new_tokens", "5"]
    done = command(["--tower", str(tmp_path / "tower"), "llava.eval.model_vqa_loader", *paths], before=CPU_FOR_CUDA)
    assert done.returncode == 0, done.stderr
    answered = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(each["question_id"], each["model_id"]) for each in answered] == [(7, "llava-v1-tiny")]
    assert answered[0]["text"]
