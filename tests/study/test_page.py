from __future__ import annotations

import math

import numpy as np
import pytest

from fedsr_monai.evaluation.site import write_volumes
from fedsr_monai.study.page import (
    band_chart,
    common_cases,
    error_maps,
    paper_tables,
    significantly_best,
    structure_chart,
)
from fedsr_monai.study.plan import Arm, Plan

PLAN = Plan("x", "y?", {}, {"good": Arm(), "bad": Arm()}, (("good", "bad"),), seeds=(0, 1, 2))


def measured(means: dict[str, float], cases: int = 4, spread: float = 0.002) -> dict:
    """By arm, seed and case: the arm's mean, a share of the case in all arms, and noise of its own."""
    rng = np.random.default_rng(0)
    of_case = rng.normal(0, 0.05, (3, cases))
    return {
        arm: {s: {("a", str(c)): mean + of_case[s, c] + rng.normal(0, spread) for c in range(cases)} for s in range(3)}
        for arm, mean in means.items()
    }


def test_the_best_is_marked_only_where_it_is_significant():
    assert significantly_best(measured({"good": 0.8, "bad": 0.7, "middle": 0.75}), 1) == "good"
    assert significantly_best(measured({"good": 8.0, "bad": 7.0}), -1) == "bad"  # of a distance, less is better
    assert significantly_best(measured({"good": 0.7003, "bad": 0.7}, spread=0.02), 1) is None
    one_seed = {arm: {0: seeds[0]} for arm, seeds in measured({"good": 0.8, "bad": 0.7}).items()}
    assert significantly_best(one_seed, 1) is None


def rows(dice: dict[str, float], site: str = "clinic") -> list[dict]:
    return [
        {
            "arm": arm, "seed": seed, "site": site, "case": case, "task": task, "structure": structure, "dice": value + 0.001 * seed,
            "hd95_mm": 2.0, "ncc": 0.5, "missed": 0,
        }
        for arm, value in dice.items() for seed in (0, 1, 2) for case in ("a", "b")
        for task in ("unregistered", "registration", "segmentation") for structure in ("thalamus", "caudate")
    ]  # fmt: skip


def test_a_table_holds_every_arm_and_the_cases_that_all_were_measured_on():
    table = paper_tables(PLAN, rows({"good": 0.8, "bad": 0.7}) + rows({"good": 0.2}, "elsewhere"))[1]
    good = table[table.index(">good<") :].split("</tr>")[0]
    assert "0.801 <small>± 0.001" in good and good.count("0.801") == 2  # at the clinic, and over the common cases
    assert 'class="best">0.801' in good and "0.201" in good and 'class="best">0.201' not in good
    assert common_cases({"a": {0: {"x": 1, "y": 2}}, "b": {0: {"y": 1}}, "c": {}}) == {"y"}


def test_a_row_of_the_structure_chart_names_its_means():
    chart = structure_chart(rows({"good": 0.8, "bad": math.nan}), "segmentation", {"good": "", "bad": ""})
    assert "thalamus, good: 0.801 (3 seeds)" in chart and "bad:" not in chart
    assert structure_chart([], "segmentation", {"good": ""}) == ""


def test_a_band_lies_on_the_same_scale_as_its_line():
    lines = {"good": [(1, 4.0), (2, 2.0)]}
    chart = band_chart(lines, {"good": [(1, 4.0, 4.0), (2, 2.0, 2.0)]}, "loss", {"good": ""})
    line = chart.split('<polyline class="line" points="')[1].split('"')[0].split()
    band = chart.split('<polygon points="')[1].split('"')[0].split()
    assert band == [*line, *reversed(line)]  # a band of no width
    assert "polygon" not in band_chart(lines, {"good": []}, "loss", {"good": ""})


@pytest.mark.parametrize("low", [3.0, -1.0])
def test_the_scale_covers_the_band(low):
    chart = band_chart({"good": [(1, 4.0), (2, 4.0)]}, {"good": [(1, low, 5.0), (2, low, 5.0)]}, "loss", {"good": ""})
    heights = [float(p.split(",")[1]) for p in chart.split('<polygon points="')[1].split('"')[0].split()]
    assert 28 <= min(heights) and max(heights) <= 210 - 34


def test_errors_are_of_a_scan_that_every_arm_was_measured_on(tmp_path):
    label = np.zeros((8, 8, 8), np.uint8)
    label[2:6, 2:6, 2:6] = 2
    finished = {}
    for arm, scans in (("good", ("a/one", "b/two")), ("bad", ("b/two",))):
        finished[arm, 0] = tmp_path / arm
        for scan in scans:
            found = label.copy()
            found[2, 2, : 3 + (arm == "bad")] = 0  # 1 and 2 voxels of the cube
            path = tmp_path / arm / "evaluation" / "cases" / f"{scan}.npz"
            image = label.astype(np.float32) / 2
            images = dict.fromkeys(("image", "atlas_image", "warped_image"), image)
            volumes = {"label": label, "segmentation": found, "warped_label": found, "atlas_label": label}
            write_volumes(path, images | volumes | {"ddf": np.zeros((3, 8, 8, 8), np.float32)}, (2, 2, 2))
    page = error_maps(PLAN, finished)
    assert "Segmentation, b, two: voxels" in page and page.count("<img") == 2
    assert error_maps(PLAN, {}) == ""
