from __future__ import annotations

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from fedsr_monai.errors import UserError
from fedsr_monai.evaluation.tables import METRIC_COLUMNS, read_measures
from fedsr_monai.files import write_csv
from fedsr_monai.report import write_report
from fedsr_monai.report.page import subtitle
from fedsr_monai.report.training import epoch_positions
from fedsr_monai.simulation.sites import RECORD

VOID = {"meta", "img", "br", "line", "circle", "rect", "polyline"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and gathers ids, links, text and the cells of tables."""

    def __init__(self, html):
        super().__init__()
        self.open, self.ids, self.sources, self.links, self.rows, self.text = [], [], [], [], [], ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if "href" in attrs:
            self.links.append(attrs["href"])
        if "src" in attrs:
            self.sources.append(attrs["src"])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append([attrs.get("class", ""), ""])

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.rows and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1][1] += data

    def row(self, name):
        return next(row for row in self.rows if row and row[0][1].strip().startswith(name))


def written(*arguments, **options):
    html = write_report(*arguments, **options).read_text(encoding="utf-8")
    return html, Page(html)


def test_the_whole_report(run, pictured, tmp_path):
    _, page = written(run, pictured, tmp_path / "new" / "report.html", title="A <run> & more")
    assert page.ids == ["results", "site-1", "site-2", "training", "federation", "configuration"]
    assert page.links == [f"#{name}" for name in page.ids]
    assert "A <run> & more" in page.text
    # (12 x 0.875 + 0) / 13 at one site of two, 0.875 at the other
    assert "0.500 with the unregistered atlas, 0.750 after registration and 0.841 by segmentation" in page.text
    assert "policy fedsr · 2 of 4 rounds" in page.text
    assert len(page.sources) == 3 and "Pictures, scans and structures" in page.text


def test_the_file_needs_nothing_else(run, pictured, tmp_path):
    html, page = written(run, pictured, tmp_path / "report.html")
    assert all(source.startswith("data:image/webp;base64,") for source in page.sources)
    assert not re.search(r"https?://|@import|url\(|<link|<script src", html)
    assert len(html) < 2_000_000


def test_the_table_of_sites(evaluation, tmp_path):
    _, page = written(None, evaluation, tmp_path / "report.html")
    names = ["adult", "north", "south", "All sites"]
    north, south, everything = (page.row(name) for name in names[1:])
    assert [cell[1] for cell in north[:5]] == ["north", "2", "0.500 ± 0.000", "0.750 ± 0.000", "0.808 ± 0.000"]
    assert [cell[1] for cell in everything[:5]] == ["All sites", "4", "0.500 ± 0.000", "0.750 ± 0.000", "0.841 ± 0.039"]
    assert [cell[0] for cell in south[2:5]] == ["first", "", "best"]
    assert [cell[1] for cell in north[-3:]] == ["0", "0", "2"] and north[-1][0] == "warn"
    assert [cell[1] for cell in south[-3:]] == ["0", "0", "0"] and "warn" not in south[-1][0]


def test_a_missed_structure_shows(evaluation, tmp_path):
    _, page = written(None, evaluation, tmp_path / "report.html")
    amygdala = page.row("amygdala")
    assert amygdala[3][1].startswith("0.438") and amygdala[-1] == ["warn", "2"]
    assert amygdala[2][0] == "best"  # registration, then
    assert "Missed structures20 registration, 2 segmentation" in page.text


def test_federation_and_training(run, tmp_path):
    _, page = written(run, None, tmp_path / "report.html")
    assert page.ids == ["training", "federation", "configuration"]
    assert "This run has not been evaluated yet." in page.text
    assert "4.00 MB went to the sites and 8.00 MB came back, 6.00 MB per round." in page.text
    assert "A round took 10.0 s (median), of which the server's own work was 1.00 %." in page.text
    assert "encoder.<weight> & more: not finite" in page.text
    assert [cell[1] for cell in page.row("south")] == ["south", "5", "1 of 2", "10", "4.0", "2.00 MB", "4.00 MB"]
    assert page.row("versions")[1][1] == "torch 1.2.3" and page.row("seed")[1][1] == "7"


def test_simulated_sites_are_said(run, evaluation, tmp_path):
    _, page = written(run, evaluation, tmp_path / "report.html")
    assert "Simulated subjects" not in page.text
    (tmp_path / "south").mkdir()
    (tmp_path / "south" / RECORD).write_text("{}")
    _, page = written(run, evaluation, tmp_path / "report.html")
    assert "Simulated subjects (south). " in page.text and "Dice on them is lower" in page.text


@pytest.mark.parametrize(
    ("gone", "ids"),
    [
        (["history.csv"], ["federation", "configuration"]),
        (["participation.csv", "rounds.csv"], ["training", "configuration"]),
        (["run.json"], ["training", "federation"]),
        (["rounds.csv"], ["training", "federation", "configuration"]),
    ],
)
def test_what_is_missing_is_left_out(run, tmp_path, gone, ids):
    for name in gone:
        (run / name).unlink()
    assert written(run, None, tmp_path / "report.html")[1].ids == ids


def test_an_evaluation_without_cases_or_figures(evaluation, tmp_path):
    (evaluation / "cases.csv").unlink()
    (evaluation / "metrics.json").unlink()
    _, page = written(None, evaluation, tmp_path / "report.html")
    assert page.sources == [] and "NCC" not in page.row("Site")[-2][1]
    assert "0.500 with the unregistered atlas" in page.text


def test_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match="nothing to report") as raised:
        write_report(tmp_path, tmp_path / "evaluation", tmp_path / "report.html")
    assert raised.value.where == str(tmp_path) and "fedsr evaluate" in raised.value.fix
    assert not (tmp_path / "report.html").exists()


def test_damaged_json_is_named(run, tmp_path):
    (run / "run.json").write_text('{"policy": ')
    with pytest.raises(UserError, match=r"run.json: found damaged JSON .*record of a run"):
        write_report(run, None, tmp_path / "report.html")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("run/history.csv", lambda text: text.replace("round,", "runde,"), "history.csv: found the columns runde"),
        (
            "run/history.csv",
            lambda text: text.replace("1,north,1", "x,north,1"),
            "history.csv: found a cell of another kind",
        ),
        (
            "run/participation.csv",
            lambda text: text.replace("1,south", "9999999,south"),
            "participation.csv: found a cell",
        ),
        ("run/rounds.csv", lambda text: text.replace("loss", "loss,more"), "rounds.csv: found a row of another length"),
        (
            "evaluation/metrics.csv",
            lambda text: text.replace("0.875", "1e400"),
            "metrics.csv: found a cell of another kind",
        ),
        ("evaluation/metrics.json", lambda _: '{"data": []}', "metrics.json: data: found another form"),
        ("evaluation/cases/north/s1.npz", lambda _: "PK", "s1.npz: found a damaged file"),
    ],
)
def test_a_damaged_table_is_named(run, pictured, tmp_path, file, change, message):
    path = tmp_path / file
    path.write_text(change("" if path.suffix == ".npz" else path.read_text()))
    with pytest.raises(UserError, match=message):
        write_report(run, pictured, tmp_path / "report.html")


def test_volumes_of_different_shapes_are_named(pictured, volumes, tmp_path):
    for change in ({"label": volumes["label"][1:]}, {"ddf": np.full_like(volumes["ddf"], np.nan)}):
        np.savez_compressed(pictured / "cases" / "north" / "s1.npz", **volumes | change)
        with pytest.raises(UserError, match="s1.npz: found volumes of different shapes, or values that are not finite"):
            write_report(None, pictured, tmp_path / "report.html")


def test_epochs_are_within_their_round():
    rows = [
        {"site": site, "round": number, "epoch": epoch}
        for site, number, epoch in [("a", "1", "1"), ("b", "1", "1"), ("a", "1", "2"), ("a", "2", "3"), ("c", "0", "7")]
    ]
    assert epoch_positions(rows) == [0.5, 1.0, 1.0, 2.0, 7.0]


def test_the_stages_are_side_by_side(evaluation, tmp_path):
    rows = read_measures(evaluation / "metrics.csv", METRIC_COLUMNS)
    for stage, sites, less in (("before", ("north", "south"), 0.25), ("rounds", ("north",), -0.125)):
        of_stage = [row | {"dice": row["dice"] - less * (row["task"] != "unregistered")} for row in rows]
        write_csv(evaluation / stage / "metrics.csv", METRIC_COLUMNS, [row for row in of_stage if row["site"] in sites])
    _, page = written(None, evaluation, tmp_path / "report.html")
    assert (
        "Segmentation is better than before training: mean Dice 0.841, 0.591 before (+0.250; better on 4 of 4 scans)."
        in page.text
    )
    north, south, everything = (
        next(row for row in page.rows if row[0][1] == name) for name in ("north", "south", "All sites")
    )
    assert [cell[1][:6].strip() for cell in north[1:6]] == ["2", "0.558", "0.933", "0.808", "+0.250"]
    assert [cell[1][:6].strip() for cell in south[1:6]] == ["2", "0.625", "–", "0.875", "+0.250"]
    assert everything[1][1] == "2"  # the scans that all stages have
    (evaluation / "rounds" / "metrics.csv").unlink()
    write_csv(evaluation / "before" / "metrics.csv", METRIC_COLUMNS, [row | {"dice": 0.9} for row in rows])
    _, page = written(None, evaluation, tmp_path / "report.html")
    assert (
        "Registration is worse than before training: mean Dice 0.750, 0.900 before (−0.150; better on 0 of 4"
        in page.text
    )
    assert page.row("north")[4] == ["warn", "−0.092"]


def test_each_scan_has_a_row_with_the_agreement_of_its_heads(evaluation, tmp_path):
    _, page = written(None, evaluation, tmp_path / "report.html")
    scan = page.row("s1")
    assert [cell[1] for cell in scan[4:8]] == ["0.500", "0.812", "0.062", "0.875"]
    assert [cell[1] for cell in scan[-3:]] == ["0", "0", "1"] and scan[-1][0] == "warn"
    assert [cell[1] for cell in page.row("north")[11:12]] == ["0.875"]


def test_the_line_below_the_title_names_a_baseline():
    run = {"baseline": "brbs", "policy": "pooled"}
    assert subtitle(SimpleNamespace(run=run, participation=[])).startswith("baseline brbs · policy pooled · ")


def test_a_run_that_has_lost_its_settings_is_named(run, tmp_path):
    (run / "run.json").unlink(missing_ok=True)
    (run / "server").mkdir(exist_ok=True)
    with pytest.raises(UserError, match="run.json: found no such file"):
        write_report(run, None, tmp_path / "report.html")
