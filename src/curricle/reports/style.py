"""Style sheet and script of the page.

The style sheet and the script of the HTML page. Colors follow the reader's light or dark setting;
the script hands them to the figures and switches the unit and scale of their horizontal axes.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fbfbfa; --card: #ffffff; --ink: #1d2328; --soft: #5c666f; --rule: #e2e5e8;
  --accent: #0072b2; --warn: #8a4b00; --warn-ground: #fff4e2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171a; --card: #1c2024; --ink: #e8eaec; --soft: #a3adb6; --rule: #333a41;
    --accent: #56b4e9; --warn: #ffc46b; --warn-ground: #33270f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
main { max-width: 70rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { margin: 0; font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 0 0 0.75rem; font-size: 1.15rem; }
h3 { margin: 1.25rem 0 0.4rem; font-size: 0.95rem; }
.facts, .note { color: var(--soft); font-size: 0.88rem; }
.facts { margin: 0.35rem 0 1.25rem; }
.note { max-width: 46rem; margin: 0.75rem 0 0; }
.headline {
  margin: 0; padding: 0.9rem 1.1rem; border-left: 4px solid var(--accent); border-radius: 0.3rem;
  background: var(--card); font-size: 1.08rem; overflow-wrap: anywhere;
}
section {
  margin-top: 1.5rem; padding: 1.25rem; border: 1px solid var(--rule); border-radius: 0.6rem;
  background: var(--card);
}
.warning {
  margin-top: 1.25rem; padding: 0.8rem 1.1rem; border-radius: 0.4rem; font-size: 0.92rem;
  color: var(--warn); background: var(--warn-ground);
}
.warning ul { margin: 0.3rem 0 0; padding-left: 1.2rem; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 0.86rem; }
th, td {
  padding: 0.42rem 0.7rem; border-bottom: 1px solid var(--rule); text-align: left;
  vertical-align: top;
}
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number, td:first-child { white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; }
.total td { border-top: 2px solid var(--rule); font-weight: 600; }
.toolbar { display: flex; flex-wrap: wrap; gap: 0.5rem 1.25rem; margin-bottom: 0.5rem; }
.toolbar span { display: inline-flex; flex-wrap: wrap; gap: 0.3rem; }
button {
  padding: 0.28rem 0.7rem; border: 1px solid var(--rule); border-radius: 1rem; cursor: pointer;
  background: transparent; color: var(--soft); font: inherit; font-size: 0.84rem;
}
button:hover { color: var(--ink); }
button[aria-pressed="true"] { border-color: var(--accent); color: var(--accent); }
button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
pre {
  margin: 0.4rem 0 0; padding: 0.8rem 1rem; overflow-x: auto; border: 1px solid var(--rule);
  border-radius: 0.4rem; background: var(--ground); font-size: 0.85rem;
}
@media (max-width: 40rem) {
  main { padding: 1.25rem 0.75rem 3rem; }
  section { padding: 0.9rem 0.75rem; }
}
@media print { .toolbar { display: none; } section { break-inside: avoid; } }
"""

SCRIPT = """
(() => {
  const figures = [...document.querySelectorAll(".plotly-graph-div")];
  const axes = (figure) => Object.keys(figure.layout).filter((key) => key.startsWith("xaxis"));
  const press = (button, kind) => {
    for (const other of document.querySelectorAll(`[data-${kind}]`)) {
      other.setAttribute("aria-pressed", String(other === button));
    }
  };
  const everyAxis = (figure, name, make) => Object.fromEntries(
    axes(figure).map((axis) => [`${axis}.${name}`, make(figure.layout[axis])])
  );
  const showUnit = (button) => {
    press(button, "axis");
    const unit = button.dataset.axis;
    for (const figure of figures) {
      const titles = axes(figure).filter((axis) => figure.layout[axis].title?.text);
      const layout = everyAxis(figure, "autorange", () => true);
      for (const axis of titles) layout[`${axis}.title.text`] = button.textContent;
      if (figure.data.length === 0) continue;
      Plotly.update(figure, { x: figure.data.map((trace) => trace.meta.x[unit]) }, layout);
    }
  };
  const showScale = (button) => {
    press(button, "scale");
    for (const figure of figures) {
      const layout = everyAxis(figure, "type", () => button.dataset.scale);
      Plotly.relayout(figure, { ...layout, ...everyAxis(figure, "autorange", () => true) });
    }
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paint = () => {
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--soft").trim();
    for (const figure of figures) Plotly.relayout(figure, { "font.color": ink });
  };
  for (const button of document.querySelectorAll("[data-axis]")) {
    button.addEventListener("click", () => showUnit(button));
  }
  for (const button of document.querySelectorAll("[data-scale]")) {
    button.addEventListener("click", () => showScale(button));
  }
  dark.addEventListener("change", paint);
  paint();
})();
"""
