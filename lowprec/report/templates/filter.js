// A box above every longer table: rows stay that have all of its words.
const SHORT = 8;

function hasAll(text, words) {
  const within = text.toLowerCase();
  return words.every((word) => within.includes(word));
}

function filterBy(table, typed) {
  const words = typed.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...table.tBodies[0].rows];
  let left = 0;
  rows.forEach((row) => {
    const text = [...row.cells].map((cell) => cell.textContent).join(" ");
    row.hidden = !hasAll(text, words);
    left += row.hidden ? 0 : 1;
  });
  return words.length ? `${left} of ${rows.length} rows` : `${rows.length} rows`;
}

function addFilter(table) {
  const box = table.closest(".scroll");
  if (!box || table.tBodies[0].rows.length < SHORT) {
    return;
  }
  const label = document.createElement("label");
  const input = document.createElement("input");
  const count = document.createElement("output");
  input.type = "search";
  input.placeholder = "words in a row";
  label.append("Filter ", input);
  const bar = document.createElement("div");
  bar.className = "filter";
  bar.append(label, count);
  const show = () => {
    count.textContent = filterBy(table, input.value);
  };
  input.addEventListener("input", show);
  show();
  box.before(bar);
}

if (typeof document !== "undefined") {
  document.querySelectorAll("table").forEach(addFilter);
}
