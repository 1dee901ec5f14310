"""The style sheet of all pages and of the audit page: light and dark, for screens of any width and for print.

The colours of the states differ in lightness as well as in hue, so that colour-blind readers and black-and-white prints
can distinguish them.
"""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --panel: #f5f7f9; --ink: #1b1f24; --soft: #56606b; --rule: #d9dee4;
  --link: #0a4f87; --good: #0b6b43; --bad: #b3261e; --spent: #0a5c9e; --held: #f0a30a; --invalidated: #8b8f96;
  --free: #dbe8f1; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181c; --panel: #1c2228; --ink: #e6e9ec; --soft: #9aa5b1;
  --rule: #343c45; --link: #8cc4f5; --good: #5cd6a0; --bad: #ff8a80; --spent: #58a9ea; --held: #ffc95c;
  --invalidated: #6b737d; --free: #25323e; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  font-variant-numeric: tabular-nums; }
main { margin: 0 auto; max-width: 1120px; padding: 1.75rem 1.25rem 4rem; }
main:focus { outline: none; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .25rem 0 .75rem; max-width: 75ch; } .soft, small { color: var(--soft); } small { font-size: .875rem; }
a { color: var(--link); text-underline-offset: .15em; text-decoration-thickness: .06em; }
a:hover { text-decoration-thickness: .14em; } td a:not(:hover) { text-decoration-color: transparent; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; border-radius: .15rem; }
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
th { color: var(--soft); font-weight: 600; background: var(--paper); } .rule, .fixed { white-space: nowrap; }
th.number, td.number { text-align: right; white-space: nowrap; }
.message { min-width: 14rem; } .detail { min-width: 18rem; } .name { overflow-wrap: anywhere; min-width: 11rem; }
.hotkey { display: block; max-width: 25ch; line-height: 1.35; }
th, td, dd, h3 { overflow: clip; overflow-clip-margin: 4px; } td bdi { overflow-wrap: anywhere; }
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
svg.bar { display: block; width: 100%; min-width: 7rem; height: .8rem; margin-top: .3rem; border-radius: .15rem; }
text { font: 12px system-ui, sans-serif; fill: var(--soft); } .height { text-anchor: end; }
text.block { text-anchor: middle; } text.axis { font-style: italic; }
.grid { stroke: var(--rule); } .ground { stroke: var(--soft); }
.spent { fill: var(--spent); } .held { fill: var(--held); } .free { fill: var(--free); }
.invalidated { fill: var(--invalidated); }
path.granted { fill: none; stroke: var(--ink); stroke-width: 1.25; vector-effect: non-scaling-stroke; }
.target { fill: transparent; } .target:hover { fill: var(--ink); fill-opacity: .14; }
.skip { position: absolute; left: .5rem; top: -4rem; padding: .5rem .9rem; background: var(--paper); z-index: 1; }
.skip:focus { top: .5rem; }
.top { background: var(--panel); border-bottom: 1px solid var(--rule); }
.top > div, .bottom > div { margin: 0 auto; max-width: 1120px; padding: .6rem 1.25rem; }
.top > div { display: flex; flex-wrap: wrap; gap: .1rem 1.5rem; align-items: baseline; }
.brand { color: var(--ink); font-weight: 700; text-decoration: none; padding: .25rem 0; }
.top ul { display: flex; flex-wrap: wrap; gap: 0 1.1rem; list-style: none; margin: 0; padding: 0; }
.top li a { display: block; padding: .25rem 0; color: var(--ink); text-decoration: none;
  border-bottom: 2px solid transparent; }
.top li a:hover { border-color: var(--rule); } .top li a[aria-current] { border-color: var(--link); font-weight: 600; }
.crumbs ol { display: flex; flex-wrap: wrap; list-style: none; margin: 0 0 .5rem; padding: 0; font-size: .875rem;
  color: var(--soft); }
.crumbs li { min-width: 0; overflow-wrap: anywhere; } .crumbs li + li::before { content: "\\203a"; padding: 0 .5rem; }
.past { margin: 0 0 1.25rem; padding: .5rem .9rem; max-width: none; border: 1px solid var(--held);
  border-left-width: .4rem; border-radius: .3rem; }
.bottom { border-top: 1px solid var(--rule); color: var(--soft); font-size: .875rem; overflow-wrap: anywhere; }
.bottom p { max-width: none; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: .75rem; }
.tiles > div { padding: .6rem .9rem .7rem; background: var(--panel); border: 1px solid var(--rule);
  border-radius: .4rem; }
.tiles dd { margin: 0; font-size: 1.3rem; font-weight: 600; line-height: 1.3; }
.tiles dd small { display: block; min-height: 1.35em; font-weight: 400; }
.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .3rem 1.5rem; }
.facts dt, .facts dd { margin: 0; font-size: .95rem; }
form.fields { display: flex; flex-wrap: wrap; gap: .75rem 1rem; align-items: flex-end; margin: 1rem 0 1.25rem; }
.fields > label { display: flex; flex-direction: column; gap: .15rem; font-size: .875rem; color: var(--soft);
  flex: 1 1 11rem; max-width: 22rem; min-width: 0; }
input, select, button, .button { font: inherit; font-size: .95rem; color: var(--ink); background: var(--paper);
  border: 1px solid var(--soft); border-radius: .3rem; padding: .35rem .6rem; width: 100%; min-width: 0;
  height: 2.35rem; }
::placeholder { color: var(--soft); opacity: 1; }
button, .button { width: auto; cursor: pointer; background: var(--panel); text-decoration: none; font-weight: 600;
  display: inline-block; } button:hover, .button:hover { border-color: var(--link); }
.links { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; align-items: center; margin: 1rem 0; padding: 0;
  list-style: none; }
.badge { display: inline-block; padding: 0 .5em; border: 1px solid var(--rule); border-radius: 1em;
  background: var(--panel); white-space: nowrap; font-size: .93em; }
.badge::before { content: ""; display: inline-block; width: .6em; height: .6em; margin-right: .4em;
  border-radius: 50%; background: var(--invalidated); }
.badge.is-spent::before { background: var(--spent); } .badge.is-reserved::before { background: var(--held); }
.badge.is-overdue::before { background: var(--bad); }
.live { font-size: .875rem; color: var(--soft); margin: .75rem 0 0; min-height: 1.5em; }
progress { width: min(100%, 30rem); height: .9rem; accent-color: var(--link); }
@media (min-width: 1120px) { details .scroll { overflow: visible; } details th { position: sticky; top: 0; } }
@media (max-width: 640px) { main { padding: 1.25rem .9rem 3rem; } .every-other { display: none; }
  .top > div, .bottom > div { padding: .5rem .9rem; } h1 { font-size: 1.35rem; }
  svg.chart { margin-left: 3.25rem; width: calc(100% - 3.25rem); }
  .tiles { grid-template-columns: 1fr 1fr; gap: .5rem; } .tiles > div { padding: .45rem .7rem; }
  .tiles dd { font-size: 1.1rem; }
  .facts { grid-template-columns: 1fr; gap: 0; } .facts dd { margin-bottom: .5rem; }
  .fields > label { max-width: none; flex-basis: 100%; } .fields > label.half { flex-basis: 40%; }
  .stacked, .stacked tbody { display: block; } .stacked thead { display: none; }
  .stacked tr { display: block; padding: .55rem 0; border-bottom: 1px solid var(--rule); }
  .stacked td, .stacked td.number { display: flow-root; min-width: 0; padding: .05rem 0; border: 0;
    overflow-wrap: anywhere; text-align: left; white-space: normal; }
  .stacked td[data-label] { padding-left: 8.5rem; }
  .stacked td:empty, .stacked td.minor { display: none; }
  .stacked td::before { content: attr(data-label); float: left; width: 8rem; margin-left: -8.5rem;
    color: var(--soft); overflow-wrap: normal; }
  .stacked .rule { font-weight: 600; white-space: normal; } .detail, .name, .message { min-width: 0; } }
@media (prefers-reduced-motion: no-preference) { .top li a, .skip { transition: border-color .15s, top .1s; } }
@media print { main { max-width: none; padding: 0; } figure, tr { break-inside: avoid; }
  h2, h2 + p { break-after: avoid; } .scroll { overflow: visible; } .top, .skip, form, .live { display: none; }
  * { print-color-adjust: exact; } details::details-content { content-visibility: visible; block-size: auto; } }
"""
