"use strict";
// How a format treats a number, by looking up and comparing: all values and codes are the catalogue's.
// Sums below are exact: neighbours of a format have far fewer than 53 bits between them.

// The last run whose first value is not above x; -1 where x lies below all.
function runAt(runs, x) {
  let [low, high] = [0, runs.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    [low, high] = runs[middle][0] <= x ? [middle + 1, high] : [low, middle];
  }
  return low - 1;
}

// A value of a format by its run and its place there: { value, code, odd }, null beyond the ends.
function element(format, run, place) {
  if (run < 0 || run >= format.runs.length) {
    return null;
  }
  const [value, step, count, code, codeStep, odd] = format.runs[run];
  if (place >= count) {
    return element(format, run + 1, 0);
  }
  const found = { value: value + place * step, code: code + place * codeStep, odd: (odd + place) % 2 === 1 };
  return { ...found, run, place };
}

// The values at or below and above x.
function neighbours(format, x) {
  const run = runAt(format.runs, x);
  if (run < 0) {
    return [null, element(format, 0, 0)];
  }
  const [first, step, count] = format.runs[run];
  let place = Math.min(Math.floor((x - first) / step) || 0, count - 1);
  // The quotient is rounded: the place may be one off.
  place = Math.max(place - 1, 0);
  while (place + 1 < count && first + (place + 1) * step <= x) {
    place += 1;
  }
  return [element(format, run, place), element(format, run, place + 1)];
}

// What the two values around x are, where one of them may lie beyond the format's ends.
function around(format, x) {
  const [below, above] = neighbours(format, x);
  const lower = below ? below.value : format.ends[0];
  const upper = above ? above.value : format.ends[1];
  return { below, above, lower, upper, middle: (lower + upper) / 2 };
}

// Whether the upper of the two values around x is taken.
function takesUpper(x, found, mode) {
  const { below, above, lower, upper, middle } = found;
  const even = below ? !below.odd : above.odd;
  const same = Math.abs(lower) === Math.abs(upper);
  const towardZero = same ? x >= 0 : Math.abs(upper) < Math.abs(lower);
  const awayFromZero = same ? x >= 0 : !towardZero;
  switch (mode) {
    case "toward_zero":
      return towardZero;
    case "toward_positive":
      return true;
    case "toward_negative":
      return false;
    case "to_odd":
      return even;
  }
  if (x !== middle) {
    return x > middle;
  }
  return { nearest_even: !even, nearest_away: awayFromZero, nearest_toward_zero: towardZero }[mode];
}

const TIES = {
  nearest_even: "a tie: the even code",
  nearest_away: "a tie: away from zero",
  nearest_toward_zero: "a tie: toward zero",
};
const DIRECTIONS = {
  toward_zero: "toward zero",
  toward_positive: "upward",
  toward_negative: "downward",
  to_odd: "the odd code",
};

// The value of a code as a number, -0 and NaN included.
function valueOfCode(format, code) {
  if (code in format.special) {
    return Number(format.special[code]);
  }
  if (format.zero.includes(code)) {
    const minus = code === format.zero[1] && format.zero[0] !== format.zero[1];
    return minus ? -0 : 0;
  }
  for (const [value, step, count, first, codeStep] of format.runs) {
    const place = (code - first) * codeStep;
    if (place >= 0 && place < count) {
      return value + place * step;
    }
  }
  return NaN;
}

// What a cast returns of x: its code, its value, and in words why.
function treated(format, modes, x, mode, policy) {
  const minus = x < 0 || Object.is(x, -0);
  const give = (code, why) => ({ code, value: valueOfCode(format, code), why });
  const past = format.past[policy][minus ? 0 : 1];
  if (Number.isNaN(x)) {
    return give(format.nan[0], format.nan[0] in format.special ? "NaN stays" : "no NaN: as ml_dtypes");
  }
  if (x < 0 && format.negative !== null) {
    return give(format.negative, "there are no negative values");
  }
  if (!Number.isFinite(x)) {
    return give(past[0], `Inf under ${policy}`);
  }
  const found = around(format, x);
  const { below, above, lower, upper } = found;
  const chosen = (one, why) => give(one.value === 0 ? format.zero[minus ? 1 : 0] : one.code, why);
  if (below && below.value === x) {
    return chosen(below, "exact");
  }
  if (lower === null || upper === null) {
    return chosen(below || above, "there is nothing beyond it");
  }
  const overflows = give(past[1 + modes.indexOf(mode)], `overflow under ${policy}`);
  if ((!below && x <= lower) || (!above && x >= upper)) {
    return overflows;
  }
  const up = takesUpper(x, found, mode);
  const one = up ? above : below;
  if (!one) {
    return overflows;
  }
  return chosen(one, DIRECTIONS[mode] || (x === found.middle ? TIES[mode] : "the nearer"));
}

// What is typed as a number: decimals, fractions, powers (2^-9), inf and nan; null where none.
function numberOf(text) {
  const plain = text.trim().replace(/\u2212/g, "-").replace(/\u221e/g, "inf").toLowerCase();
  const special = { inf: Infinity, "+inf": Infinity, "-inf": -Infinity, nan: NaN, infinity: Infinity, "-infinity": -Infinity };
  if (plain in special) {
    return special[plain];
  }
  const power = /^([+-]?)(\d+(?:\.\d+)?)\^([+-]?\d+)$/.exec(plain);
  if (power) {
    return (power[1] === "-" ? -1 : 1) * Number(power[2]) ** Number(power[3]);
  }
  const parts = plain.split("/");
  const number = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/;
  if (parts.length > 2 || !parts.every((part) => number.test(part.trim()))) {
    return null;
  }
  return parts.map(Number).reduce((a, b) => a / b);
}
