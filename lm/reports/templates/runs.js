// Sorts and filters the table of runs, and draws the curves of the runs that the reader chooses. See lm/reports/runs.py.
const { newest, styles, groups } = JSON.parse(document.getElementById("data").textContent);
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

const table = document.getElementById("runs");
const rows = [...table.tBodies[0].rows];
const filters = document.getElementById("filters");

function keys(cell) {
  const text = cell.dataset.value ?? cell.textContent.trim();
  return { group: cell.dataset.group ?? "", text, empty: text === "" || text === "–", number: Number(text) };
}

function compare(one, other) {
  const numbers = !Number.isNaN(one.number) && !Number.isNaN(other.number);
  return one.group.localeCompare(other.group) || (numbers ? one.number - other.number : one.text.localeCompare(other.text, "en", { numeric: true }));
}

function sort(column) {
  const heads = [...table.tHead.rows[0].cells];
  const down = heads[column].getAttribute("aria-sort") === "ascending";
  for (const head of heads) head.removeAttribute("aria-sort");
  heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
  const found = rows.map((row) => [row, keys(row.cells[column])]);
  found.sort(([, one], [, other]) => one.empty - other.empty || (down ? -1 : 1) * compare(one, other)); // empty cells: at the end
  table.tBodies[0].append(...found.map(([row]) => row));
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

for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
  const button = make("button", { type: "button" }, ...head.childNodes);
  button.addEventListener("click", () => sort(column));
  head.append(button);
}
filters.hidden = false;
filters.addEventListener("input", filter);
filters.addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", () => {
  const row = rows.find((one) => "#" + one.id === location.hash);
  if (!row?.hidden) return;
  filters.reset();
  filter();
  row.scrollIntoView();
});
filter();

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
    const alike = new Set(ranked.map((cell) => cell.dataset.n)).size === 1; // the numbers of items
    const first = ranked.filter((cell) => Number(cell.dataset.badness) === best);
    for (const cell of ranked) cell.classList.toggle("best", alike && first.length < ranked.length && first.includes(cell));
    const texts = new Set(cells.map((cell) => cell.textContent));
    row.hidden = texts.size < 2 && (texts.has("–") || (row.closest(".keys") !== null && chosen.size > 1));
  }
}

for (const section of document.querySelectorAll(".group")) {
  const { runs, charts } = groups[section.id];
  const form = section.querySelector("form");
  const labels = [...section.querySelectorAll(".members label")];
  const boxes = labels.map((label) => label.querySelector("input"));
  const slots = new Map();
  const update = () => {
    for (const [run, box] of boxes.entries()) if (!box.checked) slots.delete(run);
    for (const [run, box] of boxes.entries()) {
      if (box.checked && !slots.has(run)) {
        const taken = new Set(slots.values());
        let slot = 0;
        while (taken.has(slot)) slot++;
        slots.set(run, slot);
      }
      const line = slots.has(run) ? swatch(slots.get(run)) : make("svg", { class: "swatch", "aria-hidden": "true" });
      labels[run].querySelector(".swatch")?.replaceWith(line);
    }
    for (const [i, figure] of [...section.querySelectorAll("figure")].entries())
      draw(figure, `${section.id}-${i}`, charts[i], runs, slots, form.querySelector("select")?.value ?? "");
    columns(section, slots);
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
  form.addEventListener("input", ({ target }) => {
    if (target.tagName === "SELECT") update();
    else for (const label of labels) label.hidden = !label.textContent.toLowerCase().includes(target.value.trim().toLowerCase());
  });
  section.querySelector(".members").addEventListener("change", update);
  update();
}
