// How the reproduction stands: what is measured of each table, and how far it is from the paper.

function ofTable(number) {
  return Object.entries(data.cells).filter(([, cell]) => cell.table === number);
}

// "3 of 8 numbers of the paper; 24 cells on other data"
function coverageText(counts) {
  const parts = [];
  if (counts.of_paper) parts.push(`${counts.beside} of ${counts.of_paper} numbers of the paper`);
  if (counts.papers_data) parts.push(`${plural(counts.papers_data, "cell")} on its data`);
  if (counts.other_data) parts.push(`${plural(counts.other_data, "cell")} on other data`);
  return parts.join("; ") || "nothing measured";
}

function coverage() {
  const root = byId("coverage"), counted = data.tables.filter((table) => table.coverage);
  const sum = (key) => counted.reduce((total, table) => total + table.coverage[key], 0);
  const measured = Object.values(data.cells).filter((cell) => cell.table !== null && cell.runs.length);
  const runs = new Set(measured.flatMap((cell) => cell.runs)).size;
  const tiles = [
    [`${sum("beside")} of ${sum("of_paper")}`, "numbers of the paper with a measurement beside them"],
    [sum("papers_data"), "cells measured on the paper’s data"],
    [sum("other_data"), "cells measured on other data"],
    [runs, runs === 1 ? "run behind them" : "runs behind them"],
  ];
  const kinds = { configuration: "settings, compared with the experiment files", statistics: "counted from the data" };
  root.replaceChildren(make("h2", { id: "coverage-title" }, "What is measured"),
    make("dl", { class: "tiles large" }, tiles.map(([value, name]) => fact(name, String(value)))),
    make("p", { class: "muted" }, "A cell is one metric of a method on a data set under a protocol. Cells on the paper’s ",
      "data include baselines and short trainings, for which the paper has no number."));
  const tasks = data.tasks.filter((task) => data.tables.some((table) => table.task === task));
  byId("cards").replaceChildren(
    make("h2", { id: "cards-title" }, "Task by task"),
    ...tasks.flatMap((task) => [make("h3", null, task), make("ul", { class: "cards" },
      data.tables.filter((table) => table.task === task).map(({ number, title, kind, coverage: counts }) => {
        const note = counts && ofTable(number).length ? coverageText(counts) : kinds[kind] ?? "counted from the modules";
        return make("li", null, make("a", { href: `#table-${number}` },
          make("span", { class: "eyebrow" }, `Table ${number}`), make("span", { class: "name" }, title),
          make("span", { class: "muted" }, note),
          counts && counts.of_paper ? make("span", { class: "meter", "aria-hidden": "true" },
            make("span", { style: `width: ${(100 * counts.beside) / counts.of_paper}%` })) : null));
      }))]));
  root.hidden = byId("cards").hidden = false;
}

// What a dot says, as a sentence.
function deltaSentence(cell) {
  const difference = cell.mean - cell.paperMean, digits = cell.digits;
  const how = cell.protocol === "held_out" ? "on held-out data" : "under the authors’ protocol";
  const than = Math.abs(difference) < 0.5 * 10 ** -digits ? "the same as the paper"
    : `${Math.abs(difference).toFixed(digits)} points ${difference > 0 ? "above" : "below"} the paper’s ${cell.paper}`;
  const metric = cell.metric.replace(" (%)", "");
  return `${cell.method} on ${cell.condition}: ${metric} ${cell.mean.toFixed(digits)} % ${how} ` +
    `(${plural(cell.runs.length, "run")}), ${than}.`;
}

// Every measured cell in per cent that has a paper value: a sentence, and a dot at measured minus paper.
function deltas() {
  const root = byId("deltas");
  const cells = data.tables.flatMap((table) => ofTable(table.number)).filter(([, cell]) =>
    cell.beside && cell.unit === "%" && cell.mean !== null && cell.paperMean !== null);
  if (!cells.length) return;
  const of = (cell) => cell.mean - cell.paperMean;
  const reach = Math.max(1, ...cells.map(([, cell]) => Math.abs(of(cell)))) * 1.05;
  const row = ([name, cell]) => make("li", { class: "delta-row" },
    make("button", { type: "button", class: "sentence", "data-cell": name, "aria-haspopup": "dialog" }, deltaSentence(cell)),
    make("span", { class: "track", "aria-hidden": "true" },
      make("span", { class: `dot ${cell.protocol}`, style: `left: ${50 + (50 * of(cell)) / reach}%` })));
  root.replaceChildren(
    make("h2", { id: "deltas-title" }, "Measured minus paper"),
    make("p", { class: "muted" }, "Cells on the paper’s own data, in percentage points. A sentence opens the runs behind it. ",
      make("span", { class: "swatch held_out" }), "held_out: tested on data that training never saw ",
      make("span", { class: "swatch released" }), "released: the authors’ own protocol"),
    make("div", { class: "deltas" }, make("ul", null, cells.map(row)),
      make("div", { class: "delta-row axis", "aria-hidden": "true" }, make("span"),
        make("div", { class: "scale" }, make("span", null, `${MINUS}${reach.toFixed(0)}`), make("span", null, "paper"),
          make("span", null, `+${reach.toFixed(0)}`)))));
  root.hidden = false;
}
