"""The frame and the look of a page: one style sheet, light and dark, for a desk and for a phone. Nothing is fetched."""

from __future__ import annotations

import re
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d8dee4; --paper: #ffffff; --tint: #f4f6f8;
  --shade: #1b1f2440;
  --gain: #0b6e4f; --loss: #a4351b; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --soft: #9aa5b1; --line: #3a424c; --paper: #15191e; --tint: #1f252c; --shade: #000000a0;
    --gain: #5fd3a6; --loss: #ff9a7a; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 28px 20px 64px; }
h1 { font-size: 1.05rem; font-weight: 600; color: var(--soft); margin: 0 0 10px; }
.verdict { font-size: clamp(1.25rem, 2.6vw, 1.8rem); line-height: 1.3; font-weight: 600; margin: 0 0 20px;
  max-width: 42em; text-wrap: pretty; }
h2 { font-size: 1.3rem; margin: 48px 0 6px; }
h3 { font-size: 1rem; margin: 28px 0 6px; }
p, li { max-width: 50em; }
.note, figcaption { color: var(--soft); font-size: .9rem; margin: 4px 0 12px; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); gap: 12px; margin: 0 0 8px; }
.tile { background: var(--tint); border-radius: 8px; padding: 12px 14px; }
.tile b { display: block; font-size: 1.55rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { display: block; font-size: .88rem; }
.tile small { color: var(--soft); font-size: .8rem; }
/* A shadow at a side says that there is more beyond it; what scrolls with the content covers the shadow at the end. */
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; margin: 0 0 8px; background-repeat: no-repeat;
  background-image: linear-gradient(to right, var(--paper) 30%, transparent),
    linear-gradient(to left, var(--paper) 30%, transparent),
    linear-gradient(to right, var(--shade), transparent), linear-gradient(to left, var(--shade), transparent);
  background-position: 0 0, 100% 0, 0 0, 100% 0; background-size: 40px 100%, 40px 100%, 14px 100%, 14px 100%;
  background-attachment: local, local, scroll, scroll; }
.sheet + .scroll { margin-top: 20px; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; min-width: min(100%, 44rem); }
caption { text-align: left; font-weight: 600; padding: 10px 0 6px; }
th, td { padding: 6px 12px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap;
  vertical-align: top; }
th { font-weight: 600; }
thead th { color: var(--soft); font-size: .84rem; vertical-align: bottom; }
thead th.group { text-align: center; }
tr:first-child th:first-child, td:first-child { text-align: left; padding-left: 0; }
th.words, td.words { text-align: left; }
tbody.group { border-top: 2px solid var(--line); }
td small { display: block; color: var(--soft); font-size: .78rem; }
td.ours { background: var(--tint); }
.gain { color: var(--gain); font-weight: 600; }
.loss { color: var(--loss); }
.best { font-weight: 700; }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .5em; }
figure { --paper: #ffffff; --shade: #1b1f2440; margin: 0;
  background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 10px; min-width: 0; }
figure figcaption { color: #1b1f24; font-weight: 600; margin: 2px 4px 6px; }
figure svg { display: block; width: 100%; height: auto; }
figure svg g[id*="patch_"] path[style*="fill: #ffffff"] { fill: none !important; }
figure svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif !important; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(330px, 100%), 1fr)); gap: 14px; }
h4 { font-size: .9rem; margin: 16px 0 4px; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); gap: 10px 8px; margin: 0; padding: 0;
  list-style: none; }
.sheet li { font-size: .72rem; line-height: 1.25; color: var(--soft); overflow-wrap: anywhere; }
.sheet img { display: block; background: #fff; border: 1px solid var(--line); border-radius: 4px; margin: 0 0 3px; }
.large { grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 14px 10px; }
.large li { font-size: .78rem; }
.large b { display: block; color: var(--ink); font-weight: 600; }
.group-of { border-left: 3px solid var(--line); padding-left: 10px; margin: 10px 0; }
.one { max-width: 860px; margin-bottom: 14px; }
.one svg { min-width: 520px; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 18px; margin: 0; font-size: .92rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 600px) {
  main { padding: 18px 14px 48px; }
  .tiles { grid-template-columns: 1fr 1fr; }
  th, td { padding: 6px 7px; }
  thead th { white-space: normal; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd { margin-bottom: 8px; }
}
"""


def document(title: str, body: str) -> str:
    """A whole page of HTML. `body` is HTML, `title` is text."""
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}</main>
</body>
</html>
"""
    # Keep a percent sign and a bound on the line of their number.
    return text.replace(" %", "&nbsp;%").replace("&gt; ", "&gt;&nbsp;").replace("≤ ", "≤&nbsp;")


def inline_svg(name: str, text: str, title: str) -> str:
    """An SVG file's text as an element of a page: no prolog, no metadata, ids that no other plot has, no fixed size."""
    svg = text[text.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, _, rest = svg.partition(">")
    head = re.sub(r'\s(?:xmlns(?::xlink)?|width|height|version)="[^"]*"', "", head)
    rest = re.sub(r'\bid="', f'id="{name}-', rest)
    rest = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", rest)
    return f'{head} role="img" aria-label="{escape(title)}">{rest}'
