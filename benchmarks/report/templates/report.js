"use strict";
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}

// Rows without a value stay last, whichever way the others are sorted.
function sortBy(head) {
  const heads = [...head.parentElement.children];
  const other = { ascending: "descending", descending: "ascending" };
  const direction = other[head.ariaSort] ?? "ascending";
  for (const each of heads) each.setAttribute("aria-sort", each === head ? direction : "none");
  const column = heads.indexOf(head);
  const body = head.closest("table").tBodies[0];
  const valueOf = (row) => row.cells[column].dataset.value;
  const known = [...body.rows].filter((row) => valueOf(row) !== undefined);
  const unknown = [...body.rows].filter((row) => valueOf(row) === undefined);
  const numeric = !head.classList.contains("text");
  const sign = direction === "ascending" ? 1 : -1;
  known.sort((a, b) => sign * compare(valueOf(a), valueOf(b), numeric));
  body.append(...known, ...unknown);
}

function compare(a, b, numeric) {
  return numeric ? Number(a) - Number(b) : a.localeCompare(b);
}
