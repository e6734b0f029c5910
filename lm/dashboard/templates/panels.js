// The other views: the table of all runs, the comparison of the chosen ones, one run, and the alerts.
import { ago, bytes, count, date, duration, make, mark, pathOf, percent, short, sortable, swatch } from "./dom.js";

const LEVELS = { error: "error", warning: "warning", note: "note" };
const PHASES = ["c2", "c1", "c4", "c3", "c0", "c5", "c6", "c7", "c7"]; // colours of goodput's categories, in their order

const link = (page, row) => {
  const button = make("button", { type: "button", class: "link" }, ...pathOf(row.name));
  button.addEventListener("click", () => page.openRun(row.id));
  return button;
};

const level = (name) => make("span", { class: `level ${LEVELS[name] ?? "note"}` }, name);

function alertTable(page, alerts, named) {
  const head = ["level", ...(named ? ["run"] : []), "what", "explanation", "step", "when"];
  const rows = alerts.map(({ row, alert }) => {
    const cells = [make("td", {}, level(alert.level)), named && make("td", { class: "left" }, link(page, row)), make("td", { class: "left" }, alert.kind)];
    const when = alert.time ? make("time", { title: date(alert.time) }, ago(alert.time)) : "–";
    cells.push(make("td", { class: "text" }, alert.text), make("td", {}, alert.step === null ? "–" : count(alert.step)), make("td", { class: "left" }, when));
    return make("tr", {}, ...cells.filter(Boolean));
  });
  const heads = head.map((name) => make("th", { scope: "col", class: name === "step" ? null : "left" }, name));
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows)));
}

export function alerts(page, root) {
  const order = ["error", "warning", "note"];
  const found = page.listed().flatMap((row) => row.alerts.map((alert) => ({ row, alert })));
  found.sort((one, other) => order.indexOf(one.alert.level) - order.indexOf(other.alert.level) || (other.alert.time ?? 0) - (one.alert.time ?? 0));
  const faults = page.faults.map((fault) => make("p", { class: "notice" }, fault));
  const runs = new Set(found.map(({ row }) => row.id)).size;
  const says = found.length ? `${found.length} alerts of ${runs} of ${page.listed().length} listed runs. An alert is a reason to look, not a verdict.` : "No alert: nothing of the listed runs looks wrong.";
  root.replaceChildren(make("h2", {}, "Alerts"), ...faults, make("p", { class: "note" }, says), ...(found.length ? [alertTable(page, found, true)] : []));
}

const sorted = { column: 11, down: true };

export function table(page, root) {
  const heads = ["run", "kind", "state", "main result", "training loss", "steps", "tokens", "tokens/s", "parameters", "wall time", "goodput", "last written", "alerts"];
  const left = new Set([0, 1, 2, 3]);
  const rows = page.listed().map((row) => {
    const main = row.main[0];
    const state = make("span", {}, mark(row.state), " ", row.state);
    return [
      { node: link(page, row), value: row.name },
      { text: row.kind, value: row.kind },
      { node: state, value: row.state },
      { node: main ? make("span", {}, make("b", {}, main.text), " ", make("span", { class: "note" }, main.name)) : null, value: main?.value ?? null },
      { text: short(row.loss, 5), value: row.loss },
      { text: row.of === null || row.of === row.steps ? count(row.steps) : `${count(row.steps)} of ${count(row.of)}`, value: row.steps },
      { text: short(row.tokens), value: row.tokens },
      { text: short(row.speed), value: row.speed },
      { text: short(row.parameters), value: row.parameters },
      { text: duration(row.seconds), value: row.seconds },
      { text: percent(row.goodput), value: row.goodput },
      { text: date(row.written), value: row.written },
      { text: row.alerts.length ? String(row.alerts.length) : "–", value: row.alerts.length },
    ];
  });
  const columns = heads.map((name, i) => ({ name, left: left.has(i) }));
  root.replaceChildren(make("h2", {}, `Runs (${rows.length})`), make("div", { class: "scroll" }, sortable(columns, rows, sorted, () => {
    table(page, root);
    root.querySelectorAll("thead button")[sorted.column].focus({ preventScroll: true });
  })));
}

// A setting as the comparison shows it: numbers with many digits are rounded.
const value = (text) => (text === null ? "–" : text.length > 12 && Number.isFinite(Number(text)) ? String(Number(Number(text).toPrecision(5))) : text);

function side(page, rows, name, columns, kind) {
  const heads = columns.map((id) => {
    const row = page.runs.get(id);
    return make("th", { scope: "col" }, swatch(page.slots.get(id)), row ? link(page, row) : "?");
  });
  const body = rows.map(([key, cells, best]) =>
    make("tr", {}, make("th", { scope: "row" }, key), ...cells.map((cell, i) => make("td", { class: best?.includes(i) ? "best" : null, title: cell }, value(cell)))),
  );
  const head = make("tr", {}, make("th", { scope: "col" }, name), ...heads);
  return make("div", { class: "scroll" }, make("table", { class: `pinned ${kind}` }, make("thead", {}, head), make("tbody", {}, ...body)));
}

export async function compare(page, root) {
  const ids = [...page.slots.keys()].slice(0, 200);
  if (ids.length < 2) {
    root.key = null;
    root.replaceChildren(make("h2", {}, "Compare"), make("p", { class: "empty" }, "Choose two or more runs in the list."));
    return;
  }
  const key = ids.map((id) => [id, page.slots.get(id), page.runs.get(id)?.version].join()).join(" ");
  if (root.key === key) return;
  const found = await page.ask(`/api/compare?${new URLSearchParams(ids.map((id) => ["run", id]))}`);
  root.key = key;
  const parts = [make("h2", {}, `Results of ${ids.length} runs`)];
  parts.push(found.results.length ? side(page, found.results.map((row) => [row.name, row.cells, row.best]), "result", found.ids, "results") : make("p", { class: "note" }, "They have no results yet."));
  parts.push(make("p", { class: "note" }, "★ is the best of the chosen runs. Evaluations with another number of items are not ranked."));
  parts.push(make("h2", {}, `Settings that differ (${found.differences.length})`));
  parts.push(found.differences.length ? side(page, found.differences, "key", found.ids, "mono") : make("p", { class: "note" }, "None: their configs are the same."));
  root.replaceChildren(...parts);
}

function goodput({ goodput: share, wall, attempts, seconds }) {
  const all = Object.entries(seconds);
  const bar = make("div", { class: "parts", role: "img", "aria-label": all.map(([name, value]) => `${name} ${percent(value / wall)}`).join(", ") });
  const rows = all.map(([name, value], i) => {
    const part = make("i", { title: `${name}: ${duration(value)}` });
    part.style.flexGrow = String(value);
    part.style.background = `var(--${PHASES[i % PHASES.length]})`;
    bar.append(part);
    const key = make("span", { class: "key" });
    key.style.background = part.style.background;
    return make("tr", {}, make("th", { scope: "row" }, key, name), make("td", {}, duration(value)), make("td", {}, percent(value / wall)));
  });
  const says = `${percent(share)} of ${duration(wall)} were steps that count, in ${attempts} ${attempts === 1 ? "attempt" : "attempts"}.`;
  return [make("h2", {}, "Goodput"), make("p", { class: "note" }, says), bar, make("table", {}, make("tbody", {}, ...rows))];
}

function samples(list) {
  const parts = list.map(({ prompt, answers }, i) => {
    const first = prompt.split("\n").filter(Boolean).at(-1) ?? "";
    const inner = answers.flatMap(({ about, text }) => [make("p", { class: "note" }, about), make("pre", {}, text)]);
    const one = make("details", { class: "sample" }, make("summary", {}, make("bdi", {}, first.slice(0, 160))), make("p", { class: "note" }, "prompt"), make("pre", {}, prompt), ...inner);
    one.open = i === 0;
    return one;
  });
  return [make("h2", {}, `Samples (${list.length})`), ...parts];
}

function checkpoints(list) {
  const rows = list.map((one) =>
    make("tr", {}, make("th", { scope: "row" }, count(one.step)), make("td", {}, bytes(one.bytes)), make("td", { class: "left" }, date(one.time)), make("td", { class: "left" }, one.damaged ? make("span", { class: "level error" }, "damaged, set aside") : "")),
  );
  const total = list.reduce((sum, one) => sum + (one.bytes ?? 0), 0);
  const heads = ["step", "size", "written", ""].map((name, i) => make("th", { scope: "col", class: i > 1 ? "left" : null }, name));
  return [make("h2", {}, `Checkpoints (${list.length}, ${bytes(total)})`), make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows))];
}

function keys(config) {
  const search = make("input", { type: "search", placeholder: "Search keys", "aria-label": "search keys of the config", autocomplete: "off" });
  const rows = config.map(([key, value]) => make("tr", {}, make("th", { scope: "row" }, key), make("td", { class: "left" }, value)));
  search.addEventListener("input", () => {
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(search.value.trim().toLowerCase());
  });
  return [make("h2", {}, `Config (${config.length} keys)`), search, make("div", { class: "scroll" }, make("table", { class: "mono" }, make("tbody", {}, ...rows)))];
}

const tile = (name, value) => make("div", {}, make("b", {}, value), make("span", {}, name));

export async function run(page, root) {
  const chooser = make("select", { "aria-label": "run to show" });
  const options = page.listed().length ? page.listed() : [...page.runs.values()];
  if (!options.some((row) => row.id === page.opened)) page.opened = [...page.slots.keys()].find((id) => page.runs.has(id)) ?? options[0]?.id ?? null;
  if (page.opened === null) return root.replaceChildren(make("p", { class: "empty" }, "There is no run yet."));
  const key = [page.opened, page.runs.get(page.opened)?.version, options.length].join();
  if (root.key === key) return;
  const known = options.some((row) => row.id === page.opened) ? options : [page.runs.get(page.opened), ...options];
  for (const row of known) chooser.append(make("option", { value: row.id }, row.name));
  chooser.value = String(page.opened);
  chooser.addEventListener("change", () => page.openRun(Number(chooser.value)));
  const wasOpen = [...root.querySelectorAll("details.sample")].map((one) => one.open);
  const searched = root.querySelector("input[type=search]")?.value ?? "";
  const found = await page.ask(`/api/run?run=${page.opened}`);
  root.key = key;
  const { row } = found;
  const tiles = make("div", { class: "tiles" }, tile("state", row.state), tile("steps", row.of && row.of !== row.steps ? `${count(row.steps ?? 0)} of ${count(row.of)}` : count(row.steps)));
  if (row.main[0]) tiles.append(tile(row.main[0].name, row.main[0].text));
  tiles.append(tile("training loss", short(row.loss, 5)), tile("tokens", short(row.tokens)), tile("tokens per second", short(row.speed)));
  if (row.parameters) tiles.append(tile("parameters", short(row.parameters)));
  tiles.append(tile("wall time", duration(row.seconds)), tile("goodput", percent(row.goodput)), tile("last written", ago(row.written)));
  const facts = found.facts.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", { class: "text" }, value)));
  const head = make("div", { class: "head" }, make("h2", {}, mark(row.state), " ", make("bdi", {}, row.name)), chooser);
  if (found.report) head.append(make("a", { href: `/report?run=${row.id}`, target: "_blank", rel: "noopener" }, "Report"));
  const parts = [head, make("p", { class: "note" }, `${row.kind}, in ${found.folder}${row.place ? `; ${row.place}` : ""}`), tiles];
  if (row.alerts.length) parts.push(make("h2", {}, `Alerts (${row.alerts.length})`), alertTable(page, row.alerts.map((alert) => ({ row, alert })), false));
  const columns = make("div", { class: "columns" });
  if (found.goodput) columns.append(make("section", {}, ...goodput(found.goodput)));
  if (found.checkpoints.length) columns.append(make("section", {}, ...checkpoints(found.checkpoints)));
  if (found.figures.length) {
    const rows = found.figures.map(({ name, text }) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, text)));
    columns.append(make("section", {}, make("h2", {}, "Results"), make("table", {}, make("tbody", {}, ...rows))));
  }
  if (found.starts.length) {
    const rows = found.starts.map((one) => make("tr", {}, make("th", { scope: "row" }, date(Date.parse(one.written) / 1000)), make("td", {}, one.step), make("td", { class: "text" }, one.code)));
    const heads = ["start", "from step", "code"].map((name, i) => make("th", { scope: "col", class: i === 1 ? null : "left" }, name));
    columns.append(make("section", {}, make("h2", {}, `Starts (${found.starts.length})`), make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows))));
  }
  parts.push(columns);
  if (found.samples.length) parts.push(...samples(found.samples));
  if (facts.length) parts.push(make("h2", {}, "Origin"), make("table", {}, make("tbody", {}, ...facts)));
  if (found.config.length) parts.push(...keys(found.config));
  root.replaceChildren(...parts);
  for (const [i, one] of [...root.querySelectorAll("details.sample")].entries()) if (wasOpen[i] !== undefined) one.open = wasOpen[i];
  const search = root.querySelector("input[type=search]");
  if (search && searched) {
    search.value = searched;
    search.dispatchEvent(new Event("input"));
  }
}
