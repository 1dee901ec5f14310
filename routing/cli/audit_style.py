"""The style sheet of the audit's page: light and dark, for screens of any width and for paper."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #5b6570; --rule: #d9dee4; --panel: #f5f7f9;
  --good: #0b6b43; --bad: #b3261e; --spent: #0072b2; --held: #e69f00; --invalidated: #9a5b8f; --free: #d6e3ec; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181c; --ink: #e6e9ec; --soft: #9aa5b1; --rule: #343c45;
  --panel: #1c2228; --good: #5cd6a0; --bad: #ff8a80; --spent: #4aa8e0; --held: #f0b73a; --invalidated: #c98bbd;
  --free: #33424e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 1.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 2rem 0 .25rem; overflow-wrap: anywhere; }
p { margin: .25rem 0 .75rem; } .soft { color: var(--soft); }
code, .mono { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
.verdict { display: inline-block; margin: .75rem 0; padding: .4rem .8rem; border: 2px solid; border-radius: .4rem;
  font-weight: 600; } .good { color: var(--good); } .bad { color: var(--bad); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.25rem; margin: .5rem 0; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; } .rule { white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
td.spark { width: 160px; padding-block: .2rem; }
details { margin: .5rem 0; } summary { cursor: pointer; padding: .3rem 0; }
ul.key { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; margin: .25rem 0; padding: 0;
  font-size: .875rem; } .key i { display: inline-block; width: .8em; height: .8em; margin-right: .4em;
  border-radius: .15em; vertical-align: -.05em; }
svg { display: block; max-width: 100%; } svg.chart { width: 100%; height: auto; }
svg.spark { width: 150px; height: 22px; background: var(--panel); }
.tick { fill: var(--soft); font: 11px system-ui, sans-serif; }
.grid { stroke: var(--rule); } .axis { stroke: var(--soft); }
path.spent { fill: var(--spent); } path.held { fill: var(--held); } path.free { fill: var(--free); }
path.invalidated { fill: var(--invalidated); }
i.spent { background: var(--spent); } i.held { background: var(--held); } i.free { background: var(--free); }
i.invalidated { background: var(--invalidated); }
@media (max-width: 640px) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4rem; } }
@media print { body { max-width: none; padding: 0; } details { break-inside: avoid; } }
"""
