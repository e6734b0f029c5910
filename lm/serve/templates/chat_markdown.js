// Draws an answer's Markdown: headings, paragraphs, lists, quotes, code, bold, italic. Everything else stays as it is written:
// there are no links, pictures or tags. Every text becomes a text node.
import { copyButton, make } from "./chat_dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,}) *([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6}) +(.*?)(?: +#+)? *$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)]) +(?=\S)/;
const QUOTE = /^ {0,3}> ?/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
// Spans are at most 999 characters long, so that a hostile text costs no more than its length.
const INLINE =
  /(?<!`)(`{1,3})(?!`)(.{0,998}?[^`])\1(?!`)|\*\*(?=\S)(.{0,998}?\S)\*\*(?!\*)|(?<![\w*])\*(?=[^\s*])(.{0,998}?[^\s*])\*(?![\w*])|(?<![\w_])_(?=[^\s_])(.{0,998}?[^\s_])_(?![\w_])/s;
const DEEP = 8; // levels of lists and quotes

// Draws a text into a box, which keeps the blocks that have not changed since the last time.
export function render(box, source) {
  const blocks = parse(source.replace(/\r\n?/g, "\n").split("\n"));
  blocks.forEach((block, n) => {
    const key = JSON.stringify(block);
    if (box.children[n]?.key === key) return;
    const element = draw(block, 0);
    element.key = key;
    if (box.children[n]) box.children[n].replaceWith(element);
    else box.append(element);
  });
  while (box.children.length > blocks.length) box.lastChild.remove();
}

function parse(lines) {
  const blocks = [];
  for (let n = 0, end; n < lines.length; n = end) {
    const line = lines[n];
    const fence = FENCE.exec(line);
    const run = (belongs) => {
      for (end = n + 1; end < lines.length && belongs(lines[end]); ) end++;
      return lines.slice(n, end);
    };
    end = n + 1;
    if (!line.trim()) continue;
    if (fence) {
      const close = new RegExp(`^ {0,3}${fence[1]}${fence[1][0]}* *$`);
      blocks.push({ kind: "code", language: fence[2], lines: run((next) => !close.test(next)).slice(1) });
      end++;
    } else if (HEADING.test(line)) {
      const [, marks, text] = HEADING.exec(line);
      blocks.push({ kind: "heading", level: marks.length, text });
    } else if (RULE.test(line)) {
      blocks.push({ kind: "rule" });
    } else if (ITEM.test(line)) {
      blocks.push(list(lines, n, (next) => (end = next)));
    } else if (QUOTE.test(line)) {
      blocks.push({ kind: "quote", lines: run((next) => QUOTE.test(next)).map((one) => one.replace(QUOTE, "")) });
    } else {
      blocks.push({ kind: "text", text: run(isText).join("\n") });
    }
  }
  return blocks;
}

const isText = (line) => line.trim() && ![FENCE, HEADING, ITEM, QUOTE, RULE].some((one) => one.test(line));

// A list takes the items of one indentation and kind, the lines below them that are indented further, and text that follows without
// an empty line.
function list(lines, n, ended) {
  const [, indent, mark] = ITEM.exec(lines[n]);
  const numbered = /\d/.test(mark);
  const items = [];
  for (; n < lines.length; n++) {
    const line = lines[n];
    const item = ITEM.exec(line);
    const depth = line.search(/\S/);
    if (item && item[1].length <= indent.length + 1 && !RULE.test(line)) {
      if (/\d/.test(item[2]) !== numbered || item[1].length < indent.length) break;
      items.push([line.slice(item[0].length)]);
    } else if (depth < 0) {
      const next = lines.slice(n).find((one) => one.trim());
      const goes = next !== undefined && (next.search(/\S/) > indent.length || ITEM.exec(next)?.[1].length === indent.length);
      if (!goes) break;
      items.at(-1).push("");
    } else if (depth > indent.length) {
      items.at(-1).push(line.slice(Math.min(depth, indent.length + (numbered ? 3 : 2))));
    } else if (lines[n - 1].trim() && isText(line)) {
      items.at(-1).push(line);
    } else break;
  }
  ended(n);
  return { kind: "list", numbered, start: numbered ? parseInt(mark) : 1, items };
}

function draw(block, depth) {
  const within = (lines) => (depth < DEEP ? parse(lines) : [{ kind: "text", text: lines.join("\n") }]);
  const children = (lines) => within(lines).map((one) => draw(one, depth + 1));
  switch (block.kind) {
    case "code":
      return code(block.lines.join("\n"), block.language);
    case "heading": // below those of the page
      return inline(make("h" + Math.min(6, block.level + 2)), block.text);
    case "rule":
      return make("hr");
    case "quote":
      return make("blockquote", {}, ...children(block.lines));
    case "list": {
      const box = make(block.numbered ? "ol" : "ul", block.start === 1 ? {} : { start: block.start });
      box.append(...block.items.map((lines) => make("li", {}, ...children(lines))));
      return box;
    }
    default:
      return inline(make("p"), block.text);
  }
}

function code(text, language) {
  const head = make("figcaption", {}, make("span", {}, language || "text"), copyButton(() => text));
  return make("figure", { class: "code" }, head, make("pre", { tabindex: "0", "aria-label": "Code" }, make("code", {}, text)));
}

function inline(parent, text) {
  for (let found; text && (found = INLINE.exec(text)); text = text.slice(found.index + found[0].length)) {
    parent.append(text.slice(0, found.index));
    const [, , coded, bold, starred, underlined] = found;
    if (coded !== undefined) parent.append(make("code", {}, coded));
    else parent.append(inline(make(bold !== undefined ? "strong" : "em"), bold ?? starred ?? underlined));
  }
  parent.append(text);
  return parent;
}
