"""The table `prepare/scans.csv`, which says what was done with each scan."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from fedsr_monai.files import write_csv

COLUMNS = (
    "name", "person", "status", "section", "reason", "mask", "overlap", "correlation", "scale_min", "scale_max", "turn_degrees",
    "seconds", "image", *(f"m{i}{j}" for i in range(3) for j in range(4)),
)  # fmt: skip


def write_table(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one line per scan, sorted by name.

    `m00` to `m23` are the rows of the affine map from points of the scan to points of the atlas, RAS+ millimetres; its
    inverse brings volumes on the site's grid back to the scan.

    Args:
        path: path of the CSV.
        rows: `name`, `person`, `image` and `status` (prepared, refused, left out); for a prepared scan also `section`,
            `mask_from`, `seconds`, `quality` and `matrix`, for any other also `reason`.
    """
    lines = []
    for row in sorted(rows, key=lambda row: row["name"]):
        line = {key: row[key] for key in COLUMNS if key in row}
        if "quality" in row:
            found = row["quality"]
            line |= {
                "mask": row["mask_from"],
                "overlap": f"{found['overlap']:.4f}",
                "correlation": f"{found['correlation']:.4f}",
            }
            line |= {"scale_min": f"{min(found['scales']):.4f}", "scale_max": f"{max(found['scales']):.4f}"}
            line |= {"turn_degrees": f"{found['turn']:.1f}"}
            line |= {f"m{i}{j}": f"{row['matrix'][i][j]:.9g}" for i in range(3) for j in range(4)}
        lines.append(line)
    write_csv(path, COLUMNS, lines)
