// Makes elements. Texts become text nodes, never HTML.
const SVG = "http://www.w3.org/2000/svg";
export const at = (id) => document.getElementById(id);

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, content] of Object.entries(attributes)) element.setAttribute(name, content);
  element.append(...children);
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", "#i-" + name);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

// A button with an icon alone: its label is its name.
export function iconButton(name, label, action, attributes = {}) {
  const button = make("button", { type: "button", class: "icon", "aria-label": label, title: label, ...attributes }, icon(name));
  button.addEventListener("click", action);
  return button;
}

export function copyButton(text) {
  const button = iconButton("copy", "Copy", async () => {
    let done = true;
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      done = false; // a page that did not come by HTTPS or from this machine has no clipboard
    }
    button.replaceChildren(icon(done ? "check" : "close"));
    say(done ? "Copied." : "This browser lets no page copy here: select the text instead.");
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}

// Tells a screen reader.
export function say(text) {
  at("said").textContent = text;
}

let fading;
// Shows a line for a while, with a button if there is something to do about it.
export function toast(text, label, action) {
  const box = at("toast");
  const hide = () => box.replaceChildren();
  box.replaceChildren(text);
  if (label) {
    const button = make("button", { type: "button" }, label);
    button.addEventListener("click", () => {
      hide();
      action();
    });
    box.append(button);
  }
  clearTimeout(fading);
  fading = setTimeout(hide, 8000);
}
