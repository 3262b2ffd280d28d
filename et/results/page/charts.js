// Line charts in SVG. A chart says in its label what it shows, for those who do not see it.

const CHART = { width: 320, height: 110, left: 64, right: 8, top: 10, bottom: 8 };

function extent(values) {
  const low = Math.min(...values), high = Math.max(...values);
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

// One curve; `mark` (an index) is moved later with the returned function, `rule` stands where something ends.
function lineChart({ steps, values, label, kind = "plain", rule = null }) {
  const { width, height, left, right, top, bottom } = CHART;
  const [first, last] = extent(steps), [low, high] = extent(values);
  const x = (step) => left + ((step - first) / (last - first)) * (width - left - right);
  const y = (value) => top + ((high - value) / (high - low)) * (height - top - bottom);
  const points = steps.map((step, index) => `${x(step).toFixed(1)},${y(values[index]).toFixed(1)}`);
  const floor = height - bottom;
  const area = `M${x(steps[0]).toFixed(1)},${floor} L${points.join(" L")} L${x(steps.at(-1)).toFixed(1)},${floor} Z`;
  const summary = `${label}: from ${round(values[0])} to ${round(values.at(-1))}, ` +
    `between ${round(low)} and ${round(high)}, over ${steps.length} points`;
  const dot = draw("circle", { r: 4.5, class: "dot", cx: x(steps.at(-1)), cy: y(values.at(-1)) });
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, class: `chart ${kind}`, role: "img", "aria-label": summary },
    [0, 0.5, 1].map((part) => draw("line", {
      class: "grid", x1: left, x2: width - right, y1: top + part * (floor - top), y2: top + part * (floor - top),
    })),
    [[0, high], [0.5, (low + high) / 2], [1, low]].map(([part, value]) => draw("text", {
      class: "tick", x: left - 6, y: top + part * (floor - top) + 5, "text-anchor": "end", "aria-hidden": "true",
    }, round(value, 3))),
    rule === null ? null : draw("line", { class: "rule", x1: x(rule), x2: x(rule), y1: top, y2: floor }),
    draw("path", { class: "area", d: area }),
    draw("polyline", { class: "curve", points: points.join(" ") }),
    dot);
  const ends = make("div", { class: "ends", "aria-hidden": "true" }, make("span", null, round(first)),
    make("span", null, round(last)));
  const move = (index) => {
    dot.setAttribute("cx", x(steps[index]));
    dot.setAttribute("cy", y(values[index]));
  };
  return { svg, ends, move, low, high };
}

// A chart with its name and the range of its values.
function namedChart(options) {
  const chart = lineChart(options);
  return make("figure", { class: "curve-figure" },
    make("figcaption", null, make("span", null, options.label),
      make("small", null, `${round(chart.low, 3)} … ${round(chart.high, 3)}`)),
    chart.svg, chart.ends);
}

// The values of runs on one axis, with the paper's mean and deviation where it has them.
function dotPlot({ values, paper, paperDeviation, digits, unit }) {
  const known = paper === null ? values : [...values, paper - (paperDeviation ?? 0), paper + (paperDeviation ?? 0)];
  let [low, high] = extent(known);
  [low, high] = [low - (high - low) * 0.06, high + (high - low) * 0.06];
  const at = (value) => (100 * (value - low)) / (high - low);
  const summary = `${plural(values.length, "run")} between ${Math.min(...values).toFixed(digits)} and ` +
    `${Math.max(...values).toFixed(digits)} ${unit}` + (paper === null ? "" : `; the paper has ${paper.toFixed(digits)}`);
  const band = paper !== null && paperDeviation
    ? make("span", { class: "band", style: `left: ${at(paper - paperDeviation)}%; right: ${100 - at(paper + paperDeviation)}%` })
    : null;
  return make("div", { class: "dot-plot", role: "img", "aria-label": summary }, band,
    paper === null ? null : make("span", { class: "paper", style: `left: ${at(paper)}%` }),
    values.map((value) => make("span", { class: "value", style: `left: ${at(value)}%` })),
    make("span", { class: "end" }, low.toFixed(digits)), make("span", { class: "end high" }, high.toFixed(digits)));
}
