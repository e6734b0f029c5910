// The chat page: conversations, what is asked and stopped, and the settings. Drawing is in the other chat_*.js.
import * as api from "./chat_api.js";
import { at, icon, iconButton, make, say, toast } from "./chat_dom.js";
import * as media from "./chat_media.js";
import { article, greeting } from "./chat_messages.js";
import * as store from "./chat_store.js";
import * as tokens from "./chat_tokens.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "seed", "max_tokens"];
const THEMES = ["system", "light", "dark"];
const [log, scroller, composer, text, form, model, beside] = ["log", "scroll", "composer", "text", "options", "model", "beside"].map(at);
const ALONE = "answers alone"; // the first choice of `beside`
const linked = Object.fromEntries(["model", "beside"].map((name) => [name, new URLSearchParams(location.search).get(name)]).filter(([, value]) => value));
const options = { ...store.options(), ...linked };
const running = new Map(); // id of a conversation -> {stop, answer}
const articles = new Map(); // message -> its element, of the conversation that is shown
let all = store.chats();
let chat = store.newChat(options.system ?? "");
let stuck = true; // the view follows the end of the conversation

// Messages.

const page = {
  answering: (message) => running.get(chat.id)?.answer === message,
  busy: () => running.has(chat.id),
  likely: () => Boolean(options.likely),
  again: (message) => ask(chat.messages.indexOf(message)),
  resend: (message, content) => ask(chat.messages.indexOf(message), content, message.media),
  changed: () => keep(chat),
};

function show(next) {
  chat = next;
  articles.clear();
  log.replaceChildren();
  form.system.value = chat.system;
  stuck = true;
  lay();
  drawList();
}

// Brings the articles to the messages of the conversation, and paints them.
function lay() {
  const here = new Set(chat.messages);
  for (const [message, element] of articles)
    if (!here.has(message)) {
      element.remove();
      articles.delete(message);
    }
  if (!chat.messages.length) log.replaceChildren(greeting(model.value, (idea) => ask(0, idea)));
  else log.querySelector(".hello")?.remove();
  for (const message of chat.messages) {
    if (articles.has(message)) continue;
    articles.set(message, article(message, page));
    log.append(articles.get(message));
  }
  for (const element of articles.values()) element.paint();
  const busy = page.busy();
  const button = at("send");
  button.setAttribute("aria-label", busy ? "Stop" : "Send");
  button.title = busy ? "Stop (Esc)" : "Send (Enter)";
  button.replaceChildren(icon(busy ? "stop" : "send"));
  follow();
}

function follow() {
  if (stuck) scroller.scrollTop = scroller.scrollHeight;
  at("end").hidden = stuck;
}

// Asks for an answer. The messages from number `from` on go; `content` and `files`, if there are any, are the user's message in
// their place.
async function ask(from, content, files = []) {
  if (page.busy()) return;
  if (!form.checkValidity()) {
    panel("settings", true);
    form.reportValidity();
    return;
  }
  chat.messages.length = from;
  if (content || files.length) chat.messages.push({ role: "user", content, ...(files.length ? { media: files } : {}) });
  const mine = chat;
  const body = request(mine);
  const answer = { role: "assistant", content: "", model: model.value, tokens: [] };
  const stop = new AbortController();
  const takes = [[answer, body]];
  if (beside.value && beside.value !== model.value) {
    answer.beside = { content: "", model: beside.value };
    takes.push([answer.beside, { ...body, model: beside.value, messages: store.said(mine, beside.value), logprobs: undefined, top_logprobs: undefined }]);
  }
  mine.messages.push(answer);
  running.set(mine.id, { stop, answer });
  stuck = true;
  keep(mine);
  lay();
  say("The answer begins.");
  const taken = async ([one, asked]) => {
    try {
      await take(one, api.answer(asked, stop.signal));
    } catch (error) {
      if (stop.signal.aborted) one.finish = "stopped";
      else failed(one, error);
    }
  };
  await Promise.all(takes.map(taken));
  running.delete(mine.id);
  if (all.includes(mine)) keep(mine); // it may be deleted
  if (chat === mine) lay();
  say(answer.error ? "" : `The answer has ended${answer.count ? ` after ${answer.count} tokens` : ""}.`);
}

async function take(answer, chunks) {
  const begun = performance.now();
  const read = tokens.reader();
  for await (const { id, usage, choices } of chunks) {
    answer.id = id;
    if (usage) {
      const { completion_tokens: count, prompt_tokens: prompt, prompt_tokens_details: details } = usage;
      Object.assign(answer, { count, prompt, cached: details?.cached_tokens ?? 0 });
    }
    for (const { delta, logprobs, finish_reason: finish } of choices) {
      answer.content += delta.content ?? "";
      if (delta.reasoning_content) answer.thought = (answer.thought ?? "") + delta.reasoning_content;
      if (logprobs && answer.tokens) answer.tokens.push(...read(logprobs.content));
      answer.finish = finish ?? answer.finish;
      if (delta.content || delta.reasoning_content || logprobs) {
        answer.seconds = (performance.now() - begun) / 1000;
        answer.first ??= answer.seconds;
      }
    }
    paintSoon();
  }
}

let painting = false;
function paintSoon() {
  if (painting) return;
  painting = true;
  requestAnimationFrame(() => {
    painting = false;
    articles.get(running.get(chat.id)?.answer)?.paint();
    follow();
  });
}

function failed(answer, error) {
  const { status, message, advice } = error;
  answer.error = { text: message, advice: advice ?? "Reload the page and try again." };
  if (status === 401) askKey();
  if (status === 404) loadModels();
  if (!(error instanceof api.ApiError)) console.error(error);
}

function request(mine) {
  const numbers = NUMBERS.filter((name) => form[name].value !== "").map((name) => [name, form[name].valueAsNumber]);
  const stop = form.stop.value.split("\n").filter(Boolean).slice(0, 16);
  const likely = options.likely ? { logprobs: true, top_logprobs: tokens.ALTERNATIVES } : {};
  return { model: model.value, messages: store.said(mine, model.value), ...Object.fromEntries(numbers), ...(stop.length ? { stop } : {}), ...likely };
}

function stopAnswer() {
  running.get(chat.id)?.stop.abort();
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  if (page.busy()) return stopAnswer();
  const content = text.value.trim();
  if (!content && media.isEmpty()) return;
  text.value = "";
  ask(chat.messages.length, content, media.take());
});
text.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    if (!page.busy()) composer.requestSubmit();
  } else if (event.key === "ArrowUp" && !text.value && !page.busy()) {
    const last = chat.messages.findLast(({ role }) => role === "user");
    if (!last) return;
    event.preventDefault();
    articles.get(last).edit();
  }
});
scroller.addEventListener("scroll", () => {
  stuck = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
  at("end").hidden = stuck;
  tokens.hide();
});
at("end").addEventListener("click", () => {
  stuck = true;
  follow();
});

// Conversations.

function keep(mine) {
  mine.changed = Date.now();
  all = [mine, ...all.filter((one) => one !== mine)];
  if (!store.save(mine)) toast("This browser has no room left for the conversation: export it, or delete others.");
  drawList();
}

function drawList() {
  const rows = all.map((one) => {
    const open = make("button", { type: "button", class: "title" }, make("span", { dir: "auto" }, store.title(one)));
    open.addEventListener("click", () => {
      show(one);
      panel("side", false);
    });
    if (one === chat) open.setAttribute("aria-current", "true");
    const save = iconButton("save", "Export as JSONL", () => download([one]));
    const bin = iconButton("bin", "Delete", () => erase(one));
    const kinds = [one === chat && "current", running.has(one.id) && "running"].filter(Boolean).join(" ");
    return make("li", { class: kinds }, open, save, bin);
  });
  at("list").replaceChildren(...rows);
  at("export").disabled = !all.length;
}

function erase(one) {
  running.get(one.id)?.stop.abort();
  all = all.filter((other) => other !== one);
  store.remove(one.id);
  if (one === chat) show(store.newChat(options.system ?? ""));
  else drawList();
  toast("The conversation is deleted.", "Undo", () => {
    keep(one);
    show(one);
  });
}

function download(some) {
  const lines = store.lines(some);
  if (!lines) return toast("There is no answer to export yet.");
  const address = URL.createObjectURL(new Blob([lines], { type: "application/jsonl" }));
  make("a", { href: address, download: "conversations.jsonl" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

at("new").addEventListener("click", () => {
  show(store.newChat(options.system ?? ""));
  panel("side", false);
  text.focus();
});
at("export").addEventListener("click", () => download(all));
addEventListener("storage", ({ key }) => {
  if (!store.isChat(key)) return;
  // Another tab has changed them. Those that are answered here stay as they are here.
  all = store.chats().map((one) => (running.has(one.id) ? all.find((own) => own.id === one.id) : one));
  const same = all.find((one) => one.id === chat.id);
  if (same && same !== chat) show(same);
  else drawList();
});
addEventListener("pagehide", () => {
  for (const one of all) if (running.has(one.id)) store.save(one);
});

// Settings.

function readOptions() {
  for (const name of [...NUMBERS, "stop"]) form[name].value = options[name] ?? "";
  form.system.value = chat.system;
  at("likely").setAttribute("aria-pressed", Boolean(options.likely));
  at("legend").hidden = !options.likely;
  const theme = THEMES.includes(options.theme) ? options.theme : "system";
  document.documentElement.dataset.theme = theme;
  at("theme").querySelector("span").textContent = theme[0].toUpperCase() + theme.slice(1);
  at("theme").setAttribute("aria-label", `Colours: ${theme}`);
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", ({ target }) => {
  options[target.name] = target.value;
  store.saveOptions(options);
  if (target !== form.system) return;
  chat.system = target.value;
  if (chat.messages.length) keep(chat);
});
form.addEventListener("reset", (event) => {
  event.preventDefault();
  for (const name of [...NUMBERS, "stop", "system"]) options[name] = "";
  chat.system = "";
  if (chat.messages.length) keep(chat);
  store.saveOptions(options);
  readOptions();
});
at("likely").addEventListener("click", () => {
  options.likely = !options.likely;
  store.saveOptions(options);
  readOptions();
  tokens.hide();
  lay();
  const old = chat.messages.some((message) => message.content && message.role === "assistant" && !message.tokens?.length);
  if (options.likely && old) toast("Answers from now on have probabilities. Answer again to see them here.");
});
at("theme").addEventListener("click", () => {
  options.theme = THEMES[(THEMES.indexOf(options.theme ?? "system") + 1) % THEMES.length];
  store.saveOptions(options);
  readOptions();
});
model.addEventListener("change", () => {
  options.model = model.value;
  store.saveOptions(options);
  if (!chat.messages.length) lay();
});

beside.addEventListener("change", () => {
  options.beside = beside.value;
  store.saveOptions(options);
});

async function loadModels() {
  try {
    const served = await api.models();
    const names = served.map(({ id }) => id);
    for (const [name, value] of Object.entries(served[0].default_sampling ?? {})) if (form[name]) form[name].placeholder = value;
    const wanted = names.includes(options.model) ? options.model : names[0];
    const same = names.length === model.options.length && names.every((name, n) => model.options[n].value === name);
    if (!same) model.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    model.value = wanted;
    if (!same) beside.replaceChildren(make("option", { value: "" }, ALONE), ...names.map((name) => make("option", { value: name }, `beside ${name}`)));
    beside.value = names.includes(options.beside) ? options.beside : "";
    beside.hidden = names.length < 2;
    at("key").hidden = true;
    if (!chat.messages.length) lay();
  } catch (error) {
    if (error.status === 401) askKey();
    else toast(`${error.message} ${error.advice}`, "Try again", loadModels);
  }
}

function askKey() {
  at("key").hidden = false;
  at("key-text").focus();
}

at("key").addEventListener("submit", (event) => {
  event.preventDefault();
  api.useKey(at("key-text").value.trim());
  at("key-text").value = "";
  loadModels();
  text.focus();
});
addEventListener("focus", loadModels); // adapters come and go

// Panels beside the messages, and above them on a small screen.

function panel(name, open) {
  const box = at(name);
  const opener = document.querySelector(`[data-open="${name}"]`);
  if (name === "side") box.classList.toggle("open", open);
  else box.hidden = !open;
  opener.setAttribute("aria-expanded", open);
  const above = open && getComputedStyle(box).position === "fixed";
  at("shade").hidden = !above;
  document.querySelector("main").inert = above;
  if (open) box.querySelector("button, input, textarea").focus();
  else if (getComputedStyle(opener).display !== "none") opener.focus();
}

const isOpen = (name) => (name === "side" ? at("side").classList.contains("open") : !at("settings").hidden);
for (const button of document.querySelectorAll("[data-open]"))
  button.addEventListener("click", () => panel(button.dataset.open, !isOpen(button.dataset.open)));
for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => panel(button.dataset.close, false));
const closePanels = () => ["side", "settings"].filter(isOpen).map((name) => panel(name, false)).length;
at("shade").addEventListener("click", closePanels);
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.key === "Escape") {
    if (tokens.hide()) return;
    if (page.busy()) stopAnswer();
    else closePanels();
  } else if (event.key === "/" && !event.target.closest("input, textarea, select")) {
    event.preventDefault();
    text.focus();
  }
});

media.listen();
readOptions();
show(all[0] ?? chat);
loadModels();
if (matchMedia("(hover: hover)").matches) text.focus();
