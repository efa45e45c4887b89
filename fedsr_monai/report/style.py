"""Style sheet and script of the report's page; no font, image or script is loaded from elsewhere."""

CSS = """
:root {
  --font: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #16202b; --soft: #5b6876; --line: #e1e5ea; --hover: #f0f4f8;
  --accent: #1f6fd1; --best: #e3effc; --warn: #b3261e; --note: #fff6de; --note-line: #e5c565;
  --unregistered: #8a95a1; --registration: #e07b27; --segmentation: #1f6fd1;
  --series-1: #2a78d6; --series-2: #eb6834; --series-3: #149c70; --series-4: #a1479f;
  --series-5: #c98500; --series-6: #4a3aa7; --series-7: #d94f7e; --series-8: #5f7a1f;
  --ok: #2f9e6e; --failed: #c93a34; --rejected: #9a4bb0; --timeout: #d9902f; --absent: #d3d9df;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1419; --card: #171d24; --ink: #e6ebf0; --soft: #98a5b3; --line: #2a333d; --hover: #1e2630;
    --accent: #6aa9f4; --best: #17324f; --warn: #ff8a80; --note: #2c2612; --note-line: #7a6524;
    --unregistered: #8893a0; --registration: #f0964a; --segmentation: #5b9ef0;
    --series-1: #5b9ef0; --series-2: #f0875b; --series-3: #3fbf92; --series-4: #cf82cd;
    --series-5: #e0a83a; --series-6: #9d91f2; --series-7: #ef7fa4; --series-8: #a3c053;
    --ok: #35a676; --failed: #e5605a; --rejected: #b76fcb; --timeout: #e0a04a; --absent: #36414d;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 var(--font);
}
main, header > div { max-width: 1180px; margin: 0 auto; padding: 0 20px; }
header { padding: 34px 0 6px; }
h1 { font-size: clamp(1.6rem, 4vw, 2.3rem); line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.015em; }
h2 { font-size: 1.35rem; margin: 0 0 4px; letter-spacing: -0.01em; }
h3 { font-size: 1.02rem; margin: 26px 0 6px; }
p { margin: 6px 0 12px; max-width: 76ch; }
.lead { font-size: 1.12rem; color: var(--ink); max-width: 70ch; }
.soft, figcaption, small { color: var(--soft); }
figcaption { font-size: 0.86rem; margin-top: 8px; max-width: 90ch; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 14px 0 0; font-size: 0.94rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
section {
  background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 22px 24px; margin: 18px 0;
}
.note {
  background: var(--note); border-left: 4px solid var(--note-line); border-radius: 8px; padding: 10px 16px;
  margin: 18px 0; max-width: none;
}
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); gap: 12px; margin: 20px 0 8px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 14px 16px; }
.tile .what { color: var(--soft); font-size: 0.85rem; }
.tile .value {
  white-space: nowrap;
  font-size: 1.85rem; font-weight: 650; line-height: 1.25; letter-spacing: -0.02em; font-variant-numeric: tabular-nums;
}
.tile .value small { font-size: 0.95rem; font-weight: 400; letter-spacing: 0; }
.tile .more { font-size: 0.85rem; color: var(--soft); }
.tile.segmentation .value { color: var(--segmentation); }
.tile.registration .value { color: var(--registration); }
.tile.warn .value { color: var(--warn); }
figure { margin: 12px 0 4px; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; width: 100%; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 8px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; font-size: 0.8rem; border-bottom-color: var(--soft); }
thead tr:first-child th[colspan] { border-bottom: 1px solid var(--line); text-align: center; color: var(--ink); }
.left, td.text { text-align: left; }
tbody th { font-weight: 500; }
td.text { white-space: normal; overflow-wrap: anywhere; min-width: 130px; }
th.left:first-child { position: sticky; left: 0; background: var(--card); z-index: 1; }
th.first, td.first { border-left: 1px solid var(--line); }
tbody tr:hover > * { background: var(--hover); }
tbody td.best { background: var(--best); font-weight: 650; }
td.warn { color: var(--warn); font-weight: 650; }
tr.total > * { border-top: 2px solid var(--soft); font-weight: 600; }
table.sortable thead tr:last-child th { cursor: pointer; }
table.sortable thead th[aria-sort] { color: var(--accent); }
.chip {
  display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 7px;
  border: 1px solid rgba(128, 128, 128, 0.6);
}
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 0.86rem; margin: 8px 0; }
.key { display: inline-flex; align-items: center; gap: 6px; white-space: nowrap; }
.key .chip { margin-right: 0; }
.dot { width: 11px; height: 11px; border-radius: 50%; display: inline-block; }
.dot.unregistered { background: var(--unregistered); }
.dot.registration { background: var(--registration); }
.dot.segmentation { background: var(--segmentation); }
.square { width: 12px; height: 12px; border-radius: 3px; display: inline-block; }
.pair {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 8px 30px;
  align-items: start;
}
.multiples {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 16px 22px;
  margin: 10px 0;
}
svg.chart {
  width: 100%; height: auto; display: block; font: 12px var(--font);
}
.chart text { fill: var(--ink); }
.chart .tick { fill: var(--soft); font-size: 11px; }
.chart .title { font-weight: 600; font-size: 12.5px; }
.chart .grid { stroke: var(--line); }
.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.chart .hit { fill: transparent; }
.chart .hit:hover { fill: var(--ink); fill-opacity: .35; }
.chart .link { stroke: var(--soft); stroke-opacity: .35; stroke-width: 2; }
.chart .sd { stroke-width: 2; stroke-opacity: .55; }
.chart .mark { stroke: var(--card); stroke-width: 1.5; }
.unregistered.mark { fill: var(--unregistered); }
.registration.mark { fill: var(--registration); }
.segmentation.mark { fill: var(--segmentation); }
.unregistered.sd { stroke: var(--unregistered); }
.registration.sd { stroke: var(--registration); }
.segmentation.sd { stroke: var(--segmentation); }
.status { fill: var(--soft); }
.status.ok { fill: var(--ok); }
.status.failed { fill: var(--failed); }
.status.rejected { fill: var(--rejected); }
.status.timeout { fill: var(--timeout); }
.status.absent { fill: var(--absent); }
.square.ok { background: var(--ok); }
.square.failed { background: var(--failed); }
.square.rejected { background: var(--rejected); }
.square.timeout { background: var(--timeout); }
.square.absent { background: var(--absent); }
img.film { width: 100%; min-width: 680px; height: auto; display: block; border-radius: 10px; background: #0b0e12; }
details { border-top: 1px solid var(--line); padding: 10px 0; }
details:first-of-type { margin-top: 12px; }
summary { cursor: pointer; font-weight: 600; }
summary .soft { font-weight: 400; margin-left: 12px; font-size: 0.9rem; }
details.site { border: 0; padding: 0; margin-top: 6px; }
.scan { margin: 12px 0 -10px; }
td small { font-weight: 400; font-size: 0.78em; }
footer { max-width: 1180px; margin: 0 auto; padding: 6px 20px 40px; color: var(--soft); font-size: 0.86rem; }
@media (max-width: 640px) {
  section { padding: 16px 14px; border-radius: 10px; }
  main, header > div { padding: 0 10px; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tile .value { font-size: 1.5rem; }
  th, td { padding: 5px 6px; }
  th.left:first-child { max-width: 38vw; overflow: hidden; text-overflow: ellipsis; }
}
@media print {
  body { background: #fff; font-size: 11pt; }
  nav { display: none; }
  section, .tile { border-color: #ccc; }
  figure, .tile, .chart, tr { break-inside: avoid; }
  h2, h3, summary { break-after: avoid; }
  .scroll { overflow: visible; }
  img.film { min-width: 0; width: 80%; }
  section[id^="site-"] { break-before: page; }
  table { font-size: 8pt; }
  th, td { padding: 2px 4px; }
  a { color: inherit; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

# A click on a column sorts its table; a link to a site opens it; on paper everything is open.
SCRIPT = """
document.querySelectorAll("table.sortable").forEach(function (table) {
  var heads = table.tHead.rows[table.tHead.rows.length - 1].cells;
  Array.prototype.forEach.call(heads, function (head, column) {
    head.tabIndex = 0;
    function sort() {
      var up = head.getAttribute("aria-sort") === "descending";
      Array.prototype.forEach.call(heads, function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      var body = table.tBodies[0];
      var rows = Array.prototype.filter.call(body.rows, function (row) { return !row.classList.contains("total"); });
      var first = body.querySelector("tr.total");
      function value(row) {
        var cell = row.cells[table.tHead.rows.length > 1 ? column + 1 : column];
        var number = parseFloat(cell.dataset.sort || cell.textContent);
        return isNaN(number) ? cell.textContent : number;
      }
      rows.sort(function (a, b) {
        var x = value(a), y = value(b);
        return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
      });
      rows.forEach(function (row) { body.insertBefore(row, first); });
    }
    head.addEventListener("click", sort);
    head.addEventListener("keydown", function (event) { if (event.key === "Enter") sort(); });
  });
});
function openTarget() {
  var target = location.hash && document.getElementById(location.hash.slice(1));
  var closed = target && target.querySelector("details.site");
  if (closed) closed.open = true;
}
window.addEventListener("hashchange", openTarget);
openTarget();
window.addEventListener("beforeprint", function () {
  document.querySelectorAll("details").forEach(function (item) { item.dataset.open = item.open; item.open = true; });
});
window.addEventListener("afterprint", function () {
  document.querySelectorAll("details").forEach(function (item) { item.open = item.dataset.open === "true"; });
});
"""
