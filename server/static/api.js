// Speaks to the server: models, health, and the stream of an answer. Knows no DOM.

const KEY = "diffusiongpt-key";

// A refusal, in the server's own sentence.
export class ApiError extends Error {
  constructor(status, { message, param = null, code = null }) {
    super(message);
    Object.assign(this, { status, param, code });
  }
}

// Nobody answers at the server's address.
export class Unreachable extends Error {}

// The stream ended before the answer did.
export class BrokenStream extends Error {}

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export function hasKey() {
  return Boolean(sessionStorage.getItem(KEY));
}

async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  let answer;
  try {
    answer = await fetch(new URL(path, document.baseURI), { cache: "no-store", ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable("The server does not answer.");
  }
  if (!answer.ok) throw await readRefusal(answer);
  return answer;
}

async function readRefusal(answer) {
  const body = await answer.json().catch(() => null);
  const state = [body?.status, body?.reason].filter(Boolean).join(": ");
  const fallback = { message: state || `The server answered ${answer.status} ${answer.statusText}.` };
  return new ApiError(answer.status, body?.error?.message ? body.error : fallback);
}

// All models that are served; at least one, or the server is not ready.
export async function readModels() {
  const { data } = await (await call("v1/models")).json();
  if (data.length === 0) throw new Unreachable("The server has no model yet.");
  return data;
}

export async function readReadiness() {
  await call("ready", { signal: AbortSignal.timeout(5000) });
}

// The request as text. A seed has up to 64 bits, more than a number here can hold, so its
// digits are written as they are.
function spell(body, seed) {
  const text = JSON.stringify(body);
  return seed ? `{"seed":${seed},${text.slice(1)}` : text;
}

// The chunks of an answer, one after another; `onHeaders` is called once before the first.
export async function* streamAnswer(path, body, { seed, signal, onHeaders }) {
  const answer = await call(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: spell(body, seed),
    signal,
  });
  onHeaders(answer.headers);
  let isDone = false;
  for await (const data of readEvents(answer.body)) {
    // Read on to the end of the body, or the browser takes the request for one given up.
    isDone ||= data === "[DONE]";
    if (isDone) continue;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(answer.status, chunk.error);
    yield chunk;
  }
  if (!isDone) throw new BrokenStream("The stream broke off before the answer was complete.");
}

async function* readEvents(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await readOrBreak(reader);
    if (done) return;
    const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

async function readOrBreak(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new BrokenStream("The connection broke in the middle of the answer.");
  }
}
