from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tfdeploy_magic.errors import ContractBroken, OutputError
from tfdeploy_magic.serving import version_folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "net"


def left_in(base: Path) -> list[str]:
    return sorted(path.name for path in base.iterdir())


def write(base: Path, content: str, version: Any = "auto") -> int:
    with version_folder.hidden(base) as partial:
        (partial / "saved_model.pb").write_text(content)
        return version_folder.publish(partial, base, version)


def test_the_first_version_is_1_in_a_folder_made_for_it(tmp_path: Path) -> None:
    base = tmp_path / "models/net"
    assert write(base, "first") == 1
    assert (base / "1/saved_model.pb").read_text() == "first"


def test_folders_that_are_no_numbers_do_not_count(base: Path) -> None:
    for name in ("notes", "-5", "1.5", "٣", ".net.0123", "00000002"):
        (base / name).mkdir(parents=True)
    assert version_folder.number_of(base, "auto") == 3


def test_a_number_that_is_taken_is_refused_and_the_next_is_named(base: Path) -> None:
    (base / "00000007").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"version 7.*\n.*it becomes 8"):
        write(base, "other", version=7)
    assert left_in(base) == ["00000007"]


def test_what_is_being_written_is_no_version_to_a_server(base: Path) -> None:
    with version_folder.hidden(base) as partial:
        assert partial.parent == base
        assert not partial.name.isdigit()
        assert partial.name.startswith(".net.")
    assert not base.exists()


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), RuntimeError("no")], ids=["stopped", "failed"])
def test_what_was_begun_is_removed_with_the_folders_made_for_it(raised: BaseException, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(type(raised)), version_folder.hidden(tmp_path / "a/b/c") as partial:
        (partial / "variables").mkdir()
        (partial / "variables/half").write_text("half")
        raise raised
    assert left_in(tmp_path) == ["a"]
    assert left_in(tmp_path / "a") == []


def test_versions_written_at_the_same_moment_get_numbers_of_their_own(base: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda worker: write(base, str(worker)), range(24)))
    assert sorted(numbers) == list(range(1, 25))
    for worker, number in enumerate(numbers):
        assert (base / str(number) / "saved_model.pb").read_text() == str(worker)
    assert len(left_in(base)) == 24


@pytest.mark.parametrize("form", ["folder", "file"])
@pytest.mark.parametrize("version", ["auto", 1])
def test_a_number_that_another_process_takes_at_the_last_moment_is_left_to_it(
    version: Any, form: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.rename

    def rename(self: Path, target: Any) -> Any:
        theirs = base / "1"
        if form == "file":
            theirs.write_text("theirs")
        elif not theirs.exists():
            theirs.mkdir()
            (theirs / "saved_model.pb").write_text("theirs")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    if version == "auto":
        assert write(base, "ours") == 2
    else:
        with pytest.raises(OutputError, match="which a server may be serving"):
            write(base, "ours", version)
    assert (base / "1" if form == "file" else base / "1/saved_model.pb").read_text() == "theirs"
    assert left_in(base) == (["1", "2"] if version == "auto" else ["1"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("error", [OSError, RuntimeError])
def test_what_the_disk_refuses_is_said_in_its_own_words(number: int, error: type[Exception], base: Path) -> None:
    words = os.strerror(number)
    refusal = OSError(number, words) if error is OSError else RuntimeError(f"variables/x.data; {words} [Op:Save]")
    with pytest.raises(OutputError) as caught, version_folder.as_output_error(base):
        raise refusal
    assert caught.value.found == words
    assert caught.value.__cause__ is refusal
    assert "-o" not in caught.value.cure


def test_an_error_that_is_no_matter_of_the_disk_stays_what_it_is(base: Path) -> None:
    with pytest.raises(RuntimeError, match="out of ideas"), version_folder.as_output_error(base):
        raise RuntimeError("out of ideas")


def test_a_disk_that_fails_at_the_end_leaves_no_version(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base.mkdir()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(base, "ours")
    assert left_in(base) == []


def test_a_file_in_the_place_of_the_folder_is_an_error(base: Path) -> None:
    base.write_text("mine")
    with pytest.raises(OutputError, match="Not a directory"):
        version_folder.number_of(base, "auto")
    with pytest.raises(OutputError), version_folder.hidden(base):
        pass
    assert base.read_text() == "mine"


def test_a_copy_is_whole_and_has_no_links(tmp_path: Path) -> None:
    original = tmp_path / "m"
    (original / "variables").mkdir(parents=True)
    (tmp_path / "elsewhere").write_text("weights")
    (original / "variables/data").symlink_to(tmp_path / "elsewhere")
    (original / "saved_model.pb").write_text("graph")
    version_folder.copy(original, tmp_path / "copy")
    assert (tmp_path / "copy/saved_model.pb").read_text() == "graph"
    assert not (tmp_path / "copy/variables/data").is_symlink()
    assert (tmp_path / "copy/variables/data").read_text() == "weights"


def test_a_copy_of_something_that_changes_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = tmp_path / "m.tflite"
    original.write_text("old")

    def copyfile(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes())
        source.write_text("new")

    monkeypatch.setattr(version_folder.shutil, "copyfile", copyfile)
    with pytest.raises(ContractBroken, match="not what it was made of"):
        version_folder.copy(original, tmp_path / "model.tflite")
