// Of the pages to browse documents and items. It stands before the page's own script, which names its `form`,
// `frame` and `list`, and moves by `step`.
// Every text becomes a text node, never HTML.

// Characters that cannot be seen or that reorder what is around them, and halves of surrogate pairs, are shown as their code; where
// a change is shown, line ends and joiners too.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]/u;
const UNSEEN_CHANGED = /[\u0000-\u001f\u007f-\u009f\u00a0\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]/u;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, content] of Object.entries(attributes)) element.setAttribute(name, content);
  element.append(...children);
  return element;
}

function signs(parent, text, unseen) {
  for (const piece of text.split(new RegExp(`(${unseen.source})`, "u"))) {
    if (!piece) continue;
    const seen = !unseen.test(piece);
    const code = "U+" + piece.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    parent.append(seen ? piece : make("span", { class: "sign" }, piece === "\n" ? "↵" : code));
    if (piece === "\n" && !seen) parent.append("\n");
  }
}

function append(parent, text, unseen = UNSEEN) {
  const wanted = form.search.value.trim().toLowerCase();
  const low = text.toLowerCase();
  let place = 0;
  // Lower case may be longer than the text (İ); then nothing is marked.
  for (let next; wanted && low.length === text.length && (next = low.indexOf(wanted, place)) >= 0; place = next + wanted.length) {
    signs(parent, text.slice(place, next), unseen);
    const mark = make("mark");
    signs(mark, text.slice(next, next + wanted.length), unseen);
    parent.append(mark);
  }
  signs(parent, text.slice(place), unseen);
}

// Scrolls the list, but not the page, to the entry that is shown.
function scroll() {
  const box = frame.getBoundingClientRect();
  const place = list.querySelector("[aria-current]")?.getBoundingClientRect();
  if (place && place.top < box.top) frame.scrollTop += place.top - box.top;
  if (place && place.bottom > box.bottom) frame.scrollTop += place.bottom - box.bottom;
}

// Listens to the keys of both pages, and to `more` of one of them.
function listen(more = {}) {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const inList = list.contains(event.target);
    const keys = { j: () => step(1), k: () => step(-1), "/": () => form.search.focus(), ...more };
    const action = keys[event.key] ?? (inList ? { ArrowDown: () => step(1), ArrowUp: () => step(-1) }[event.key] : undefined);
    if (!action) return;
    event.preventDefault();
    action();
  });
}
