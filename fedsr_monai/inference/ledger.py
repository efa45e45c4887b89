"""A record of the files in a folder that this program wrote, and from which scan: other files are replaced only on request.

The record is `fedsr-segment.json` in the folder of the results. A file counts as this program's own as long as its content
matches the recorded checksum; a file that was made by hand, or corrected by hand afterwards, does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsr_monai.errors import UserError
from fedsr_monai.files import is_there, one_at_a_time, read_json, sha256, write_json

RECORD = "fedsr-segment.json"
OVERWRITE = "move it away, choose another --out, or add --overwrite"
WRITING = ""  # stands in for the checksum of a file that is being written, or was when a run was stopped


@dataclass(frozen=True)
class Source:
    """What a result was made from.

    Attributes:
        path: absolute path of the scan.
        sha256: checksum of its content.
        settings: everything else that the result depends on (JSON).
    """

    path: str
    sha256: str
    settings: Mapping[str, Any]


def written_files(folder: Path) -> set[str]:
    """Return the paths below a folder that this program wrote, whether or not they have been changed since then.

    Raises:
        UserError: the record is damaged.
    """
    return {file for entry in Ledger(folder).results().values() for file in entry["files"]}


class Ledger:
    """The record of one folder. Several processes may use it at once.

    Args:
        folder: folder of the results; must exist.
        overwrite: replace files no matter who wrote them.
    """

    def __init__(self, folder: Path, overwrite: bool = False) -> None:
        self.folder, self.overwrite = folder, overwrite

    @contextmanager
    def claim(self, name: str, files: Iterable[str], source: Source) -> Iterator[None]:
        """Reserve the files of one result; when the block ends, those that exist are recorded with their checksums.

        If the block raises, the files that it replaced are recorded, and the result counts as incomplete.

        Args:
            name: name of the result.
            files: paths below the folder.
            source: what the result is made from.

        Raises:
            UserError: a file exists that this program did not write or that was changed afterwards, or the recorded result of
                this name comes from another scan.
        """
        files = list(files)
        with one_at_a_time(self.folder):
            results = self.results()
            before = results.get(name, {})
            if not self.overwrite:
                self._check(name, files, results, source)
            states = {file: self._state(file) for file in files}
            entry = {"scan": source.path, "scan_sha256": source.sha256, "settings": dict(source.settings)}
            kept = {file: digest for file, digest in before.get("files", {}).items() if file not in files}
            self._write(results | {name: entry | {"files": kept | dict.fromkeys(files, WRITING)}})
        try:
            yield
        except BaseException:
            replaced = [file for file in files if self._state(file) not in (None, states[file])]
            if replaced:
                digests = {file: sha256(self.folder / file) for file in replaced}
                before = entry | {"settings": {}, "files": before.get("files", {}) | digests}
            self._replace(name, before)
            raise
        written = {file: sha256(self.folder / file) for file in files if (self.folder / file).is_file()}
        self._replace(name, entry | {"files": kept | written})

    def has(self, name: str, files: Iterable[str], source: Source) -> bool:
        """Return whether a result of the same scan and settings is complete and unchanged."""
        entry = self.results().get(name)
        if entry is None or entry["scan_sha256"] != source.sha256 or entry["settings"] != dict(source.settings):
            return False
        return all(entry["files"].get(file) and self._is_as_written(file, entry) for file in files)

    def _state(self, file: str) -> tuple[int, int] | None:
        """Return inode and modification time of a file, which change when it is replaced; None if there is no file."""
        path = self.folder / file
        return (path.stat().st_ino, path.stat().st_mtime_ns) if path.is_file() else None

    def _check(self, name: str, files: list[str], results: dict[str, Any], source: Source) -> None:
        before = results.get(name)
        if before and before["scan"] != source.path and before["scan_sha256"] != source.sha256:
            raise UserError(
                source.path,
                found=f"a result in {self.folder} that has its name and is that of {before['scan']}",
                expected="scans of different names",
                fix="rename one, choose another --out, or add --overwrite",
            )
        owners = {file: entry for entry in results.values() for file in entry["files"]}
        for file in files:
            path = self.folder / file
            if not is_there(path):
                continue
            if file not in owners or not self._is_as_written(file, owners[file]):
                found = "a file that was changed since it was written" if file in owners else "a file of another origin"
                raise UserError(path, found=found, expected="no file, or one that this command wrote", fix=OVERWRITE)

    def _is_as_written(self, file: str, entry: dict[str, Any]) -> bool:
        path, digest = self.folder / file, entry["files"][file]
        return digest == WRITING or (path.is_file() and sha256(path) == digest)

    def results(self) -> dict[str, Any]:
        """Return the recorded results by name: `scan`, `scan_sha256`, `settings`, and `files` with their checksums.

        Raises:
            UserError: the record is damaged.
        """
        path = self.folder / RECORD
        if not is_there(path):
            return {}
        fix = "restore it from a copy, or choose another --out"
        results = read_json(path, "the record of what fedsr segment wrote", fix).get("results")
        keys = {"scan", "scan_sha256", "settings", "files"}
        if not isinstance(results, dict) or not all(
            isinstance(entry, dict) and keys <= entry.keys() and isinstance(entry["files"], dict)
            for entry in results.values()
        ):
            found = "another content"
            raise UserError(path, found=found, expected="the record of what fedsr segment wrote", fix=fix)
        return results

    def _write(self, results: dict[str, Any]) -> None:
        write_json(self.folder / RECORD, {"results": results})

    def _replace(self, name: str, entry: dict[str, Any]) -> None:
        with one_at_a_time(self.folder):
            results = self.results()
            results.pop(name, None)
            self._write(results | ({name: entry} if entry else {}))
