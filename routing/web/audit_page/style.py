"""The page's style sheet: light and dark, for screens of any width and for print.

The colours of the states differ in lightness as well as in hue, so that colour-blind readers and black-and-white prints
can distinguish them.
"""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #56606b; --rule: #d9dee4;
  --good: #0b6b43; --bad: #b3261e; --spent: #0a5c9e; --held: #f0a30a; --invalidated: #8b8f96; --free: #dbe8f1; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181c; --ink: #e6e9ec; --soft: #9aa5b1; --rule: #343c45;
  --good: #5cd6a0; --bad: #ff8a80; --spent: #58a9ea; --held: #ffc95c; --invalidated: #6b737d;
  --free: #25323e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  font-variant-numeric: tabular-nums; }
main { margin: 0 auto; max-width: 1120px; padding: 1.75rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .25rem 0 .75rem; max-width: 75ch; } .soft { color: var(--soft); }
code, .hotkey { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
.verdict { display: inline-block; margin: 0 0 1rem; padding: .45rem .9rem; border: 2px solid; border-radius: .4rem;
  font-size: 1.05rem; font-weight: 600; } .good { color: var(--good); } .bad { color: var(--bad); }
.columns { display: flex; flex-wrap: wrap; gap: 1rem 3rem; align-items: flex-start; }
.columns > dl { flex: 1 1 24rem; min-width: 0; } .columns > .scroll { flex: 0 1 18rem; }
dl { margin: 0; } dt { color: var(--soft); font-size: .875rem; } dd { margin: 0 0 .6rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } .scroll + .scroll { margin-top: 1.75rem; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
th:first-child, td:first-child { padding-left: 0; } th:last-child, td:last-child { padding-right: 0; }
th { color: var(--soft); font-weight: 600; background: var(--paper); } .rule { white-space: nowrap; }
th.number, td.number { text-align: right; white-space: nowrap; }
.message { min-width: 14rem; } .detail { min-width: 18rem; } .name { overflow-wrap: anywhere; min-width: 11rem; }
.hotkey { display: block; width: 25ch; line-height: 1.35; }
th, td, dd, h3 { overflow: clip; } td bdi { overflow-wrap: anywhere; }
.summed tr:last-child td { border-bottom: 0; font-weight: 600; }
details { margin: .25rem 0 0; } summary { cursor: pointer; padding: .4rem 0; color: var(--soft); }
figure { margin: 2rem 0 0; } figcaption { margin-bottom: .75rem; }
.key { display: flex; flex-wrap: wrap; gap: .1rem 1.4rem; list-style: none; margin: .25rem 0 0; padding: 0;
  font-size: .875rem; color: var(--soft); } .key b { color: var(--ink); font-weight: 600; }
.key i { display: inline-block; width: .85em; height: .85em; margin-right: .45em; border-radius: .15em;
  vertical-align: -.08em; } i.granted { height: 0; border-top: 2px solid var(--ink); vertical-align: .25em; }
i.spent { background: var(--spent); } i.held { background: var(--held); }
i.invalidated { background: var(--invalidated); }
i.free { background: var(--free); box-shadow: inset 0 0 0 1px var(--soft); }
svg.chart { display: block; overflow: visible; margin-left: 4.25rem; width: calc(100% - 4.25rem); }
svg.spark { display: block; box-sizing: content-box; border-bottom: 1px solid var(--soft); }
text { font: 12px system-ui, sans-serif; fill: var(--soft); } .height { text-anchor: end; }
text.block { text-anchor: middle; } text.axis { font-style: italic; }
.grid { stroke: var(--rule); } .ground { stroke: var(--soft); }
path.spent { fill: var(--spent); } path.held { fill: var(--held); } path.free { fill: var(--free); }
path.invalidated { fill: var(--invalidated); }
path.granted { fill: none; stroke: var(--ink); stroke-width: 1.25; vector-effect: non-scaling-stroke; }
.target { fill: transparent; } .target:hover { fill: var(--ink); fill-opacity: .14; }
@media (min-width: 1120px) { details .scroll { overflow: visible; } details th { position: sticky; top: 0; } }
@media (max-width: 640px) { main { padding: 1.25rem .9rem 3rem; } .every-other { display: none; }
  svg.chart { margin-left: 3.25rem; width: calc(100% - 3.25rem); }
  .stacked thead { display: none; }
  .stacked tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--rule); }
  .stacked td { display: block; min-width: 0; padding: 0; border: 0; overflow-wrap: anywhere; }
  .stacked td.number { display: inline-block; margin-right: 1.25rem; }
  .stacked td.number::before { content: attr(data-label) " "; color: var(--soft); }
  .stacked .rule { font-weight: 600; } .detail { min-width: 0; } }
@media print { main { max-width: none; padding: 0; } figure, tr { break-inside: avoid; }
  h2, h2 + p { break-after: avoid; } .scroll { overflow: visible; }
  * { print-color-adjust: exact; } details::details-content { content-visibility: visible; block-size: auto; } }
"""
