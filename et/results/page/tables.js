// Sorting, filtering, and one table at a time.

const NUMBER = /^[\u2212-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?/;

// What a row sorts by in a column: a number, a text, or null for "nothing there", which stays last either way.
function sortKey(row, index) {
  const entry = row.cells[index];
  if (entry.dataset.value !== undefined) return Number(entry.dataset.value);
  // A row's head also says where the row belongs, for narrow screens; it does not sort by that.
  const text = (entry.querySelector(".where")?.nextSibling ?? entry).textContent.trim();
  if (text === "" || text === "–" || text === "missing") return null;
  const number = text.match(NUMBER);
  return number ? Number(number[0].replace(/,/g, "").replace("\u2212", "-")) : text;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

// Ascending, descending, then back to the order of the paper.
function sortBy(table, heading) {
  const body = table.tBodies[0], headings = [...heading.parentElement.cells];
  const now = heading.getAttribute("aria-sort");
  const next = now === "none" ? "ascending" : now === "ascending" ? "descending" : "none";
  for (const other of headings) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", next);
  table.toggleAttribute("data-sorted", next !== "none");
  const index = headings.indexOf(heading), sign = next === "descending" ? -1 : 1;
  const rows = table.originalRows.map((row) => ({ row, key: next === "none" ? 0 : sortKey(row, index) }));
  if (next !== "none") {
    rows.sort((a, b) => (a.key === null) - (b.key === null) || (a.key === null ? 0 : sign * compare(a.key, b.key)));
  }
  body.append(...rows.map(({ row }) => row));
  announce(next === "none" ? "Order of the paper" : `Sorted by ${heading.textContent}, ${next}`);
}

function announce(text) {
  byId("status").textContent = text;
}

function makeSortable(table) {
  table.originalRows = [...table.tBodies[0].rows];
  for (const heading of table.tHead.rows[0].cells) {
    heading.querySelector("button").addEventListener("click", () => sortBy(table, heading));
  }
}

// A search field and, where something was measured, a switch that leaves only that.
function addFilter(section) {
  const tables = [...section.querySelectorAll("table")].filter((table) => !table.closest(".folded"));
  const rows = tables.flatMap((table) => [...table.tBodies[0].rows]);
  if (rows.length < 6) return;
  const search = make("input", { type: "search", placeholder: "data set, method …", autocomplete: "off" });
  const here = rows.filter((row) => row.classList.contains("measured")).length;
  const measured = here > 0 && here < rows.length;
  const only = make("input", { type: "checkbox", checked: measured });
  const count = make("output", { class: "muted" });
  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = (only.checked && !row.classList.contains("measured")) || !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    section.toggleAttribute("data-filtered", shown < rows.length);
    count.textContent = shown < rows.length ? `${shown} of ${rows.length} rows` : "";
  };
  search.addEventListener("input", apply);
  only.addEventListener("change", apply);
  section.querySelector(".wide").before(make("form", { class: "filter", role: "search", submit: (e) => e.preventDefault() },
    make("label", null, make("span", null, "Filter rows"), search),
    measured ? make("label", { class: "switch" }, only, make("span", null, "measured here only")) : null,
    count));
  apply();
}

function views() {
  return [byId("overview"), ...document.querySelectorAll(".paper-table")];
}

// Show the view that the address names; `move` takes the keyboard there, too.
function showView(move) {
  const wanted = byId(location.hash.slice(1));
  const view = views().find((one) => one === wanted) ?? (wanted ? null : byId("overview"));
  if (!view) return; // a place inside a view, such as #main
  for (const one of views()) one.hidden = one !== view;
  for (const link of document.querySelectorAll(".bar nav a")) {
    const current = view.dataset.task ? link.dataset.task === view.dataset.task : link.hash === `#${view.id}`;
    if (current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    if (current) link.scrollIntoView({ block: "nearest", inline: "center" });
  }
  const heading = view.querySelector("h1");
  document.title = view.id === "overview" ? "Energy Transformer: the paper’s tables, measured"
    : `Table ${view.id.split("-")[1]}: ${heading.textContent}`;
  if (move) {
    window.scrollTo(0, 0);
    heading.focus({ preventScroll: true });
  }
}

function startTables() {
  document.querySelectorAll("table").forEach(makeSortable);
  document.querySelectorAll(".paper-table").forEach(addFilter);
  window.addEventListener("hashchange", () => showView(true));
  showView(false);
}
