"""Downloads: whole and verified, or nothing and where the file goes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_server import CONTENT, SHA256, serving

from sfvlm.zoo.downloads import download


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serves CONTENT, half of it under /truncated, and files of `tmp_path`/served; gives the address."""
    monkeypatch.setenv("no_proxy", "*")
    with serving(tmp_path / "served") as address:
        yield address


def test_a_verified_download_is_whole_and_needs_no_second_one(server: str, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    assert download(f"{server}/file.bin", path, SHA256) == path
    assert path.read_bytes() == CONTENT and list(tmp_path.iterdir()) == [path]
    assert download("http://127.0.0.1:1/gone", path, SHA256) == path


def test_a_file_without_a_known_hash_comes_with_a_warning(server: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=f"unverified; its sha256 is {SHA256}"):
        download(f"{server}/file.bin", tmp_path / "file.bin")


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("wrong-hash", f"has the sha256 {SHA256}, not 0000.*nothing of it was kept"),
        ("truncated", rf"ended after {len(CONTENT) // 2} of {len(CONTENT)} bytes.*put it at .*file\.bin"),
        ("missing", r"404.*put it at .*file\.bin"),
    ],
)
def test_a_failed_download_leaves_nothing_behind(server: str, tmp_path: Path, path: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        download(f"{server}/{path}", tmp_path / "file.bin", "0" * 64 if path == "wrong-hash" else SHA256)
    assert not list(tmp_path.iterdir())


def test_a_file_with_another_hash_is_not_used_and_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="remove it to download it again"):
        download("http://127.0.0.1:1/file.bin", path, SHA256)
    assert path.exists()
