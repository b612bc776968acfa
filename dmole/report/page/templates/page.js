"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Values: shown at once by pointer, and by arrow keys in a focused figure or heatmap.
const tip = document.getElementById("tip");
for (const cell of all("td[title]")) {
  cell.dataset.value = cell.title;
  cell.setAttribute("aria-label", cell.title);
  cell.removeAttribute("title");
}
for (const mark of all("svg .mark")) {
  const title = mark.querySelector("title");
  mark.dataset.value = title ? title.textContent : "";
  if (title) title.remove();
}
let current = null;
function hideTip() {
  tip.hidden = true;
  if (current) current.classList.remove("current");
  current = null;
}
function showTip(target, keyboard) {
  hideTip();
  tip.textContent = target.dataset.value;
  tip.hidden = false;
  const box = target.getBoundingClientRect();
  const left = Math.min(box.left + box.width / 2 + 8, innerWidth - tip.offsetWidth - 8);
  const above = box.top - tip.offsetHeight - 6;
  tip.style.setProperty("left", `${Math.max(4, left)}px`);
  tip.style.setProperty("top", `${above < 4 ? box.bottom + 6 : above}px`);
  current = target;
  if (keyboard) target.classList.add("current");
}
document.addEventListener("pointerover", (event) => {
  const target = event.target.closest("[data-value]");
  if (target) showTip(target, false);
  else hideTip();
});
document.addEventListener("scroll", hideTip, { passive: true, capture: true });
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
  const figure = event.target.closest(".heat, svg[role=img]");
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: "row", ArrowUp: "-row" };
  if (!figure || !(event.key in steps)) return;
  const marks = all("[data-value]", figure).filter((mark) => !mark.closest(".away"));
  if (!marks.length) return;
  event.preventDefault();
  const at = marks.indexOf(current);
  const step = steps[event.key];
  let next = at < 0 ? 0 : at + (typeof step === "number" ? step : 0);
  if (at >= 0 && typeof step === "string") next = otherRow(marks, at, step === "row" ? 1 : -1);
  next = Math.max(0, Math.min(marks.length - 1, next));
  marks[next].scrollIntoView({ block: "nearest", inline: "nearest" });
  setTimeout(() => showTip(marks[next], true), 0);
});
function otherRow(marks, at, direction) {
  const row = marks[at].parentElement;
  if (row.tagName !== "TR") return at + direction;
  const rows = all("tr", row.parentElement).filter((each) => each.querySelector("[data-value]"));
  const other = rows[rows.indexOf(row) + direction];
  if (!other) return at;
  const cell = other.children[[...row.children].indexOf(marks[at])];
  const found = marks.indexOf(cell);
  return found < 0 ? marks.indexOf(other.querySelector("[data-value]")) : found;
}
document.addEventListener("focusout", hideTip);

// Lines: the others fade while the pointer is on one.
for (const series of all("svg .series")) {
  const others = all(".series", series.ownerSVGElement).filter((each) => each !== series);
  series.addEventListener("pointerenter", () => others.forEach((o) => o.classList.add("faded")));
  series.addEventListener("pointerleave", () => others.forEach((o) => o.classList.remove("faded")));
}

// Tables: a button in each header sorts by its column.
function sortKey(row, column) {
  const cell = row.children[column];
  if (!cell) return "";
  return "sort" in cell.dataset ? Number(cell.dataset.sort) : cell.textContent.trim();
}
function compare(one, other) {
  if (typeof one === "number" && typeof other === "number") return one - other;
  if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;
  return one.localeCompare(other, "en", { numeric: true });
}
for (const table of all("table.sortable")) {
  all("thead th", table).forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending";
      all("thead th", table).forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [sortKey(row, column), row]);
      rows.sort((a, b) => (up ? 1 : -1) * compare(a[0], b[0]));
      body.append(...rows.map((pair) => pair[1]));
    });
  });
}

// Filter by task.
const controls = document.getElementById("controls");
const filter = document.getElementById("filter");
const matches = document.getElementById("matches");
const names = all("#tasks option").map((option) => option.value);
function applyFilter() {
  const words = filter.value.toLowerCase();
  const shown = names.filter((name) => name.toLowerCase().includes(words));
  const off = (name) => names.includes(name) && !shown.includes(name);
  for (const each of all("[data-task]")) each.classList.toggle("away", off(each.dataset.task));
  matches.textContent = words ? `${shown.length} of ${names.length} tasks` : "";
}
if (names.length > 1) controls.hidden = false;
filter.addEventListener("input", applyFilter);
controls.addEventListener("reset", () => setTimeout(applyFilter, 0));
controls.addEventListener("submit", (event) => event.preventDefault());
