import errno
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicenternet import files
from minicenternet.errors import InputError
from minicenternet.files import lock, replacing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_whole_and_alone(tmp_path):
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        assert not (tmp_path / "a.txt").exists()
        temporary.write_text("whole")
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert names(tmp_path) == ["a.txt"]


def test_an_old_file_is_replaced_at_the_end_only(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_the_temporary_file_lies_beside_the_path_and_is_hidden(tmp_path):
    """Renaming is whole only within one file system."""
    with replacing(str(tmp_path / "a.npz")) as temporary:
        assert temporary.parent == tmp_path and temporary.name.startswith(".")
        temporary.write_text("x")
    assert names(tmp_path) == ["a.npz"]


def test_missing_folders_are_made(tmp_path):
    with replacing(tmp_path / "runs" / "one" / "a.txt") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "runs" / "one" / "a.txt").read_text() == "x"


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt(), ValueError("x")])
def test_an_exception_inside_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_exception_before_anything_was_written(tmp_path):
    with pytest.raises(KeyError), replacing(tmp_path / "a.txt"):
        raise KeyError
    assert names(tmp_path) == []


def test_a_full_disk_while_writing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(InputError, match=r"cannot write .*a\.txt: No space left on device\..* untouched"):
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_the_disk_fails_at_the_end(tmp_path, monkeypatch, function, number):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(InputError, match=os.strerror(number)), replacing(path) as temporary:
            temporary.write_text("new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_data_reach_the_disk_before_the_renaming(tmp_path, monkeypatch):
    calls = []
    for function in (os.fsync, os.replace):
        monkeypatch.setattr(os, function.__name__, lambda *a, f=function: (calls.append(f.__name__), f(*a)))
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert calls == ["fsync", "replace"]


@pytest.mark.parametrize("below", ["a.txt", "deeper/a.txt"])
def test_a_file_where_the_folder_should_be(tmp_path, below):
    (tmp_path / "runs").write_text("I am a file")
    with pytest.raises(InputError, match="cannot write .*name another folder"), replacing(tmp_path / "runs" / below):
        pytest.fail("there is nowhere to write")
    assert (tmp_path / "runs").read_text() == "I am a file"


def test_a_folder_where_the_file_should_be(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(InputError, match="cannot write .*a.txt"), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert names(tmp_path) == ["a.txt"]


def test_a_name_too_long(tmp_path):
    with pytest.raises(InputError, match="cannot write .*File name too long"):
        with replacing(tmp_path / ("a" * 300)) as temporary:
            temporary.write_text("x")


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(InputError, match="cannot write .*a.txt"), replacing(tmp_path / "a.txt"):
        pass


@settings(deadline=None, max_examples=30)
@given(versions=st.lists(st.tuples(st.binary(max_size=50), st.booleans()), max_size=5))
def test_after_any_history_the_last_whole_version_is_there(tmp_path_factory, versions):
    folder, expected = tmp_path_factory.mktemp("files"), None
    for content, fails in versions:
        try:
            with replacing(folder / "a") as temporary:
                temporary.write_bytes(content)
                if fails:
                    raise KeyError
            expected = content
        except KeyError:
            pass
    assert names(folder) == ([] if expected is None else ["a"])
    assert expected is None or (folder / "a").read_bytes() == expected


# --- one writer at a time --------------------------------------------------------------------------------------------

needs_locks = pytest.mark.skipif(files.fcntl is None, reason="no fcntl on this system")


def try_to_lock(folder: Path) -> str:
    """What another process, which then ends, is told when it locks a folder: nothing where it may."""
    program = f"""
from pathlib import Path
from minicenternet.errors import InputError
from minicenternet.files import lock
try:
    held = lock(Path({str(folder)!r}))
except InputError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


@needs_locks
def test_a_folder_is_locked_until_nobody_in_the_process_holds_it(tmp_path):
    first, second = lock(tmp_path), lock(tmp_path)
    assert first is second
    del first
    message = f"{tmp_path} is being written by process {os.getpid()} on {socket.gethostname()}; wait until that"
    assert try_to_lock(tmp_path).startswith(message)
    del second
    assert try_to_lock(tmp_path) == ""
    assert lock(tmp_path) is not None


@needs_locks
def test_threads_that_lock_a_folder_at_once_share_the_lock(tmp_path):
    ready, held = threading.Barrier(8), [None] * 8

    def take(i: int) -> None:
        ready.wait()
        held[i] = lock(tmp_path)

    threads = [threading.Thread(target=take, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held[0] is not None and all(each is held[0] for each in held)


@needs_locks
def test_a_lock_writes_to_no_file_but_its_own(tmp_path):
    (tmp_path / "thesis.txt").write_text("do not lose me")
    (tmp_path / ".lock").symlink_to("thesis.txt")
    with pytest.raises(InputError, match=r"cannot write .*\.lock: "):
        lock(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "do not lose me"


@needs_locks
def test_a_disk_without_locks_is_warned_of(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="cannot be locked .No locks available.: let no second process write"):
        assert lock(tmp_path) is None


def test_a_system_without_locks_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    assert lock(tmp_path) is None and not list(tmp_path.iterdir())
