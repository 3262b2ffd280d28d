// The theme leaves landmarks without names, and code and tables that only a mouse can scroll.
function name() {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  for (const buttons of document.querySelectorAll(".md-code__nav")) buttons.setAttribute("role", "presentation");
  for (const area of document.querySelectorAll("pre code, .highlight-ipynb, .md-typeset__scrollwrap, math[display]")) {
    area.tabIndex = 0;
  }
}

name();
new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
