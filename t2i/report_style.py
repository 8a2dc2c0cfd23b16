"""The style sheet of a report: one column on a phone, light or dark as the reader's system is, system fonts."""

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1b1d20; --muted: #5b616a; --rule: #d9dce0; --code: #f3f4f6;
  --c0: #0064b0; --c1: #c44e00; --c2: #00805e; --c3: #a3357a; --c4: #8a6a00; --c5: #2b8cbe;
  --c6: #6b6b6b; --c7: #7b4fc9; }
@media (prefers-color-scheme: dark) { :root { --back: #17191c; --text: #e6e8eb; --muted: #a0a7b1; --rule: #363b42;
  --code: #22262b; --c0: #5aaef0; --c1: #f08a4b; --c2: #3fc39a; --c3: #e084bd; --c4: #d9b64a; --c5: #8ccdf0; 
  --c6: #b5b5b5; --c7: #b79af0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 1rem/1.5 system-ui, sans-serif; }
main { overflow-wrap: anywhere; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-bottom: .25rem; border-bottom: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
h4 { font-size: .875rem; font-weight: 600; margin: 0; }
p { margin: .5rem 0; max-width: 48rem; }
p.muted { font-size: .875rem; }
figure { margin: 0; }
img { display: block; max-width: 100%; }
small { display: block; font-size: .75rem; line-height: 1.35; }
.muted { color: var(--muted); font-weight: 400; }
.absent { font-style: italic; }
ul { margin: .5rem 0; padding: 0; list-style: none; }
.pictures { display: grid; gap: 1rem .75rem; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }
.pictures img { width: 100%; image-rendering: pixelated; border: 1px solid var(--rule); }
figcaption { font-size: .8125rem; line-height: 1.35; margin-top: .25rem; }
.charts { display: grid; gap: 1.5rem 1.25rem; grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); }
.chart > svg { display: block; width: 100%; height: auto; }
.chart text { font-size: 12px; fill: var(--muted); }
.chart ul { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .8125rem; }
.chart li svg { width: 1.2em; height: .55em; margin-right: .25em; }
.rule { stroke: var(--rule); stroke-width: 1; fill: none; }
.line { fill: none; stroke-width: 1.75; stroke-linejoin: round; }
.dashed { stroke-dasharray: 4 3; }
.hover { fill: var(--text); fill-opacity: 0; }
.hover:hover { fill-opacity: .1; }
.sheets { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .875rem; overflow-wrap: normal; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
thead th, tfoot td { font-weight: 600; }
tbody th { font-weight: 400; }
td small { white-space: nowrap; }
.scroll tr > th:first-child { position: sticky; left: 0; background: var(--back); }
td { font-variant-numeric: tabular-nums; }
code, pre { font: .8125rem/1.45 ui-monospace, monospace; }
pre { background: var(--code); padding: .6rem .75rem; margin: .25rem 0 .75rem; overflow-x: auto; }
details { margin: .5rem 0; }
summary { cursor: pointer; padding: .25rem 0; }
details table { font-size: .8125rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .5rem 0; font-size: .8125rem; }
dt { color: var(--muted); }
dd { margin: 0; }
""" + "\n".join(f".line.c{k} {{ stroke: var(--c{k}); }} .dot.c{k} {{ fill: var(--c{k}); }}" for k in range(8))
