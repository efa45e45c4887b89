"""Writing a file so that a reader never sees half of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsr_monai.errors import UserError

CURES = {
    errno.ENOSPC: "free some space on this disk",
    errno.EDQUOT: "free some of your quota on this disk",
    errno.EACCES: "make the folder writable",
    errno.EPERM: "make the folder writable",
    errno.EROFS: "choose a folder that can be written",
    errno.ENOTDIR: "choose a path whose parents are folders",
    errno.EEXIST: "choose a path whose parents are folders",
}


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path in the folder of ``path``; what was written there replaces ``path`` when the block ends.

    The data reach the disk (fsync) before the name changes, so a kill or a power cut at any moment leaves either the
    old file or the new one, whole. If the block raises, the old file stays and the temporary one is removed. The
    temporary name keeps the suffix (writers choose the format by it) and is the same each time, so a killed run leaves
    at most one stray file behind, which the next write reuses: a file has one writer at a time. Missing folders are
    made.

    Raises:
        UserError: the disk is full or the folder cannot be written.

    Example::

        with atomic_path("models/model.pt") as temporary:
            torch.save(state, temporary)
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        # Opened for writing, because some file systems refuse to sync a descriptor that is only readable.
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in CURES:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}), expected a disk with room and a writable folder; "
                f"{CURES[error.errno]} and run the same command again"
            ) from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself
    finally:
        os.close(folder)
