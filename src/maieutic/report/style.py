"""The report's styles. Colours (after Okabe and Ito) can be told apart by people who see colours differently."""

STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1f2328; --soft: #626a73; --line: #d9dde2; --card: #f4f5f6;
  --good: #00704f; --bad: #b3261e; --warn: #8a5a00; --mark: #f3d9ea;
  --s0: #0072b2; --s1: #d55e00; --s2: #008f68; --s3: #b0568c; --s4: #8a6d00; --s5: #5b5b5b; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --ink: #e4e7ea; --soft: #9aa3ad; --line: #30363d; --card: #1c2126;
    --good: #4fc99b; --bad: #ff8a80; --warn: #e6b450; --mark: #5c2e4c;
    --s0: #56b4e9; --s1: #f0883e; --s2: #3fc99d; --s3: #d98cba; --s4: #e0c341; --s5: #a8a8a8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 64px; }
header { display: flex; align-items: baseline; gap: 12px; flex-wrap: wrap; }
h1 { font-size: 26px; margin: 0; }
h2 { font-size: 20px; margin: 40px 0 8px; padding-top: 12px; border-top: 1px solid var(--line); }
h3 { font-size: 16px; margin: 24px 0 8px; }
h4 { font-size: 14px; margin: 8px 0 4px; color: var(--soft); }
small, .note, caption, figcaption { color: var(--soft); font-size: 13px; }
small { font-size: 12px; }
.summary { font-size: 16px; max-width: 80ch; }
.state { border: 1px solid currentColor; border-radius: 99px; padding: 1px 10px; font-size: 13px; }
.complete, .good { color: var(--good); } .bad { color: var(--bad); }
.interrupted, .running, .warn strong { color: var(--warn); } .not_begun { color: var(--soft); }
ul.warn { border-left: 3px solid var(--warn); padding: 4px 8px 4px 28px; margin: 12px 0; }
p.warn { border-left: 3px solid var(--warn); padding-left: 10px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 8px 0 16px; }
caption { text-align: left; padding-bottom: 4px; }
th, td { text-align: left; padding: 4px 18px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tbody th { font-weight: 500; white-space: nowrap; }
thead th { color: var(--soft); font-weight: 500; font-size: 13px; }
.numbers td { font-variant-numeric: tabular-nums; white-space: nowrap; }
.charts { display: flex; flex-wrap: wrap; gap: 8px 24px; align-items: flex-start; }
figure { margin: 8px 0; max-width: 100%; }
figure .note { max-width: 60ch; margin: 4px 0; }
figcaption { font-weight: 500; color: var(--ink); }
svg { display: block; max-width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font-size: 11px; }
svg text.name { fill: var(--ink); font-size: 12px; }
.grid { stroke: var(--line); stroke-width: 1; }
polyline { fill: none; stroke: var(--s); stroke-width: 2; stroke-linejoin: round; }
.faint { stroke-width: 1; opacity: 0.35; }
.strong { stroke: var(--s); stroke-width: 2; }
.area { fill: var(--s); fill-opacity: 0.12; stroke: var(--s); stroke-width: 1.8; }
.bar, .dot { fill: var(--s); } .whisker { stroke: var(--s); stroke-width: 2.5; opacity: 0.65; }
.part { stroke: var(--paper); }
.mark { stroke: var(--ink); stroke-dasharray: 4 3; }
.hover rect { fill: transparent; } .hover rect:hover { fill: var(--ink); fill-opacity: 0.08; }
.s0 { --s: var(--s0); } .s1 { --s: var(--s1); } .s2 { --s: var(--s2); }
.s3 { --s: var(--s3); } .s4 { --s: var(--s4); } .s5 { --s: var(--s5); }
.legend { margin: 2px 0; font-size: 12.5px; } .legend span { margin-right: 14px; white-space: nowrap; }
.legend svg { display: inline-block; vertical-align: middle; }
details { margin: 6px 0; } summary { cursor: pointer; padding: 3px 0; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 4px 14px; background: var(--card); }
.card summary { font-size: 13.5px; overflow-wrap: anywhere; }
.question p { margin: 4px 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 0 20px; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 6px 0; padding: 8px 10px; border-radius: 6px;
  background: var(--paper); border: 1px solid var(--line); font: 13px/1.45 ui-monospace, monospace; }
mark { background: var(--mark); color: inherit; border-radius: 3px; padding: 0 2px; }
"""
