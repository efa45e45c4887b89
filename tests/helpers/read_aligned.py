"""Raw scans without their preparation."""

from __future__ import annotations

from fedsr_monai.files import write_bytes
from fedsr_monai.inference.load import LoadRaw, load_stripped


class ReadAligned(LoadRaw):
    """Stands for the preparation of a raw scan, which has tests of its own: these scans are aligned already."""

    def __call__(self, scan):
        loaded = load_stripped(scan)
        loaded.meta["raw_affine"] = loaded.affine.numpy()
        write_bytes(self.out / scan.files.alignment, b"picture")
        return loaded
