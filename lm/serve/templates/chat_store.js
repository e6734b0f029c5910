// Conversations and settings in the browser's localStorage, one entry a conversation. If there is none, they last as long as the
// page.
//
// A conversation: {id, changed, system, messages}. A message: {role, content}; one of the user may have media (see chat_media.js);
// an answer also has thought (what comes before its content), model, id (of the API), finish, count and prompt (tokens), first and seconds (times), tokens (see
// chat_tokens.js), rating, error, and beside, the {content, model} of a second model, which is not sent on.
import { parts } from "./chat_media.js";

const CHAT = "lmcraft.chat.";
const OPTIONS = "lmcraft.options";

export function chats() {
  const found = [];
  for (const key of keys()) {
    const chat = read(key);
    if (Array.isArray(chat?.messages) && chat.messages.length) found.push(chat);
  }
  return found.sort((one, other) => other.changed - one.changed);
}

export function newChat(system) {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return { id: Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join(""), changed: Date.now(), system, messages: [] };
}

// Returns whether it is stored. If there is no room, token probabilities of other conversations go first, then its own, then the
// files of its images and sound.
export function save(chat) {
  const fits = (kept) => write(CHAT + chat.id, kept);
  if (fits(chat)) return true;
  for (const one of chats()) if (one.id !== chat.id) write(CHAT + one.id, bare(one));
  return fits(chat) || fits(bare(chat)) || fits(withoutFiles(bare(chat)));
}

export function remove(id) {
  localStorage.removeItem(CHAT + id);
}

export const isChat = (key) => key === null || key.startsWith(CHAT);
export const options = () => read(OPTIONS) ?? {};
export const saveOptions = (values) => write(OPTIONS, values);

export function title(chat) {
  const first = chat.messages.find((message) => message.role === "user")?.content ?? "";
  return first.trim().replace(/\s+/g, " ").slice(0, 80) || "New conversation";
}

// What a model is sent: the system prompt, and all messages that say something; of answers beside others its own.
export function said(chat, model) {
  const messages = chat.messages
    .map((message) => (model && message.beside?.model === model ? { ...message, thought: undefined, ...message.beside } : message))
    .filter(({ content, media }) => content || media?.some(({ url }) => url))
    .map(({ role, content, media, thought }) => ({
      role,
      content: media ? parts(media, content) : content,
      ...(thought ? { reasoning_content: thought } : {}),
    }));
  return chat.system.trim() ? [{ role: "system", content: chat.system }, ...messages] : messages;
}

// JSON lines {"messages": [{"role", "content", "reasoning_content"}, …]}, which `align.py` with method sft reads. A conversation ends with its last
// answer; without one it is left out.
export function lines(all) {
  const found = all.map((chat) => said(chat)).map((messages) => messages.slice(0, messages.findLastIndex(({ role }) => role === "assistant") + 1));
  return found.filter((messages) => messages.length).map((messages) => JSON.stringify({ messages }) + "\n").join("");
}

function bare(chat) {
  return { ...chat, messages: chat.messages.map((message) => ({ ...message, tokens: undefined })) };
}

function withoutFiles(chat) {
  const without = (message) => (message.media ? { ...message, media: message.media.map(({ kind, name }) => ({ kind, name })) } : message);
  return { ...chat, messages: chat.messages.map(without) };
}

function keys() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(CHAT));
  } catch {
    return [];
  }
}

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
