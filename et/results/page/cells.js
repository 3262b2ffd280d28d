// What a cell opens: the measured value, the runs behind it, and of each run its configuration, curves and pictures.

function fact(name, value) {
  return value === null || value === undefined || value === "" ? null
    : make("div", null, make("dt", null, name), make("dd", null, value));
}

function command(text) {
  const button = make("button", { type: "button", class: "quiet" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(button.previousElementSibling);
      button.textContent = "Selected";
    }
  });
  return make("div", { class: "command" }, make("code", { tabindex: 0 }, text), button);
}

function runName(run) {
  const parts = [`seed ${run.seed}`];
  if (run.fold !== null) parts.push(`fold ${run.fold}`);
  return parts.join(", ");
}

function curvesOf(run) {
  if (!run.curves) {
    return make("p", { class: "muted" }, "No curves: they are in the metrics.csv of the run’s folder. ",
      "--runs FOLDER puts them on this page.");
  }
  return make("div", { class: "curves" }, Object.entries(run.curves).map(([label, [steps, values]]) =>
    namedChart({ steps, values, label, kind: label.startsWith("train/") ? "train" : "validation" })));
}

function figuresOf(run) {
  const figures = run.figures.map(({ name, source }) => make("figure", { class: "picture" },
    make("img", { src: source, alt: `${name} of ${run.experiment}, ${runName(run)}`, loading: "lazy" }),
    make("figcaption", null, name)));
  const left = run.figuresLeftOut
    ? make("p", { class: "muted" }, `${plural(run.figuresLeftOut, "picture")} left out to keep this page small: `,
      make("code", null, run.source)) : null;
  return [figures.length ? make("div", { class: "pictures" }, figures) : null, left];
}

function metricsOf(run) {
  const entries = Object.entries(run.metrics).sort(([a], [b]) => a.localeCompare(b));
  return make("details", null, make("summary", null, "All metrics ", make("span", { class: "count" }, entries.length)),
    make("dl", { class: "metrics" }, entries.map(([name, value]) => fact(name, round(value, 5)))));
}

function configurationOf(run) {
  const text = data.configurations[run.configuration];
  return make("details", null, make("summary", null, "Configuration"),
    text ? make("pre", { tabindex: 0 }, make("code", null, text))
      : make("p", { class: "muted" }, "The current configuration files no longer compose this run; its record names the commit."));
}

// The test metrics that a run is read by, the cell's own first; deviations and counts stand under "All metrics".
function leadMetrics(run, cell) {
  const names = Object.keys(run.metrics).filter((name) => name.startsWith("test/") && !/_std|threshold/.test(name));
  names.sort((a, b) => (b === cell.key) - (a === cell.key) || a.localeCompare(b));
  return names.slice(0, 6).map((name) => fact(name.slice("test/".length).replaceAll("_", " "), round(run.metrics[name], 5)));
}

function runDetails(identity, cell, open) {
  const run = data.runs[identity];
  const value = cell.key ? run.metrics[cell.key] * cell.scale : null;
  return make("details", { class: "run", open },
    make("summary", null, make("span", null, runName(run)),
      value === null ? null : make("strong", null, `${value.toFixed(cell.digits)}${cell.unit ? ` ${cell.unit}` : ""}`),
      make("small", null, identity)),
    make("dl", { class: "tiles" }, leadMetrics(run, cell)),
    make("dl", { class: "facts" },
      fact("data", `${run.dataset.name} (${run.dataset.variant ?? "unknown"})`),
      fact("model", run.fidelity),
      fact("parameters", run.num_params?.toLocaleString("en")),
      fact("epochs", run.best_epoch === null || run.best_epoch === undefined ? run.epochs
        : `${run.epochs}, best ${run.best_epoch}`),
      fact("training", duration(run.seconds)),
      fact("memory", run.peak_memory_mb ? `${round(run.peak_memory_mb, 3)} MB` : null),
      fact("device", run.device),
      fact("commit", String(run.git_commit ?? "unknown").slice(0, 10)),
      fact("record", run.source)),
    command(`${data.train} ${run.overrides.join(" ")}`),
    make("h4", null, "Curves"), curvesOf(run),
    run.figures.length || run.figuresLeftOut ? make("h4", null, "Figures") : null, figuresOf(run),
    metricsOf(run), configurationOf(run));
}

function summaryOf(cell) {
  const difference = cell.mean === null || cell.paperMean === null ? null
    : signed(cell.mean - cell.paperMean, cell.digits);
  const values = cell.runs.map((identity) => data.runs[identity].metrics[cell.key] * cell.scale);
  return [
    make("dl", { class: "tiles" },
      fact("measured", cell.text), fact("paper", cell.paper ?? "none"), fact("measured minus paper", difference)),
    cell.over ? make("p", { class: "muted over" }, `± is over ${cell.over}.`) : null,
    values.length ? dotPlot({
      values, paper: cell.paperMean, paperDeviation: cell.paperStd, digits: cell.digits, unit: cell.unit,
    }) : null,
    values.length && cell.paperMean !== null ? make("p", { class: "key muted" }, make("span", { class: "swatch value" }), "a run ",
      make("span", { class: "swatch paper" }), cell.paperStd ? "the paper’s mean and standard deviation" : "the paper’s value") : null,
  ];
}

function cellBody(cell) {
  const missing = cell.runs.length === 0;
  return [
    cell.key ? summaryOf(cell) : null,
    cell.variant ? make("p", { class: "notice" }, `Not the paper’s data: ${cell.variant}.`) : null,
    cell.label ? make("p", { class: "notice" }, `Not the experiment’s own configuration: ${cell.label}.`) : null,
    missing ? make("p", null, "Not measured yet. This command runs what is missing:") : null,
    missing ? command(cell.command) : null,
    missing ? null : make("h3", null, plural(cell.runs.length, "run")),
    cell.runs.map((identity, index) => runDetails(identity, cell, index === 0)),
  ];
}

function openCell(name) {
  const cell = data.cells[name], dialog = byId("cell");
  const where = [cell.table === null ? null : `Table ${cell.table}`, cell.condition, cell.metric, cell.protocol];
  const close = make("button", { type: "button", class: "close", "aria-label": "Close" }, "×");
  close.addEventListener("click", () => dialog.close());
  dialog.replaceChildren(
    make("div", { class: "head" },
      make("div", null, make("p", { class: "eyebrow" }, where.filter(Boolean).join(" · ")),
        make("h2", { id: "cell-title" }, cell.method)),
      close),
    make("div", { class: "body" }, cellBody(cell)));
  dialog.showModal();
  dialog.scrollTop = 0;
}

function startCells() {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-cell]");
    if (button) openCell(button.dataset.cell);
  });
  // A click on the backdrop is one on the dialog itself: its content fills it.
  byId("cell").addEventListener("click", (event) => {
    if (event.target === event.currentTarget) event.currentTarget.close();
  });
}
