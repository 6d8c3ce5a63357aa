"use strict";
// Sorts and filters the table of claims. The page says everything without it.
const table = document.getElementById("claims");
const body = table.tBodies[0];
const rows = [...body.rows];
const controls = document.getElementById("controls");
const words = document.getElementById("words");
const verdict = document.getElementById("verdict");
controls.hidden = false;

function filter() {
  const wanted = words.value.toLowerCase();
  for (const row of rows) {
    const fits = row.textContent.toLowerCase().includes(wanted);
    row.hidden = !(fits && (!verdict.value || row.dataset.verdict === verdict.value));
  }
}
words.addEventListener("input", filter);
verdict.addEventListener("change", filter);

const order = new Intl.Collator("en", { numeric: true });
[...table.tHead.rows[0].cells].forEach((head, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const isDown = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", isDown ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent.trim();
    const sorted = [...rows].sort((a, b) => order.compare(key(a), key(b)));
    body.append(...(isDown ? sorted.reverse() : sorted));
  });
});
