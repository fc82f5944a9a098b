"use strict";
// A cell as something to compare: in columns of numbers its first number, null where it has none.
function valueOf(text, numeric) {
  const plain = text.trim().replace(/[\u2212\u2013](?=[\d.\u221e])/g, "-").replace(/(\d),(?=\d{3})/g, "$1");
  if (!numeric) {
    return plain === "" || plain === "\u2013" || plain === "n/a" ? null : plain;
  }
  const power = /^10([\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+)$/.exec(plain);
  if (power) {
    const digits = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079";
    const exponent = [...power[1]].map((x) => (x === "\u207b" ? "-" : digits.indexOf(x))).join("");
    return 10 ** Number(exponent);
  }
  const found = /([<+-]*)\s*(\u221e|\d+(?:\.\d+)?(?:e[+-]?\d+)?|\.\d+)/i.exec(plain);
  if (!found) {
    return null;
  }
  const size = found[2] === "\u221e" ? Infinity : Number(found[2]);
  // "<0.01" is below what is written as 0.01.
  return (found[1].includes("-") ? -1 : 1) * (found[1].includes("<") ? size / 2 : size);
}

// The places of cells in ascending or descending order; equal ones stay, those without a value last.
function ordered(cells, numeric, descending) {
  const values = cells.map((cell) => valueOf(cell, numeric));
  const compare = (a, b) => (numeric ? a - b || 0 : a.localeCompare(b, "en", { numeric: true }));
  return values
    .map((_, place) => place)
    .sort((one, two) => {
      const [a, b] = [values[one], values[two]];
      if (a === null || b === null) {
        return (a === null) - (b === null) || one - two;
      }
      return (a === b ? 0 : descending ? compare(b, a) : compare(a, b)) || one - two;
    });
}

function sortBy(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const descending = heads[column].getAttribute("aria-sort") === "ascending";
  const rows = [...table.tBodies[0].rows];
  const cells = rows.map((row) => row.cells[column].textContent);
  const numeric = heads[column].classList.contains("n");
  table.tBodies[0].append(...ordered(cells, numeric, descending).map((place) => rows[place]));
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
}

// Without this script the page is whole; with it headings are buttons, for keyboards too.
function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sortBy(table, column));
    head.replaceChildren(button);
  });
}

if (typeof document !== "undefined") {
  document.querySelectorAll("table").forEach(makeSortable);
}
