"""The page's style sheet and its one script, both inline: a page is a single file."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --ink: #17212b; --soft: #566270; --ground: #ffffff;
  --panel: #f6f8fa; --rule: #dde3e9; --odd: #f1f4f7; --even: #e8edf2; --first: #0969da;
  --second: #bc4c00; --stun: #d4a72c; --limit: #1a7f37; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa7b4; --ground: #0d1117;
  --panel: #161b22; --rule: #2b333d; --odd: #141a21; --even: #1c242d; --first: #58a6ff;
  --second: #f0883e; --stun: #9e7c1b; --limit: #3fb950; --bad: #ff7b72; } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --ground: #fff;
  --panel: #fff; --rule: #bbb; --odd: #f6f6f6; --even: #ececec; --first: #0550ae;
  --second: #953800; --stun: #d4a72c; --limit: #116329; --bad: #8f1d16; }
  figure, tr { break-inside: avoid; } output { display: none; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 64rem; background: var(--ground);
  color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.4rem 0 .6rem; }
p { margin: .3rem 0; } .soft, figcaption, caption { color: var(--soft); }
.verdict { font-size: 1.1rem; } .bad { color: var(--bad); font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .75rem;
  margin: 1.4rem 0; padding: 0; }
.tiles div { background: var(--panel); border: 1px solid var(--rule); border-radius: 6px;
  padding: .7rem .9rem; }
.tiles dt { color: var(--soft); font-size: .85rem; }
.tiles small { display: block; color: var(--soft); font-size: .8rem; font-weight: 400; }
.tiles dd { margin: 0; font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums; }
figure { margin: 0; } figcaption { font-size: .85rem; margin-bottom: .3rem; }
output { display: block; min-height: 1.5em; font-size: .85rem; text-align: right;
  font-variant-numeric: tabular-nums; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .3em; }
.key.first { background: var(--first); }
.key.second { background: var(--second); border-radius: 50%; }
.key.stun { background: var(--stun); }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 12px system-ui, "Segoe UI", "DejaVu Sans", sans-serif;
  fill: var(--soft); font-variant-numeric: tabular-nums; }
svg .stun-label { fill: var(--ink); font-weight: 600; } svg .limit-label { fill: var(--limit);
  paint-order: stroke; stroke: var(--ground); stroke-width: 3px; }
.band.odd { fill: var(--odd); } .band.even { fill: var(--even); } .band.prepare { fill: none; }
.band.stun { fill: var(--stun); }
.grid { stroke: var(--rule); } .axis { stroke: var(--soft); }
.line { fill: none; stroke-width: 1.75; stroke-linejoin: round; }
.line.first { stroke: var(--first); }
.area { opacity: .14; } .area.first { fill: var(--first); }
.dot { stroke: var(--ground); stroke-width: 1.5; } .dot.second { fill: var(--second); }
.limit { stroke: var(--limit); stroke-width: 1.5; stroke-dasharray: 6 4; }
.cursor { stroke: var(--soft); visibility: hidden; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--rule);
  vertical-align: top; font-variant-numeric: tabular-nums; }
thead th { color: var(--soft); font-weight: 600; } tbody th { font-weight: 600; }
.numbers th:not(:first-child), .numbers td { text-align: right; white-space: nowrap; }
tr.stunned { background: color-mix(in srgb, var(--stun) 22%, transparent); }
pre { background: var(--panel); border: 1px solid var(--rule); border-radius: 6px; padding: .9rem;
  overflow-x: auto; font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; }
@media print { pre { white-space: pre-wrap; } body { padding: 0; max-width: none; } }
"""

# Without it the page lacks only the read-out under the pointer.
SCRIPT = """
for (const svg of document.querySelectorAll("svg[data-readings]")) {
  const readings = JSON.parse(svg.dataset.readings);
  const cursor = svg.querySelector(".cursor");
  const output = svg.parentElement.querySelector("output");
  svg.addEventListener("pointermove", (event) => {
    if (!readings.length) return;
    const at = new DOMPoint(event.clientX, event.clientY)
      .matrixTransform(svg.getScreenCTM().inverse()).x;
    const nearest = readings.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a);
    cursor.setAttribute("x1", nearest[0]);
    cursor.setAttribute("x2", nearest[0]);
    cursor.style.visibility = "visible";
    output.textContent = nearest[1];
  });
  svg.addEventListener("pointerleave", () => {
    cursor.style.visibility = "hidden";
    output.textContent = "";
  });
}
"""
