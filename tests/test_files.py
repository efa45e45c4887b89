from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from fedsr_monai.errors import UserError
from fedsr_monai.files import atomic_path


def test_replaces_the_file_and_makes_the_folder(tmp_path):
    path = tmp_path / "new" / "state.json"
    for text in ("old", "new"):
        with atomic_path(path) as temporary:
            assert temporary.parent == path.parent and temporary.suffix == path.suffix
            temporary.write_text(text)
        assert path.read_text() == text
    assert os.listdir(path.parent) == ["state.json"]


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "state.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="no"), atomic_path(path) as temporary:
        temporary.write_text("ha")
        raise ValueError("no")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_kill_leaves_the_old_file_and_the_next_write_cleans_up(tmp_path):
    path = tmp_path / "state.json"
    path.write_text("old")
    program = (
        "import os, signal, sys\nfrom fedsr_monai.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('ha')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)]).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(os.listdir(tmp_path)) == 2
    with atomic_path(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_full_disk_is_said_in_one_line(tmp_path):
    path = tmp_path / "state.json"
    path.write_text("old")
    message = (
        f"{path}: cannot be written (No space left on device), expected a disk with room and a writable folder; "
        "free some space on this disk and run the same command again"
    )
    with pytest.raises(UserError) as raised, atomic_path(path) as temporary:
        temporary.write_text("ha")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(raised.value) == message
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["state.json"]


def test_a_file_in_place_of_the_folder_is_said_in_one_line(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match=r"cannot be written .*; choose a path whose parents are folders and run"):
        with atomic_path(tmp_path / "run" / "state.json") as temporary:
            temporary.write_text("ha")
