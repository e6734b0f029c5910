// One chart on a canvas: curves of many runs over one another, with a cursor, zoom, and a table of its numbers.
import { duration, make, short, style, swatch } from "./dom.js";

const MARGIN = { left: 48, right: 8, top: 6, bottom: 20 };
const PAD = 4; // between the frame and the first and last value
const BANDED = 12; // curves whose bands are drawn; more would hide one another
const NAMED = 10; // runs that the cursor names at most, in a large chart twice as many

function ticks(low, high, most) {
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.max(0, Math.min(50, last - first + 1)) }, (_, i) => (first + i) * step);
}

// A number that fits beside the y axis.
function narrow(value) {
  const text = short(value);
  return text.length > 6 ? Number(value.toPrecision(4)).toExponential() : text;
}

function clockTicks(low, high, most) {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 2592000];
  const step = steps.find((one) => (high - low) / one <= most) ?? (high - low) / most;
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.max(0, Math.floor(high / step) - first + 1) }, (_, i) => (first + i) * step);
}

function clock(seconds) {
  if (seconds < 60) return `${Number(seconds.toPrecision(3))} s`;
  const two = (value) => String(Math.round(value)).padStart(2, "0");
  if (seconds < 3600) return seconds % 60 ? `${Math.floor(seconds / 60)}:${two(seconds % 60)} min` : `${seconds / 60} min`;
  if (seconds < 172800) return seconds % 3600 ? `${Math.floor(seconds / 3600)}:${two((seconds % 3600) / 60)} h` : `${seconds / 3600} h`;
  return `${Number((seconds / 86400).toPrecision(3))} d`;
}

function decades(low, high) {
  const found = [];
  const parts = high - low < 1.5 ? [1, 2, 3, 5] : high - low < 3 ? [1, 3] : [1];
  for (let power = Math.floor(low); power <= high; power++) for (const part of parts) found.push(power + Math.log10(part));
  const inside = found.filter((value) => value >= low && value <= high);
  return inside.length > 2 ? inside : ticks(10 ** low, 10 ** high, 5).filter((value) => value > 0).map(Math.log10);
}

// The mean over the neighbours of each value; nulls stay. It does not lag, since the window lies on both sides.
export function smoothed(values, half) {
  if (half < 1) return values;
  const sums = [0], counts = [0];
  for (const value of values) {
    sums.push(sums.at(-1) + (value ?? 0));
    counts.push(counts.at(-1) + (value === null ? 0 : 1));
  }
  return values.map((value, i) => {
    const reach = Math.min(half, i, values.length - 1 - i);
    const n = counts[i + reach + 1] - counts[i - reach];
    return value === null || !n ? null : (sums[i + reach + 1] - sums[i - reach]) / n;
  });
}

function quantile(values, share) {
  const order = Float64Array.from(values).sort();
  return order[Math.round(share * (order.length - 1))];
}

function place(xs, wanted) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < wanted) low = middle;
    else high = middle;
  }
  return Math.abs(xs[low] - wanted) <= Math.abs(xs[high] - wanted) ? low : high;
}

export class Chart {
  // on: {zoom(range), light(run id or null)}.
  constructor(metric, about, on) {
    Object.assign(this, { metric, about, on, curves: [], options: {}, cursor: null, lit: null, drag: null, visible: false });
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.unit = make("span", { class: "note" });
    this.tip = make("div", { class: "tip", hidden: "" });
    this.toggle = make("button", { type: "button", "aria-expanded": "false", title: "show the numbers as a table" }, "numbers");
    this.numbers = make("div", { class: "numbers", hidden: "" });
    const title = make("h3", { title: metric }, make("bdi", {}, about.title));
    this.figure = make("figure", { tabindex: "0" }, make("figcaption", {}, title, this.unit, this.toggle), this.canvas, this.tip, this.numbers);
    this.figure.chart = this;
    this.toggle.addEventListener("click", () => {
      this.numbers.hidden = !this.numbers.hidden;
      this.toggle.setAttribute("aria-expanded", String(!this.numbers.hidden));
      this.tabulate();
    });
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.leave());
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse" && event.button === 0) this.drag = { from: event.offsetX, to: event.offsetX };
    });
    this.canvas.addEventListener("pointerup", () => this.drop());
    this.canvas.addEventListener("dblclick", () => this.on.zoom(null));
    this.figure.addEventListener("keydown", (event) => this.key(event));
    this.figure.addEventListener("blur", () => this.leave());
  }

  // curves: [{id, name, slot, x, y, low?, high?}]. options: {axis, log, all, smooth, zoom}.
  show(curves, options) {
    this.options = options;
    this.curves = curves.map((curve) => {
      const half = curve.y.length > 50 ? Math.round((curve.y.length * options.smooth) / 1000) : 0;
      return { ...curve, line: smoothed(curve.y, half), half };
    });
    const over = { step: "steps", tokens: "tokens", time: "wall time" }[options.axis];
    this.unit.textContent = [this.about.unit, `over ${over}`].filter(Boolean).join(", ");
    this.figure.setAttribute("aria-label", `${this.about.title}: ${curves.length} ${curves.length === 1 ? "run" : "runs"} over ${over}`);
    this.limits();
    this.draw();
    if (!this.numbers.hidden) this.tabulate();
  }

  limits() {
    const { zoom, all } = this.options;
    let [left, right, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const { x } of this.curves) if (x.length) [left, right] = [Math.min(left, x[0]), Math.max(right, x.at(-1))];
    if (zoom) [left, right] = zoom;
    let least = Infinity;
    const [lows, highs, banded] = [[], [], all || this.curves.length <= BANDED];
    for (const curve of this.curves) {
      const skip = all || zoom || curve.line.length < 40 ? 0 : Math.floor(curve.line.length / 20); // the first steps would flatten the rest
      for (let i = skip; i < curve.line.length; i++) {
        if (curve.line[i] === null || curve.x[i] < left || curve.x[i] > right) continue;
        [low, high] = [Math.min(low, curve.line[i]), Math.max(high, curve.line[i])];
        lows.push((banded && curve.low?.[i]) || curve.y[i]);
        highs.push((banded && curve.high?.[i]) || curve.y[i]);
        if (curve.line[i] > 0) least = Math.min(least, curve.line[i]);
      }
    }
    if (lows.length) {
      low = Math.min(low, quantile(lows, all ? 0 : 0.02));
      high = Math.max(high, quantile(highs, all ? 1 : 0.98));
    }
    const log = this.options.log || (this.about.log && high > 10 * least);
    this.logarithmic = log && least < Infinity && high > 0;
    this.scale = this.logarithmic ? (value) => Math.log10(value) : (value) => value;
    if (this.logarithmic) [low, high] = [Math.log10(low > 0 ? low : least), Math.log10(high)];
    if (low > high) [low, high] = [0, 1];
    const flat = high - low <= 1e-9 * Math.abs(high); // but for rounding
    const margin = flat ? 0.06 * Math.abs(high) || 1 : 0.06 * (high - low);
    Object.assign(this, { left, right: right > left ? right : left + 1, low: low - margin, high: high + margin, empty: left === Infinity });
  }

  px(x) {
    return MARGIN.left + PAD + ((x - this.left) / (this.right - this.left)) * (this.width - MARGIN.left - MARGIN.right - 2 * PAD);
  }

  // The value of the x axis at a place of the canvas.
  value(px) {
    return this.left + ((px - MARGIN.left - PAD) / (this.width - MARGIN.left - MARGIN.right - 2 * PAD)) * (this.right - this.left);
  }

  py(y) {
    return this.height - MARGIN.bottom - ((this.scale(y) - this.low) / (this.high - this.low)) * (this.height - MARGIN.top - MARGIN.bottom);
  }

  // Draws when the browser next does, and only what can be seen.
  draw() {
    if (this.waiting || !this.visible) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.paint();
    });
  }

  paint() {
    const ratio = devicePixelRatio || 1;
    [this.width, this.height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    if (!this.width) return;
    [this.canvas.width, this.canvas.height] = [this.width * ratio, this.height * ratio];
    const pen = this.canvas.getContext("2d");
    const css = getComputedStyle(document.documentElement);
    const colour = (name) => css.getPropertyValue(`--${name}`).trim();
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.font = "11px system-ui, sans-serif";
    if (this.empty) {
      pen.fillStyle = colour("muted");
      pen.textAlign = "center";
      pen.fillText("none of the chosen runs has it over this axis", this.width / 2, this.height / 2);
      return;
    }
    this.axes(pen, colour);
    pen.save();
    pen.beginPath();
    pen.rect(MARGIN.left, MARGIN.top, this.width - MARGIN.left - MARGIN.right, this.height - MARGIN.top - MARGIN.bottom);
    pen.clip();
    const faint = [0.2, 0.16, 0.12, 0.09, 0.07][this.curves.length] ?? (this.curves.length <= BANDED ? 0.045 : 0);
    const order = [...this.curves].sort((one, other) => (one.id === this.lit) - (other.id === this.lit));
    for (const curve of order) {
      const { colour: n, dash } = style(curve.slot);
      const others = this.lit !== null && curve.id !== this.lit;
      pen.strokeStyle = pen.fillStyle = colour(`c${n}`);
      if (curve.low && !others && (faint || curve.id === this.lit)) {
        pen.globalAlpha = curve.id === this.lit ? 0.22 : faint;
        this.band(pen, curve);
      } else if (curve.half && !others && !curve.low && faint) {
        pen.globalAlpha = 2 * faint;
        this.line(pen, curve.x, curve.y, [], 0.8);
      }
      pen.globalAlpha = others ? 0.22 : 1;
      this.line(pen, curve.x, curve.line, dash, curve.id === this.lit ? 2.6 : this.curves.length > 20 ? 1.2 : 1.6);
      if (curve.x.length <= 30) this.dots(pen, curve);
    }
    pen.globalAlpha = 1;
    pen.setLineDash([]);
    if (this.cursor !== null) {
      pen.strokeStyle = colour("muted");
      pen.lineWidth = 1;
      pen.beginPath();
      pen.moveTo(this.px(this.cursor), 0);
      pen.lineTo(this.px(this.cursor), this.height);
      pen.stroke();
    }
    if (this.drag) {
      pen.globalAlpha = 0.15;
      pen.fillStyle = colour("accent");
      pen.fillRect(this.drag.from, 0, this.drag.to - this.drag.from, this.height);
    }
    pen.restore();
  }

  axes(pen, colour) {
    pen.strokeStyle = colour("line");
    pen.fillStyle = colour("muted");
    pen.lineWidth = 1;
    const bottom = this.height - MARGIN.bottom;
    const time = this.options.axis === "time";
    const most = Math.max(2, Math.floor(this.width / 90));
    pen.textAlign = "center";
    for (const tick of time ? clockTicks(this.left, this.right, most) : ticks(this.left, this.right, most)) {
      if (this.options.axis === "step" && !Number.isInteger(Number(tick.toPrecision(12)))) continue;
      const x = Math.round(this.px(tick)) + 0.5;
      pen.beginPath();
      pen.moveTo(x, MARGIN.top);
      pen.lineTo(x, bottom);
      pen.stroke();
      const text = time ? clock(tick) : short(tick);
      const half = pen.measureText(text).width / 2;
      pen.fillText(text, Math.min(Math.max(x, half), this.width - half), bottom + 14);
    }
    pen.textAlign = "right";
    for (const tick of this.logarithmic ? decades(this.low, this.high) : ticks(this.low, this.high, Math.max(2, this.height / 38))) {
      const y = Math.round(bottom - ((tick - this.low) / (this.high - this.low)) * (bottom - MARGIN.top)) + 0.5;
      pen.beginPath();
      pen.moveTo(MARGIN.left, y);
      pen.lineTo(this.width - MARGIN.right, y);
      pen.stroke();
      pen.fillText(narrow(this.logarithmic ? 10 ** tick : tick), MARGIN.left - 5, y + 4);
    }
  }

  line(pen, xs, ys, dash, width) {
    pen.setLineDash(dash);
    pen.lineWidth = width;
    pen.lineJoin = "round";
    pen.beginPath();
    let begun = false;
    for (let i = 0; i < xs.length; i++) {
      const y = ys[i] === null || (this.logarithmic && ys[i] <= 0) ? null : this.py(ys[i]);
      if (y === null) begun = false;
      else if (begun) pen.lineTo(this.px(xs[i]), y);
      else {
        pen.moveTo(this.px(xs[i]), y);
        begun = true;
      }
    }
    pen.stroke();
  }

  band(pen, { x, low, high }) {
    const known = [...x.keys()].filter((i) => low[i] !== null && (!this.logarithmic || low[i] > 0));
    pen.beginPath();
    for (const i of known) pen.lineTo(this.px(x[i]), this.py(high[i]));
    for (const i of known.reverse()) pen.lineTo(this.px(x[i]), this.py(low[i]));
    pen.fill();
  }

  dots(pen, { x, line }) {
    pen.beginPath();
    for (let i = 0; i < x.length; i++) {
      if (line[i] === null || (this.logarithmic && line[i] <= 0)) continue;
      pen.moveTo(this.px(x[i]) + 2.4, this.py(line[i]));
      pen.arc(this.px(x[i]), this.py(line[i]), 2.4, 0, 7);
    }
    pen.fill();
  }

  // The cursor, by pointer or by keys.

  point(event) {
    if (this.drag && event.buttons) {
      this.drag.to = event.offsetX;
      this.tip.hidden = true;
      return this.draw();
    }
    this.drag = null;
    this.read(this.value(event.offsetX), event.offsetY);
  }

  read(wanted, height = null) {
    const found = this.curves
      .filter((curve) => curve.x.length)
      .map((curve) => ({ curve, i: place(curve.x, wanted) }))
      .filter(({ curve, i }) => curve.line[i] !== null && curve.x[0] <= wanted + (this.right - this.left) / 50 && curve.x.at(-1) >= wanted - (this.right - this.left) / 50);
    if (!found.length) return this.leave();
    const away = ({ curve, i }) => Math.abs(this.py(curve.line[i]) - (height ?? 0));
    const nearest = height === null ? null : found.reduce((one, other) => (away(other) < away(one) ? other : one));
    const at = (nearest ?? found.reduce((one, other) => (Math.abs(other.curve.x[other.i] - wanted) < Math.abs(one.curve.x[one.i] - wanted) ? other : one)));
    this.cursor = at.curve.x[at.i];
    this.lit = nearest && found.length > 1 ? nearest.curve.id : null;
    this.on.light(this.lit);
    found.sort((one, other) => other.curve.line[other.i] - one.curve.line[one.i]);
    let shown = found;
    const most = this.height > 300 ? 2 * NAMED : NAMED;
    if (found.length > most) {
      const begin = Math.max(0, Math.min(found.length - most, found.indexOf(at) - most / 2));
      shown = found.slice(begin, begin + most);
    }
    const time = this.options.axis === "time";
    const head = make("div", {}, make("span", { class: "note" }, time ? duration(this.cursor) : `${this.options.axis} ${this.cursor.toLocaleString("en")}`));
    const rows = shown.map(({ curve, i }) => {
      const [y, low, high] = [curve.line[i], curve.low?.[i], curve.high?.[i]];
      const range = curve.id === this.lit && low !== undefined && low !== high ? ` (${short(low)} to ${short(high)})` : "";
      return make("div", { class: curve.id === this.lit ? "lit" : null }, swatch(curve.slot), make("bdi", {}, curve.name), make("b", {}, short(y) + range));
    });
    if (shown.length < found.length) rows.push(make("div", { class: "note" }, `and ${found.length - shown.length} more`));
    this.tip.replaceChildren(head, ...rows);
    this.tip.hidden = false;
    const right = this.px(this.cursor) < this.width / 2;
    this.tip.style.left = right ? "auto" : `${MARGIN.left + 14}px`;
    this.tip.style.right = right ? "12px" : "auto";
    this.draw();
  }

  leave() {
    if (this.cursor === null && !this.drag) return;
    Object.assign(this, { cursor: null, lit: null, drag: null });
    this.tip.hidden = true;
    this.on.light(null);
    this.draw();
  }

  drop() {
    const drag = this.drag;
    this.drag = null;
    if (!drag || Math.abs(drag.to - drag.from) < 8) return this.draw();
    const [from, to] = [this.value(drag.from), this.value(drag.to)].sort((one, other) => one - other);
    this.on.zoom([Math.max(this.left, from), Math.min(this.right, to)]);
  }

  key(event) {
    if (event.target !== this.figure || !["ArrowLeft", "ArrowRight"].includes(event.key) || this.empty) return;
    event.preventDefault();
    const longest = this.curves.reduce((one, other) => (other.x.length > one.x.length ? other : one));
    const by = (event.key === "ArrowLeft" ? -1 : 1) * (event.shiftKey ? 10 : 1);
    const now = this.cursor === null ? (by < 0 ? longest.x.length : -1) : place(longest.x, this.cursor);
    this.read(longest.x[Math.min(Math.max(now + by, 0), longest.x.length - 1)]);
  }

  // The numbers of the chart as a table.
  tabulate() {
    if (this.numbers.hidden) return;
    const rows = this.curves.map((curve) => {
      const known = curve.y.filter((value) => value !== null);
      const least = (curve.low ?? curve.y).reduce((one, other) => (other === null ? one : Math.min(one, other)), Infinity);
      const most = (curve.high ?? curve.y).reduce((one, other) => (other === null ? one : Math.max(one, other)), -Infinity);
      const name = make("th", { scope: "row" }, swatch(curve.slot), " ", make("bdi", {}, curve.name));
      const cells = known.length ? [known.at(-1), least, most].map((value) => make("td", {}, short(value, 5))) : [make("td", { colspan: 3 }, "–")];
      return make("tr", {}, name, ...cells);
    });
    const head = ["run", "last", "lowest", "highest"].map((name) => make("th", { scope: "col" }, name));
    this.numbers.replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)));
  }
}
