// The explorer's page: what rounding.js finds, as text, tables and drawings.
const DATA = JSON.parse(document.getElementById("formats-data").textContent);
const FORMATS = new Map(DATA.formats.map((format) => [format.name, format]));
const LISTED = 256;
const SVG = "http://www.w3.org/2000/svg";
const part = (name) => document.getElementById(`explorer-${name}`);

function make(tag, attributes, ...children) {
  const made = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  made.append(...children);
  return made;
}

// Numbers as text: all the digits that JavaScript gives, or six.
function written(value) {
  return (Object.is(value, -0) ? "-0" : String(value)).replaceAll("-", "\u2212");
}

function rounded(value) {
  return value === 0 || !Number.isFinite(value) ? written(value) : written(Number(value.toPrecision(6)));
}

function hexadecimal(format, code) {
  return `0x${code.toString(16).padStart(Math.ceil(format.bits / 4), "0")}`;
}

function bitsOf(format, code) {
  const bits = code.toString(2).padStart(format.bits, "0");
  let at = 0;
  return format.fields.map(([, width]) => bits.slice(at, (at += width))).join(" ");
}

// The positive runs of a format, zero left out: [value, step, count].
function positive(format) {
  return format.runs
    .filter(([value, step, count]) => value + (count - 1) * step > 0)
    .map(([value, step, count]) => (value > 0 ? [value, step, count] : [value + step, step, count - 1]));
}

function largest(format) {
  const [value, step, count] = format.runs.at(-1);
  return value + (count - 1) * step;
}

function factsOf(format) {
  const fields = format.fields.map(([name, width]) => `${width} ${name}`).join(", ");
  const found = positive(format);
  const count = found.reduce((sum, run) => sum + run[2], 0);
  const words = Object.values(format.special);
  const has = (word) => (words.includes(word) ? "yes" : "no");
  return (
    `${format.bits} bit${format.bits === 1 ? "" : "s"} (${fields}); ${count.toLocaleString("en")} positive value` +
    `${count === 1 ? "" : "s"}, ${written(found[0][0])} to ${written(largest(format))}; ` +
    `Inf: ${has("Infinity")}, NaN: ${has("NaN")}.`
  );
}

// Power of two in superscripts.
function power(exponent) {
  const digits = { "-": "\u207b", 0: "\u2070", 1: "\u00b9", 2: "\u00b2", 3: "\u00b3" };
  const raised = [...String(exponent)].map((x) => digits[x] ?? String.fromCharCode(0x2070 + Number(x)));
  return `2${raised.join("")}`;
}

// Ticks at whole powers of two within an interval of exponents.
function ticks(low, high, most) {
  const step = [1, 2, 4, 5, 8, 10, 16, 20, 32, 40, 64].find((x) => (high - low) / x <= most) ?? 128;
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high; at += step) {
    found.push(at);
  }
  return found;
}

const isNarrow = () => matchMedia("(max-width: 47.5rem)").matches;

function frame(width, height, label) {
  return make("svg:svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
}

function drawSteps(formats, x) {
  const [width, height] = isNarrow() ? [360, 300] : [900, 340];
  const [left, bottom, top, right] = [52, 40, 12, 16];
  // What lies next to the last value is no value: its run ends there.
  const lines = formats.map((format) =>
    positive(format).flatMap(([value, step, count], place, all) => {
      const end = place === all.length - 1 ? value + (count - 1) * step : value + count * step;
      return step > 0 && end > value ? [[value, end, step]] : [];
    }),
  );
  const corners = lines.flat();
  const label = `Steps of ${formats.map((format) => format.name).join(" and ")} over the magnitude`;
  const drawn = frame(width, height, label);
  if (!corners.length) {
    return drawn;
  }
  const logs = (places) => corners.flatMap((corner) => places.map((place) => Math.log2(corner[place])));
  const span = (values) => [Math.min(...values), Math.max(...values)];
  let [lowX, highX] = span(logs([0, 1]));
  let [lowY, highY] = span(logs([2]));
  [lowY, highY, highX] = [lowY - 0.5, highY + 0.5, Math.max(highX, lowX + 1)];
  const atX = (value) => left + ((Math.log2(value) - lowX) / (highX - lowX)) * (width - left - right);
  const atY = (value) => height - bottom - ((Math.log2(value) - lowY) / (highY - lowY)) * (height - bottom - top);
  ticks(lowX, highX, isNarrow() ? 6 : 14).forEach((at) => {
    const place = atX(2 ** at);
    drawn.append(make("svg:line", { x1: place, x2: place, y1: top, y2: height - bottom, class: "grid" }));
    drawn.append(make("svg:text", { x: place, y: height - bottom + 16, "text-anchor": "middle" }, power(at)));
  });
  ticks(lowY, highY, 8).forEach((at) => {
    const place = atY(2 ** at);
    drawn.append(make("svg:line", { x1: left, x2: width - right, y1: place, y2: place, class: "grid" }));
    drawn.append(make("svg:text", { x: left - 6, y: place + 4, "text-anchor": "end" }, power(at)));
  });
  drawn.append(make("svg:text", { x: (left + width) / 2, y: height - 5, "text-anchor": "middle" }, "magnitude"));
  lines.forEach((line, place) => {
    const path = line.map(([from, to, step]) => `${atX(from).toFixed(2)},${atY(step).toFixed(2)} ${atX(to).toFixed(2)},${atY(step).toFixed(2)}`);
    drawn.append(make("svg:polyline", { points: path.join(" "), class: `series-${place}` }));
  });
  const magnitude = Math.abs(x);
  if (Math.log2(magnitude) >= lowX && Math.log2(magnitude) <= highX) {
    const place = atX(magnitude);
    drawn.append(make("svg:line", { x1: place, x2: place, y1: top, y2: height - bottom, class: "mark" }));
  }
  return drawn;
}

// The values around x, three on each side, on a line.
function drawLine(format, x) {
  const [width, height] = isNarrow() ? [360, 96] : [900, 96];
  const { below, above } = around(format, x);
  const shown = [];
  for (let [at, left] = [below, 3]; at && left > 0; left -= 1) {
    shown.unshift(at);
    at = at.place > 0 ? element(format, at.run, at.place - 1) : at.run > 0 ? element(format, at.run - 1, format.runs[at.run - 1][2] - 1) : null;
  }
  for (let [at, left] = [above, 3]; at && left > 0; left -= 1) {
    shown.push(at);
    at = element(format, at.run, at.place + 1);
  }
  const drawn = frame(width, height, `${written(x)} among the values of ${format.name}`);
  const values = shown.map((one) => one.value);
  const [low, high] = [Math.min(x, ...values), Math.max(x, ...values)];
  const place = (value) => 40 + ((value - low) / (high - low || 1)) * (width - 80);
  drawn.append(make("svg:line", { x1: 20, x2: width - 20, y1: 56, y2: 56, class: "axis" }));
  shown.forEach((one, at) => {
    const away = place(one.value);
    drawn.append(make("svg:line", { x1: away, x2: away, y1: 46, y2: 66, class: one.odd ? "odd" : "even" }));
    const crowded = isNarrow() && one !== below && one !== above;
    if (!crowded) {
      drawn.append(make("svg:text", { x: away, y: 84, "text-anchor": "middle" }, rounded(one.value)));
    }
    if (at) {
      const middle = place((one.value + shown[at - 1].value) / 2);
      drawn.append(make("svg:line", { x1: middle, x2: middle, y1: 52, y2: 60, class: "tie" }));
    }
  });
  drawn.append(make("svg:path", { d: `M${place(x)} 44 l-6 -12 h12 z`, class: "mark" }));
  drawn.append(make("svg:text", { x: place(x), y: 24, "text-anchor": "middle", class: "typed" }, rounded(x)));
  return drawn;
}

function said(format, x) {
  if (!Number.isFinite(x)) {
    return `${written(x)} lies on no line of values.`;
  }
  const { below, above, middle } = around(format, x);
  if (below && below.value === x) {
    return `${written(x)} is a value of ${format.name}, code ${hexadecimal(format, codeOf(format, below, x))}.`;
  }
  if (!below || !above) {
    return `${written(x)} lies beyond the ${below ? "largest" : "lowest"} value, ${written((below || above).value)}.`;
  }
  const share = (x - below.value) / (above.value - below.value);
  const tie = x === middle ? ", a tie" : "";
  return `${written(x)} lies ${rounded(100 * share)} % of the way from ${written(below.value)} to ${written(above.value)}${tie}.`;
}

function codeOf(format, one, x) {
  return one.value === 0 ? format.zero[Object.is(x, -0) ? 1 : 0] : one.code;
}

function row(...cells) {
  const made = make("tr", {});
  cells.forEach(([text, kind]) => made.append(make("td", kind ? { class: kind } : {}, text)));
  return made;
}

function modeRows(format, x, policy) {
  const rows = DATA.modes.map((mode) => {
    const { code, value, why } = treated(format, DATA.modes, x, mode, policy);
    const error = value - x;
    return row([mode], [written(value), "n"], [hexadecimal(format, code)], [bitsOf(format, code), "bits"],
      [Number.isFinite(error) ? rounded(error) : "\u2013", "n"], [why]);
  });
  const { below, above } = Number.isFinite(x) ? around(format, x) : {};
  if (below && above && below.value !== x) {
    const share = (x - below.value) / (above.value - below.value);
    rows.push(row(["stochastic"], [`${written(below.value)} or ${written(above.value)}`, "n"], ["\u2013"], ["\u2013", "bits"], ["\u2013", "n"],
      [`the upper in ${rounded(100 * share)} % of draws, to the bits drawn`]));
  }
  return rows;
}

// All values by code, or runs of evenly spaced ones where there are many.
function valueRows(format) {
  const count = format.runs.reduce((sum, run) => sum + run[2], 0);
  if (count > LISTED) {
    const rows = format.runs.map(([value, step, many, code]) =>
      row([hexadecimal(format, code)], [written(value), "n"], [written(value + (many - 1) * step), "n"], [written(step), "n"], [many.toLocaleString("en"), "n"]));
    return { heads: ["first code", "from", "to", "step", "values"], rows, note: "Runs of evenly spaced values, from the lowest up." };
  }
  const codes = new Map(Object.keys(format.special).map((code) => [Number(code), ""]));
  format.runs.forEach(([, step, many, code, codeStep]) => {
    for (let place = 0; place < many; place += 1) {
      codes.set(code + place * codeStep, step > 0 ? written(step) : "");
    }
  });
  format.zero.forEach((code) => codes.has(code) || codes.set(code, ""));
  const rows = [...codes.keys()].sort((a, b) => a - b).map((code) =>
    row([hexadecimal(format, code)], [bitsOf(format, code), "bits"], [written(valueOfCode(format, code)), "n"], [codes.get(code) || "\u2013", "n"]));
  const fields = format.fields.map(([name]) => name).join(", ");
  return { heads: ["code", `bits (${fields})`, "value", "step upward"], rows, note: "By code; NaN has more codes in some formats, of which those are here that casts return." };
}

function showValues(format) {
  const table = part("values");
  const { heads, rows, note } = valueRows(format);
  const numeric = (head) => ["value", "step upward", "from", "to", "step", "values"].includes(head);
  table.tHead.rows[0].replaceChildren(...heads.map((head) => make("th", numeric(head) ? { scope: "col", class: "n" } : { scope: "col" }, head)));
  table.tBodies[0].replaceChildren(...rows);
  makeSortable(table);
  const before = table.closest(".scroll").previousElementSibling;
  if (before.classList.contains("filter")) {
    before.remove();
  }
  addFilter(table);
  part("values-note").textContent = note;
}

// Numbers worth trying, next to what is typed.
function presets(format, x) {
  const near = Number.isFinite(x) ? x : 0;
  const { below, above, middle } = around(format, near);
  const next = below && above && below.value === near ? (near + above.value) / 2 : middle;
  const past = format.ends[1] === null ? 2 * largest(format) : (largest(format) + format.ends[1]) / 2;
  const smallest = positive(format)[0][0];
  return [
    ["value below", below && below.value !== near ? below.value : below && neighbourBelow(format, below)],
    ["tie above", below && above ? next : null],
    ["value above", above ? above.value : null],
    ["half the smallest", smallest / 2],
    ["smallest", smallest],
    ["largest", largest(format)],
    ["tie past the largest", past],
    ["far above", 4 * largest(format)],
    ["\u22120", -0],
    ["Inf", Infinity],
    ["\u2212Inf", -Infinity],
    ["NaN", NaN],
  ];
}

function neighbourBelow(format, one) {
  if (one.place > 0) {
    return element(format, one.run, one.place - 1).value;
  }
  return one.run > 0 ? element(format, one.run - 1, format.runs[one.run - 1][2] - 1).value : null;
}

function showNumber(format) {
  const typed = numberOf(part("number").value);
  part("number").setAttribute("aria-invalid", String(typed === null));
  if (typed === null) {
    part("said").textContent = "That is no number: try 0.3, 1/3, 2^-9, inf or nan.";
    part("modes").tBodies[0].replaceChildren();
    part("line").replaceChildren();
    return;
  }
  part("said").textContent = said(format, typed);
  part("modes").tBodies[0].replaceChildren(...modeRows(format, typed, part("policy").value));
  [...part("modes").tHead.rows[0].cells].forEach((head) => head.removeAttribute("aria-sort"));
  part("line").replaceChildren(...(Number.isFinite(typed) ? [drawLine(format, typed)] : []));
  presets(format, typed).forEach(([, value], place) => {
    const button = part("presets").children[place];
    button.disabled = value === null;
    button.dataset.value = value === null ? "" : Object.is(value, -0) ? "-0" : String(value);
  });
}

function showFormat() {
  const format = FORMATS.get(part("format").value);
  const beside = FORMATS.get(part("beside").value);
  part("facts").textContent = factsOf(format);
  part("source").textContent = `Source: ${format.source}`;
  const shown = beside ? [format, beside] : [format];
  part("steps").replaceChildren(drawSteps(shown, numberOf(part("number").value) ?? NaN));
  const keys = shown.map((one, place) => make("span", { class: `key series-${place}` }, one.name));
  part("legend").replaceChildren(...keys);
  showNumber(format);
}

function start() {
  const options = () => [...FORMATS.keys()].map((name) => make("option", { value: name }, name));
  part("format").append(...options());
  part("beside").append(make("option", { value: "" }, "nothing"), ...options());
  part("policy").append(...Object.keys(DATA.formats[0].past).map((name) => make("option", { value: name }, name)));
  part("format").value = DATA.first;
  presets(FORMATS.get(DATA.first), 0).forEach(([name]) => {
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", () => {
      part("number").value = button.dataset.value;
      showFormat();
    });
    part("presets").append(button);
  });
  part("format").addEventListener("change", () => {
    showFormat();
    showValues(FORMATS.get(part("format").value));
  });
  ["beside", "policy"].forEach((name) => part(name).addEventListener("change", showFormat));
  part("number").addEventListener("input", showFormat);
  matchMedia("(max-width: 47.5rem)").addEventListener("change", showFormat);
  showFormat();
  showValues(FORMATS.get(part("format").value));
}

start();
