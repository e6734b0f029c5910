// The page to browse documents: filters and sorts the list, shows a document, and keeps both in the address (#id=…&reason=…).
// Every text of a document becomes a text node, never HTML.
const { columns, rules, documents } = JSON.parse(document.getElementById("data").textContent);
const STEP = 200; // rows that the list shows at a time
const FILTERS = ["reason", "source", "language", "search", "column", "least", "most", "order"];
const form = document.getElementById("filters");
const frame = document.getElementById("list");
const list = frame.querySelector("ol");
const more = document.getElementById("more");
const pane = document.getElementById("pane");
const at = Object.fromEntries(columns.map((column, k) => [column.name, k]));
const value = (one, name) => one.values[at[name]];
const found = { rows: [], shown: STEP, current: null };

const LINES = /[^\n]*\n|[^\n]+/g;
const WORDS = /\s*\p{Script=Han}|\s*[\p{L}\p{N}_]+|\s*[^\s\p{L}\p{N}_]|\s+/gu;
const LARGEST = 4e7; // cells of a table of lengths; a larger text is compared by its beginning and its end alone

// The changes that make `after` of `before`, as [what stays, what is removed, what is added]…: first of lines, then of the words of
// lines that changed. It is a longest common subsequence.
function diff(before, after, pattern = LINES) {
  const [old, fresh] = [before.match(pattern) ?? [], after.match(pattern) ?? []];
  const shorter = Math.min(old.length, fresh.length);
  let [head, tail] = [0, 0];
  while (head < shorter && old[head] === fresh[head]) head++;
  while (tail < shorter - head && old.at(-1 - tail) === fresh.at(-1 - tail)) tail++;
  const [x, y] = [old.slice(head, old.length - tail), fresh.slice(head, fresh.length - tail)];
  const width = y.length + 1;
  const isSmall = x.length * width < LARGEST;
  const longest = new Uint16Array(isSmall ? (x.length + 1) * width : 0); // of x from i and y from j
  for (let i = x.length - 1; isSmall && i >= 0; i--) {
    for (let j = y.length - 1; j >= 0; j--) {
      const skipped = Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
      longest[i * width + j] = x[i] === y[j] ? longest[(i + 1) * width + j + 1] + 1 : skipped;
    }
  }
  const pieces = [[old.slice(0, head).join(""), "", ""]];
  for (let [i, j] = [0, 0]; i < x.length || j < y.length; ) {
    const last = pieces.at(-1);
    if (i < x.length && j < y.length && x[i] === y[j]) {
      if (last[1] || last[2]) pieces.push([x[i], "", ""]);
      else last[0] += x[i];
      [i, j] = [i + 1, j + 1];
    } else if (i < x.length && (j === y.length || !isSmall || longest[(i + 1) * width + j] >= longest[i * width + j + 1])) last[1] += x[i++];
    else last[2] += y[j++];
  }
  pieces.push([old.slice(old.length - tail).join(""), "", ""]);
  return pieces.flatMap(([same, removed, added]) => (pattern === LINES && removed && added ? [[same, "", ""], ...diff(removed, added, WORDS)] : [trimmed(same, removed, added)]));
}

// A change without the beginning that what is removed and what is added have in common, such as a space.
function trimmed(same, removed, added) {
  let common = 0;
  while (common < Math.min(removed.length, added.length) && removed[common] === added[common]) common++;
  return [same + removed.slice(0, common), removed.slice(common), added.slice(common)];
}

// [name, pieces]… of all stages that changed the text, the first of all stages at once if they are several.
function changesOf(one) {
  const pairs = one.texts.slice(1).map((text, i) => [text[0], one.texts[i], text]);
  if (pairs.length > 1) pairs.unshift(["all stages", one.texts[0], one.texts.at(-1)]);
  return pairs.map(([name, [, before, length], [, after, newLength]]) => {
    const pieces = diff(before, after);
    const isCut = length > Array.from(before).length || newLength > Array.from(after).length;
    if (isCut) while (pieces.length && !pieces.at(-1)[0]) pieces.pop(); // what only one of two cut texts has at its end
    if (isCut && pieces.length) pieces.push([pieces.at(-1)[0] + pieces.pop()[1], "", ""]);
    return [name, pieces.filter((piece) => piece.some(Boolean))];
  });
}

function text(one, pieces) {
  const pre = make("pre", { tabindex: "0", "aria-label": "text" });
  for (const [same, removed, added] of pieces) {
    append(pre, same);
    for (const [tag, content] of [["del", removed], ["ins", added]]) {
      if (!content) continue;
      const changed = make(tag);
      append(changed, content, UNSEEN_CHANGED);
      pre.append(changed);
    }
  }
  const cut = one.texts[0][2] - Array.from(one.texts[0][1]).length;
  if (cut > 0) pre.append(make("span", { class: "cut" }, `Cut here: ${cut.toLocaleString("en")} more characters, and what changed in them.`));
  return pre;
}

function views(one, box) {
  const bar = make("div", { id: "views" });
  const changes = changesOf(one);
  const choices = [...changes, ["as read", [[one.texts[0][1], "", ""]]]];
  if (changes.length) choices.push(["at the end", [[one.texts.at(-1)[1], "", ""]]]);
  const show = (view) => {
    for (const button of bar.querySelectorAll("button[aria-pressed]")) button.setAttribute("aria-pressed", button.dataset.view === view);
    box.replaceChildren(text(one, choices.find(([name]) => name === view)[1]));
  };
  for (const [i, [name, pieces]] of choices.entries()) {
    const count = pieces.filter(([, removed, added]) => removed || added).length;
    const label = i < changes.length ? `${name}: ${count} change${count === 1 ? "" : "s"}` : name;
    const button = make("button", { type: "button", "aria-pressed": "false", "data-view": name }, label);
    button.addEventListener("click", () => show(name));
    bar.append(button);
  }
  if (changes.length) {
    const next = make("button", { type: "button", id: "next" }, "next change");
    next.addEventListener("click", nextChange);
    bar.append(next);
  }
  show(choices[0][0]);
  return bar;
}

function nextChange() {
  const changes = [...pane.querySelectorAll("pre del, pre ins")];
  const after = changes.findIndex((change) => change.classList.contains("here")) + 1;
  for (const change of changes) change.classList.remove("here");
  const next = changes[after] ?? changes[0];
  next?.classList.add("here");
  next?.scrollIntoView({ block: "center" });
}

function written(content) {
  if (typeof content !== "number") return content === null ? "–" : String(content);
  return Number.isInteger(content) ? content.toLocaleString("en") : String(Number(content.toPrecision(6)));
}

function cell(one, column) {
  const content = value(one, column.name);
  const box = make("td", typeof content === "number" ? { title: content } : {});
  if (column.name === "url" && /^https?:\/\//i.test(content ?? "")) {
    const link = make("a", { href: content, rel: "noreferrer noopener nofollow", dir: "auto" });
    append(link, content);
    box.append(link);
  } else {
    const isolated = make("bdi");
    append(isolated, written(content));
    box.append(isolated);
  }
  if (column.name in one.links) {
    const id = one.links[column.name];
    const label = make("bdi");
    append(label, id);
    const there = documents.some((other) => value(other, "id") === id);
    box.append(" = ", there ? make("a", { href: "#" + new URLSearchParams({ id }) }, label) : label);
  }
  return box;
}

function measures(one) {
  const body = make("tbody");
  let stage = null;
  for (const column of columns) {
    if (column.stage !== stage) body.append(make("tr", {}, make("th", { scope: "rowgroup", colspan: "4" }, (stage = column.stage))));
    const fails = one.fails.includes(column.name);
    const row = make("tr", {}, make("td", {}, ...breakable(column.name)), cell(one, column));
    row.append(make("td", {}, column.name in rules ? told(column.name) : ""), make("td", {}, verdict(one, column)));
    if (fails) row.className = "fails";
    body.append(row);
  }
  const head = make("tr", {}, ...["measure", "value", "stays if", ""].map((name) => make("th", { scope: "col" }, name)));
  return make("div", { class: "scroll" }, make("table", { id: "measures" }, make("thead", {}, head), body));
}

// A name that may break behind its underscores.
function breakable(name) {
  return name.split("_").flatMap((part, k) => (k ? ["_", make("wbr"), part] : [part]));
}

function told(name) {
  return (rules[name] ?? "–").replaceAll(name, "value");
}

function verdict(one, column) {
  const { name, stage, compares } = column;
  if (one.fails.includes(name)) return name === one.reason ? "broken: the reason" : "broken";
  // Columns are in the order of stages: one that compares documents has not seen what an earlier rule drops.
  if (compares && columns.slice(0, columns.findIndex((other) => other.stage === stage)).some((other) => one.fails.includes(other.name)))
    return "not compared";
  return name in rules ? "holds" : "";
}

function sentences(one) {
  if (one.reason === "kept") return ["It stays."];
  if (one.reason === "empty") return ["It goes: no text is left."];
  const others = one.fails.filter((name) => name !== one.reason);
  const broken = (name) => `${name} = ${written(value(one, name))} (stays if ${told(name)})`;
  const line = ["It goes: ", make("b", { class: "bad" }, broken(one.reason)), "."];
  if (others.length) line.push(` It also breaks ${others.map(broken).join("; ")}.`);
  return line;
}

function show(one) {
  found.current = one;
  pane.replaceChildren();
  if (!one) return;
  const name = make("bdi");
  append(name, String(value(one, "id")));
  const box = make("div");
  const size = `${one.texts[0][2].toLocaleString("en")} characters as read, document number ${one.number}`;
  pane.append(make("h2", {}, name), make("p", {}, ...sentences(one)), make("p", { class: "note" }, size));
  pane.append(views(one, box), box, make("h3", {}, "Measures"), measures(one));
}

function address(one) {
  return "#" + new URLSearchParams({ ...Object.fromEntries(state()), id: value(one, "id"), number: one.number });
}

function row(one) {
  const link = make("a", { href: address(one) });
  const name = make("bdi");
  append(name, String(value(one, "id")));
  const facts = [one.reason, value(one, "source"), value(one, "language") ?? "unknown"];
  if (form.column.value) facts.push(`${form.column.value} ${written(measure(one))}`);
  const small = make("small");
  append(small, facts.join(" · "));
  link.append(name, small);
  if (one === found.current) link.setAttribute("aria-current", "true");
  return make("li", {}, link);
}

function fill() {
  list.replaceChildren(...found.rows.slice(0, found.shown).map(row));
  more.hidden = found.shown >= found.rows.length;
}

function measure(one) {
  const name = form.column.value;
  return name === "characters" ? one.texts[0][2] : value(one, name);
}

function haystack(one) {
  one.low ??= [value(one, "id"), value(one, "url"), one.texts[0][1]].join("\n").toLowerCase();
  return one.low;
}

function filter() {
  const wanted = form.search.value.trim().toLowerCase();
  const bound = (input, none) => (input.value.trim() === "" || Number.isNaN(Number(input.value)) ? none : Number(input.value));
  const [least, most] = [bound(form.least, -Infinity), bound(form.most, Infinity)];
  const ranged = form.column.value && (least > -Infinity || most < Infinity);
  const is = (select, content) => !select.value || select.value === "=" + content;
  found.rows = documents.filter(
    (one) =>
      is(form.reason, one.reason) &&
      is(form.source, value(one, "source")) &&
      is(form.language, value(one, "language") ?? "unknown") &&
      (!wanted || haystack(one).includes(wanted)) &&
      (!ranged || (typeof measure(one) === "number" && measure(one) >= least && measure(one) <= most)),
  );
  if (form.column.value) {
    const sign = form.order.value === "down" ? -1 : 1;
    const key = (one) => (typeof measure(one) === "number" ? measure(one) * sign : Infinity); // without a number: at the end
    found.rows.sort((one, other) => (key(one) === key(other) ? 0 : key(one) < key(other) ? -1 : 1));
  }
  found.shown = STEP;
  form.least.disabled = form.most.disabled = form.order.disabled = !form.column.value;
  document.getElementById("count").textContent = `${found.rows.length.toLocaleString("en")} of ${documents.length.toLocaleString("en")} documents`;
}

// The values of selects have "=" in front, so that "" is free for "all".
function state() {
  const some = FILTERS.map((name) => [name, form[name].value.replace(/^=/, "")]).filter(([, content]) => content);
  return new URLSearchParams(some);
}

function choices() {
  const counted = (select, of) => {
    const counts = new Map();
    for (const one of documents) counts.set(of(one), (counts.get(of(one)) ?? 0) + 1);
    const order = [...counts].sort(([one], [other]) => (one === "kept" ? -1 : other === "kept" ? 1 : one < other ? -1 : 1));
    select.append(make("option", { value: "" }, "all"));
    for (const [name, count] of order) select.append(make("option", { value: "=" + name }, `${name} (${count.toLocaleString("en")})`));
  };
  counted(form.reason, (one) => one.reason);
  counted(form.source, (one) => value(one, "source"));
  counted(form.language, (one) => value(one, "language") ?? "unknown");
  form.column.append(make("option", { value: "" }, "number"), make("option", {}, "characters"));
  for (const column of columns) if (column.kind === "number") form.column.append(make("option", {}, column.name));
}

// Takes filters and document from the address.
function read() {
  const hash = new URLSearchParams(location.hash.slice(1));
  for (const name of FILTERS) {
    const content = hash.get(name) ?? "";
    const input = form[name];
    const wanted = content && ["reason", "source", "language"].includes(name) ? "=" + content : content;
    input.value = wanted;
    if (input.tagName === "SELECT" && input.selectedIndex < 0) input.value = ""; // no such choice
  }
  filter();
  const id = hash.get("id");
  const same = documents.filter((one) => value(one, "id") === id);
  const pick = same.find((one) => String(one.number) === hash.get("number")) ?? same.find((one) => one.reason === hash.get("reason"));
  show(id === null ? (found.rows[0] ?? null) : (pick ?? same[0] ?? null));
  if (id !== null && !found.current) pane.append(make("p", { class: "notice" }, "This document is not in the sample of this page."));
  const place = found.rows.indexOf(found.current);
  if (place >= found.shown) found.shown = place + STEP;
  const inList = list.contains(document.activeElement);
  fill();
  if (inList) list.querySelector("[aria-current]")?.focus({ preventScroll: true });
  scroll();
  if (id !== null && matchMedia("(max-width: 760px)").matches) pane.scrollIntoView();
}

function step(by) {
  const place = found.rows.indexOf(found.current);
  const next = found.rows[place < 0 ? 0 : place + by];
  if (!next) return;
  history.replaceState(null, "", address(next));
  read();
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", () => {
  filter();
  history.replaceState(null, "", "#" + state());
  show(found.rows[0] ?? null);
  fill();
});
more.addEventListener("click", () => {
  found.shown += STEP;
  fill();
});
addEventListener("hashchange", read);
listen({ n: nextChange });
choices();
read();
