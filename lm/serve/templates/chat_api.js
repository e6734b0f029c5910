// The server's API. Errors say what happened and what to do about it.
const KEY = "lmcraft.key";

export class ApiError extends Error {
  constructor(status, message, advice) {
    super(sentence(message));
    Object.assign(this, { status, advice });
  }
}

function sentence(text) {
  const begun = /^[a-z]+ /.test(text) ? text[0].toUpperCase() + text.slice(1) : text; // not the name of a field
  return /[.!?]$/.test(begun) ? begun : begun + ".";
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

export async function models() {
  return (await (await ask("v1/models")).json()).data;
}

// Sends a rating of an answer: 1 or -1. Raises: ApiError.
export async function rate(id, rating, comment) {
  await ask("v1/feedback", { method: "POST", body: JSON.stringify({ id, rating, comment }) });
}

// Yields the chunks of a streamed answer. Raises: ApiError.
export async function* answer(body, signal) {
  const options = { include_usage: true, continuous_usage_stats: true };
  const asked = JSON.stringify({ ...body, stream: true, stream_options: options });
  const response = await ask("v1/chat/completions", { method: "POST", body: asked, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (signal.aborted) throw error;
      throw lost();
    }
    if (part.done) throw lost();
    const events = (rest + part.value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith("data:")) continue;
      const data = event.slice(5).trim();
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(500, chunk.error.message, "Try again; the server's log may say more.");
      yield chunk;
    }
  }
}

async function ask(path, options = {}) {
  const headers = options.body ? { "Content-Type": "application/json" } : {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError(0, "The server does not answer.", "See that serve.py still runs and that you are connected, then try again.");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // a proxy's error, not ours
  }
  const message = error.message ?? `The server answered with status ${response.status}.`;
  return new ApiError(response.status, message, advice(response.status, error.code, response.headers.get("Retry-After")));
}

function advice(status, code, seconds) {
  const later = seconds ? `Try again in ${seconds} s.` : "Try again in a moment.";
  if (code === "context_length_exceeded")
    return "Start a new conversation, shorten the message or the system prompt, or ask for fewer tokens in the settings.";
  if (code === "model_not_found") return "Choose another model at the top.";
  if (status === 400) return "Change the setting or the message that it names.";
  if (status === 401) return "Enter an API key above, then try again.";
  if (status === 408) return "Ask for fewer tokens in the settings, or try again when the server is less busy.";
  if (status === 413) return "Shorten the message, or start a new conversation.";
  if (status === 429 || status === 503) return later;
  return "Try again; the server's log may say more.";
}

function lost() {
  return new ApiError(0, "The connection ended before the answer did.", "See that serve.py still runs, then try again.");
}
