// Conversations and settings in the browser's localStorage, one entry a conversation. If there is none, they last as long as the
// page.
//
// A conversation: {id, changed, system, messages}. A message: {role, content}; an answer also has model, id (of the API), finish,
// count and prompt (tokens), first and seconds (times), tokens (see chat_tokens.js), rating, error.
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

// Returns whether it is stored. If there is no room, token probabilities of other conversations go first, then its own.
export function save(chat) {
  for (const strip of [() => {}, () => chats().forEach((one) => one.id !== chat.id && write(CHAT + one.id, bare(one))), null]) {
    strip?.();
    if (write(CHAT + chat.id, strip ? chat : bare(chat))) return true;
  }
  return false;
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

// What a model is sent: the system prompt, and all messages that say something.
export function said(chat) {
  const messages = chat.messages.filter((message) => message.content).map(({ role, content }) => ({ role, content }));
  return chat.system.trim() ? [{ role: "system", content: chat.system }, ...messages] : messages;
}

// JSON lines {"messages": [{"role", "content"}, …]}, which `align.py` with method sft reads. A conversation ends with its last
// answer; without one it is left out.
export function lines(all) {
  const found = all.map(said).map((messages) => messages.slice(0, messages.findLastIndex(({ role }) => role === "assistant") + 1));
  return found.filter((messages) => messages.length).map((messages) => JSON.stringify({ messages }) + "\n").join("");
}

function bare(chat) {
  return { ...chat, messages: chat.messages.map((message) => ({ ...message, tokens: undefined })) };
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
