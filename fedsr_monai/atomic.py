"""Writing a file so that a reader never sees half of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path in the folder of ``path``; what was written there replaces ``path`` when the block ends.

    The data reach the disk (fsync) before the name changes, so a kill or a power cut at any moment leaves either the
    old file or the new one, whole. If the block raises, the old file stays and the temporary one is removed. The
    temporary name keeps the suffix (writers choose the format by it) and is the same each time, so a killed run leaves
    at most one stray file behind, which the next write reuses: a file has one writer at a time. Missing folders are
    made.

    Example::

        with atomic_path("models/model.pt") as temporary:
            torch.save(state, temporary)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield temporary
        # Opened for writing, because some file systems refuse to sync a descriptor that is only readable.
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself
    finally:
        os.close(folder)
