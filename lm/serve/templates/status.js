// The status page: asks /status.json for new samples and draws them. Every text becomes a text node, never HTML.
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["--train", "--valid", "--third", "--fourth", "--fifth", "--sixth", "--muted", "--ink"];
const WIDTH = 480, HEIGHT = 150, LEFT = 52, BOTTOM = 18, TOP = 8;
// only: the one checkpoint and adapter, which the names of lines then leave out
const state = { times: [], charts: [], keep: 720, timer: 0, asked: 0, only: "" };
const at = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function number(value, unit) {
  if (value === null || value === undefined) return "–";
  if (unit === "percentunit") return (100 * value).toFixed(value < 0.1 && value > 0 ? 1 : 0) + " %";
  if (unit === "s") return value === 0 ? "0 s" : value < 1 ? (1000 * value).toPrecision(3) * 1 + " ms" : value.toPrecision(3) * 1 + " s";
  const shown = Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(value.toPrecision(3) * 1);
  return unit === "reqps" ? shown + "/s" : shown;
}

function clock(time) {
  return new Date(1000 * time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}

// Joins new samples to the known ones; a line that is new or gone gets gaps.
function merge(found) {
  const had = state.times.length, added = found.times.length;
  state.times.push(...found.times);
  found.charts.forEach((chart, n) => {
    const known = (state.charts[n] ??= { lines: {} });
    Object.assign(known, { title: chart.title, note: chart.note, unit: chart.unit, quiet: chart.quiet });
    for (const label of new Set([...Object.keys(known.lines), ...Object.keys(chart.lines)])) {
      const line = (known.lines[label] ??= Array(had).fill(null));
      line.push(...(chart.lines[label] ?? Array(added).fill(null)));
    }
  });
  const over = state.times.length - state.keep;
  if (over <= 0) return;
  state.times.splice(0, over);
  for (const chart of state.charts)
    for (const [label, line] of Object.entries(chart.lines)) {
      line.splice(0, over);
      if (line.every((value) => value === null)) delete chart.lines[label];
    }
}

function nice(top) {
  const power = 10 ** Math.floor(Math.log10(top));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= top * 0.999);
}

function figure(chart) {
  const lines = Object.entries(chart.lines).sort(([a], [b]) => (a < b ? -1 : 1));
  const all = lines.flatMap(([, line]) => line).filter((value) => value !== null);
  const least = Math.min(0, ...all);
  const top = all.length && Math.max(...all) > 0 ? nice(Math.max(...all)) : 1;
  const [begin, end] = [state.times[0] ?? 0, state.times.at(-1) ?? 1];
  const x = (time) => LEFT + ((WIDTH - LEFT - 4) * (time - begin)) / Math.max(end - begin, 1);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - least) / (top - least));
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": chart.title });
  for (const share of [0, 0.5, 1]) {
    const value = least + share * (top - least);
    svg.append(draw("line", { class: "grid", x1: LEFT, x2: WIDTH - 4, y1: y(value), y2: y(value) }));
    svg.append(draw("text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, number(value, chart.unit)));
  }
  if (state.times.length > 1) {
    svg.append(draw("text", { x: LEFT, y: HEIGHT - 4 }, clock(begin)));
    svg.append(draw("text", { x: WIDTH - 4, y: HEIGHT - 4, "text-anchor": "end" }, clock(end)));
  }
  const legend = make("div", { class: "legend" });
  lines.forEach(([label, line], n) => {
    const colour = `var(${COLOURS[n % COLOURS.length]})`;
    let path = "", pen = false;
    line.forEach((value, k) => {
      // h0 makes a single sample between gaps a dot
      if (value !== null) path += `${pen ? "L" : "M"}${x(state.times[k]).toFixed(1)} ${y(value).toFixed(1)}${pen ? "" : "h0"}`;
      pen = value !== null;
    });
    const dash = n >= COLOURS.length ? { "stroke-dasharray": "4 3" } : {};
    svg.append(draw("path", { d: path, fill: "none", "stroke-width": 1.6, style: `stroke:${colour}`, "stroke-linecap": "round", ...dash }));
    const last = line.findLast((value) => value !== null);
    legend.append(make("span", {}, make("i", { style: `background:${colour}` }), `${named(label)} ${number(last, chart.unit)}`));
  });
  if (!lines.length) legend.append(make("span", {}, "nothing yet"));
  const caption = make("figcaption", {}, make("h3", {}, chart.title), make("span", {}, chart.note));
  return make("figure", { class: "chart" }, caption, svg, legend);
}

function named(label) {
  return (label.startsWith(state.only) ? label.slice(state.only.length) : label).replaceAll("_", " ");
}

// A chart in which nothing happened is one line, which stays open if the reader opens it.
function folded(chart) {
  const open = at("quiet").querySelector(`[data-title="${chart.title}"]`)?.open;
  const summary = make("summary", {}, `${chart.title}: ${chart.quiet}`);
  return make("details", { "data-title": chart.title, ...(open ? { open: "" } : {}) }, summary, figure(chart));
}

function tile(value, label) {
  return make("div", {}, make("b", {}, value), make("span", {}, label));
}

function last(title, label) {
  const chart = state.charts.find((one) => one.title === title);
  const line = chart?.lines[label];
  return number(line?.findLast((value) => value !== null), chart?.unit);
}

function who(one) {
  return [one.checkpoint || "model", one.adapter].filter(Boolean).join(", ");
}

function alerts(found) {
  const list = at("alerts").querySelector("ul");
  list.replaceChildren(
    ...found.alerts.map((alert) => {
      const when = new Date(1000 * alert.time).toLocaleString();
      const item = make("li", {}, make("b", {}, alert.stream.replaceAll("_", " ")), ` ${when}: ${alert.text} `);
      const button = make("button", { type: "button" }, "Accept as the new reference");
      button.addEventListener("click", () => accept(alert));
      item.append(button);
      return item;
    }),
  );
  at("alerts").hidden = !found.alerts.length;
}

async function accept({ checkpoint, adapter }) {
  if (!confirm("Forget the reference of this checkpoint and adapter, and collect a new one from now on?")) return;
  const body = JSON.stringify({ checkpoint, adapter });
  const post = (more) => fetch("v1/monitor/accept", { method: "POST", headers: { "content-type": "application/json", ...more }, body });
  let answer = await post({});
  if (answer.status === 401) answer = await post({ authorization: `Bearer ${prompt("API key") ?? ""}` });
  if (!answer.ok) alert(`Not accepted: HTTP ${answer.status}`);
  load();
}

function behaviour(found) {
  const heads = ["stream", "reference", "now", "PSI", "evidence"];
  at("behaviour").querySelector("div").replaceChildren(
    ...found.behaviours.flatMap((one) => {
      const told = one.collected === null ? `${one.exchanges} exchanges` : `collecting the reference: ${one.collected} of ${one.reference}`;
      const rows = Object.entries(one.streams).map(([name, v]) => {
        const cells = [v.before, v.now, v.psi, v.evidence].map((value) => make("td", {}, number(value)));
        return make("tr", v.alert ? { class: "bad" } : {}, make("td", {}, name.replaceAll("_", " ")), ...cells);
      });
      const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", {}, head)))), make("tbody", {}, ...rows));
      return [make("h3", {}, who(one)), make("p", { class: "note" }, told), make("div", { class: "scroll" }, rows.length ? table : "")];
    }),
  );
  at("behaviour").hidden = !found.behaviours.length;
}

function show(found) {
  const tiles = document.querySelector(".tiles");
  tiles.replaceChildren(
    tile(last("Requests in the engine", "running"), "running"),
    tile(last("Requests in the engine", "waiting"), "waiting"),
    tile(last("Tokens", "generation"), "tokens a second"),
    tile(last("Time to first token", "p95"), "time to first token, p95"),
    tile(last("Cache", "blocks used"), "cache in use"),
    tile(String(found.alerts.length), "alerts"),
  );
  const up = Math.round((found.now - found.begun) / 60);
  at("state").textContent =
    `Up for ${up} minutes. A false alert has a probability of at most ${found.alpha} for each checkpoint and adapter.`;
  const [one, other] = found.behaviours;
  state.only = other ? "" : [one?.checkpoint, one?.adapter].filter(Boolean).map((part) => `${part} `).join("");
  at("charts").replaceChildren(...state.charts.filter((chart) => !chart.quiet).map(figure));
  at("quiet").replaceChildren(...state.charts.filter((chart) => chart.quiet).map(folded));
  alerts(found);
  behaviour(found);
}

async function load() {
  clearTimeout(state.timer);
  const number = ++state.asked; // an answer that another request overtook would bring its samples twice
  let wait = 5;
  try {
    const answer = await fetch(`status.json?since=${state.times.at(-1) ?? 0}`);
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    const found = await answer.json();
    if (number !== state.asked) return;
    wait = found.seconds || 5;
    merge(found);
    show(found);
  } catch (error) {
    at("state").textContent = `The server does not answer (${error.message}).`;
  }
  if (number === state.asked) state.timer = setTimeout(load, 1000 * wait);
}

load();
