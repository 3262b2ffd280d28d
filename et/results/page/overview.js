// How the reproduction stands: what is measured of each table, and how far it is from the paper.

function ofTable(number) {
  return Object.entries(data.cells).filter(([, cell]) => cell.table === number);
}

function standing() {
  const root = byId("standing");
  const cells = Object.values(data.cells).filter((cell) => cell.table !== null);
  const measured = cells.filter((cell) => cell.runs.length);
  const runs = new Set(measured.flatMap((cell) => cell.runs)).size;
  const tiles = [[data.tables.length, "tables of the paper"], [`${measured.length} of ${cells.length}`, "cells measured"],
    [runs, runs === 1 ? "run behind them" : "runs behind them"]];
  const kinds = { configuration: "settings, compared with the experiment files", statistics: "counted from the data" };
  root.replaceChildren(make("h2", { id: "standing-title" }, "Where it stands"),
    make("dl", { class: "tiles large" }, tiles.map(([value, name]) => fact(name, String(value)))));
  byId("cards").replaceChildren(
    make("h2", { id: "cards-title" }, "Table by table"),
    make("ul", { class: "cards" }, data.tables.map(({ number, title, kind }) => {
      const all = ofTable(number), done = all.filter(([, cell]) => cell.runs.length).length;
      const note = all.length ? `${done} of ${all.length} cells measured`
        : kinds[kind] ?? "counted from the modules";
      return make("li", null, make("a", { href: `#table-${number}` },
        make("span", { class: "eyebrow" }, `Table ${number}`), make("span", { class: "name" }, title),
        make("span", { class: "muted" }, note),
        all.length ? make("span", { class: "meter", "aria-hidden": "true" },
          make("span", { style: `width: ${(100 * done) / all.length}%` })) : null));
    })));
  root.hidden = byId("cards").hidden = false;
}

// Every measured cell in per cent that has a paper value, as a dot at measured minus paper.
function deltas() {
  const root = byId("deltas");
  const rows = data.tables.map((table) => ({ ...table, cells: ofTable(table.number).filter(([, cell]) =>
    cell.unit === "%" && cell.mean !== null && cell.paperMean !== null) })).filter(({ cells }) => cells.length);
  if (!rows.length) return;
  const of = (cell) => cell.mean - cell.paperMean;
  const reach = Math.max(1, ...rows.flatMap(({ cells }) => cells.map(([, cell]) => Math.abs(of(cell))))) * 1.05;
  const dot = ([name, cell]) => {
    const text = `${cell.method}, ${cell.condition}, ${cell.metric}, ${cell.protocol}: ` +
      `${signed(of(cell), cell.digits)} to the paper’s ${cell.paper}`;
    return make("li", { style: `left: ${50 + (50 * of(cell)) / reach}%` }, make("button", {
      type: "button", class: `dot ${cell.protocol}`, "data-cell": name, "aria-label": text, title: text,
      "aria-haspopup": "dialog",
    }));
  };
  root.replaceChildren(
    make("h2", { id: "deltas-title" }, "Measured minus paper"),
    make("p", { class: "muted" }, "A dot is a cell on the paper’s own data, in percentage points; it opens the cell’s runs. ",
      make("span", { class: "swatch held_out" }), "held_out: honest evaluation ",
      make("span", { class: "swatch released" }), "released: the authors’ own"),
    make("div", { class: "deltas" }, rows.map(({ number, cells }) => make("div", { class: "delta-row" },
      make("a", { href: `#table-${number}` }, `Table ${number}`), make("ul", { class: "track" }, cells.map(dot)))),
      make("div", { class: "delta-row axis", "aria-hidden": "true" }, make("span"),
        make("div", { class: "scale" }, make("span", null, `${MINUS}${reach.toFixed(0)}`), make("span", null, "paper"),
          make("span", null, `+${reach.toFixed(0)}`)))));
  root.hidden = false;
}
