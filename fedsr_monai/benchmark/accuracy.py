"""Measure the accuracy of a network and of classical label propagation on the same test scans, in one table."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import LoadImage

from fedsr_monai.benchmark.ants_baseline import METHODS, propagate
from fedsr_monai.checks import check_choice, check_whole_number
from fedsr_monai.engines.refine import refine_registration
from fedsr_monai.errors import UserError
from fedsr_monai.evaluation.registration import folded_percent
from fedsr_monai.evaluation.site import case_rows, image_measures, run_case
from fedsr_monai.evaluation.tables import read_measures, spread, structure_rows
from fedsr_monai.files import is_there, write_csv, write_json
from fedsr_monai.networks import FedSRNet
from fedsr_monai.progress import Progress
from fedsr_monai.sites.check import ensure_fit
from fedsr_monai.sites.site import Site, load_atlas, load_site
from fedsr_monai.spatial.nifti import volume_stem
from fedsr_monai.spatial.reader import VolumeReader

COLUMNS = ("method", "site", "case", "structure", "dice", "hd95_mm", "asd_mm", "missed", "seconds", "folded_percent")
NETWORK_METHODS = {
    "unregistered": "unregistered atlas",
    "registration": "FedSR registration",
    "segmentation": "FedSR segmentation",
}


def run_accuracy(
    sites: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    network: FedSRNet | None = None,
    methods: Sequence[str] = ("affine", "n4_syn"),
    cases: int | None = None,
    device: str = "cpu",
    refine: int = 0,
) -> dict[str, dict[str, Any]]:
    """Measure every method on the labelled test scans of the sites.

    Writes one row per method, case and structure to `<out>.csv`, and means to `<out>.json`. A method and case that
    `<out>.csv` already has is not measured again, so that a killed run resumes where it was.

    Args:
        sites: site folders.
        out: path of the tables without a file extension.
        network: a FedSRNet with weights, which is given each site's atlas before its scans. None measures the classical
            methods alone.
        methods: names in `ants_baseline.METHODS`.
        cases: number of test scans per site (the first ones); all by default.
        device: where the network runs.
        refine: also measure registration after this many gradient steps on each scan (`engines.refine`).

    Returns:
        The content of `<out>.json`, see `summary`.

    Raises:
        UserError: a method is unknown, a site violates the contract, or has no labelled test scans.
    """
    for method in methods:
        check_choice("methods", method, METHODS)
    if cases is not None:
        check_whole_number("cases", cases)
    check_whole_number("refine", refine, least=0)
    table = Path(f"{os.fspath(out)}.csv")
    rows = _read(table)
    done = {(row["method"], row["site"], row["case"]) for row in rows}
    ours = ["network"] * bool(network) + ["refined"] * bool(network and refine)
    loaded = [load_site(site) for site in sites]
    ensure_fit(loaded)
    jobs = [
        (site, item, method) for method in [*ours, *methods] for site in loaded for item in _test_items(site)[:cases]
    ]
    labels = {"network": NETWORK_METHODS["segmentation"], "refined": f"FedSR registration, refined ({refine} steps)"}
    for site, item, method in Progress(jobs, desc="benchmark", unit="scan"):
        case = volume_stem(item["image"])
        if (labels.get(method, method), site.name, case) in done:
            continue
        if method in METHODS:
            found = _ants_rows(site, item, method)
        else:
            assert network is not None  # `ours` is empty without it
            network.set_atlas(*load_atlas(site))
            if method == "network":
                found = _network_rows(network, site, item, device)
            else:
                found = _refined_rows(network, site, item, refine, labels[method])
        measured = [{"site": site.name, "case": case} | row for row in found]
        rows += [{column: row[column] for column in COLUMNS} for row in measured]
        write_csv(table, COLUMNS, rows)
    result = summary(_read(table))  # from the file: a run that was resumed gives the same numbers
    write_json(f"{os.fspath(out)}.json", result)
    return result


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Summarise the rows of the table by method.

    Returns:
        For each method the number of cases; mean, sd (over cases) and number of the values of `dice`, `hd95_mm`
        (averaged over structures first), `dice_by_site`, `dice_by_structure`, `seconds` and `folded_percent`; and how
        many structures were missed.
    """
    result = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        by_case: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in mine:
            by_case.setdefault((row["site"], row["case"]), []).append(row)
        dice = {key: float(np.nanmean([row["dice"] for row in group])) for key, group in by_case.items()}
        first = [group[0] for group in by_case.values()]
        result[method] = {
            "cases": len(by_case),
            "dice": _spread(dice.values()),
            "hd95_mm": _spread(float(np.nanmean([row["hd95_mm"] for row in group])) for group in by_case.values()),
            "dice_by_site": {
                name: _spread(value for (site, _), value in dice.items() if site == name)
                for name in dict.fromkeys(site for site, _ in dice)
            },
            "dice_by_structure": {
                name: _spread(row["dice"] for row in mine if row["structure"] == name)
                for name in dict.fromkeys(row["structure"] for row in mine)
            },
            "missed": int(sum(row["missed"] for row in mine)),
            "seconds": _spread(row["seconds"] for row in first),
            "folded_percent": _spread(row["folded_percent"] for row in first),
        }
    return result


def _spread(values: Iterable[float]) -> dict[str, Any]:
    """Return `evaluation.tables.spread` with four digits; a single value has a standard deviation of 0."""
    found = {key: round(value, 4) for key, value in spread(values).items()}
    return found | {"sd": 0.0} if found["n"] == 1 else found


def _test_items(site: Site) -> list[dict[str, str]]:
    items = [item for item in site.test if "label" in item]
    if not items:
        fix = "add labels to 'test' in site.json or choose another site"
        raise UserError(site.root, "no labelled test scan", "at least one to measure accuracy on", fix)
    return items


def _network_rows(network: FedSRNet, site: Site, item: dict[str, str], device: str) -> list[dict[str, Any]]:
    volumes, seconds = run_case(network, item, device)
    folded = image_measures(volumes)["folded_percent"]
    extra = {
        "unregistered": {"seconds": 0.0, "folded_percent": 0.0},
        "registration": {"seconds": seconds, "folded_percent": folded},
        "segmentation": {"seconds": seconds, "folded_percent": 0.0},
    }
    return [row | {"method": NETWORK_METHODS[row["task"]]} | extra[row["task"]] for row in case_rows(volumes, site)]


def _refined_rows(network: FedSRNet, site: Site, item: dict[str, str], steps: int, method: str) -> list[dict[str, Any]]:
    load = LoadImage(VolumeReader(), ensure_channel_first=True)
    scan = load(item["image"]).as_tensor().float()[None].to(network.atlas_image.device)
    reference = load(item["label"]).numpy()[0].astype(np.uint8)
    start = time.perf_counter()
    with torch.no_grad():
        found = network.predict(scan)
    assert found.ddf is not None  # asked for
    ddf = refine_registration(found.ddf, network.atlas_label, found.logits, steps)
    label = network.warp_labels(ddf)[0, 0].cpu().numpy()
    measures = {
        "method": method,
        "seconds": time.perf_counter() - start,
        "folded_percent": folded_percent(ddf.cpu(), scan[0].cpu() > 0),
    }
    return [row | measures for row in structure_rows(label, reference, site.spacing, site.labels)]


def _ants_rows(site: Site, item: dict[str, str], method: str) -> list[dict[str, Any]]:
    found = propagate(site.atlas["image"], site.atlas["label"], item["image"], method)
    reference = LoadImage(VolumeReader())(item["label"]).numpy().astype(np.uint8)
    measures = {"method": method, "seconds": found.seconds, "folded_percent": found.folded_percent}
    return [row | measures for row in structure_rows(found.label, reference, site.spacing, site.labels)]


def _read(table: Path) -> list[dict[str, Any]]:
    return read_measures(table, COLUMNS) if is_there(table) else []
