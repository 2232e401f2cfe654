"""Files whole or absent: on failure, on kill, with a second writer; hashes by their definition."""

import hashlib
import json
import os
import signal

import pytest
from conftest import PATIENCE_SECONDS, start_process

from sasnet_jax import files
from sasnet_jax.cli import UserError

# Stops, told on stdout, where a file or a folder is half written.
HALF_WRITTEN = """
import pathlib, sys, time
from sasnet_jax import files
path = pathlib.Path(sys.argv[2])
with getattr(files, sys.argv[1])(path) as partial:
    if sys.argv[1] == "replacing":
        partial.write(b"half")
        partial.flush()
    elif sys.argv[1] == "new_folder":
        (partial / "file").write_text("half")
    print("held", flush=True)
    time.sleep(3600)
"""


@pytest.fixture
def half_written():
    """Starts a process that holds a path in one of the module's ways, until the test ends."""
    processes = []

    def start(name, path):
        process = start_process("-c", HALF_WRITTEN, name, path)
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate(timeout=PATIENCE_SECONDS)


def test_a_replaced_file_is_the_new_one_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with files.replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"


def test_a_kill_leaves_the_old_file_and_the_next_writer_replaces_it(tmp_path, half_written):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    process = half_written("replacing", path)
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE_SECONDS)
    assert path.read_bytes() == b"old"
    with files.replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_a_new_folder_appears_whole(tmp_path):
    path = tmp_path / "a" / "folder"
    with files.new_folder(path) as partial:
        (partial / "file").write_text("text")
        assert not path.exists()
    assert (path / "file").read_text() == "text" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_no_folder(tmp_path, error):
    with pytest.raises(error), files.new_folder(tmp_path / "folder") as partial:
        (partial / "file").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_files_is_never_replaced(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(OSError), files.new_folder(path):
        path.mkdir()
        (path / "thesis.tex").write_text("precious")
    assert [file.name for file in tmp_path.rglob("*")] == ["folder", "thesis.tex"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_fills_is_not(
    tmp_path, half_written
):
    dead, living = (half_written("new_folder", tmp_path / "folder") for _ in range(2))
    dead.send_signal(signal.SIGKILL)
    dead.wait(PATIENCE_SECONDS)
    with files.new_folder(tmp_path / "folder"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"folder", f".folder.partial-{living.pid}"}


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path, half_written):
    process = half_written("sole_writer", tmp_path / "run")
    with (
        pytest.raises(UserError, match=f"in use by process {process.pid} on "),
        files.sole_writer(tmp_path / "run"),
    ):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE_SECONDS)
    with files.sole_writer(tmp_path / "run"):
        assert f"process {os.getpid()} " in (tmp_path / "run" / ".lock").read_text()


def test_a_folder_made_for_a_writer_that_wrote_nothing_is_removed(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty", "filled"):
        with files.sole_writer(tmp_path / name):
            if name == "filled":
                (tmp_path / name / "file").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "filled"}


def test_json_is_read_back_and_what_cannot_be_read_names_its_writer(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match=r"a.json does not exist; train writes it"):
        files.read_json(path, "train")
    files.write_json(path, {"é": [1, None]})
    assert files.read_json(path, "train") == json.loads(path.read_text()) == {"é": [1, None]}
    with pytest.raises(UserError, match=r"a.json lacks 'config'"):
        files.read_json(path, "train", keys=("é", "config"))
    for text in ("{", "[]"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"a.json.*train again"):
            files.read_json(path, "train")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 21) + 3])
def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    assert files.file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_the_hash_of_texts_is_that_of_length_prefixed_utf8_in_order():
    by_hand = b"\x05\0\0\0\0\0\0\0caf\xc3\xa9" + b"\0" * 8
    assert files.texts_sha256(["café", ""]) == hashlib.sha256(by_hand).hexdigest()
    assert files.texts_sha256(["ab", "c"]) != files.texts_sha256(["a", "bc"])
