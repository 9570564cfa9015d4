import pickle
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from sfvlm.util.errors import NotWritten
from sfvlm.util.files import (
    appearing,
    append_text,
    read_class_names,
    read_json,
    read_templates,
    read_text,
    replacing,
    replacing_inside,
    write_text,
)


def test_a_file_takes_its_place_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    write_text(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "step-1"
    for name in ("first", "second"):
        with replacing(path) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
    assert [file.name for file in path.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_changes_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(file: Path) -> None:
        file.write_text("half")
        raise error

    path = tmp_path / "notes.txt"
    write_text(path, "old")
    with pytest.raises(error), replacing(path) as temporary:
        fail(temporary)
    with pytest.raises(error), replacing_inside(tmp_path) as folder:
        fail(folder / "notes.txt")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_never_loses_files_to_a_file_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    with pytest.raises(OSError, match="folder"):
        write_text(tmp_path / "folder", "text")
    assert (tmp_path / "folder" / "kept").exists()


def test_a_folder_that_came_into_being_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "deeper" / "out"

    def meanwhile(folder: Path) -> None:
        folder.mkdir()
        (folder / "ours").touch()
        out.mkdir()
        (out / "theirs").touch()

    with pytest.raises(ValueError, match="out exists: choose another one"), appearing(out) as temporary:
        meanwhile(temporary)
    assert [file.name for file in out.iterdir()] == ["theirs"]
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("below", ["out", "deeper/out"])
def test_a_folder_below_a_file_is_refused_with_one_sentence(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / below
    with pytest.raises(ValueError, match=r"^The folder .* cannot be made: [^\n]+\.$"), appearing(out):
        pass
    assert (tmp_path / "file").is_file()


def test_writers_of_one_path_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the outer block ends last


def test_files_replace_their_namesakes_and_spare_the_others(tmp_path: Path) -> None:
    write_text(tmp_path / "config.json", "old")
    write_text(tmp_path / "metrics.jsonl", "kept")
    (tmp_path / ".unfinished").mkdir()
    (tmp_path / ".unfinished" / "of a killed process").touch()
    with replacing_inside(tmp_path) as folder:
        (folder / "config.json").write_text("new")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "config.json": "new",
        "metrics.jsonl": "kept",
    }


def test_the_suffix_that_says_the_format_of_a_picture_stays(tmp_path: Path) -> None:
    with replacing(tmp_path / "boxes.png") as temporary:
        Image.new("RGB", (2, 2)).save(temporary)
    assert Image.open(tmp_path / "boxes.png").format == "PNG"


# What cannot be written, and text files of other systems


def too_large(path: Path) -> None:
    """Writes more than the system lets, as where the disk is full."""
    path.write_bytes(b"0" * 200_000)


def too_large_tensors(path: Path) -> None:
    save_file({"a": torch.zeros(50_000)}, path)


def too_large_pickle(path: Path) -> None:
    torch.save({"a": torch.zeros(50_000)}, path)


def too_large_array(path: Path) -> None:
    np.save(path.with_suffix(".npy"), np.zeros(50_000))


def too_large_picture(path: Path) -> None:
    Image.effect_noise((600, 600), 90).save(path, "PNG")


def too_large_tokenizer(path: Path) -> None:
    Tokenizer(WordLevel({f"word {number}": number for number in range(20_000)}, "word 0")).save(str(path))


def too_large_folder(path: Path) -> None:
    path.mkdir()
    (path / "small").touch()
    save_file({"a": torch.zeros(50_000)}, path / "large")


def too_large_text(path: Path) -> None:
    write_text(path, "0" * 200_000)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files of 100 kB at most."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)


WRITERS = [
    too_large,
    too_large_tensors,
    too_large_pickle,
    too_large_array,
    too_large_picture,
    too_large_tokenizer,
    too_large_folder,
    too_large_text,
]


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_is_one_sentence_and_leaves_what_there_was(
    write: Callable[[Path], None], tmp_path: Path, small_disk: None
) -> None:
    (tmp_path / "model").write_text("old")
    whole = r"^\S*/model cannot be written: [^\n]+\. Nothing of it is left; [^\n]+\.$"
    with pytest.raises(NotWritten, match=whole), replacing(tmp_path / "model") as temporary:
        write(temporary)
    with pytest.raises(ValueError, match=r"^\S* cannot be written: [^\n]+$"), replacing_inside(tmp_path) as folder:
        write(folder / "model")
    with (
        pytest.raises(ValueError, match=r"^\S*/out cannot be written: [^\n]+$"),
        appearing(tmp_path / "out") as temporary,
    ):
        write(temporary)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model").read_text() == "old"


def test_what_is_added_to_a_file_is_added_whole(tmp_path: Path, small_disk: None) -> None:
    append_text(tmp_path / "log", "first\n")
    for name, before in (("log", "first\n"), ("new", None)):
        with pytest.raises(NotWritten, match=rf"/{name} cannot be written: File too large\."):
            append_text(tmp_path / name, "0" * 200_000)
        assert (tmp_path / name).exists() == (before is not None)
    assert (tmp_path / "log").read_text() == "first\n"


def test_errors_that_are_none_of_writing_stay_what_they_are(tmp_path: Path) -> None:
    for error in (
        TypeError("a mistake"),
        RuntimeError("a mistake"),
        OSError("no such model"),
        ConnectionResetError(104, "x"),
    ):
        with pytest.raises(type(error)) as caught, replacing(tmp_path / "model"):
            raise error
        assert caught.value is error
    with pytest.raises(FileNotFoundError) as missing, replacing(tmp_path / "model"):
        (tmp_path.parent / "nothing").read_text()  # of another file
    assert not isinstance(missing.value, NotWritten)


def test_files_and_folders_in_each_others_places_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    (tmp_path / "file").touch()

    def write_both() -> None:
        with replacing_inside(tmp_path) as folder:
            (folder / "a").touch()
            (folder / "config.json").touch()

    with pytest.raises(NotWritten, match=r"config\.json cannot be written: it is a folder"):
        write_both()
    assert not (tmp_path / "a").exists()
    for path in (
        tmp_path / "config.json",
        tmp_path / "file" / "below",
        tmp_path / "none" / "below",
        tmp_path / ("n" * 300),
    ):
        with pytest.raises(NotWritten, match=r"^\S+ cannot be written: \w[^\n]+$"):
            write_text(path, "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "file"]


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / ("n" * 255), "text")
    assert (tmp_path / ("n" * 255)).read_text() == "text"


def test_what_is_not_written_is_the_same_in_another_process() -> None:
    error = NotWritten(Path("a"), "the disk is full")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_is_the_same_whichever_program_saved_it(encoding: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(end.join(["caf\u00e9", "", "{}", ""]).encode(encoding))
    assert read_text(path) == "caf\u00e9\n\n{}\n"
    path.write_bytes(end.join(["a", "b"]).encode(encoding))
    assert read_class_names(path) == read_templates(path) == ("a", "b")
    path.write_bytes(end.join(['{"a":', "1}"]).encode(encoding))
    assert read_json(path) == {"a": 1}


def test_big_endian_text_and_joined_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes("\ufeffcat\ndog".encode("utf-16-be"))
    assert read_class_names(tmp_path / "big") == ("cat", "dog")
    (tmp_path / "joined").write_bytes(2 * "cat\r\n".encode("utf-8-sig"))
    assert read_text(tmp_path / "joined") == "cat\ncat\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("caf\u00e9".encode("cp1252"), "is no UTF-8 text .*: save it as UTF-8"),
        ("cat".encode("utf-16-le"), "is no text, or UTF-16 without its mark: save it as UTF-8"),
        (b"\xff\xfec", "is no UTF-8 text"),
        (b"\x00\x01", "is no text"),
    ],
)
def test_a_file_that_is_no_text_is_refused_by_name(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    for read in (read_text, read_class_names, read_templates, read_json):
        with pytest.raises(ValueError, match=rf"^The file \S+names\.txt {words}"):
            read(tmp_path / "names.txt")
    with pytest.raises(ValueError, match="is a folder"):
        read_text(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        read_json(tmp_path / "nothing")
