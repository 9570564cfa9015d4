import json
import pickle
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import randomize
from tiny_hosts import PINPOINTS, photo, tiny_tower
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from sfvlm.cli import run
from sfvlm.commands.convert import convert_command
from sfvlm.commands.options.convert import ConvertCommand
from sfvlm.hosts.folders import swap_folder, undo_folder
from sfvlm.hosts.host import open_host
from sfvlm.hosts.llava import weights as convert_weights
from sfvlm.hosts.llava.config import read_original
from sfvlm.hosts.llava.convert import convert_original
from sfvlm.hosts.llava.prompt import SYSTEM, open_tokenizer
from sfvlm.hosts.template import assistant_message, user_message
from sfvlm.zoo.weight_files import open_weights

WORDS = 330
SIDE = 56
VISION = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=SIDE,
    patch_size=14,
    projection_dim=16,
)
TEXT = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    tie_word_embeddings=False,
)
KINDS: dict[str, Any] = dict(llava_llama=LlamaConfig, llava_mistral=MistralConfig, llava_qwen=Qwen2Config)
ANYRES = dict(image_aspect_ratio="anyres", mm_patch_merge_type="spatial_unpad", image_grid_pinpoints=PINPOINTS)


def spoken(first: str, folder: Path) -> None:
    """A tokenizer like LLaMA's: bytes for what is unknown, words that begin with a space, no `<image>`."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=first, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=WORDS, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["USER: What color is it? ASSISTANT: It is red, green or blue."], trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]  # bytes are words of the vocabulary, not special ones
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    ids = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": [begin, text[0]], "pair": [begin, *text], "special_tokens": ids
    }  # fmt: skip
    tokenizer = Tokenizer.from_str(json.dumps(content))
    names = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tower") / "clip"
    randomize(CLIPVisionModel(CLIPVisionConfig(**VISION))).save_pretrained(folder)
    side = {"height": SIDE, "width": SIDE}
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=side).save_pretrained(folder)
    return folder


def original_tensors(reference: Any, rows: int, projector: str = "mlp2x_gelu") -> dict[str, torch.Tensor]:
    """transformers' tensors under the names of the llava package, without the tower."""
    middle = {"mlp2x_gelu": ("0.", "2."), "linear": ("", "dropped.")}[projector]
    table = (
        ("model.language_model.", "model."),
        ("model.multi_modal_projector.linear_1.", f"model.mm_projector.{middle[0]}"),
        ("model.multi_modal_projector.linear_2.", f"model.mm_projector.{middle[1]}"),
    )
    found = {}
    for name, tensor in reference.state_dict().items():
        if name.startswith("model.vision_tower.") or (projector == "linear" and "linear_2" in name):
            continue
        new = next((new + name.removeprefix(old) for old, new in table if name.startswith(old)), name)
        found[new] = tensor[:rows].clone() if new in ("model.embed_tokens.weight", "lm_head.weight") else tensor
    return found


def write(tensors: dict[str, torch.Tensor], folder: Path, form: str) -> None:
    """One file, or two with an index; safetensors or pickled."""
    names = sorted(tensors)
    single, index, pattern = {
        "safetensors": ("model.safetensors", "model.safetensors.index.json", "model-0000{}-of-00002.safetensors"),
        "bin": ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-0000{}-of-00002.bin"),
    }[form.removesuffix("-shards")]
    groups = [names] if not form.endswith("-shards") else [names[::2], names[1::2]]
    files = [single] if len(groups) == 1 else [pattern.format(number) for number in (1, 2)]
    for file, group in zip(files, groups, strict=True):
        held = {name: tensors[name].contiguous() for name in group}
        save_file(held, folder / file) if "safetensors" in form else torch.save(held, folder / file)
    if len(files) > 1:
        weight_map = {name: file for file, group in zip(files, groups, strict=True) for name in group}
        (folder / index).write_text(json.dumps({"weight_map": weight_map}))


def original(
    folder: Path,
    tower: Path,
    form: str = "safetensors",
    model_type: str = "llava_llama",
    projector: str = "mlp2x_gelu",
    first: str = "first",
    extra: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    **fields: Any,
) -> Any:
    """Writes a checkpoint of the llava package, and returns transformers' model of the same tensors.

    That one has more rows than `WORDS`, zeros, so that `<image>` can be a token of it.
    """
    kind = KINDS[model_type]
    text = kind(vocab_size=WORDS + 54, **TEXT)
    next_ = fields.get("image_aspect_ratio") == "anyres"
    classes: Any = (
        (LlavaNextConfig, LlavaNextForConditionalGeneration) if next_ else (LlavaConfig, LlavaForConditionalGeneration)
    )
    config = classes[0](
        vision_config=CLIPVisionConfig(**VISION).to_dict(),
        text_config=text.to_dict(),
        image_token_index=WORDS,
        vision_feature_layer=-2,
        image_seq_length=16,
        projector_hidden_act="gelu" if projector == "mlp2x_gelu" else "linear",
        **({"image_grid_pinpoints": [[h, w] for w, h in PINPOINTS]} if next_ else {}),
    )
    torch.manual_seed(0)
    reference = randomize(classes[1](config)).eval()
    clip = CLIPVisionModel.from_pretrained(tower)
    reference.model.vision_tower.load_state_dict(clip.state_dict())
    if projector == "linear":
        last = reference.model.multi_modal_projector.linear_2
        last.weight.data, last.bias.data = torch.eye(32), torch.zeros(32)
    for name, parameter in reference.named_parameters():
        if "vision_tower" not in name:
            parameter.data = parameter.data.to(dtype).float()
    folder.mkdir(parents=True)
    tensors = {name: tensor.to(dtype) for name, tensor in original_tensors(reference, WORDS, projector).items()}
    write(tensors | (extra or {}), folder, form)
    described = {name: value for name, value in text.to_dict().items() if name not in ("vocab_size", "rope_parameters")}
    described |= dict(
        model_type=model_type, vocab_size=WORDS, rope_theta=10000.0, architectures=["Llava"], max_length=4096
    )
    described |= dict(mm_vision_tower=str(tower), mm_projector_type=projector, mm_hidden_size=32)
    described |= dict(mm_vision_select_layer=-2, mm_vision_select_feature="patch", use_mm_proj=True)
    (folder / "config.json").write_text(json.dumps(described | fields))
    sampling = dict(temperature=0.9, top_p=0.6, max_length=4096, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    (folder / "generation_config.json").write_text(json.dumps(sampling))
    spoken(first, folder)
    return reference


@torch.no_grad()
def assert_same_logits(folder: Path, reference: Any, size: tuple[int, int] = (80, 60)) -> None:
    host = open_host(folder, device="cpu")
    inputs = host.encode([[user_message("What color is it?", 1)]], [[photo(size=size)]])
    assert (inputs["input_ids"] == WORDS).sum() >= 16
    found, expected = host.model(**inputs).logits, reference(**inputs).logits
    assert torch.equal(found[..., :WORDS], expected[..., :WORDS])
    assert (found[..., WORDS:] < found[..., :WORDS].amax(-1, keepdim=True)).all()


@pytest.mark.parametrize("form", ["safetensors", "safetensors-shards", "bin", "bin-shards"])
def test_the_converted_host_computes_what_transformers_does_on_the_same_tensors(
    form: str, tower: Path, tmp_path: Path
) -> None:
    reference = original(tmp_path / "llava", tower, form, image_aspect_ratio="pad")
    manifest = convert_original(tmp_path / "llava", tmp_path / "out")
    assert_same_logits(tmp_path / "out", reference)
    assert manifest == json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert manifest["vocabulary"] == {
        "rows_before": WORDS, "rows_after": 384, "new_rows": "the mean of the others", "image_token_id": WORDS
    }  # fmt: skip
    assert manifest["left_out"]["config.json"] == ["max_length", "use_mm_proj"]
    assert manifest["left_out"]["generation_config.json"] == ["max_length", "temperature", "top_p"]


def test_a_padding_token_that_is_none_gives_way_to_the_tokenizers(tower: Path, tmp_path: Path) -> None:
    original(tmp_path / "llava", tower, pad_token_id=-1)  # as old LLaMA files say
    (tmp_path / "llava" / "generation_config.json").write_text(json.dumps(dict(pad_token_id=-1)))
    convert_original(tmp_path / "llava", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["pad_token_id"] == AutoProcessor.from_pretrained(tmp_path / "out").tokenizer.pad_token_id == 0


@pytest.mark.parametrize("model_type", ["llava_mistral", "llava_qwen"])
def test_other_language_models_are_read(model_type: str, tower: Path, tmp_path: Path) -> None:
    reference = original(tmp_path / "llava", tower, model_type=model_type)
    with pytest.raises(ValueError, match="--chat-template, vicuna-v1 or mistral-instruct"):
        convert_original(tmp_path / "llava", tmp_path / "out")
    convert_original(tmp_path / "llava", tmp_path / "out", chat_template="mistral-instruct")
    assert_same_logits(tmp_path / "out", reference)


def test_a_linear_projector_is_followed_by_the_identity(tower: Path, tmp_path: Path) -> None:
    reference = original(tmp_path / "llava", tower, projector="linear")
    manifest = convert_original(tmp_path / "llava", tmp_path / "out", chat_template="vicuna-v1")
    assert_same_logits(tmp_path / "out", reference)
    assert len(manifest["tensors"]["made"]) == 2


def test_tiles_make_a_llava_next_with_its_newline(tower: Path, tmp_path: Path) -> None:
    reference = original(tmp_path / "llava", tower, **ANYRES)
    convert_original(tmp_path / "llava", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlavaNextForConditionalGeneration"]
    assert config["image_grid_pinpoints"] == [[height, width] for width, height in PINPOINTS]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(stored["image_newline"], reference.model.image_newline)
    for size in ((112, 112), (50, 100), (120, 60)):
        assert_same_logits(tmp_path / "out", reference, size)


def test_half_precision_stays_as_stored_in_files_of_bounded_size(
    tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_weights, "SHARD_BYTES", 80_000)
    reference = original(tmp_path / "llava", tower, "bin-shards", dtype=torch.float16)
    convert_original(tmp_path / "llava", tmp_path / "out")
    weights = open_weights(tmp_path / "out")
    assert len(weights.files) >= 3 and all(file.stat().st_size < 95_000 for file in weights.files)
    stored = {name: tensor for file in weights.files for name, tensor in load_file(file).items()}
    assert {tensor.dtype for name, tensor in stored.items() if "vision_tower" not in name} == {torch.float16}
    assert {tensor.dtype for name, tensor in stored.items() if "vision_tower" in name} == {torch.float32}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    assert_same_logits(tmp_path / "out", reference)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llava", "out"]


@pytest.mark.parametrize(
    "prefix", ["model.vision_tower.vision_tower.", "model.vision_tower.vision_tower.vision_model."]
)
def test_a_tower_in_the_checkpoint_is_taken_from_there(prefix: str, tower: Path, tmp_path: Path) -> None:
    tuned = {name: tensor + 0.01 for name, tensor in CLIPVisionModel.from_pretrained(tower).state_dict().items()}
    extra = {prefix + name.removeprefix("vision_model."): tensor for name, tensor in tuned.items()}
    extra[f"{prefix}embeddings.position_ids"] = torch.arange(17)[None]
    reference = original(tmp_path / "llava", tower, extra=extra)
    reference.model.vision_tower.load_state_dict(tuned)
    (tmp_path / "settings").mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy2(tower / name, tmp_path / "settings")
    manifest = convert_original(tmp_path / "llava", tmp_path / "out", tmp_path / "settings")
    assert manifest["tower"]["weights"] == "the checkpoint"
    assert list(manifest["tensors"]["dropped"]) == [f"{prefix}embeddings.position_ids"]
    assert_same_logits(tmp_path / "out", reference)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_tower_may_come_from_a_whole_clip(form: str, tower: Path, tmp_path: Path) -> None:
    words = dict(vocab_size=20, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    clip = CLIPModel(CLIPConfig(text_config=words, vision_config=VISION, projection_dim=16))
    clip.vision_model.load_state_dict(
        {
            name.removeprefix("vision_model."): t
            for name, t in CLIPVisionModel.from_pretrained(tower).state_dict().items()
        }
    )
    clip.config.save_pretrained(tmp_path / "clip")
    write(clip.state_dict(), tmp_path / "clip", form)
    shutil.copy2(tower / "preprocessor_config.json", tmp_path / "clip")
    reference = original(tmp_path / "llava", tower)
    manifest = convert_original(tmp_path / "llava", tmp_path / "out", tmp_path / "clip")
    assert manifest["tensors"]["dropped"]["logit_scale"] == "of CLIP's contrast"
    assert_same_logits(tmp_path / "out", reference)


def test_tied_embeddings_stay_tied(tower: Path, tmp_path: Path) -> None:
    reference = original(tmp_path / "llava", tower, tie_word_embeddings=True)
    tensors = load_file(tmp_path / "llava" / "model.safetensors")
    with pytest.raises(ValueError, match="ties lm_head to the embedding, but"):
        convert_original(tmp_path / "llava", tmp_path / "out")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "llava" / "model.safetensors")
    convert_original(tmp_path / "llava", tmp_path / "out")
    reference.lm_head.weight.data = reference.model.language_model.embed_tokens.weight.data
    assert_same_logits(tmp_path / "out", reference)
    host = open_host(tmp_path / "out", device="cpu")
    assert host.model.lm_head.weight is host.model.model.language_model.embed_tokens.weight


@pytest.mark.parametrize("first", ["first", "always", "never"])
def test_prompts_have_the_ids_of_the_text_before_and_after_the_photo(first: str, tower: Path, tmp_path: Path) -> None:
    original(tmp_path / "llava", tower, first=first)
    manifest = convert_original(tmp_path / "llava", tmp_path / "out")
    assert manifest["prompt"] == {"template": "vicuna-v1", "ids_as_in_the_llava_package": True}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "llava")
    before, after = f"{SYSTEM} USER: ", "\nIs it? ASSISTANT:"
    host = open_host(tmp_path / "out", device="cpu")
    found = host.encode([[user_message("Is it?", 1)]], [[photo()]])["input_ids"][0].tolist()
    pieces = tokenizer(before).input_ids, tokenizer(after).input_ids
    assert pieces[0][0] == 1 and pieces[1][0] == 1
    assert found == [*pieces[0], *[WORDS] * 16, *pieces[1][1:]]


def test_templates_write_the_conversations_of_the_llava_package(tower: Path, tmp_path: Path) -> None:
    """Behind the token that prompts start with: the package's tokenizer adds it, and servers of chats do not."""
    turns = [user_message("Q1", 1), assistant_message("A1"), user_message("Q2")]
    original(tmp_path / "llava", tower, first="never", mm_use_im_start_end=False)
    for name, expected in (
        ("vicuna-v1", f"<s>{SYSTEM} USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:"),
        ("mistral-instruct", "<s>[INST] <image>\nQ1 [/INST] A1 </s>[INST] Q2 [/INST]"),
    ):
        convert_original(tmp_path / "llava", tmp_path / name, chat_template=name)
        processor = open_host(tmp_path / name, device="cpu").processor
        assert processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == expected
    llava = pytest.importorskip("llava.conversation")
    for name, theirs in (("vicuna-v1", "vicuna_v1"), ("mistral-instruct", "mistral_instruct")):
        talk = llava.conv_templates[theirs].copy()
        for role, text in zip([0, 1, 0, 1], ["<image>\nQ1", "A1", "Q2", None], strict=True):
            talk.append_message(talk.roles[role], text)
        processor = open_host(tmp_path / name, device="cpu").processor
        written = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert written == processor.tokenizer.bos_token + talk.get_prompt()


def test_a_given_template_is_taken_from_a_file_and_must_have_a_place_for_the_photo(tower: Path, tmp_path: Path) -> None:
    original(tmp_path / "llava", tower)
    file = tmp_path / "template.jinja"
    file.write_text("{% for m in messages %}{% for p in m.content %}{{ p.text or '<image>' }}{% endfor %}{% endfor %}")
    manifest = convert_original(tmp_path / "llava", tmp_path / "out", chat_template=str(file))
    assert manifest["prompt"]["template"] == "given"
    assert open_host(tmp_path / "out", device="cpu").processor.chat_template == file.read_text()
    for template, message in (
        ("{{ 'no photo' }}", "writes <image> 0 times for one photo"),
        ("{{ unclosed", "cannot be rendered"),
        ("vicuna-v7", "is neither vicuna-v1 nor mistral-instruct, nor a file"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_original(tmp_path / "llava", tmp_path / "other", chat_template=template)
    assert not (tmp_path / "other").exists()


def test_photos_are_padded_as_the_package_pads_them(tower: Path, tmp_path: Path) -> None:
    original(tmp_path / "pad", tower, image_aspect_ratio="pad")
    original(tmp_path / "square", tower)
    convert_original(tmp_path / "pad", tmp_path / "padded")
    convert_original(tmp_path / "square", tmp_path / "cropped")
    clip = CLIPImageProcessorPil.from_pretrained(tower)
    colour = tuple(int(value * 255) for value in clip.image_mean)
    processors = {
        name: AutoProcessor.from_pretrained(tmp_path / name).image_processor for name in ("padded", "cropped")
    }
    for size in ((80, 60), (60, 81), (64, 64)):
        picture, side = photo(size=size), max(size)
        square = Image.new("RGB", (side, side), colour)
        square.paste(picture, ((side - size[0]) // 2, (side - size[1]) // 2))
        for name, shown in (("padded", square), ("cropped", picture)):
            found = processors[name](images=picture, return_tensors="pt")["pixel_values"]
            expected = clip(images=shown, return_tensors="pt")["pixel_values"]
            torch.testing.assert_close(found, expected, atol=1.01 / 255 / min(clip.image_std), rtol=0)


def test_the_folder_answers_and_its_tower_can_be_swapped_and_put_back(tower: Path, tmp_path: Path) -> None:
    original(tmp_path / "llava", tower, image_aspect_ratio="pad")
    convert_original(tmp_path / "llava", tmp_path / "out")
    host = open_host(tmp_path / "out", device="cpu")
    answer = host.answer([photo()], ["What color is it?"], max_new_tokens=6)
    manifest = swap_folder(tmp_path / "out", tiny_tower(), tmp_path / "swapped")
    assert manifest["tokens"] == {"before": 16, "after": 49, "of_each": "photo"}
    swapped = open_host(tmp_path / "swapped", device="cpu")
    assert swapped.image_tokens(photo()) == 49
    assert isinstance(swapped.answer([photo()], ["What color is it?"], max_new_tokens=6)[0], str)
    undo_folder(tmp_path / "swapped", tmp_path / "again")
    again = open_host(tmp_path / "again", device="cpu")
    assert again.fingerprint == host.fingerprint != swapped.fingerprint
    assert again.answer([photo()], ["What color is it?"], max_new_tokens=6) == answer


def test_every_tensor_must_be_known_present_and_of_its_shape(tower: Path, tmp_path: Path) -> None:
    original(tmp_path / "llava", tower)
    whole = load_file(tmp_path / "llava" / "model.safetensors")
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    norm, short = "model.layers.1.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight"
    for changed, message in (
        (whole | {"model.surprise": torch.ones(1)}, "1 tensors that are unknown .*: model.surprise"),
        (whole | {"model.image_newline.x": torch.ones(32)}, "unknown .*: model.image_newline.x"),
        (whole | {"model.mm_projector.weight": torch.ones(32, 32)}, "holds twice 1 .*linear_1.weight"),
        ({k: v for k, v in whole.items() if k != norm}, "lacks 1 of the tensors .*layers.1.input_layernorm.weight"),
        ({k: v for k, v in whole.items() if "mm_projector.2" not in k}, "lacks 2 of the tensors .*linear_2.bias"),
        (
            whole | {short: whole[short][:-1].clone()},
            r"q_proj.weight is \(31, 32\), and config.json makes it \(32, 32\)",
        ),
        ({k: v for k, v in whole.items() if "embed_tokens" not in k}, "lacks the tensor model.embed_tokens.weight"),
    ):
        write(changed, tmp_path / "llava", "safetensors")
        with pytest.raises(ValueError, match=message):
            convert_original(tmp_path / "llava", tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["llava"]
    write(whole | frequencies, tmp_path / "llava", "safetensors")
    assert list(convert_original(tmp_path / "llava", tmp_path / "out")["tensors"]["dropped"]) == list(frequencies)


def fields(**changed: Any) -> Callable[[Path], None]:
    """Changes config.json; None removes a field."""

    def change(folder: Path) -> None:
        described = json.loads((folder / "config.json").read_text()) | changed
        kept = {name: value for name, value in described.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    return change


def files(remove: str = "nothing", **contents: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for file in folder.glob(remove):
            file.unlink()
        for name, content in contents.items():
            (folder / name.replace("__", ".")).write_bytes(content)

    return change


def delta(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.full((32,), 0.001)
    save_file(tensors, folder / "model.safetensors")


def foreign_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"model.norm.weight": Path("x")}))


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "lora": (files(adapter_config__json=b"{}"), "holds LoRA weights: merge them"),
    "lora rest": (files(non_lora_trainables__bin=b""), "holds LoRA weights: merge them"),
    "projector": (files("model.safetensors", mm_projector__bin=b""), "holds a projector alone"),
    "no weights": (files("model.safetensors"), "holds no weights"),
    "no config": (files("config.json"), "no folder with a config.json"),
    "no json": (files(config__json=b"{"), "is no JSON"),
    "no object": (files(config__json=b"[]"), "holds no JSON object"),
    "no tokenizer": (files("token*"), "tokenizer in .* cannot be opened|holds no tokenizer"),
    "delta": (delta, "holds a delta, .*0.0010 on average.*apply_delta"),
    "pickle": (foreign_pickle, "cannot be read as a pickle of tensors alone: Unsupported operand 149$"),
    "damaged": (files(model__safetensors=b"x" * 20), "cannot be read as safetensors"),
    "converted": (fields(mm_vision_tower=None, vision_config={}), "in transformers' layout already"),
    "no llava": (fields(mm_vision_tower=None), "names no mm_vision_tower"),
    "mpt": (fields(model_type="llava_mpt"), "is of type 'llava_mpt'; checkpoints of llava_llama, llava, llava_mistral"),
    "quantised": (fields(quantization_config={"bits": 4}), "is quantised"),
    "s2": (fields(s2=True), "at several scales"),
    "mlp3x": (fields(mm_projector_type="mlp3x_gelu"), "type 'mlp3x_gelu'; .* linear and mlp2x_gelu"),
    "identity": (fields(mm_projector_type="identity"), "type 'identity'"),
    "select": (fields(mm_vision_select_feature="cls"), "selects 'cls'"),
    "anyres_max": (fields(image_aspect_ratio="anyres_max_9"), "'anyres_max_9'; 'pad', 'square' and 'anyres'"),
    "flat tiles": (fields(image_aspect_ratio="anyres"), "mm_patch_merge_type 'flat'"),
    "grids": (fields(**ANYRES | {"image_grid_pinpoints": "(1x1),...,(6x6)"}), "is no list of sizes"),
    "grid": (fields(**ANYRES | {"image_grid_pinpoints": [[56, 113]]}), r"\[113, 56\] is no multiple of its tower's 56"),
    "cls tiles": (fields(**ANYRES, mm_vision_select_feature="cls_patch"), "class tokens of tiles"),
    "newline": (fields(**ANYRES), "lacks 1 of the tensors .*image_newline"),
    "width": (fields(mm_hidden_size=48), "reads tokens 48 wide, and the tower .* gives 32"),
    "layers": (fields(mm_vision_select_layer=[-2, -5]), r"mm_vision_select_layer \[-2, -5\]; one layer"),
    "layer": (fields(mm_vision_select_layer=-7), "reads layer -7 of its tower, which has 2 blocks"),
    "marks": (fields(mm_use_im_start_end=True), "asks for <im_end> and <im_start> around photos"),
    "sparse": (fields(mm_vision_tower="sfvlm:/x/sf49"), "give the dense one by --vision-tower"),
    "tower": (fields(mm_vision_tower="openai/nowhere"), "neither a folder nor a model that can be downloaded.*offline"),
    "tower name": (fields(mm_vision_tower="clip-l14-337"), "no vision tower that config.json names: .*--vision-tower"),
    "no index": (files("model.safetensors", model__safetensors__index__json=b"{"), "index.json is no JSON"),
    "no pickle index": (
        files("model.safetensors", pytorch_model__bin__index__json=b"{}"),
        "index.json does not list which file holds each tensor",
    ),
    "generation": (files(generation_config__json=b"{"), "generation_config.json is no JSON"),
    "tokenizer": (files(tokenizer_config__json=b"null"), "tokenizer_config.json holds no JSON object"),
    "bad text": (fields(num_attention_heads="two"), "describes no LlamaConfig: .*expected int, got str"),
}


@pytest.fixture(scope="module")
def good(tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "llava"
    original(folder, tower)
    return folder


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_converted_is_refused_with_one_sentence(reason: str, good: Path, tmp_path: Path) -> None:
    change, message = REFUSED[reason]
    shutil.copytree(good, tmp_path / "llava")
    change(tmp_path / "llava")
    with pytest.raises(ValueError, match=message) as caught:
        convert_original(tmp_path / "llava", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llava"]


def test_a_sentencepiece_tokenizer_says_what_to_install(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(good, tmp_path / "llava")
    files("tokenizer.json", tokenizer__model=b"")(tmp_path / "llava")
    monkeypatch.setattr("sfvlm.hosts.llava.prompt.is_sentencepiece_available", lambda: False)
    with pytest.raises(ValueError, match=r"is a tokenizer\.model: pip install 'sfvlm\[convert\]'"):
        convert_original(tmp_path / "llava", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("described", "begins"), [({}, True), ({"add_bos_token": False}, False)])
def test_a_sentencepiece_tokenizer_puts_its_start_token_in_front_unless_told_not_to(
    described: dict[str, bool], begins: bool, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(good, tmp_path / "llava")
    files("tokenizer.json", tokenizer__model=b"", tokenizer_config__json=json.dumps(described).encode())(
        tmp_path / "llava"
    )
    for package in ("sentencepiece", "protobuf"):
        monkeypatch.setattr(f"sfvlm.hosts.llava.prompt.is_{package}_available", lambda: True)
    asked: list[dict[str, Any]] = []

    def opened(_: Path, **options: Any) -> Any:
        asked.append(options)
        return PreTrainedTokenizerFast.from_pretrained(good)

    monkeypatch.setattr("sfvlm.hosts.llava.prompt.AutoTokenizer.from_pretrained", opened)
    open_tokenizer(tmp_path / "llava", read_original(tmp_path / "llava"))
    assert asked[0].get("add_bos_token", False) == begins


def test_folders_are_refused_by_name_or_by_their_tower(good: Path, tower: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "LLaVA-7b-delta-v0")
    with pytest.raises(ValueError, match=r"holds a delta, .*by its name"):
        convert_original(tmp_path / "LLaVA-7b-delta-v0", tmp_path / "out")
    with pytest.raises(ValueError, match="exists: choose another one"):
        convert_original(good, tmp_path)
    shutil.copytree(tower, tmp_path / "clip")
    for change, message in (
        (fields(image_size=70), "reads 70 pixels, and its processor makes"),
        (fields(model_type="siglip_vision_model"), "is of type 'siglip_vision_model'; checkpoints with CLIP"),
        (files("preprocessor_config.json"), "no readable preprocessor_config.json"),
        (files(config__json=b"{"), "clip/config.json is no JSON"),
        (files("config.json"), "holds no config.json"),
    ):
        change(tmp_path / "clip")
        with pytest.raises(ValueError, match=message):
            convert_original(good, tmp_path / "out", tmp_path / "clip")
        shutil.copytree(tower, tmp_path / "clip", dirs_exist_ok=True)
    assert not (tmp_path / "out").exists()


def test_the_command_converts_and_ends_with_2_on_bad_input(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(convert_command, ConvertCommand, ["--checkpoint", str(good), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert f"vocabulary {WORDS} -> 384 rows" in said
    assert "prompts have the ids that the llava package gives them" in said
    script = Path(__file__).parents[3] / "scripts" / "convert_llava.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--checkpoint", str(tmp_path), "--out", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 2
    assert re.fullmatch(r"error: .* is no folder with a config.json, .*\n", capsys.readouterr().err)
