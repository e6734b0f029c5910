// Draws messages: an article each, whose `paint` shows what has changed. Has the forms to edit a message and to rate an answer.
import * as api from "./chat_api.js";
import { at, copyButton, icon, iconButton, make, say, toast } from "./chat_dom.js";
import * as markdown from "./chat_markdown.js";
import { gallery } from "./chat_media.js";
import * as tokens from "./chat_tokens.js";

const ENDS = {
  length: "cut at its most tokens",
  stopped: "stopped",
  content_filter: "withheld by a policy of this server",
};

// page: {answering(message), busy(), likely(), again(message), resend(message, text), changed()}.
export function article(message, page) {
  return message.role === "user" ? question(message, page) : answer(message, page);
}

function question(message, page) {
  const shown = message.media ? [make("div", { class: "media" }, ...gallery(message.media))] : [];
  const said = make("div", { class: "said" }, message.content);
  said.hidden = !message.content;
  const edit = iconButton("edit", "Edit and send again", () => open());
  const acts = make("span", { class: "acts" }, copyButton(() => message.content), edit);
  const element = make("article", { class: "user", "aria-label": "You" }, ...shown, said, make("div", { class: "meta" }, acts));
  const open = () => {
    const form = editor("Edit the message", message.content, "Send", (text) => (text || message.media) && page.resend(message, text), close);
    element.replaceChildren(...shown, form);
    form.elements.text.focus();
  };
  const close = () => {
    element.replaceChildren(...shown, said, acts.parentElement);
    edit.focus();
  };
  element.edit = open;
  element.paint = () => {
    edit.disabled = page.busy();
  };
  return element;
}

// A form with one text. Enter sends it, Esc closes it. `send` gets the text without white space around it.
function editor(label, text, action, send, close) {
  const area = make("textarea", { name: "text", rows: "2", "aria-label": label });
  area.value = text;
  const cancel = make("button", { type: "button" }, "Cancel");
  const form = make("form", {}, area, make("div", { class: "row" }, cancel, make("button", { class: "main" }, action)));
  cancel.addEventListener("click", close);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(area.value.trim());
  });
  form.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey && event.target === area) {
      event.preventDefault();
      form.requestSubmit();
    } else if (event.key === "Escape") {
      event.stopPropagation();
      close();
    }
  });
  return form;
}

function answer(message, page) {
  const again = iconButton("again", "Answer again", () => page.again(message));
  const thumbs = { up: 1, down: -1 };
  const rates = Object.entries(thumbs).map(([name, rating]) =>
    iconButton(name, rating > 0 ? "Good answer" : "Bad answer", () => rate(rating), { "aria-pressed": "false" }),
  );
  const acts = make("span", { class: "acts" }, copyButton(() => message.content), again, ...rates);
  const facts = make("span");
  const meta = make("div", { class: "meta" }, acts, facts);
  const below = make("div"); // what went wrong, or the form of a rating
  const element = make("article", { class: "assistant", "aria-label": "Answer" });
  const other = make("div", { class: "said markdown" }); // the answer of a second model
  const thoughts = [folded(), folded()]; // of both
  let body, shown;

  const rate = (rating) => {
    const close = () => {
      below.replaceChildren();
      rates[rating > 0 ? 0 : 1].focus();
    };
    const send = async (comment) => {
      try {
        await api.rate(message.id, rating, comment);
        message.rating = rating;
        page.changed();
        toast("Thank you for the rating.");
      } catch (error) {
        if (error.status === 404) message.unknown = true; // the server keeps no ratings, or does not know this answer any more
        toast(error.status === 404 ? `The rating is not kept. ${error.message}` : `${error.message} ${error.advice}`);
      }
      close();
      element.paint();
    };
    const what = rating > 0 ? "What is good about it?" : "What is wrong with it?";
    const form = editor(`${what} You may leave this empty.`, "", "Send the rating", send, close);
    form.className = "rating";
    form.elements.text.placeholder = `${what} (optional)`;
    below.replaceChildren(form);
    form.elements.text.focus();
  };

  const columns = () => {
    const column = (name, ...said) => make("section", { "aria-label": `Answer of ${name}` }, make("h3", {}, name), ...said);
    return make("div", { class: "answers" }, column(message.model, thoughts[0], body), column(message.beside.model, thoughts[1], other));
  };

  element.paint = () => {
    const busy = page.answering(message);
    const likely = page.likely() && message.tokens?.length > 0;
    if (shown !== likely) {
      shown = likely;
      body = likely ? make("div", { class: "said tokens", tabindex: "0" }) : make("div", { class: "said markdown" });
      if (likely) tokens.listen(body);
      element.replaceChildren(...(message.beside ? [columns()] : [thoughts[0], body]), below, meta);
    }
    [message, message.beside].forEach((one, n) => thoughts[n].paint(one?.thought, busy && !one?.content));
    // The tokens are those of the thought, too.
    if (likely) tokens.render(body, message.tokens, message.thought ? message.tokens.map(([text]) => text).join("") : message.content);
    else markdown.render(body, message.content);
    if (message.beside) markdown.render(other, message.beside.content || (message.beside.error ? `(${message.beside.error.text})` : ""));
    element.setAttribute("aria-busy", busy);
    facts.replaceChildren(...told(message, busy));
    acts.hidden = busy || !message.content;
    again.disabled = page.busy();
    const known = message.id && message.finish && !message.unknown;
    rates.forEach((button, n) => {
      button.hidden = !known || document.documentElement.dataset.feedback !== "yes";
      button.setAttribute("aria-pressed", message.rating === [1, -1][n]);
    });
    if (message.error && !below.firstChild) below.replaceChildren(fault(message, page));
  };
  return element;
}

// The thought before an answer, which a click unfolds.
function folded() {
  const [name, text] = [make("summary", {}), make("div", { dir: "auto" })];
  const element = make("details", { class: "thought" }, name, text);
  element.paint = (thought, goesOn) => {
    element.hidden = !thought;
    name.textContent = goesOn ? "Thinking…" : "Thought";
    if (text.textContent !== thought) text.textContent = thought ?? "";
  };
  return element;
}

function fault(message, page) {
  const { text, advice } = message.error;
  const button = make("button", { type: "button" }, icon("again"), "Try again");
  button.addEventListener("click", () => page.again(message));
  return make("div", { class: "fault notice", role: "alert" }, make("p", {}, make("b", {}, text), " ", advice), button);
}

// The numbers below an answer: tokens, tokens/s behind the first token, time to the first token, and why it ended.
function told(message, busy) {
  const { count, first, seconds, finish, model, prompt, cached } = message;
  const found = [];
  if (busy && !count) found.push("reading the prompt");
  if (count) found.push(`${count} token${count === 1 ? "" : "s"}`);
  if (count > 1 && seconds > first) found.push(`${((count - 1) / (seconds - first)).toFixed(1)} tokens/s`);
  if (first !== undefined) found.push(`first after ${first < 10 ? first.toFixed(2) : first.toFixed(0)} s`);
  if (ENDS[finish]) found.push(ENDS[finish]);
  const about = `${model}; the prompt has ${prompt} tokens, ${cached} of them from the prefix cache`;
  return [make("span", prompt ? { title: about } : {}, found.join(" · "))];
}

export function greeting(name, ask) {
  const ideas = [
    "Explain in three sentences why the sky is blue.",
    "Write a Python function that reverses the words of a text.",
    "Give me five names for a small grey cat.",
  ];
  const buttons = ideas.map((idea) => {
    const button = make("button", { type: "button" }, idea);
    button.addEventListener("click", () => ask(idea));
    return button;
  });
  const note = "Conversations stay in this browser.";
  say("");
  return make("div", { class: "hello" }, make("h2", {}, name || at("model").value), make("p", {}, note), make("div", {}, ...buttons));
}
