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
const places = new WeakMap(); // where the reader is in each figure
function hideTip() {
  tip.hidden = true;
  if (current) current.classList.remove("current");
  current = null;
}
function placeTip() {
  const box = current.getBoundingClientRect();
  const left = Math.min(box.left + box.width / 2 + 8, innerWidth - tip.offsetWidth - 8);
  const above = box.top - tip.offsetHeight - 6;
  tip.style.setProperty("left", `${Math.max(4, left)}px`);
  tip.style.setProperty("top", `${above < 4 ? box.bottom + 6 : above}px`);
}
function showTip(target, keyboard) {
  hideTip();
  current = target;
  tip.textContent = target.dataset.value;
  tip.hidden = false;
  if (keyboard) target.classList.add("current");
  placeTip();
}
document.addEventListener("pointerover", (event) => {
  const target = event.target.closest("[data-value]");
  if (target) showTip(target, false);
  else hideTip();
});
const follow = () => current && placeTip();
document.addEventListener("scroll", follow, { passive: true, capture: true });
document.addEventListener("focusout", hideTip);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
  const figure = event.target.closest(".heat, svg[role=img]");
  const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 };
  if (!figure || !(event.key in moves)) return;
  const marks = all("[data-value]", figure).filter((mark) => !mark.closest(".away"));
  if (!marks.length) return;
  event.preventDefault();
  const at = marks.indexOf(places.get(figure));
  const step = moves[event.key];
  const vertical = event.key === "ArrowDown" || event.key === "ArrowUp";
  const next = at < 0 ? 0 : vertical ? otherRow(marks, at, step) : at + step;
  const mark = marks[Math.max(0, Math.min(marks.length - 1, next))];
  places.set(figure, mark);
  mark.scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
  showTip(mark, true);
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
      const body = table.tBodies[0];
      const sorted = head.getAttribute("aria-sort"); // numbers begin with the highest
      const number = [...body.rows].some((row) => "sort" in (row.children[column] || row).dataset);
      const up = sorted ? sorted === "descending" : !number;
      all("thead th", table).forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [sortKey(row, column), row]);
      rows.sort((a, b) => (up ? 1 : -1) * compare(a[0], b[0]));
      body.append(...rows.map((pair) => pair[1]));
    });
  });
}

// Pickers: one of several parts at a time, chosen with a slider.
for (const picker of all(".picker")) {
  const parts = all(":scope > details", picker);
  if (parts.length < 2) continue;
  const slider = document.createElement("input");
  const shown = document.createElement("span");
  Object.assign(slider, { type: "range", min: 0, max: parts.length - 1, value: parts.length - 1 });
  const name = document.createElement("label");
  name.append(shown, slider);
  picker.prepend(name);
  const choose = () => {
    parts.forEach((part, at) => {
      part.open = at === Number(slider.value);
      part.classList.toggle("unpicked", !part.open);
    });
    shown.textContent = parts[slider.value].querySelector("summary").textContent;
    slider.setAttribute("aria-valuetext", shown.textContent);
  };
  slider.addEventListener("input", choose);
  picker.classList.add("scripted");
  choose();
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
