// The tokens of an answer, coloured by their probability, and what else could have come at each place.
//
// A token: [text, name, log-probability, [[name, log-probability], …]] the likeliest first. The text of a character of
// several tokens is that of its last token; the others have "".
import { at, make, say } from "./chat_dom.js";

export const ALTERNATIVES = 6;
const DOUBT = 0.7; // opacity of the colour of an impossible token
const tip = at("tip");

// Returns a function that turns the API's log-probabilities of an answer into tokens.
export function reader() {
  const decoder = new TextDecoder();
  return (entries) =>
    entries.map(({ token, logprob, bytes, top_logprobs: top }) => {
      const text = decoder.decode(new Uint8Array(bytes ?? []), { stream: true });
      return [text, token, logprob, top.map((one) => [one.token, one.logprob])];
    });
}

// Draws the tokens into a box as far as the text goes, which a stop string may have cut, and then the text that has no tokens: what
// a policy of the server has changed. Those that are there stay.
export function render(box, tokens, text) {
  box.spans ??= [];
  box.rest ??= box.appendChild(document.createTextNode(""));
  let length = box.spans.reduce((sum, span) => sum + span.textContent.length, 0);
  let group = [];
  for (const token of tokens.slice(box.spans.reduce((sum, span) => sum + span.tokens.length, 0))) {
    group.push(token);
    if (!token[0]) continue;
    if (length + token[0].length > text.length) break;
    length += token[0].length;
    const span = make("span", {}, token[0]);
    span.tokens = group;
    span.style.setProperty("--doubt", ((1 - probability(group)) * DOUBT * 100).toFixed(1) + "%");
    group = [];
    box.spans.push(span);
    box.rest.before(span);
  }
  box.rest.data = text.slice(length);
}

// Shows the tip for tokens under the pointer, for the one that is tapped, and for the one that the arrow keys reach.
export function listen(box) {
  const place = (span) => box.spans?.indexOf(span) ?? -1;
  const over = (event) => (place(event.target) < 0 ? hide() : show(box, event.target));
  box.addEventListener("pointerover", over);
  box.addEventListener("click", over);
  box.addEventListener("pointerleave", hide);
  box.addEventListener("blur", hide);
  box.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by || !box.spans?.length) return;
    event.preventDefault();
    const next = (place(box.here) + by + box.spans.length) % box.spans.length;
    show(box, box.spans[place(box.here) < 0 ? 0 : next]);
    box.here.scrollIntoView({ block: "nearest" });
    say(box.here.tokens.map(([, name, logprob]) => `${seen(name)} ${percent(Math.exp(logprob))}`).join(", "));
  });
}

// Returns whether there was something to hide.
export function hide() {
  const shown = !tip.hidden;
  tip.hidden = true;
  document.querySelector(".tokens .here")?.classList.remove("here");
  return shown;
}

function show(box, span) {
  hide();
  box.here = span;
  span.classList.add("here");
  tip.replaceChildren(...span.tokens.map(table), make("p", {}, "The model's own probabilities, before temperature and the like."));
  tip.hidden = false;
  const around = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.max(8, Math.min(around.left, document.documentElement.clientWidth - width - 8));
  const below = around.bottom + 6 + height < innerHeight;
  tip.style.left = left + "px";
  tip.style.top = (below ? around.bottom + 6 : Math.max(8, around.top - height - 6)) + "px";
}

function table([, name, logprob, top]) {
  const rows = top.some(([other]) => other === name) ? top : [...top, [name, logprob]];
  const body = make("tbody");
  let rest = 1;
  for (const [other, value] of rows) {
    const share = Math.exp(value);
    rest -= share;
    body.append(row(seen(other), share, other === name ? "chosen" : ""));
  }
  if (rest > 0.0005) body.append(row("all others", rest, "others"));
  const caption = make("caption", {}, make("code", {}, seen(name)), " ", make("b", {}, percent(Math.exp(logprob))));
  return make("table", {}, caption, body);
}

function row(name, share, kind) {
  const bar = make("i");
  bar.style.width = (100 * share).toFixed(1) + "%";
  const label = kind === "others" ? make("span", {}, name) : make("code", {}, name);
  const head = make("th", { scope: "row" }, label, ...(kind === "chosen" ? [make("span", { class: "unseen" }, " (chosen)")] : []));
  return make("tr", { class: kind }, head, make("td", { class: "bar" }, bar), make("td", {}, percent(share)));
}

function probability(group) {
  return Math.exp(group.reduce((sum, token) => sum + token[2], 0));
}

function percent(share) {
  return share >= 0.9995 ? "100 %" : share >= 0.001 ? (100 * share).toFixed(1) + " %" : "< 0.1 %";
}

function seen(name) {
  return name.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "(empty)";
}
