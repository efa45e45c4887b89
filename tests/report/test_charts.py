from __future__ import annotations

import math
import re

import pytest

from fedsr_monai.report.charts import dice_chart, line_chart, nice_ticks, participation_chart


@pytest.mark.parametrize("ends", [(0, 1), (-3.2, 17), (0.0011, 0.0013), (5, 5), (-2e6, 3e6)])
def test_ticks_cover_the_range(ends):
    ticks = nice_ticks(*ends)
    assert ticks[0] <= ends[0] and ticks[-1] >= ends[1] and 2 <= len(ticks) <= 8
    assert ticks == sorted(ticks)


def test_ticks_of_counts_are_whole():
    assert nice_ticks(0.5, 3, 8, whole=True) == [0, 1, 2, 3]


def test_a_line_a_series_without_the_gaps():
    series = {"a": [(1, 1.0), (2, math.nan), (3, 3.0)], "<b>": [(1, 2.0)]}
    drawn = line_chart(series, "loss", "round", {"a": 'stroke="red"', "<b>": 'stroke="blue"'})
    lines = re.findall(r'<polyline class="line" points="([^"]*)"', drawn)
    assert [len(line.split()) for line in lines] == [2, 1]
    (x1, y1), (x3, y3) = (tuple(map(float, point.split(","))) for point in lines[0].split())
    assert x1 < x3 and y1 > y3  # up is less in SVG
    assert "&lt;b&gt;" in drawn and "<b>" not in drawn and "nan" not in drawn
    assert line_chart({"a": [(1, math.nan)]}, "loss", "round", {"a": ""}) == ""


def test_dice_is_where_the_axis_says():
    spread = {"mean": 0.5, "sd": 0.1, "n": 3}
    drawn = dice_chart({"x": {"unregistered": spread, "segmentation": spread | {"mean": 0.8, "sd": math.nan}}}, "Dice")
    ticks = {float(text): float(x) for x, text in re.findall(r'class="tick" x="([\d.]+)"[^>]*>([\d.]+)<', drawn)}
    marks = {task: float(x) for task, x in re.findall(r'class="mark (\w+)" cx="([\d.]+)"', drawn)}
    assert marks["unregistered"] == pytest.approx((ticks[0.4] + ticks[0.6]) / 2, abs=0.2)
    assert marks["segmentation"] == pytest.approx(ticks[0.8], abs=0.2)
    assert drawn.count('class="sd') == 1
    assert "x, unregistered atlas: 0.500 ± 0.100 (n = 3)" in drawn and "nan" not in drawn


def test_participation_names_the_reason():
    drawn = participation_chart({"a": {1: ("ok", ""), 2: ("failed", "no <memory>")}}, [1, 2, 3])
    assert "a, round 2: failed (no &lt;memory&gt;)" in drawn
    assert re.findall(r'class="status (\w+)"', drawn) == ["ok", "failed", "absent"]
