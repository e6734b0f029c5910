// The page: asks the server what changed, keeps the list of runs and what is chosen, and shows one of the views.
import { Curves } from "./curves.js";
import { ago, make, mark, pathOf, short, swatch } from "./dom.js";
import * as panels from "./panels.js";

const NEWEST = 8;
const VIEWS = ["curves", "table", "compare", "run", "alerts"];
const KEPT = ["axis", "smooth", "size", "text", "log", "all"]; // options in the address
const SECONDS = Number(document.body.dataset.seconds);
const [list, filters, says] = ["runs", "filters", "state"].map((id) => document.getElementById(id));

const page = {
  runs: new Map(),
  slots: new Map(), // chosen runs, in the order in which they were chosen
  metrics: {},
  faults: [],
  opened: null,
  view: "curves",
  chosen: false, // whether the reader chose; otherwise the newest are
  wanted: null, // names in the address that are not there yet
  listed: () => [...page.runs.values()].filter(fits).sort(newer),
  ask,
  failed,
  light,
  keep,
  openRun(id) {
    page.opened = id;
    view("run");
  },
};
let version = 0, boot = null, tag = null, failures = 0, stopped = false;
const newer = (one, other) => other.written - one.written || (one.name < other.name ? -1 : 1);

async function ask(path, headers = {}) {
  const answer = await fetch(path, { headers });
  if (answer.status === 304) return null;
  if (!answer.ok) throw new Error(`${path.split("?")[0]}: ${answer.status}`);
  if (path.startsWith("/api/runs")) tag = answer.headers.get("etag");
  return answer.json();
}

function failed() {
  failures++;
  says.className = "lost";
  says.textContent = "the server does not answer; trying again";
}

// What changed.

async function poll() {
  try {
    const found = await ask(`/api/runs?since=${version}`, tag ? { "if-none-match": tag } : {});
    failures = 0;
    if (found) take(found);
    tell();
  } catch (error) {
    failed(error);
  }
  const pause = failures ? Math.min(30, 2 ** failures) : page.reading ? Math.min(1, SECONDS) : SECONDS;
  if (!stopped) setTimeout(poll, 1000 * (document.hidden ? Math.max(15, pause) : pause));
}

function take(found) {
  if (boot !== null && boot !== found.boot) {
    stopped = true;
    location.reload(); // another server: its numbers of runs are others
    return;
  }
  ({ boot, version } = found);
  page.reading = found.reading;
  Object.assign(page, { metrics: found.metrics, faults: found.faults });
  const there = new Set(found.ids);
  for (const id of page.runs.keys()) if (!there.has(id)) page.runs.delete(id);
  for (const row of found.runs) page.runs.set(row.id, row);
  for (const id of page.slots.keys()) if (!there.has(id)) page.slots.delete(id);
  if (page.wanted) {
    const byName = new Map([...page.runs.values()].map((row) => [row.name, row.id]));
    for (const name of page.wanted) if (byName.has(name)) choose(byName.get(name));
    page.wanted = page.wanted.filter((name) => !byName.has(name));
    if (page.openedName && byName.has(page.openedName)) page.opened = byName.get(page.openedName);
  }
  if (!page.chosen) newest();
  fillFilters();
  fillList();
  countAlerts();
  refresh();
}

function tell() {
  if (says.className === "lost") says.className = "";
  const rows = [...page.runs.values()];
  const share = rows.length ? rows.reduce((sum, row) => sum + row.share, 0) / rows.length : 0;
  says.className = page.reading ? "reading" : "";
  const running = rows.filter((row) => row.state === "running").length;
  says.textContent = page.reading ? `reading: ${Math.round(100 * share)} %` : `live · ${rows.length} ${rows.length === 1 ? "run" : "runs"}, ${running} running`;
}

function countAlerts() {
  const tab = document.getElementById("tab-alerts");
  const levels = [...page.runs.values()].flatMap((row) => row.alerts.map((alert) => alert.level));
  const errors = levels.filter((level) => level === "error").length;
  const grave = errors + levels.filter((level) => level === "warning").length;
  tab.replaceChildren("Alerts", ...(grave ? [make("b", { class: errors ? "error" : null, title: `${errors} errors, ${grave - errors} warnings` }, String(grave))] : []));
}

// Which runs are chosen. A run keeps its line until it is left out; a new one gets the first that is free.

function choose(id) {
  if (page.slots.has(id)) return;
  const taken = new Set(page.slots.values());
  let slot = 0;
  while (taken.has(slot)) slot++;
  page.slots.set(id, slot);
}

function newest() {
  const rows = [...page.runs.values()].sort(newer);
  const drawn = rows.filter((row) => row.metrics.length || row.state === "running");
  const best = (drawn.length ? drawn : rows).slice(0, NEWEST).map((row) => row.id);
  for (const id of page.slots.keys()) if (!best.includes(id)) page.slots.delete(id);
  for (const id of best) choose(id);
}

function picked() {
  page.chosen = true;
  fillList();
  keep();
  refresh();
}

// The list.

function fits(row) {
  const words = filters.text.value.trim().toLowerCase().split(/\s+/);
  const text = `${row.name} ${row.kind} ${row.state} ${row.alerts.map((alert) => alert.kind).join(" ")}`.toLowerCase();
  const same = (name) => !filters[name].value || filters[name].value === row[name];
  return same("kind") && same("state") && words.every((word) => text.includes(word));
}

function fillFilters() {
  for (const name of ["kind", "state"]) {
    const select = filters[name];
    const values = [...new Set([...page.runs.values()].map((row) => row[name]))].sort();
    const known = [...select.options].slice(1).map((option) => option.value);
    if (values.join("\n") === known.join("\n")) continue;
    const before = select.value;
    select.replaceChildren(select.options[0], ...values.map((value) => make("option", { value }, value)));
    select.value = values.includes(before) ? before : "";
  }
}

function entry(row) {
  const box = make("input", { type: "checkbox", "aria-label": `show ${row.name}`, autocomplete: "off" });
  box.addEventListener("change", () => {
    if (box.checked) choose(row.id);
    else page.slots.delete(row.id);
    picked();
  });
  const name = make("button", { type: "button", class: "name", title: row.name }, ...pathOf(row.name));
  name.addEventListener("click", () => page.openRun(row.id));
  const item = make("li", { "data-run": row.id }, box, make("span", { class: "line" }), name, make("span", { class: "where" }), make("small"));
  item.addEventListener("pointerenter", () => page.slots.has(row.id) && curves.light(row.id));
  item.addEventListener("pointerleave", () => curves.light(null));
  return item;
}

// Rows are changed where they stand, so that neither focus nor scroll is lost.
function fillList() {
  const before = new Map([...list.children].map((item) => [Number(item.dataset.run), item]));
  const rows = page.listed();
  const items = rows.map((row) => {
    const item = before.get(row.id) ?? entry(row);
    const grave = row.alerts.filter((alert) => alert.level !== "note");
    item.className = grave.length ? (grave[0].level === "error" ? "alerted failed" : "alerted") : "";
    item.querySelector("input").checked = page.slots.has(row.id);
    const slot = page.slots.get(row.id);
    if (item.slot !== slot || !item.querySelector(".swatch")) item.querySelector(".line").replaceChildren(swatch(slot));
    item.slot = slot;
    item.querySelector(".where").replaceChildren(mark(row.state));
    const progress = row.of && row.steps !== null && row.steps < row.of ? `${Math.floor((100 * row.steps) / row.of)} %` : row.steps !== null ? `${short(row.steps)} steps` : row.kind;
    const result = row.loss !== null ? `loss ${short(row.loss)}` : row.main[0] ? `${row.main[0].name} ${row.main[0].text}` : row.state;
    const told = [grave.length ? make("b", {}, `${grave[0].kind} · `) : null, `${progress} · ${result} · ${ago(row.written)}`].filter(Boolean);
    item.querySelector("small").replaceChildren(...told);
    return item;
  });
  if (items.length !== list.children.length || items.some((item, i) => list.children[i] !== item)) list.replaceChildren(...items);
  document.getElementById("count").textContent = `${page.slots.size} of ${page.runs.size}`;
}

function light(id) {
  for (const item of list.children) item.classList.toggle("lit", Number(item.dataset.run) === id);
}

filters.addEventListener("submit", (event) => event.preventDefault());
filters.addEventListener("input", () => {
  fillList();
  refresh();
});
document.getElementById("pick").addEventListener("click", ({ target }) => {
  if (target.tagName !== "BUTTON") return;
  if (target.value === "newest") {
    newest();
    picked();
    page.chosen = false;
    keep();
    return;
  }
  if (target.value === "none") page.slots.clear();
  else for (const row of page.listed()) choose(row.id);
  picked();
});

// Views, and the address, which keeps view, options and chosen runs.

function view(name) {
  page.view = name;
  for (const one of VIEWS) {
    const [tab, panel] = [document.getElementById(`tab-${one}`), document.getElementById(one)];
    tab.setAttribute("aria-selected", String(one === name));
    tab.tabIndex = one === name ? 0 : -1;
    panel.hidden = one !== name;
  }
  keep();
  refresh();
}

async function refresh() {
  if (page.view === "curves") return curves.update();
  const root = document.getElementById(page.view);
  const fields = () => [...root.querySelectorAll("button, a, input, select, summary")];
  const focused = fields().indexOf(document.activeElement);
  try {
    await panels[page.view](page, root);
    if (focused >= 0 && !root.contains(document.activeElement)) fields()[focused]?.focus({ preventScroll: true });
  } catch (error) {
    failed(error);
  }
}

function keep() {
  const hash = new URLSearchParams({ view: page.view });
  const form = curves.form;
  for (const name of KEPT) {
    const field = form[name];
    const value = field.type === "checkbox" ? (field.checked ? "1" : "") : field.value;
    if (value !== field.dataset.usual) hash.set(name, value);
  }
  if (page.view === "run" && page.runs.has(page.opened)) hash.set("opened", page.runs.get(page.opened).name);
  if (page.chosen) for (const id of page.slots.keys()) if (page.runs.has(id)) hash.append("run", page.runs.get(id).name);
  if (page.chosen && !page.slots.size) hash.set("run", "");
  history.replaceState(null, "", `#${hash}`);
}

function restore() {
  const hash = new URLSearchParams(location.hash.slice(1));
  for (const name of KEPT) {
    const field = curves.form[name];
    field.dataset.usual = field.type === "checkbox" ? "" : field.value;
    if (!hash.has(name)) continue;
    if (field.type === "checkbox") field.checked = hash.get(name) === "1";
    else field.value = hash.get(name);
    if (field.value === "") field.value = field.dataset.usual;
  }
  if (hash.has("run")) {
    page.chosen = true;
    page.wanted = hash.getAll("run").filter(Boolean);
  }
  page.openedName = hash.get("opened");
  page.wanted ??= page.openedName ? [] : null;
  return VIEWS.includes(hash.get("view")) ? hash.get("view") : "curves";
}

document.getElementById("tabs").addEventListener("click", ({ target }) => {
  const tab = target.closest("button");
  if (tab) view(tab.id.slice(4));
});
document.getElementById("tabs").addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!by) return;
  const next = VIEWS[(VIEWS.indexOf(page.view) + by + VIEWS.length) % VIEWS.length];
  view(next);
  document.getElementById(`tab-${next}`).focus();
});
document.addEventListener("visibilitychange", () => document.hidden || fillList());

const curves = new Curves(page, document.getElementById("curves"));
const first = restore();
page.view = first;
for (const one of VIEWS) document.getElementById(one).hidden = one !== first;
for (const one of VIEWS) {
  const tab = document.getElementById(`tab-${one}`);
  tab.setAttribute("aria-selected", String(one === first));
  tab.tabIndex = one === first ? 0 : -1;
}
poll();
