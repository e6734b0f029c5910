// The page to browse the items of an evaluation: filters and pages the list, shows an item, and keeps both in the address
// (#TASK/ITEM?state=wrong&search=…). Items stand in compressed blocks, which are read when they are needed.
const STEP = 50; // rows of a page of the list
const KEPT = 12; // blocks that stay in memory
const FILTERS = ["state", "group", "flag", "search", "order"]; // beside the task, which stands first in the address
const FLAGS = {
  prompts_cut: "The prompt was too long: the model did not read its beginning.",
  generations_cut_by_length: "The answer was cut at the maximum length.",
  generations_without_answer: "No answer was found in the model's text.",
  loglikelihoods_not_finite: "A log-likelihood is not finite, so the item is not scored.",
  choices_without_tokens: "The model gave no tokens of the choices, so the item is not scored.",
  tied_choices: "Several choices have the highest log-likelihood; the first of them counts.",
  no_generation: "The model gave no answer, so the item is not scored.",
  unknown_verdicts: "The judge could not tell, so the item is not scored.",
  judge_unknown: "The judge could not tell, so the item has no grade.",
};
const MARKS = { right: ["✓", "good"], wrong: ["✗", "bad"], measured: ["·", ""], "not scored": ["?", ""] };
const form = document.getElementById("filters");
const frame = document.getElementById("list");
const list = frame.querySelector("ol");
const pane = document.getElementById("pane");
const count = document.getElementById("count");
const found = { rows: [], page: 0, current: null, filters: null, run: 0, last: null };

const size = (n) => n.toLocaleString("en");

async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

const index = await unpacked("index").catch((error) => {
  count.textContent = `This browser cannot read the items (${error}). They are in samples.jsonl.`;
  throw error;
});
const items = index.rows.map(([task, name, state, group, flags, margin, text], number) => ({
  number,
  task: index.tasks[task],
  name,
  state: index.states[state],
  group: index.groups[group],
  flags: flags.map((flag) => index.flags[flag]),
  margin,
  text,
}));
const byAddress = new Map(items.map((item) => [JSON.stringify([item.task, item.name]), item]));
const blocks = new Map();

function blockOf(item) {
  let low = 0;
  for (let high = index.starts.length; high - low > 1; ) {
    const middle = (low + high) >> 1;
    if (index.starts[middle] <= item.number) low = middle;
    else high = middle;
  }
  return low;
}

// The entries of a block; the blocks that were used last stay in memory.
async function entries(block) {
  const kept = blocks.get(block) ?? unpacked(`block${block}`);
  blocks.delete(block);
  blocks.set(block, kept);
  if (blocks.size > KEPT) blocks.delete(blocks.keys().next().value);
  return kept;
}

async function entryOf(item) {
  const block = blockOf(item);
  return (await entries(block))[item.number - index.starts[block]];
}

function haystack(item, entry) {
  const pairs = [...entry.prompt, ...entry.said, ...entry.more].flat();
  const metrics = Object.keys(entry.metrics);
  return [item.task, item.name, item.group, ...pairs, ...entry.choices.map(([text]) => text), entry.gold, ...metrics].join("\n").toLowerCase();
}

// The rows whose item holds the words. A newer search ends this one, which then gives null.
async function searched(rows, wanted, run) {
  const held = [];
  let block = -1;
  for (const [done, item] of rows.entries()) {
    if (blockOf(item) !== block) {
      block = blockOf(item);
      await entries(block);
      await new Promise((go) => setTimeout(go));
      if (run !== found.run) return null;
      count.textContent = `Searching: ${size(done)} of ${size(rows.length)} items …`;
    }
    if (haystack(item, await entryOf(item)).includes(wanted)) held.push(item);
  }
  return held;
}

// The values of selects have "=" in front, so that "" is free for "all".
const chosen = (select, content) => !select.value || select.value === "=" + content;

// Finds the rows that the filters leave. Returns whether they stand; a newer search may have come first.
async function filter() {
  const filters = state();
  const run = ++found.run;
  if (filters === found.filters) {
    tell();
    return true;
  }
  const wanted = form.search.value.trim().toLowerCase();
  let rows = items.filter(
    (item) =>
      chosen(form.task, item.task) &&
      chosen(form.state, item.state) &&
      chosen(form.group, item.group) &&
      (!form.flag.value || (form.flag.value === "any" ? item.flags.length : item.flags.includes(form.flag.value.slice(1)))),
  );
  if (wanted) {
    // What is typed on is searched for only among what was found before.
    const key = JSON.stringify([form.task.value, form.state.value, form.group.value, form.flag.value]);
    if (found.last?.key === key && wanted.includes(found.last.wanted)) rows = found.last.rows;
    rows = await searched(rows, wanted, run);
    if (rows === null) return false;
    found.last = { key, wanted, rows };
  }
  if (form.order.value) rows = [...rows].sort((one, other) => (other.margin ?? -Infinity) - (one.margin ?? -Infinity) || one.number - other.number);
  Object.assign(found, { rows, filters, page: 0 });
  tell();
  return true;
}

function tell() {
  const of = (name) => size(found.rows.filter((item) => item.state === name).length);
  count.textContent = `${size(found.rows.length)} of ${size(items.length)} items: ${of("right")} right, ${of("wrong")} wrong.`;
}

// The filters as they stand in an address.
function state() {
  const some = FILTERS.map((name) => [name, form[name].value.replace(/^=/, "")]).filter(([, content]) => content);
  return JSON.stringify([form.task.value.slice(1), new URLSearchParams(some).toString()]);
}

function address(item = null) {
  const [task, query] = JSON.parse(state());
  const whole = new URLSearchParams(query);
  if (item && item.task !== task) whole.set("task", task);
  const path = item ? [item.task, item.name].map(encodeURIComponent).join("/") : encodeURIComponent(task);
  return `#${path}${String(whole) && "?" + whole}`;
}

function options(select, of, all = "all") {
  const counts = new Map();
  for (const item of items) for (const name of of(item)) counts.set(name, (counts.get(name) ?? 0) + 1);
  const kept = select.value;
  select.replaceChildren(make("option", { value: "" }, all));
  for (const [name, n] of counts)
    select.append(make("option", { value: "=" + name }, `${name.replaceAll("_", " ") || "none"} (${size(n)})`));
  select.value = kept;
  if (select.selectedIndex < 0) select.value = "";
  select.disabled = counts.size === 0;
}

// Groups of the chosen task only.
function groups() {
  const own = (item) => (chosen(form.task, item.task) && item.group ? [item.group] : []);
  options(form.group, own);
}

function row(item) {
  const link = make("a", { href: address(item) });
  const [sign, colour] = MARKS[item.state];
  const name = make("bdi");
  append(name, form.task.value ? item.name : `${item.task} / ${item.name}`);
  const small = make("small");
  append(small, item.text);
  link.append(make("span", { class: colour, role: "img", "aria-label": item.state }, sign), " ", name, item.flags.length ? " ⚑" : "", small);
  if (item === found.current) link.setAttribute("aria-current", "true");
  return make("li", {}, link);
}

function fill() {
  const first = found.page * STEP;
  const last = Math.min(first + STEP, found.rows.length);
  list.replaceChildren(...found.rows.slice(first, last).map(row));
  document.getElementById("range").textContent = last ? `${size(first + 1)}–${size(last)} of ${size(found.rows.length)}` : "no item";
  document.getElementById("back").disabled = found.page === 0;
  document.getElementById("next").disabled = last >= found.rows.length;
}

function textOf(content, attributes = {}) {
  const pre = make("pre", { tabindex: "0", ...attributes });
  append(pre, content);
  return pre;
}

// A name that may break behind its underscores.
function breakable(name) {
  return name.split("_").flatMap((part, k) => (k ? ["_", make("wbr"), part] : [part]));
}

const number = (value, digits = 4) => (typeof value !== "number" ? "–" : String(Number(value.toPrecision(digits))));
const quoted = (text) => `“${text.trim().length > 80 ? text.trim().slice(0, 79) + "…" : text.trim()}”`;

function sentence(item, entry) {
  const box = make("p", { class: "state" });
  const [sign, colour] = MARKS[item.state];
  const known = entry.gold || entry.right.length; // without a right answer, an item passes or fails by the rule of its task
  const word = (known ? null : { right: "passed", wrong: "failed" }[item.state]) ?? item.state;
  box.append(make("b", { class: colour }, `${sign} ${word[0].toUpperCase()}${word.slice(1)}. `));
  if (entry.choices.length && entry.chosen !== null) {
    const right = entry.right.map((k) => quoted(entry.choices[k][0])).join(", ");
    const said = make("bdi");
    const same = entry.right.includes(entry.chosen);
    append(said, `The likeliest choice is ${quoted(entry.choices[entry.chosen][0])}${right ? (same ? ", which is right" : `; right is ${right}`) : ""}.`);
    box.append(said);
  }
  return box;
}

function choices(entry) {
  const known = entry.choices.every(([, score]) => typeof score === "number");
  const best = known ? Math.max(...entry.choices.map(([, score]) => score)) : 0;
  const sum = known ? entry.choices.reduce((all, [, score]) => all + Math.exp(score - best), 0) : 1;
  const tokens = entry.choices.some(([, , n]) => n > 1);
  const body = make("tbody");
  for (const [k, [text, score, n]] of entry.choices.entries()) {
    const content = make("td", { class: "text" });
    append(content, text);
    const share = known ? Math.exp(score - best) / sum : null;
    const marks = [k === entry.chosen ? "likeliest" : "", entry.right.includes(k) ? "right" : ""].filter(Boolean);
    const mark = make("td", { class: entry.right.includes(k) ? "mark good" : "mark" }, marks.join(", "));
    const line = make("tr", k === entry.chosen ? { class: "chosen" } : {}, content, mark, make("td", { class: "figure" }, number(score)));
    if (tokens) line.append(make("td", { class: "figure" }, n ? number(score / n) : "–"));
    const bar = make("i");
    bar.style.width = `${100 * (share ?? 0)}%`;
    if (known) line.append(make("td", { class: "figure" }, `${number(100 * share, 3)} %`), make("td", { class: "bar" }, make("span", { class: "share" }, bar)));
    body.append(line);
  }
  const figures = ["log-likelihood", ...(tokens ? ["per token"] : []), ...(known ? ["share"] : [])];
  const head = make("tr", {}, make("th", { scope: "col" }, "choice"), make("td"));
  head.append(...figures.map((name) => make("th", { scope: "col", class: "figure" }, name)), ...(known ? [make("td", { class: "bar" })] : []));
  return make("div", { class: "scroll" }, make("table", { id: "choices" }, make("thead", {}, head), body));
}

function pairs(id, rows) {
  const body = make("tbody");
  for (const [name, content] of rows) {
    const value = make("td", { class: "text" });
    append(value, content);
    body.append(make("tr", {}, make("td", { class: "name" }, ...breakable(name)), value));
  }
  return make("table", { id }, body);
}

async function show(item) {
  found.current = item;
  if (!item) return pane.replaceChildren();
  const entry = await entryOf(item);
  if (found.current !== item) return;
  const name = make("bdi");
  append(name, `${item.task} / ${item.name}`);
  const parts = [make("h2", {}, name), sentence(item, entry)];
  for (const flag of item.flags) parts.push(make("p", { class: "notice" }, `⚑ ${FLAGS[flag] ?? flag.replaceAll("_", " ")}`));
  if (item.group) {
    const group = make("p", { class: "note" }, "group: ");
    append(group, item.group);
    parts.push(group);
  }
  if (entry.prompt.length) parts.push(make("h3", {}, entry.prompt.length > 1 ? "Prompts" : "Prompt"));
  const prompts = entry.prompt.map(([role, text]) => {
    const pre = make("pre", { tabindex: "0", class: "long", "aria-label": "prompt" });
    if (role) pre.append(make("b", {}, role), " ");
    append(pre, text);
    return pre;
  });
  parts.push(...prompts);
  const note = make("p", { class: "note", hidden: "" }, "The end of the prompt is shown; scroll up in it for its beginning.");
  parts.push(note);
  if (entry.choices.length) {
    parts.push(make("h3", {}, "Choices"), choices(entry));
    const scored = entry.choices.some(([, score]) => typeof score === "number");
    if (scored) parts.push(make("p", { class: "note" }, "Log-likelihoods are in nats; shares are of the choices' probabilities together."));
  }
  for (const [kind, text] of entry.said)
    parts.push(make("h3", {}, kind === "answer" ? "Answer that was scored" : `The model's ${kind.replace("response", "answer")}`), textOf(text));
  if (entry.gold) parts.push(make("h3", {}, "Right answer"), textOf(entry.gold));
  if (Object.keys(entry.metrics).length) {
    const values = Object.entries(entry.metrics).map(([metric, value]) => [metric, number(value)]);
    parts.push(make("h3", {}, "Metrics of this item"), pairs("metrics", values));
  }
  if (entry.more.length) {
    const rest = make("details", {}, make("summary", {}, `${entry.more.length} more field${entry.more.length === 1 ? "" : "s"} of samples.jsonl`));
    rest.append(pairs("more", entry.more));
    parts.push(rest);
  }
  pane.replaceChildren(...parts);
  for (const pre of prompts) pre.scrollTop = pre.scrollHeight;
  note.hidden = !prompts.some((pre) => pre.scrollTop > 0);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// Takes filters and item from the address.
async function read() {
  const [path, query = ""] = location.hash.slice(1).split(/\?(.*)/s, 2);
  const [task = "", name = null] = path.split(/\/(.*)/s, 2).map(decoded);
  const given = new URLSearchParams(query);
  const put = (input, content, mark) => {
    input.value = content && mark ? "=" + content : content;
    if (input.tagName === "SELECT" && input.selectedIndex < 0) input.value = ""; // no such choice
  };
  put(form.task, given.get("task") ?? task, true);
  groups();
  for (const filter of FILTERS) {
    const content = given.get(filter) ?? "";
    put(form[filter], content, ["state", "group", "flag"].includes(filter) && content !== "any");
  }
  if (!(await filter())) return;
  const item = name === null ? null : (byAddress.get(JSON.stringify([task, name])) ?? null);
  const place = found.rows.indexOf(item ?? found.rows[0]);
  if (place >= 0) found.page = Math.floor(place / STEP);
  const inList = list.contains(document.activeElement);
  await show(name === null ? (found.rows[0] ?? null) : item);
  if (name !== null && !item) pane.append(make("p", { class: "notice" }, "The evaluation has no such item."));
  fill();
  if (inList) list.querySelector("[aria-current]")?.focus({ preventScroll: true });
  scroll();
  if (name !== null && matchMedia("(max-width: 760px)").matches) pane.scrollIntoView();
}

async function step(by) {
  const place = found.rows.indexOf(found.current);
  const next = found.rows[place < 0 ? 0 : place + by];
  if (!next) return;
  history.replaceState(null, "", address(next));
  await read();
}

function turn(by) {
  found.page += by;
  fill();
  frame.scrollTop = 0;
}

let typing = 0;
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", (event) => {
  clearTimeout(typing);
  const apply = () => {
    if (event.target === form.task) groups();
    history.replaceState(null, "", address() || "#");
    read();
  };
  typing = setTimeout(apply, event.target === form.search ? 200 : 0);
});
document.getElementById("back").addEventListener("click", () => turn(-1));
document.getElementById("next").addEventListener("click", () => turn(1));
addEventListener("hashchange", read);
listen();
options(form.task, (item) => [item.task]);
options(form.state, (item) => [item.state]);
options(form.flag, (item) => item.flags, "all");
if (!form.flag.disabled) form.flag.options[0].after(make("option", { value: "any" }, "any problem"));
await read();
