// The view of the curves: which charts there are, what they need from the server, and what they draw.
import { Chart } from "./chart.js";
import { make } from "./dom.js";

const GROUPS = { training: "Training", validation: "Validation", more: "More of the method", speed: "Speed and goodput", system: "System" };
const OPEN = new Set(["training", "validation"]);
const METHOD = "\u0000method"; // of a chart's key
const BATCH = 12; // runs of one request

// The value of a piecewise linear function [[x…], [y…]] at ascending places; beyond its end it goes on as in its last part.
export function mapped([xs, ys], places) {
  let k = 0;
  return places.map((x) => {
    if (xs.length < 2) return xs.length ? (ys[0] * x) / (xs[0] || 1) : null;
    while (k < xs.length - 2 && xs[k + 1] < x) k++;
    if (x < xs[0]) return xs[0] > 0 ? (ys[0] * x) / xs[0] : ys[0];
    return ys[k] + ((ys[k + 1] - ys[k]) * (x - xs[k])) / (xs[k + 1] - xs[k] || 1);
  });
}

export class Curves {
  // page: {runs: Map of rows by id, slots: Map of chosen runs to slots, metrics, light(id), settings, keep()}.
  constructor(page, root) {
    Object.assign(this, { page, root, data: new Map(), charts: new Map(), zoom: null, running: false, again: false });
    this.form = document.getElementById("options");
    this.unzoom = document.getElementById("unzoom");
    this.groups = document.getElementById("groups");
    this.seen = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        target.chart.visible = isIntersecting;
        if (isIntersecting) target.chart.draw();
      }
    }, { rootMargin: "200px" });
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("input", ({ target }) => {
      if (target.name === "axis") this.setZoom(null);
      this.page.keep();
      this.update();
    });
    this.unzoom.addEventListener("click", () => this.setZoom(null));
    addEventListener("keydown", (event) => event.key === "Escape" && this.zoom && this.setZoom(null));
    addEventListener("resize", () => this.redraw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  options() {
    const form = this.form;
    form.querySelector("output").textContent = form.smooth.value;
    return { axis: form.axis.value, log: form.log.checked, all: form.all.checked, smooth: Number(form.smooth.value), zoom: this.zoom };
  }

  setZoom(range) {
    if (range === null && this.zoom === null) return;
    this.zoom = range;
    this.unzoom.hidden = range === null;
    if (this.form.axis.value === "step") for (const one of this.data.values()) one.version = -1; // with other points
    this.update();
  }

  redraw() {
    for (const chart of this.charts.values()) chart.draw();
  }

  // The metrics that some chosen run has and that fit the words, by group.
  wanted() {
    const words = this.form.text.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const found = new Map(Object.keys(GROUPS).map((group) => [group, []]));
    const keys = new Set();
    for (const id of this.page.slots.keys()) {
      const row = this.page.runs.get(id);
      for (const name of row?.metrics ?? []) keys.add(name + this.suffix(row, name));
    }
    for (const key of keys) {
      const about = this.about(key);
      const text = `${key} ${about?.title}`.toLowerCase();
      if (about && key !== "tokens" && (!words.length || words.some((word) => text.includes(word)))) found.get(about.group).push(key);
    }
    for (const list of found.values()) list.sort((one, other) => this.about(one).order - this.about(other).order || (one < other ? -1 : 1));
    return found;
  }

  // The loss of a method that is no mean over tokens has another scale, so it gets a chart of its own.
  suffix(row, metric) {
    return this.page.metrics[metric]?.by_token && !row.by_token ? METHOD : "";
  }

  about(key) {
    const about = this.page.metrics[key.replace(METHOD, "")];
    return about && key.endsWith(METHOD) ? { ...about, title: `${about.title} of the method`, unit: "", order: about.order + 0.5 } : about;
  }

  update() {
    const found = this.wanted();
    const searched = this.form.text.value.trim() !== "";
    for (const [group, names] of found) {
      let box = this.groups.querySelector(`[data-group="${group}"]`);
      if (!box) {
        box = make("details", { class: "group", "data-group": group }, make("summary", {}, GROUPS[group], " ", make("span")), make("div", { class: "charts" }));
        box.open = OPEN.has(group);
        box.addEventListener("toggle", () => this.update());
        this.groups.append(box);
      }
      box.hidden = !names.length;
      if (searched && names.length) box.open = true;
      box.querySelector("summary span").textContent = `(${names.length})`;
      const grid = box.querySelector(".charts");
      grid.className = `charts ${this.form.size.value}`;
      const figures = box.open ? names.map((name) => this.chart(name).figure) : [];
      if (figures.length !== grid.children.length || figures.some((figure, i) => grid.children[i] !== figure)) grid.replaceChildren(...figures);
    }
    this.groups.querySelector(".empty")?.remove();
    if (![...found.values()].some((names) => names.length)) {
      const why = this.page.slots.size ? "The chosen runs have no such metric." : "Choose runs in the list to see their curves.";
      this.groups.append(make("p", { class: "empty" }, why));
    }
    this.draw();
    this.fetch();
  }

  chart(key) {
    if (!this.charts.has(key)) {
      const chart = new Chart(key.replace(METHOD, ""), this.about(key), { zoom: (range) => this.setZoom(range), light: (id) => this.page.light(id) });
      chart.suffix = key.endsWith(METHOD) ? METHOD : "";
      this.charts.set(key, chart);
      this.seen.observe(chart.figure);
    }
    return this.charts.get(key);
  }

  open() {
    return [...this.groups.querySelectorAll("figure")].map((figure) => figure.chart);
  }

  draw() {
    const options = this.options();
    for (const chart of this.open()) {
      const curves = [];
      for (const [id, slot] of this.page.slots) {
        const [row, data] = [this.page.runs.get(id), this.data.get(id)];
        const curve = data?.curves[chart.metric];
        if (!curve || !row || this.suffix(row, chart.metric) !== chart.suffix) continue;
        let x = data.steps[curve.x];
        if (options.axis !== "step") {
          const over = options.axis === "tokens" ? data.tokens : data.clock;
          if (!over[0].length) continue;
          x = mapped(over, x);
        }
        curves.push({ id, slot, name: row.name, x, y: curve.y, low: curve.low, high: curve.high });
      }
      chart.show(curves, options);
    }
  }

  // Light a run in all charts that are seen; null: none.
  light(id) {
    for (const chart of this.open()) {
      if (chart.cursor !== null || chart.lit === id) continue;
      chart.lit = chart.curves.some((curve) => curve.id === id) ? id : null;
      chart.draw();
    }
  }

  // Ask for the curves of chosen runs that changed, or of which a chart lacks a metric. One request at a time.
  async fetch() {
    this.again = true;
    if (this.running || this.root.hidden) return;
    this.running = true;
    try {
      while (this.again) {
        this.again = false;
        const metrics = [...new Set(this.open().map((chart) => chart.metric))];
        const stale = [...this.page.slots.keys()].filter((id) => {
          const [row, data] = [this.page.runs.get(id), this.data.get(id)];
          return row && metrics.length && (!data || data.version < row.version || metrics.some((name) => !data.asked.has(name)));
        });
        if (!stale.length) break;
        await this.load(stale.slice(0, BATCH), metrics);
        this.again ||= stale.length > BATCH;
        this.draw();
      }
    } catch (error) {
      this.page.failed(error);
    } finally {
      this.running = false;
    }
  }

  async load(ids, metrics) {
    const query = new URLSearchParams();
    for (const id of ids) query.append("run", id);
    for (const name of metrics.slice(0, 100)) query.append("metric", name);
    query.set("points", this.page.slots.size > 20 ? 150 : this.page.slots.size > 8 ? 250 : 400);
    const [zoom, axis] = [this.zoom, this.form.axis.value];
    if (zoom !== null && axis === "step") {
      query.set("low", zoom[0]);
      query.set("high", zoom[1]);
    }
    const answer = await this.page.ask(`/api/curves?${query}`);
    if (this.zoom !== zoom || this.form.axis.value !== axis) {
      this.again = true; // these are not the steps that are shown now
      return;
    }
    for (const id of ids) {
      const found = answer.runs[id] ?? { version: Infinity, steps: [], tokens: [[], []], clock: [[], []], curves: {} };
      this.data.set(id, { ...found, asked: new Set(metrics) });
    }
  }
}
