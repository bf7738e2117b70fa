"use strict";
const root = document.documentElement;
const tip = document.getElementById("tip");

// Light or dark: the system's choice until the button is pressed.
const themeButton = document.getElementById("theme");
const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const nameTheme = () => { themeButton.textContent = isDark() ? "Light" : "Dark"; };
themeButton.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
nameTheme();

// Tooltips: the text of a mark's aria-label, beside the mark and inside the window.
let shown = null;
function show(mark) {
  shown = mark;
  tip.textContent = mark.getAttribute("aria-label");
  tip.hidden = false;
  const at = mark.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, at.left + at.width / 2 - own.width / 2), innerWidth - own.width - 8);
  const above = at.top - own.height - 8;
  tip.style.transform = `translate(${left}px, ${above > 8 ? above : at.bottom + 8}px)`;
}
const hide = () => { shown = null; tip.hidden = true; };
// The focus scrolls a plot into the window: the tooltip goes along.
addEventListener("scroll", () => { if (shown) show(shown); }, { passive: true, capture: true });
addEventListener("keydown", event => { if (event.key === "Escape") hide(); });

// One stop for the tab key a plot; arrow keys go from mark to mark, from left to right.
const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
for (const plot of document.querySelectorAll("figure > svg")) {
  const marks = [...plot.querySelectorAll(".mark")];
  const place = mark => mark.transform.baseVal[0].matrix.e;
  const ordered = marks.slice().sort((a, b) => place(a) - place(b));
  ordered.forEach((mark, number) => mark.setAttribute("tabindex", number ? -1 : 0));
  plot.addEventListener("pointerover", event => event.target.matches(".mark") ? show(event.target) : hide());
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("focusin", event => { if (event.target.matches(".mark")) show(event.target); });
  plot.addEventListener("focusout", hide);
  plot.addEventListener("keydown", event => {
    const step = STEPS[event.key], left = ordered.filter(mark => !("hidden" in mark.dataset));
    const at = left.indexOf(document.activeElement);
    if (!step || at < 0) return;
    event.preventDefault();
    const next = left[(at + step + left.length) % left.length];
    left[at].setAttribute("tabindex", -1);
    next.setAttribute("tabindex", 0);
    next.focus();
  });
}

// The legend hides and shows a kind in every plot.
for (const button of document.querySelectorAll("[data-toggle]")) {
  button.addEventListener("click", () => {
    const hidden = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", !hidden);
    for (const part of document.querySelectorAll(`[data-kind="${button.dataset.toggle}"]`)) part.toggleAttribute("data-hidden", hidden);
    // The tab key still finds each plot, by a mark that is left.
    for (const plot of document.querySelectorAll("figure > svg")) {
      const left = [...plot.querySelectorAll(".mark:not([data-hidden])")];
      for (const mark of plot.querySelectorAll(".mark")) mark.setAttribute("tabindex", mark === left[0] ? 0 : -1);
    }
  });
}

// Tables: a click on a column's name sorts by it, a second one the other way; cells without a value stay last.
for (const table of document.querySelectorAll("table")) {
  table.querySelectorAll("th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const body = table.tBodies[0];
      const key = row => {
        const cell = row.cells[column];
        return cell.dataset.value !== undefined ? Number(cell.dataset.value) : cell.classList.contains("number") ? null : cell.textContent;
      };
      const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      const rows = [...body.rows].map(row => [key(row), row]);
      rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
