"""The style sheet of a report: one column on a phone, light or dark as the reader's system is, system fonts."""

STYLE = """
:root { color-scheme: light dark; --back: #f6f7f9; --card: #fff; --text: #1b1d20; --muted: #565c65; --rule: #dfe2e7;
  --code: #f1f3f5; --accent: #0064b0; --right: #0b6b3a; --wrong: #a32a1b; --warn: #fff6e0; --warn-rule: #d9a400;
  --c0: #0064b0; --c1: #c44e00; --c2: #00805e; --c3: #a3357a; --c4: #8a6a00; --c5: #2b8cbe;
  --c6: #6b6b6b; --c7: #7b4fc9; }
@media (prefers-color-scheme: dark) { :root { --back: #121417; --card: #1a1d21; --text: #e6e8eb; --muted: #a3aab4;
  --rule: #31363d; --code: #22262b; --accent: #7cc0f7; --right: #5fcf91; --wrong: #ff9a8a; --warn: #2b2616;
  --warn-rule: #a98300; --c0: #5aaef0; --c1: #f08a4b; --c2: #3fc39a; --c3: #e084bd; --c4: #d9b64a; --c5: #8ccdf0;
  --c6: #b5b5b5; --c7: #b79af0; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 3rem; }
body { margin: 0; background: var(--back); color: var(--text); font: 1rem/1.5 system-ui, sans-serif; }
header, main { max-width: 80rem; margin: 0 auto; padding: 0 1rem; }
main { overflow-wrap: anywhere; padding-bottom: 3rem; }
header { padding-top: 1.25rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 0 0 .5rem; }
section { margin-top: 2.5rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
h4 { font-size: .875rem; font-weight: 600; margin: 0; }
p { margin: .5rem 0; max-width: 52rem; }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: .5rem 0 0; font-size: .9rem; }
nav a { padding: .25rem 0; }
p.muted { font-size: .875rem; }
figure { margin: 0; min-width: 0; }
img { display: block; max-width: 100%; height: auto; }
small { display: block; font-size: .75rem; line-height: 1.35; }
abbr { text-decoration: none; color: var(--wrong); font-weight: 700; }
.muted { color: var(--muted); font-weight: 400; }
.absent { font-style: italic; }
.right { color: var(--right); }
.wrong { color: var(--wrong); }
.warning { background: var(--warn); border-left: 4px solid var(--warn-rule); padding: .5rem 1rem; margin: 1rem 0;
  border-radius: 4px; }
.warning h3 { margin: .25rem 0; font-size: .95rem; }
.run { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .35em; }
.columns { display: grid; gap: 1rem 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); }
.columns > div { min-width: 0; }
.card, .prompt, .strip { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: .75rem; }
.card { margin-top: 1rem; padding: 1rem 1.25rem; height: calc(100% - 1rem); }
.card h2 { margin: 0; }
.card p { margin: 0 0 .5rem; }
ul { margin: .5rem 0; padding: 0; list-style: none; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem 1.5rem; margin: .75rem 0; }
.tiles li { flex: 1 1 11rem; font-size: .8125rem; line-height: 1.35; }
.tiles b { display: block; font-size: 1.6rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.cards { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); }
.cards.wide { grid-template-columns: repeat(auto-fill, minmax(min(27rem, 100%), 1fr)); }
.prompt, .strip { display: flex; flex-direction: column; justify-content: space-between; }
.prompt h4 { font-weight: 500; line-height: 1.35; margin-bottom: .5rem; }
.row { display: grid; gap: .5rem; grid-template-columns: repeat(auto-fit, minmax(4.5rem, 1fr)); }
.row img, .pictures img { width: 100%; border-radius: 3px; outline: 1px solid var(--rule); outline-offset: -1px; }
img.pixels { image-rendering: pixelated; }
figcaption { font-size: .75rem; line-height: 1.35; margin-top: .25rem; }
figcaption b { display: block; font-weight: 600; }
figcaption span { font-variant-numeric: tabular-nums; }
figcaption span + span { margin-left: .4em; }
.pictures { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(min(9.5rem, 28%), 1fr));
  margin: .25rem 0 1rem; }
.captioned p { font-size: .75rem; line-height: 1.35; margin: .1rem 0 0; color: var(--muted); }
.strips { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); }
.strip .row { grid-template-columns: repeat(4, 1fr); }
.strip p { font-size: .8125rem; line-height: 1.35; margin: 0 0 .5rem; }
.charts { display: grid; align-items: start; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); }
.chart { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: .75rem; }
.chart > svg { display: block; width: 100%; height: auto; }
.chart text { font-size: 12px; fill: var(--muted); }
.chart ul { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .8125rem; }
.chart li svg { width: 1.2em; height: .55em; margin-right: .25em; }
.rule { stroke: var(--rule); stroke-width: 1; fill: none; }
.line { fill: none; stroke-width: 1.75; stroke-linejoin: round; }
.dashed { stroke-dasharray: 4 3; }
.hover { fill: var(--text); fill-opacity: 0; }
.hover:hover { fill-opacity: .1; }
.sheets { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
.scroll { overflow-x: auto; width: fit-content; max-width: 100%; margin: .75rem 0; background: var(--card);
  border: 1px solid var(--rule); border-radius: 8px; }
table { border-collapse: collapse; font-size: .875rem; overflow-wrap: normal; }
th, td { padding: .35rem .75rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { font-weight: 600; }
tbody th { font-weight: 400; }
td small { white-space: nowrap; }
.scroll tr > th:first-child { position: sticky; left: 0; background: var(--card); }
td { font-variant-numeric: tabular-nums; }
code, pre { font: .8125rem/1.45 ui-monospace, monospace; }
pre { background: var(--code); padding: .6rem .75rem; margin: .25rem 0 .75rem; overflow-x: auto; border-radius: 6px; }
details { margin: .5rem 0; }
summary { cursor: pointer; padding: .35rem 0; }
summary:focus-visible, a:focus-visible, .scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
details table { font-size: .8125rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .5rem 0; font-size: .8125rem; }
dt { color: var(--muted); }
dd { margin: 0; }
@media print { details > summary { list-style: none; } .card, .prompt, .chart { break-inside: avoid; } }
""" + "\n".join(
    f".line.c{k} {{ stroke: var(--c{k}); }} .dot.c{k} {{ fill: var(--c{k}); }} .run.r{k} {{ background: var(--c{k}); }}"
    for k in range(8)
)
