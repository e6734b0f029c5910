// Sorts and filters the table of runs, draws the curves of the runs that the reader chooses, and in the page of lm.dashboard
// asks for a newer page, in which all that the reader chose stays. See lm/reports/runs.py.
let newest, styles, groups; // the data of the page
const NAMESPACE = "http://www.w3.org/2000/svg";
const FRAME = { width: 389, height: 245, left: 51, right: 377, top: 10, bottom: 208 };
document.documentElement.classList.add("js");

function make(tag, attributes = {}, ...children) {
  const drawn = ["svg", "g", "path", "line", "text", "circle", "clipPath", "rect"].includes(tag);
  const element = drawn ? document.createElementNS(NAMESPACE, tag) : document.createElement(tag);
  for (const [name, content] of Object.entries(attributes)) element.setAttribute(name, content);
  element.append(...children);
  return element;
}

// The table of all runs.

let table, rows, filters;
let sorting = null; // {column, down}

function keys(cell) {
  const text = cell.dataset.value ?? cell.textContent.trim();
  return { group: cell.dataset.group ?? "", text, empty: text === "" || text === "–", number: Number(text) };
}

function compare(one, other) {
  const numbers = !Number.isNaN(one.number) && !Number.isNaN(other.number);
  return one.group.localeCompare(other.group) || (numbers ? one.number - other.number : one.text.localeCompare(other.text, "en", { numeric: true }));
}

function sort({ column, down }) {
  sorting = { column, down };
  for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", down ? "descending" : "ascending");
  const keyed = rows.map((row) => [row, keys(row.cells[column])]);
  keyed.sort(([, one], [, other]) => one.empty - other.empty || (down ? -1 : 1) * compare(one, other)); // empty cells: at the end
  table.tBodies[0].append(...keyed.map(([row]) => row));
}

function filter() {
  const wanted = filters.text.value.trim().toLowerCase().split(/\s+/);
  for (const row of rows) {
    const fits = (name) => !filters[name].value || filters[name].value === row.dataset[name];
    const text = row.textContent.toLowerCase();
    row.hidden = !(fits("kind") && fits("state") && wanted.every((word) => text.includes(word)));
  }
  const shown = rows.filter((row) => !row.hidden).length;
  filters.querySelector("[role=status]").textContent = `${shown} of ${rows.length} runs`;
}

function setUpTable() {
  table = document.getElementById("runs");
  rows = [...table.tBodies[0].rows];
  filters = document.getElementById("filters");
  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    const button = make("button", { type: "button" }, ...head.childNodes);
    button.addEventListener("click", () => sort({ column, down: head.getAttribute("aria-sort") === "ascending" }));
    head.append(button);
  }
  if (sorting) sort(sorting);
  filters.hidden = false;
  filters.addEventListener("input", filter);
  filters.addEventListener("submit", (event) => event.preventDefault());
  filter();
}

addEventListener("hashchange", () => {
  const row = rows.find((one) => "#" + one.id === location.hash);
  if (!row?.hidden) return;
  filters.reset();
  filter();
  row.scrollIntoView();
});

// Charts.

function short(value) {
  for (const [size, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size) return Number((value / size).toPrecision(4)) + unit;
  }
  return String(Number(value.toPrecision(4)));
}

function ticks(low, high, most) {
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => (first + i) * step);
}

function decades(low, high) {
  const found = [];
  for (let power = Math.floor(low); power <= high; power++) found.push(...(high - low < 2 ? [1, 2, 5] : [1]).map((x) => power + Math.log10(x)));
  return found.filter((value) => value >= low && value <= high);
}

// The value of a piecewise linear function [[x…], [y…]] at x.
function interpolate([xs, ys], x) {
  const next = xs.findIndex((one) => one >= x);
  if (next < 0) return ys.at(-1);
  if (next === 0) return xs[0] > 0 ? (ys[0] * x) / xs[0] : ys[0];
  return ys[next - 1] + ((ys[next] - ys[next - 1]) * (x - xs[next - 1])) / (xs[next] - xs[next - 1]);
}

function extent(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

function nearest(xs, x) {
  let best = 0;
  for (let i = 1; i < xs.length; i++) if (Math.abs(xs[i] - x) < Math.abs(xs[best] - x)) best = i;
  return best;
}

function draw(figure, name, chart, runs, slots, axis) {
  const over = (run, xs) => (axis ? xs.map((x) => interpolate(runs[run].tokens, x)) : xs);
  const curves = [...slots]
    .filter(([run]) => chart.curves[run] && (!axis || runs[run].tokens[0].length))
    .map(([run, slot]) => ({ ...chart.curves[run], run, slot, x: over(run, chart.curves[run].x) }));
  const svg = make("svg", { viewBox: `0 0 ${FRAME.width} ${FRAME.height}`, role: "img", "aria-label": `${chart.title}, ${curves.length} runs` });
  figure.querySelector("figcaption span").textContent = `${chart.unit}, over ${axis || "steps"}`;
  figure.querySelector("svg").replaceWith(svg);
  figure.querySelector(".hover")?.remove();
  if (!curves.length) {
    svg.append(make("text", { x: FRAME.width / 2, y: FRAME.height / 2, "text-anchor": "middle", "font-size": 11, fill: "var(--muted)" }, "none of the chosen runs has it"));
    return;
  }
  const [left, right] = extent(curves.flatMap((curve) => extent(curve.x)));
  let [low, high] = extent(curves.flatMap((curve) => curve.range ?? []));
  if (low > high) [low, high] = extent(curves.flatMap((curve) => extent(curve.y)));
  const [least] = extent(curves.flatMap((curve) => extent(curve.y)));
  const log = chart.log && least > 0 && high > 10 * low;
  const scale = log ? Math.log10 : (value) => value;
  [low, high] = [scale(low), scale(high)];
  const margin = 0.06 * (high - low) || 0.06 * Math.abs(high) || 1;
  [low, high] = [low - margin, high + margin];
  const placeX = (x) => FRAME.left + ((x - left) / (right - left || 1)) * (FRAME.right - FRAME.left - 6) + 3;
  const placeY = (y) => FRAME.bottom - ((scale(y) - low) / (high - low)) * (FRAME.bottom - FRAME.top);
  const label = (x, y, anchor, text) => make("text", { x, y, "text-anchor": anchor, "font-size": 11, fill: "var(--muted)" }, text);
  const rule = (x1, y1, x2, y2) => make("line", { x1, y1, x2, y2, stroke: "var(--line)", "stroke-width": 0.6 });
  for (const tick of ticks(left, right, 5)) {
    if (!axis && !Number.isInteger(tick)) continue;
    const x = placeX(tick);
    svg.append(rule(x, FRAME.top, x, FRAME.bottom), label(x, FRAME.bottom + 14, "middle", short(tick)));
  }
  for (const tick of log ? decades(low, high) : ticks(low, high, 6)) {
    const y = FRAME.bottom - ((tick - low) / (high - low)) * (FRAME.bottom - FRAME.top);
    svg.append(rule(FRAME.left, y, FRAME.right, y), label(FRAME.left - 4, y + 4, "end", short(log ? 10 ** tick : tick)));
  }
  svg.append(label((FRAME.left + FRAME.right) / 2, FRAME.height - 5, "middle", axis || "step"));
  const { left: x, top: y } = FRAME;
  const frame = make("rect", { x, y, width: FRAME.right - x, height: FRAME.bottom - y });
  svg.append(make("clipPath", { id: `${name}-frame` }, frame));
  const inner = make("g", { "clip-path": `url(#${name}-frame)`, fill: "none" });
  const points = (xs, ys) => "M" + xs.map((one, i) => `${placeX(one).toFixed(1)} ${placeY(ys[i]).toFixed(1)}`).join("L");
  for (const curve of curves) {
    const style = styles[curve.slot % styles.length];
    const stroke = `var(--${style.colour})`;
    if (curve.raw) inner.append(make("path", { d: points(over(curve.run, curve.raw[0]), curve.raw[1]), stroke, "stroke-width": 0.7, opacity: 0.25 }));
    inner.append(make("path", { d: points(curve.x, curve.y), stroke, "stroke-width": 1.8, "stroke-dasharray": style.dash.join(" ") }));
    if (curve.x.length <= 30) for (const [i, one] of curve.x.entries()) inner.append(make("circle", { cx: placeX(one), cy: placeY(curve.y[i]), r: 2, fill: stroke }));
  }
  const line = rule(0, FRAME.top, 0, FRAME.bottom);
  line.setAttribute("visibility", "hidden");
  svg.append(inner, line);
  const box = make("div", { class: "hover", hidden: "" });
  figure.append(box);
  svg.addEventListener("pointermove", (event) => {
    const area = svg.getBoundingClientRect();
    const at = ((event.clientX - area.left) / area.width) * FRAME.width;
    const wanted = left + ((at - FRAME.left - 3) / (FRAME.right - FRAME.left - 6)) * (right - left);
    const found = curves.map((curve) => [curve, nearest(curve.x, wanted)]);
    const place = found.map(([curve, i]) => curve.x[i]).reduce((one, other) => (Math.abs(other - wanted) < Math.abs(one - wanted) ? other : one));
    for (const name of ["x1", "x2"]) line.setAttribute(name, placeX(place));
    line.setAttribute("visibility", "visible");
    const here = found.filter(([curve, i]) => curve.x[0] <= place && place <= curve.x.at(-1));
    here.sort(([one, i], [other, k]) => other.y[k] - one.y[i]);
    const told = here.map(([curve, i]) => make("div", {}, swatch(curve.slot), make("bdi", {}, runs[curve.run].name), make("b", {}, short(curve.y[i]))));
    box.replaceChildren(make("b", {}, `${axis || "step"} ${short(place)}`), ...told);
    box.hidden = false;
    box.style.left = at < FRAME.width / 2 ? "auto" : "12%";
    box.style.right = at < FRAME.width / 2 ? "0" : "auto";
  });
  svg.addEventListener("pointerleave", () => {
    box.hidden = true;
    line.setAttribute("visibility", "hidden");
  });
}

function swatch(slot) {
  const style = styles[slot % styles.length];
  const line = { x1: 1, x2: 39, y1: 4, y2: 4, stroke: `var(--${style.colour})`, "stroke-width": 2.2, "stroke-dasharray": style.dash.join(" ") };
  return make("svg", { class: "swatch", viewBox: "0 0 40 8", "aria-hidden": "true" }, make("line", line));
}

// The runs of a kind: a chosen run keeps its line until it is left out, and a new one gets the first that is free.

function columns(section, chosen) {
  for (const cell of section.querySelectorAll("[data-run]")) cell.hidden = !chosen.has(Number(cell.dataset.run));
  for (const row of section.querySelectorAll(".runs tbody tr")) {
    const cells = [...row.querySelectorAll("td[data-run]")].filter((cell) => !cell.hidden);
    const ranked = cells.filter((cell) => cell.dataset.badness !== undefined);
    const best = Math.min(...ranked.map((cell) => Number(cell.dataset.badness)));
    const alike = new Set(ranked.map(({ dataset }) => `${dataset.n} ${dataset.basis}`)).size === 1; // items, and what they are
    const first = ranked.filter((cell) => Number(cell.dataset.badness) === best);
    for (const cell of ranked) cell.classList.toggle("best", alike && first.length < ranked.length && first.includes(cell));
    const texts = new Set(cells.map((cell) => cell.textContent));
    row.hidden = texts.size < 2 && (texts.has("–") || (row.closest(".keys") !== null && chosen.size > 1));
  }
}

const lines = {}; // kind -> Map of a chosen run's name -> the number of its line

function setUpGroup(section) {
  const { runs, charts } = groups[section.id];
  const form = section.querySelector("form");
  const labels = [...section.querySelectorAll(".members label")];
  const boxes = labels.map((label) => label.querySelector("input"));
  const slots = new Map();
  const known = (lines[section.dataset.kind] ??= new Map());
  const update = () => {
    for (const [run, box] of boxes.entries()) if (!box.checked) known.delete(runs[run].name);
    slots.clear();
    for (const [run, box] of boxes.entries()) {
      const name = runs[run].name;
      if (box.checked && !known.has(name)) {
        const taken = new Set(known.values());
        let slot = 0;
        while (taken.has(slot)) slot++;
        known.set(name, slot);
      }
      if (box.checked) slots.set(run, known.get(name));
      const line = box.checked ? swatch(slots.get(run)) : make("svg", { class: "swatch", "aria-hidden": "true" });
      labels[run].querySelector(".swatch")?.replaceWith(line);
    }
    for (const [i, figure] of [...section.querySelectorAll("figure")].entries())
      draw(figure, `${section.id}-${i}`, charts[i], runs, slots, form.querySelector("select")?.value ?? "");
    columns(section, slots);
  };
  const search = () => {
    const text = form.querySelector("input")?.value.trim().toLowerCase() ?? "";
    for (const label of labels) label.hidden = !label.textContent.toLowerCase().includes(text);
  };
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("click", ({ target }) => {
    if (target.tagName !== "BUTTON") return;
    for (const [run, box] of boxes.entries()) {
      if (target.value === "newest") box.checked = run < newest;
      if (target.value === "none") box.checked = false;
      if (target.value === "listed" && !labels[run].hidden) box.checked = true;
    }
    update();
  });
  form.addEventListener("input", ({ target }) => (target.tagName === "SELECT" ? update() : search()));
  section.querySelector(".members").addEventListener("change", update);
  search();
  update();
}

function setUp() {
  ({ newest, styles, groups } = JSON.parse(document.getElementById("data").textContent));
  setUpTable();
  for (const section of document.querySelectorAll(".group")) setUpGroup(section);
}

// A newer page. Each control has an id, which stays the same.

const CONTROLS = "input[id], select[id], details[id]";

function controls() {
  return new Map([...document.querySelectorAll(CONTROLS)].map(({ id, value, checked, open }) => [id, { value, checked, open }]));
}

function replace(html) {
  const values = controls();
  const { id, selectionStart, selectionEnd } = document.activeElement;
  const scrolled = [...document.querySelectorAll(".scroll, .members")].map((box) => [box.scrollLeft, box.scrollTop]);
  document.body.replaceChildren(...new DOMParser().parseFromString(html, "text/html").body.childNodes);
  for (const control of document.querySelectorAll(CONTROLS)) Object.assign(control, values.get(control.id));
  setUp();
  const boxes = [...document.querySelectorAll(".scroll, .members")];
  if (boxes.length === scrolled.length) for (const [i, box] of boxes.entries()) [box.scrollLeft, box.scrollTop] = scrolled[i];
  const focused = id && document.getElementById(id);
  focused?.focus({ preventScroll: true });
  if (focused?.type === "search") focused.setSelectionRange(selectionStart, selectionEnd);
}

const QUIET = 1500; // milliseconds after the reader's last touch, in which nothing moves
let touched = 0;

async function ask() {
  const live = document.getElementById("live");
  let state = "Live: the page follows the runs.";
  try {
    const answer = await fetch(location.pathname, { cache: "no-store", headers: { "If-None-Match": live.dataset.tag } });
    if (answer.status === 200 && Date.now() - touched > QUIET) replace(await answer.text());
    else if (!answer.ok && answer.status !== 304) state = `The server answers with status ${answer.status}.`;
  } catch {
    state = "The server does not answer. The page is as it was.";
  }
  document.getElementById("live").textContent = state;
  while (document.hidden) await new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));
  setTimeout(ask, 1000 * Number(live.dataset.seconds));
}

setUp();
if (document.getElementById("live")) {
  for (const name of ["pointerdown", "keydown", "input"]) addEventListener(name, () => (touched = Date.now()), true);
  ask();
}
