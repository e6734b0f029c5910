// Elements and texts of the page. Every text becomes a text node, never HTML.

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, content] of Object.entries(attributes)) if (content !== null && content !== undefined) element.setAttribute(name, content);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const NAMESPACE = "http://www.w3.org/2000/svg";
const COLOURS = 8;
const DASHES = [[], [6, 3], [2, 2], [9, 3, 2, 3], [12, 4], [4, 2, 1, 2, 1, 2], [1, 4]];

// The line of a run by its slot: 56 slots differ by colour or by dashes, the first 8 by colour alone.
export function style(slot) {
  return { colour: slot % COLOURS, dash: DASHES[Math.floor(slot / COLOURS) % DASHES.length] };
}

export function swatch(slot) {
  const svg = document.createElementNS(NAMESPACE, "svg");
  for (const [name, content] of Object.entries({ class: "swatch", viewBox: "0 0 26 8", "aria-hidden": "true" })) svg.setAttribute(name, content);
  if (slot === undefined) return svg;
  const { colour, dash } = style(slot);
  const line = document.createElementNS(NAMESPACE, "line");
  const shape = { x1: 0, x2: 26, y1: 4, y2: 4, stroke: `var(--c${colour})`, "stroke-width": 2.6, "stroke-dasharray": dash.join(" ") };
  for (const [name, content] of Object.entries(shape)) line.setAttribute(name, content);
  svg.append(line);
  return svg;
}

export function short(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  const units = [[1e12, 1e12, "T"], [1e9, 1e9, "B"], [1e6, 1e6, "M"], [1e4, 1e3, "k"]];
  for (const [least, size, unit] of units) if (Math.abs(value) >= least) return Number((value / size).toPrecision(digits)) + unit;
  return String(Number(Number(value).toPrecision(digits)));
}

export const count = (value) => (value === null || value === undefined ? "–" : Number(value).toLocaleString("en", { maximumFractionDigits: 0 }));
export const percent = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`);

export function bytes(value) {
  if (value === null || value === undefined) return "many files";
  for (const [size, unit] of [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]])
    if (value >= size) return `${(value / size).toPrecision(3)} ${unit}`;
  return `${value} B`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds > 0 && seconds < 0.1) return "< 0.1 s";
  if (seconds < 60) return `${Number(seconds.toPrecision(3))} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  if (whole < 172800) return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

export function date(seconds) {
  if (!seconds) return "–";
  const day = new Date(seconds * 1000);
  const two = (value) => String(value).padStart(2, "0");
  return `${day.getFullYear()}-${two(day.getMonth() + 1)}-${two(day.getDate())} ${two(day.getHours())}:${two(day.getMinutes())}`;
}

export function ago(seconds) {
  const passed = Date.now() / 1000 - seconds;
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) if (passed >= size) return `${Math.floor(passed / size)} ${unit} ago`;
  return passed < 5 ? "just now" : `${Math.floor(passed)} s ago`;
}

// A path whose folders are muted: the last part tells runs apart.
export function pathOf(name) {
  const at = name.lastIndexOf("/") + 1;
  return [make("span", {}, make("bdi", {}, name.slice(0, at))), make("bdi", {}, name.slice(at))];
}

const MARKS = { running: "●", finished: "✓", interrupted: "‖", crashed: "✕", diverged: "✕", damaged: "!", "no report": "◌", stopped: "■", imported: "↓", reading: "…" };

export function mark(state) {
  return make("span", { class: `mark ${state}`, title: state, role: "img", "aria-label": state }, MARKS[state] ?? "?");
}

// A table whose heads sort its rows. columns: [{name, left}]; rows: [{cells: [{node or text, value}]}].
export function sortable(columns, rows, sorted, changed) {
  const head = make("tr");
  for (const [i, column] of columns.entries()) {
    const button = make("button", { type: "button" }, column.name);
    const cell = make("th", { scope: "col", class: column.left ? "left" : null }, button);
    if (sorted.column === i) cell.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
    button.addEventListener("click", () => {
      sorted.down = sorted.column === i ? !sorted.down : !column.left;
      sorted.column = i;
      changed();
    });
    head.append(cell);
  }
  const key = (row) => row[sorted.column]?.value ?? null;
  const order = [...rows].sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === null || b === null) return (a === null) - (b === null);
    const by = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    return sorted.down ? -by : by;
  });
  const body = order.map((row) =>
    make("tr", {}, ...row.map((cell, i) => make(i ? "td" : "th", i ? { class: columns[i].left ? "left" : null } : { scope: "row" }, cell.node ?? cell.text ?? "–"))),
  );
  return make("table", { class: "pinned listing" }, make("thead", {}, head), make("tbody", {}, ...body));
}
