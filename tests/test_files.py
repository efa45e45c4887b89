from __future__ import annotations

import ast
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fedsr_monai
from fedsr_monai.errors import UserError
from fedsr_monai.evaluation.site import read_volumes
from fedsr_monai.federation.storage import read_tensors
from fedsr_monai.files import atomic_path, claim_folder, is_there, read_csv, read_json, sha256, write_csv
from fedsr_monai.networks.weights import read_weights
from fedsr_monai.spatial.nifti import read_volume


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


WRITER = """
import sys
from fedsr_monai.files import atomic_path
for number in range(100):
    with atomic_path(sys.argv[1]) as temporary:
        temporary.write_text(sys.argv[2] * 10000)
"""


def test_two_processes_write_one_file(tmp_path):
    path = tmp_path / "state.json"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), letter]) for letter in "ab"]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            assert path.read_text() in ("a" * 10000, "b" * 10000)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert os.listdir(tmp_path) == ["state.json"]


def test_what_a_running_process_or_another_computer_writes_is_not_removed(tmp_path):
    path = tmp_path / "state.json"
    with atomic_path(path) as mine:
        mine.write_text("mine")
        elsewhere = mine.with_name(mine.name.replace(f"-{os.getpid()}-", "elsewhere-1234567-"))
        elsewhere.write_text("theirs")
        with atomic_path(path) as other:
            other.write_text("other")
        assert path.read_text() == "other"
    assert path.read_text() == "mine" and elsewhere.read_text() == "theirs"


def kill_while_claiming(folder) -> None:
    program = (
        "import os, signal, sys, pathlib\nimport fedsr_monai.files as files\n"
        "files.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.claim_folder(pathlib.Path(sys.argv[1]), 'records/settings.json', {'seed': 1}, 'choose another')\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(folder)]).returncode == -signal.SIGKILL


def test_a_folder_that_a_killed_process_was_claiming_is_free(tmp_path):
    kill_while_claiming(tmp_path / "out")
    assert [path.suffix for path in (tmp_path / "out").rglob("*.*")] == [".json"]
    claim_folder(tmp_path / "out", "records/settings.json", {"seed": 2}, "choose another")
    assert [path.name for path in (tmp_path / "out").rglob("*.*")] == ["settings.json"]
    with pytest.raises(UserError, match=r"out: found results of other settings \(records/settings.json\)"):
        claim_folder(tmp_path / "out", "records/settings.json", {"seed": 3}, "choose another")


@pytest.mark.parametrize("file", ["scan.nii.gz", "records/notes.txt", "records/.settings.mine.partial.json"])
def test_a_folder_with_files_of_something_else_is_taken(tmp_path, file):
    kill_while_claiming(tmp_path / "out")
    (tmp_path / "out" / file).write_text("")
    with pytest.raises(UserError, match="out: found files of something else.*; choose another$"):
        claim_folder(tmp_path / "out", "records/settings.json", {"seed": 2}, "choose another")


def test_tables_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "table.csv"
    write_csv(path, ["name", "dice"], [{"name": "a,\nb", "dice": 1 / 3}, {"name": "c"}])
    assert path.read_bytes() == b'name,dice\n"a,\nb",0.333333\nc,\n'
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte order mark, as spreadsheets write it
    assert read_csv(path, ["name"]) == [{"name": "a,\nb"}, {"name": "c"}]
    with pytest.raises(UserError, match="table.csv: found the columns name, dice, expected also hd95; "):
        read_csv(path, ["name", "hd95"])
    with pytest.raises(UserError, match="table.csv: found the columns name, dice, expected only name; "):
        read_csv(path, ["name"], only=True)
    with pytest.raises(UserError, match="table.csv: found a cell of another kind in line 4"):
        read_csv(path, ["dice"], lambda column, text: float(text))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"a": 1, "a": 2}', "the key 'a' twice"),
        (b"[1]", "JSON of type list"),
        (b"{", "damaged JSON"),
        (b"\xff", "damaged JSON"),
        (b"[" * 100000, "damaged JSON"),
    ],
)
def test_json_that_is_not_one_plain_object_is_refused(tmp_path, content, found):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=f"run.json: found .*{found}.*the settings of a run; restore it$"):
        read_json(tmp_path / "run.json", "the settings of a run", "restore it")


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        os.mkdir,
        lambda path: os.symlink("/dev/zero", path),
        lambda path: os.symlink("/nowhere/at/all", path),
        lambda path: os.symlink(path, path),
    ],
    ids=["pipe", "folder", "device", "link to nothing", "link to itself"],
)
@pytest.mark.parametrize(
    "read",
    [lambda path: read_json(path, "x", "y"), read_csv, sha256, read_volume, read_tensors, read_weights, read_volumes],
    ids=["json", "csv", "sha256", "volume", "tensors", "weights", "figures"],
)
def test_what_is_no_regular_file_is_refused_unread(tmp_path, make, read):
    """A pipe would keep the reader waiting for ever, and this device never ends. A link that leads nowhere is no absent file."""
    make(tmp_path / "a.nii")
    assert is_there(tmp_path / "a.nii")
    with pytest.raises(UserError, match="a.nii: found a (folder|pipe or a device|link to /.*, which .*), expected "):
        read(tmp_path / "a.nii")


# What opens a file, and what looks at it first. A file that this process has just written needs no look.
OPENS = {"open", "read_bytes", "read_text", "loadtxt", "load_file", "load_config_file", "load_config_files", "dcmread"}
LOOKS = {
    "check_regular",
    "is_file",
    "isfile",
    "is_dicom",
    "bundle_path",
    "installed_bundle",
    "training_files",
    "sha256",
}
OWN = {
    "cli.py: main",  # /dev/null
    "files.py: atomic_path",
    "files.py: one_at_a_time",  # a folder, and nothing else (O_DIRECTORY)
    "inference/dicom_seg.py: write_dicom_seg",  # the images of a series whose headers were read
    "device.py: cpu_info",  # /proc/cpuinfo
    "spatial/nifti.py: write_nifti",  # the temporary file that it makes
}


def calls_of(function: ast.AST) -> set[str]:
    """Return the names of what a function calls, `load` and `open` of a module with that module (`np.load`)."""
    names = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = node.func.attr
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            names.add(f"{owner}.{name}" if name == "load" else name)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names.add(node.func.id)
    return names


def test_every_reader_looks_before_it_opens():
    """So no command can hang on a pipe in place of a file."""
    package, readers, blind = Path(fedsr_monai.__file__).parent, 0, []
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            calls = calls_of(node)
            if calls & (OPENS | {"np.load", "nib.load", "torch.load"}):
                readers += 1
                if not calls & LOOKS:
                    blind.append(f"{file.relative_to(package)}: {node.name}")
    assert readers > 20 and set(blind) == OWN


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "run.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "run.json", "settings", "restore it") == {"a": 1}


def test_a_full_disk_is_said_in_one_line(tmp_path):
    path = tmp_path / "state.json"
    path.write_text("old")
    with (
        pytest.raises(UserError, match=r"cannot be written \(No space left on device\)") as raised,
        atomic_path(path) as temporary,
    ):
        temporary.write_text("ha")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert raised.value.where == str(path) and "free some space on this disk" in raised.value.fix
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["state.json"]


def test_a_file_in_place_of_the_folder_is_said_in_one_line(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match=r"cannot be written .*; choose a path whose parents are folders and run"):
        with atomic_path(tmp_path / "run" / "state.json") as temporary:
            temporary.write_text("ha")
