"""The only code that reads and writes JSON, CSV and text: files are replaced atomically, and folders belong to the settings of their results."""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import platform
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsr_monai.errors import UserError

FIXES = {
    errno.ENOSPC: "free some space on this disk",
    errno.EDQUOT: "free some of your quota on this disk",
    errno.EACCES: "make the folder writable",
    errno.EPERM: "make the folder writable",
    errno.EROFS: "choose a folder that can be written",
    errno.ENOTDIR: "choose a path whose parents are folders",
    errno.EEXIST: "choose a path whose parents are folders",
    errno.EISDIR: "choose the path of a file, not of a folder",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; the file written there replaces `path` when the block ends.

    The data reach the disk (fsync) before the name changes, so a kill or a power cut at any moment leaves either the
    old file or the new one, whole. If the block raises, the old file stays and the temporary one is removed. Several
    processes and threads may write one file: each has a temporary name of its own, and the last to finish wins. The
    name keeps the suffix (writers choose the format by it); what a killed process left behind is removed by the next
    write of the same file. Missing folders are made.

    Raises:
        UserError: the disk is full or the folder cannot be written.

    Example::

        with atomic_path("models/model.pt") as temporary:
            torch.save(state, temporary)
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{_writer()}-{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stray in _strays(path):
            stray.unlink(missing_ok=True)
        yield temporary
        # Opened for writing, because some file systems refuse to sync a descriptor that is only readable.
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FIXES:
            raise UserError(
                path,
                found=f"that it cannot be written ({error.strerror})",
                expected="a file on a disk with room, in a writable folder",
                fix=f"{FIXES[error.errno]} and run the same command again",
            ) from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself
    finally:
        os.close(folder)


def _writer() -> str:
    # The name of the computer is part of it: a folder may be shared, and process ids are unique on one computer only.
    computer = re.sub(r"[^A-Za-z0-9]", "", platform.node())[:16]
    return f"{computer}-{os.getpid()}"


def _strays(path: Path) -> list[Path]:
    """Return the temporary files of `path` that processes of this computer left behind when they were killed."""
    computer = _writer().rpartition("-")[0]
    name = re.compile(rf"\.{re.escape(path.stem)}\.{computer}-(\d+)-[0-9a-f]{{8}}\.partial{re.escape(path.suffix)}")
    found = ((file, name.fullmatch(file.name)) for file in path.parent.iterdir())
    return [file for file, match in found if match and not _is_running(int(match[1]))]


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs under another user
        return True
    return True


@contextmanager
def one_at_a_time(folder: str | os.PathLike) -> Iterator[None]:
    """Lock an existing folder, so that other processes and threads that ask for it wait until the block ends.

    It is needed where a file is read, changed and written again; otherwise rows that others write in between are lost.
    The lock is on the folder itself (flock), so it leaves no file behind and ends with the process. On file systems
    that cannot lock folders, nobody waits.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def files_below(folder: str | Path) -> Iterator[Path]:
    """Yield all files below a folder and follow links; no folder is entered twice, because links may form loops."""
    entered = set()
    for path, folders, files in os.walk(str(folder), followlinks=True):
        if (real := os.path.realpath(path)) in entered:
            folders.clear()
            continue
        entered.add(real)
        folders.sort()
        yield from (Path(path, file) for file in sorted(files))


def make_folder(path: str | os.PathLike, fix: str = "choose another one for --out") -> None:
    """Make a folder if it is missing.

    Raises:
        UserError: it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = f"that it cannot be made ({error.strerror})"
        raise UserError(path, found=found, expected="a folder", fix=fix) from None


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write `content` atomically.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text atomically, unless the file already holds it.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    if not (path.is_file() and path.read_bytes() == text.encode()):
        write_bytes(path, text.encode())


def json_text(content: Any) -> str:
    """Return `content` as strict JSON: NaN and infinity, which JSON does not have, become null."""

    def strict(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): strict(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [strict(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(strict(content), indent=1, allow_nan=False) + "\n"


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write strict, indented JSON atomically; see `json_text`.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    write_bytes(path, json_text(content).encode())


def is_there(path: str | os.PathLike) -> bool:
    """Return whether there is anything at a path.

    A link whose target is missing counts: the target may be on a disk that is not mounted, so it would be wrong to go
    on as if there had never been a file. Whoever reads the file is told (`check_regular`).
    """
    return os.path.lexists(path)


def check_regular(path: str | os.PathLike, expected: str, fix: str = "restore it from a copy") -> None:
    """Refuse a path that exists but is not a regular file: a pipe would block its reader, and a device may never end.

    Raises:
        UserError: naming the path.
    """
    if is_there(path) and not os.path.isfile(path):
        found = "a folder" if os.path.isdir(path) else "a pipe or a device"
        if not os.path.exists(path):
            found = f"a link to {Path(path).readlink()}, which leads nowhere"
        raise UserError(path, found=found, expected=expected, fix=fix)


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 checksum of a file as hexadecimal digits.

    Raises:
        UserError: it is not a regular file.
        OSError: it cannot be read.
    """
    check_regular(path, "a file")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def read_json(path: str | os.PathLike, expected: str, fix: str) -> dict[str, Any]:
    """Read a JSON object, in UTF-8 with or without a byte order mark.

    Args:
        path: the file.
        expected: what the file is, for the message ("the settings of a run").
        fix: what to do if it is missing or damaged, for the message.

    Raises:
        UserError: the file is missing or unreadable, is not JSON, holds a key twice, or is not an object.
    """
    check_regular(path, expected, fix)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_distinct)
    except FileNotFoundError:
        raise UserError(path, found="no such file", expected=expected, fix=fix) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            path, found=f"damaged JSON ({' '.join(str(error).split())})", expected=expected, fix=fix
        ) from None
    if not isinstance(content, dict):
        raise UserError(
            path, found=f"JSON of type {type(content).__name__}", expected=f"an object: {expected}", fix=fix
        )
    return content


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return content


def write_csv(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table atomically: floats with six significant digits, NaN as `nan`, missing cells empty.

    Lines end in a line feed. A `.tsv` is separated by tabs, everything else by commas.

    Raises:
        UserError: the disk is full or the folder cannot be written.
        ValueError: a row has a key that is not a column.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n", delimiter=_delimiter(path))
    writer.writeheader()
    writer.writerows(
        {key: f"{cell:.6g}" if isinstance(cell, float) else cell for key, cell in row.items()} for row in rows
    )
    write_bytes(path, text.getvalue().encode())


def read_csv(
    path: str | os.PathLike,
    columns: Sequence[str] | None = None,
    convert: Callable[[str, str], Any] = lambda column, text: text,
    fix: str = "move the file away",
    only: bool = False,
) -> list[dict[str, Any]]:
    """Read a table, or the named columns of it.

    Args:
        path: the file.
        columns: the columns to read; all if None.
        convert: from the name of a column and the text of a cell to its value.
        fix: what to do if the table is damaged, for the message.
        only: refuse a table that has other columns too, because whoever writes it again would lose them.

    Raises:
        UserError: a column is missing or unexpected, a row is too short or too long, or a cell cannot be converted.
    """
    check_regular(path, "a table", fix)
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file, delimiter=_delimiter(path))
        present = list(reader.fieldnames or ())
        columns = present if columns is None else columns
        lacking = [column for column in columns if column not in present]
        if lacking or (only and len(present) > len(columns)):
            expected = f"{'only' if only else 'also'} {', '.join(columns if only else lacking)}"
            raise UserError(path, found=f"the columns {', '.join(present) or 'none'}", expected=expected, fix=fix)
        rows = []
        for row in reader:
            if None in row or None in row.values():
                cells = f"a row of another length in line {reader.line_num}"
                raise UserError(path, found=cells, expected=f"{len(present)} cells", fix=fix)
            try:
                rows.append({column: convert(column, row[column]) for column in columns})
            except (TypeError, ValueError):
                found = f"a cell of another kind in line {reader.line_num} ({list(row.values())})"
                raise UserError(path, found=found, expected="numbers in the columns of numbers", fix=fix) from None
    return rows


def _delimiter(path: str | os.PathLike) -> str:
    return "\t" if Path(path).suffix == ".tsv" else ","


def put_row(path: Path, columns: Sequence[str], keys: Sequence[str], row: Mapping[str, Any]) -> None:
    """Put a row into a table, in place of the row with the same values of `keys` if there is one.

    Several processes may put rows into one table: none is lost.

    Args:
        path: the file, in a folder that exists.
        columns: of the table.
        keys: the columns that identify a row.
        row: cells by column.

    Raises:
        UserError: the table has other columns, the disk is full or the folder cannot be written.
    """
    with one_at_a_time(path.parent):
        old = read_csv(path, columns, only=True) if is_there(path) else []
        rows = {tuple(one[key] for key in keys): one for one in old}
        rows[tuple(str(row[key]) for key in keys)] = dict(row)
        write_csv(path, columns, rows.values())


def claim_folder(root: Path, record: str, settings: Mapping[str, Any], fix: str, what: str = "results") -> None:
    """Claim a folder for results of these settings, which are kept in `root/record`, so that results of different settings stay apart.

    A folder that holds only the temporary files of a process that was killed while it claimed the folder is free.

    Args:
        root: the folder; made if missing.
        record: path of the settings' file below it.
        settings: what the results in it depend on (JSON).
        fix: what to do if the folder is taken, for the message.
        what: what the folder holds, for the message.

    Raises:
        UserError: the folder holds results of other settings, or something else, or cannot be written.
    """
    path, content = root / record, json_text(settings)
    if path.is_file() and path.read_bytes() != content.encode():
        found = f"{what} of other settings ({record})"
        raise UserError(root, found=found, expected="none, or the same settings", fix=fix)
    if not path.is_file() and root.is_dir() and not _is_free(root, path):
        raise UserError(root, found="files of something else", expected="a new or empty folder", fix=fix)
    write_text(path, content)


def _is_free(root: Path, path: Path) -> bool:
    own = set(path.parents) | set(_strays(path) if path.parent.is_dir() else ())
    return all(entry in own for entry in root.rglob("*"))


def check_settings(
    path: Path, settings: Mapping[str, Any], what: str, may_change: Iterable[str] = ()
) -> dict[str, Any]:
    """Compare the settings in a file with those given now, and return the file's.

    Paths may differ (entries called `path` inside objects): data and weights may have moved.

    Args:
        path: path of the JSON file.
        settings: the settings given now.
        what: what was begun with them, for the message ("run").
        may_change: settings that may differ, because they change nothing that was computed so far.

    Raises:
        UserError: a setting differs, or the file is damaged or lost.
    """
    begun = read_json(path, f"the settings of the {what}", "restore it from a copy, or choose another folder")
    settings = json.loads(json_text(settings))
    for key in settings:
        if key not in may_change and _without_paths(begun.get(key)) != _without_paths(settings[key]):
            raise UserError(
                f"{path}: {key}",
                found=_shortened(begun.get(key)),
                expected=_shortened(settings[key]),
                fix=f"give the settings that the {what} began with to resume it, or another folder to begin a new one",
            )
    return begun


def _shortened(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _without_paths(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return {key: item for key, item in value.items() if key != "path"} if isinstance(value, dict) else value


def remove_all_but(paths: Sequence[Path], keep: int) -> None:
    """Delete all but the last `keep` of `paths`, whose names sort by age."""
    for path in sorted(paths)[: max(0, len(paths) - keep)]:
        path.unlink(missing_ok=True)
