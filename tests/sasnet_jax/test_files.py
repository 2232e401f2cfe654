"""Files whole or absent: on failure, on kill, with a second writer; hashes by their definition."""

import errno
import hashlib
import json
import os
import signal
from typing import ClassVar

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


class _Result(files.Record, kw_only=True, frozen=True):
    made_by: ClassVar[str] = "python -m made"
    version: ClassVar[int] = 3
    accuracy: float
    names: list[str] = []


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "out" / "result.json"
    path.parent.mkdir()
    files.write_record(path, _Result(accuracy=0.1 + 0.2, names=["ä"]))
    return path


def test_a_record_is_read_back_exactly(record):
    read = files.read_record(record, _Result)
    assert (read.accuracy, read.names, read.format_version) == (0.1 + 0.2, ["ä"], 3)
    values = json.loads(record.read_text())
    del values["sha256"]
    text = json.dumps(dict(reversed(values.items())), sort_keys=True)
    assert read.sha256 == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accuracy": 0.9}, "was changed after it was written"),
        ({"more": 1}, "was changed after it was written"),
        ({"accuracy": "high", "sha256": None}, "is damaged (Expected `float`, got `str`"),
        ({"format_version": 2, "sha256": None}, "has format version 2, this program reads 3"),
    ],
    ids=str,
)
def test_a_record_that_is_not_as_written_is_refused_with_a_remedy(record, changes, message):
    record.write_text(json.dumps(json.loads(record.read_text()) | changes))
    with pytest.raises(UserError) as error:
        files.read_record(record, _Result)
    assert str(error.value).startswith(str(record)) and message in str(error.value)
    assert f"remove {record.parent} and run python -m made again" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"[]", "does not hold a JSON object"),
        (b'{"name": "an app"}', "lacks 'format_version'"),
    ],
)
def test_what_is_no_record_is_refused(record, content, message):
    record.write_bytes(content)
    with pytest.raises(UserError, match=message):
        files.read_record(record, _Result)


def test_a_pipe_in_place_of_a_record_is_refused(record):
    record.unlink()
    os.mkfifo(record)
    with pytest.raises(UserError, match="regular file"):
        files.read_record(record, _Result)


def test_an_output_folder_is_new_or_ours_or_refused(tmp_path):
    output = tmp_path / "out"
    assert not files.claim(output, "result.json")
    output.mkdir()
    (output / ".lock").touch()
    assert not files.claim(output, "result.json")
    (output / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files: choose another --output"):
        files.claim(output, "result.json")
    (output / "begun.json").touch()
    assert files.claim(output, "result.json", "begun.json")
    with pytest.raises(UserError, match="is a file"):
        files.claim(output / "thesis.tex", "result.json")


def test_other_settings_are_named_but_for_those_that_may_differ(tmp_path):
    before = {"seed": 1, "width": 8, "gone": 1}
    files.refuse_other_settings(tmp_path, before, dict(before))
    files.refuse_other_settings(tmp_path, before, before | {"seed": 2}, may_differ=["seed"])
    with pytest.raises(UserError, match="made with other seed, new, gone: choose another --output"):
        files.refuse_other_settings(tmp_path, before, {"seed": 2, "width": 8, "new": 0})


def test_a_planted_link_is_never_written_through(tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"thesis")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".file.partial").symlink_to(precious)
    with files.replacing(folder / "file") as file:
        file.write(b"new")
    (folder / ".lock").symlink_to(precious)
    with pytest.raises((UserError, OSError)), files.sole_writer(folder):
        pytest.fail("the lock was taken")
    assert precious.read_bytes() == b"thesis"


def test_bytes_other_than_the_hash_are_refused(tmp_path):
    path = tmp_path / "array.npy"
    path.write_bytes(b"as written")
    sha256 = hashlib.sha256(b"as written").hexdigest()
    assert files.require_file(path, "embed again", sha256) == path
    path.write_bytes(b"as wrItten")
    with pytest.raises(UserError, match="was changed after it was written.*: embed again"):
        files.require_file(path, "embed again", sha256)


def test_a_full_disk_names_the_file(tmp_path):
    named = "result.json cannot be written: No space left on device"
    with pytest.raises(UserError, match=named), files.replacing(tmp_path / "result.json"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
