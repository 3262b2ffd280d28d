// Light, dark or as the system has it; then everything else.

const THEMES = ["auto", "light", "dark"];

function startTheme() {
  const button = byId("theme");
  const read = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const keep = (theme) => { try { localStorage.setItem("theme", theme); } catch { /* file:// may forbid it */ } };
  const apply = (theme) => {
    if (theme === "auto") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  };
  let theme = THEMES.includes(read()) ? read() : "auto";
  apply(theme);
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    apply(theme);
    keep(theme);
  });
}

document.body.append(make("div", { id: "status", class: "hidden-label", role: "status", "aria-live": "polite" }));
startTheme();
startTables();
startCells();
coverage();
deltas();
startViewer();
