from __future__ import annotations

import json
import multiprocessing

import pytest

from fedsr_monai.errors import UserError
from fedsr_monai.inference.ledger import RECORD, Ledger, Source

A = Source("/scans/a.nii.gz", "aa", {"register": False})


def write(folder, name: str, content: str, source: Source = A, overwrite: bool = False) -> None:
    with Ledger(folder, overwrite).claim(name, [f"{name}_dseg.nii.gz"], source):
        (folder / f"{name}_dseg.nii.gz").write_text(content)


def test_own_files_are_replaced_and_others_are_not(tmp_path):
    write(tmp_path, "a", "first")
    write(tmp_path, "a", "second")
    assert (tmp_path / "a_dseg.nii.gz").read_text() == "second"
    (tmp_path / "a_dseg.nii.gz").write_text("corrected by hand")
    with pytest.raises(UserError, match=r"a_dseg.nii.gz: found a file that was changed since.*--overwrite$"):
        write(tmp_path, "a", "third")
    (tmp_path / "b_dseg.nii.gz").write_text("made by hand")
    with pytest.raises(UserError, match=r"b_dseg.nii.gz: found a file of another origin.*--overwrite$"):
        write(tmp_path, "b", "ours")
    assert (tmp_path / "a_dseg.nii.gz").read_text() == "corrected by hand"
    assert (tmp_path / "b_dseg.nii.gz").read_text() == "made by hand"
    write(tmp_path, "b", "ours", overwrite=True)
    write(tmp_path, "b", "ours again")


def test_a_link_is_a_file_of_another_origin(tmp_path):
    (tmp_path / "a_dseg.nii.gz").symlink_to(tmp_path / "missing")
    with pytest.raises(UserError, match="another origin"):
        write(tmp_path, "a", "ours")


def test_a_name_belongs_to_the_scan_that_it_was_given_to(tmp_path):
    write(tmp_path, "a", "first")
    with pytest.raises(UserError, match=r"^/other/a.nii.gz: found a result .* of /scans/a.nii.gz.*--overwrite$"):
        write(tmp_path, "a", "another person", Source("/other/a.nii.gz", "bb", {}))
    write(tmp_path, "a", "the same file, moved", Source("/other/a.nii.gz", "aa", {}))
    write(tmp_path, "a", "the same path, exported again", Source("/other/a.nii.gz", "cc", {}))
    write(tmp_path, "a", "another person", Source("/third/a.nii.gz", "dd", {}), overwrite=True)


def test_a_result_that_failed_half_way_can_be_written_again(tmp_path):
    write(tmp_path, "a", "first")
    for reached in (False, True):
        with pytest.raises(OSError, match="disk full"), Ledger(tmp_path).claim("a", ["a_dseg.nii.gz", "a_warp"], A):
            if reached:
                (tmp_path / "new").write_text("half")
                (tmp_path / "new").replace(tmp_path / "a_dseg.nii.gz")
            raise OSError("disk full")
        assert Ledger(tmp_path).has("a", ["a_dseg.nii.gz"], A) != reached
    write(tmp_path, "a", "second")
    with pytest.raises(OSError, match="refused"), Ledger(tmp_path).claim("b", ["b_dseg.nii.gz"], A):
        raise OSError("refused")
    assert list(json.loads((tmp_path / RECORD).read_text())["results"]) == ["a"]


def test_a_kill_leaves_a_result_that_can_be_written_again(tmp_path):
    claim = Ledger(tmp_path).claim("a", ["a_dseg.nii.gz"], A)
    claim.__enter__()  # and never left
    (tmp_path / "a_dseg.nii.gz").write_text("whole, but not recorded")
    assert not Ledger(tmp_path).has("a", ["a_warp.nii.gz"], A)
    write(tmp_path, "a", "again")


def test_a_complete_result_is_known(tmp_path):
    write(tmp_path, "a", "first")
    ledger, files = Ledger(tmp_path), ["a_dseg.nii.gz"]
    assert ledger.has("a", files, A) and not ledger.has("b", files, A)
    assert not ledger.has("a", [*files, "a_warp.nii.gz"], A)
    assert not ledger.has("a", files, Source(A.path, "changed", A.settings))
    assert not ledger.has("a", files, Source(A.path, A.sha256, {"register": True}))
    (tmp_path / "a_dseg.nii.gz").write_text("changed")
    assert not ledger.has("a", files, A)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"results": {"a": {}}}', '{"results": {"a": 3}}'])
def test_a_damaged_record_is_refused(tmp_path, content):
    (tmp_path / RECORD).write_text(content)
    with pytest.raises(UserError, match=f"{RECORD}.*record of what fedsr segment wrote"):
        write(tmp_path, "a", "first")


def many(folder, letter: str) -> None:
    for number in range(20):
        write(folder, f"{letter}{number}", letter)


def test_two_processes_lose_no_entry(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=many, args=(tmp_path, letter)) for letter in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    results = json.loads((tmp_path / RECORD).read_text())["results"]
    assert set(results) == {f"{letter}{number}" for letter in "ab" for number in range(20)}
    assert all(all(entry["files"].values()) for entry in results.values())
