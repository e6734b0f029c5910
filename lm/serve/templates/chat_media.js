// Images and sound of messages: choose, paste or drop files, and show them. The page's `data-media` names what the model takes.
//
// A medium: {kind: "image" or "audio", name, url}, with a data: URL, or without one if the browser had no room to keep it.
import { at, iconButton, make, toast } from "./chat_dom.js";

const KINDS = document.documentElement.dataset.media.split(" ").filter(Boolean);
const MOST = Number(document.documentElement.dataset.most); // media of a request
const BYTES = Number(document.documentElement.dataset.bytes); // of all of them
let chosen = [];

// Takes the files that are chosen, and shows what the next message will have. Call it once.
export function listen() {
  const input = at("files");
  at("attach").hidden = !KINDS.length;
  if (!KINDS.length) return;
  input.accept = KINDS.map((kind) => `${kind}/*`).join(",");
  at("attach").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    add(input.files);
    input.value = "";
  });
  at("text").addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    add(event.clipboardData.files);
  });
  const main = document.querySelector("main");
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  main.addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
  main.addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault(); // else the browser leaves the page for the file
    add(event.dataTransfer.files);
  });
}

// Returns the chosen media, and forgets them.
export function take() {
  const found = chosen;
  chosen = [];
  draw();
  return found;
}

export const isEmpty = () => !chosen.length;

async function add(files) {
  for (const file of [...files]) {
    const kind = KINDS.find((one) => file.type.startsWith(`${one}/`));
    if (!kind) toast(`${file.name} is none of ${KINDS.join(" and ")}, which this model takes.`);
    else if (chosen.length >= MOST) toast(`The server takes ${MOST} images and sounds in a request.`);
    else if (file.size > BYTES) toast(`${file.name} has ${file.size} bytes, and the server takes ${BYTES}: make it smaller.`);
    else chosen.push({ kind, name: file.name, url: await dataUrl(file) });
  }
  draw();
  at("text").focus();
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

function draw() {
  const remove = (medium) => {
    chosen = chosen.filter((one) => one !== medium);
    draw();
    at("text").focus();
  };
  const boxes = chosen.map((medium) => make("span", {}, ...gallery([medium]), iconButton("close", `Remove ${medium.name}`, () => remove(medium))));
  at("chosen").replaceChildren(...boxes);
  at("chosen").hidden = !boxes.length;
}

// Returns the elements that show media.
export function gallery(media) {
  return media.map(({ kind, name, url }) => {
    if (!url) return make("span", { class: "gone" }, `${name}: this browser had no room to keep it`);
    if (kind === "audio") return make("audio", { controls: "", src: url, "aria-label": name });
    return make("img", { src: url, alt: name });
  });
}

// Returns the parts of OpenAI's API for media and the text after them.
export function parts(media, text) {
  const shown = media.filter(({ url }) => url).map(({ kind, url }) => (kind === "image" ? { type: "image_url", image_url: { url } } : sound(url)));
  return text ? [...shown, { type: "text", text }] : shown;
}

function sound(url) {
  const format = /^data:audio\/(?:x-)?(mpeg|mp3)/.test(url) ? "mp3" : "wav"; // the server looks at the bytes
  return { type: "input_audio", input_audio: { data: url.slice(url.indexOf(",") + 1), format } };
}
