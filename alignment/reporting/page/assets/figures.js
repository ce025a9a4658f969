// Figures: plain values become plotly's, in the colours of the page; one legend for all panels of a group.

const config = { displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "", displayModeBar: false };
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const hueOf = (hue) => colour(hue === null ? "grey" : `hue-${hue}`);

function dressed(trace, hidden) {
  const own = hueOf(trace.hue);
  const bars = (found) => found && {
    type: "data", symmetric: false, thickness: 1, width: 2, color: own,
    array: found.map((one) => one && one[1]), arrayminus: found.map((one) => one && one[0]),
  };
  const told = trace.told ? "<br>%{hovertext}" : "";
  return {
    type: "scatter", name: trace.name, mode: trace.mode, x: trace.x, y: trace.y, visible: !hidden.has(trace.name),
    text: trace.marks, hovertext: trace.told, textposition: "top center", textfont: { color: colour("quiet"), size: 11 },
    hovertemplate: `%{x}: %{y:.4g}${told}<extra>${trace.name}</extra>`, cliponaxis: false,
    error_y: bars(trace.bars), error_x: bars(trace.sideways),
    line: { color: own, width: 1.7, dash: trace.dash },
    marker: { color: own, symbol: trace.symbol, size: trace.size },
  };
}

function layout(panel) {
  const axis = { gridcolor: colour("grid"), linecolor: colour("rule"), zeroline: false, automargin: true, exponentformat: "power" };
  const level = panel.level === null ? [] : [{
    type: "line", xref: "paper", x0: 0, x1: 1, y0: panel.level, y1: panel.level,
    line: { color: colour("grey"), width: 1, dash: "dash" },
  }];
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, shapes: level, hovermode: "closest",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("quiet") },
    margin: { t: 14, r: 10, b: 44, l: 44 },
    hoverlabel: { align: "left", bgcolor: colour("raised"), bordercolor: colour("rule"), font: { color: colour("ink"), size: 12 } },
    xaxis: { ...axis, title: { text: panel.x, standoff: 8 }, type: panel.named ? "category" : "linear",
      ...(few(panel) ? { dtick: 1 } : {}), ...(panel.named ? { range: [-0.5, namesOf(panel).length - 0.5] } : {}) },
    yaxis: { ...axis, ...(panel.named ? { range: reach(panel) } : {}) },
    scattermode: panel.named && panel.traces.every((trace) => trace.mode === "markers") ? "group" : "overlay", scattergap: 0.5,
  };
}

const BROAD = 8;
const namesOf = (panel) => [...new Set(panel.traces.flatMap((trace) => trace.x))];

// Whether x counts a few things, so that an axis has no halves of them.
const few = (panel) => !panel.named && namesOf(panel).every(Number.isInteger) && Math.max(...namesOf(panel)) <= 12;

// From the lowest to the highest value over names: grouped markers would make plotly begin at zero.
function reach(panel) {
  const ends = panel.traces.flatMap((trace) => trace.y.flatMap((y, place) => {
    if (y === null) return [];
    const [below, above] = trace.bars?.[place] ?? [0, 0];
    return [y - below, y + above];
  }));
  if (panel.level !== null) ends.push(panel.level);
  const low = Math.min(...ends), high = Math.max(...ends);
  const room = 0.06 * (high - low) || 0.1 * Math.abs(high) || 1;
  return [low - room, high + room];
}

const drawn = new Map();

// Draw a group into an element, in place of what was there.
function draw(element, group) {
  const hidden = drawn.get(element)?.group === group ? drawn.get(element).hidden : new Set();
  element.querySelectorAll(".plot").forEach((plot) => Plotly.purge(plot));
  const names = [...new Map(group.panels.flatMap((panel) => panel.traces).map((trace) => [trace.name, trace]))];
  const keys = make("ul", "", { class: "keys", "aria-label": "Legend" });
  for (const [name, trace] of names) keys.append(key(element, name, trace, hidden));
  const plots = group.panels.map((panel, place) => {
    const figure = make("figure", "", panel.named && namesOf(panel).length > BROAD ? { class: "broad" } : {});
    const plot = make("div", "", { class: "plot", id: `${element.id}-${place}`, role: "img", "aria-label": panel.title });
    figure.append(make("figcaption", panel.title), plot);
    return { figure, plot, panel };
  });
  const panels = make("div", "", { class: "panels" });
  panels.append(...plots.map(({ figure }) => figure));
  element.replaceChildren(...(names.length > 1 ? [keys] : []), panels);
  for (const { plot, panel } of plots) {
    Plotly.newPlot(plot, panel.traces.map((trace) => dressed(trace, hidden)), layout(panel), config);
  }
  drawn.set(element, { group, hidden });
}

const SIGNS = {
  circle: "●", square: "■", diamond: "◆", "triangle-up": "▲", cross: "✚", x: "✖", star: "★", "circle-open": "○",
};

// One entry of a legend: a switch for all lines of the name. Names come escaped for plotly; here they are plain text.
function key(element, name, { hue, symbol }, hidden) {
  const text = name.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");
  const button = make("button", "", { type: "button", "aria-pressed": !hidden.has(name) });
  const sign = make("i", SIGNS[symbol], { "aria-hidden": true });
  sign.style.color = `var(--${hue === null ? "grey" : `hue-${hue}`})`;
  button.append(sign, text);
  button.addEventListener("click", () => {
    if (!hidden.delete(name)) hidden.add(name);
    button.setAttribute("aria-pressed", !hidden.has(name));
    for (const plot of element.querySelectorAll(".plot")) {
      Plotly.restyle(plot, { visible: plot.data.map((trace) => !hidden.has(trace.name)) });
    }
  });
  const item = make("li");
  item.append(button);
  return item;
}

const view = find("view");
function show() {
  const group = values.drawn.fronts[Number(view.value)];
  find("view-text").textContent = group.text;
  draw(find("figures-front"), group);
}
if (view) {
  view.addEventListener("input", show);
  show();
}
for (const [name, group] of Object.entries(values.drawn)) {
  if (name !== "fronts" && group.panels.length) draw(find(`figures-${name}`), group);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const [element, { group }] of [...drawn]) draw(element, group);
});
