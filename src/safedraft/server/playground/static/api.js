// The server's public API: the model that it serves, and streamed chat completions.

const ROOT = new URL("../", document.baseURI);
const STORED = "safedraft-key";

let key = sessionStorage.getItem(STORED) ?? "";

export function setKey(given) {
  key = given;
  sessionStorage.setItem(STORED, given);
}

export const hasKey = () => key !== "";
export const baseURL = () => new URL("v1", ROOT).href;

// What went wrong, in words that are shown as they are.
export class Problem extends Error {
  constructor(message, code = "") {
    super(message);
    this.code = code;
  }
}

export async function getModel() {
  const response = await call("v1/models");
  return (await response.json()).data[0];
}

// Ask for a reply; returns an iterator over the choices of its chunks once the server has queued it.
export async function openChat(body, signal) {
  const response = await call("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  return readChoices(response.body.pipeThrough(new TextDecoderStream()).getReader());
}

async function call(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await orProblem(
    fetch(new URL(path, ROOT), { ...options, headers }),
    "The server does not answer: see whether it is still running.",
  );
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new Problem(error?.message ?? `The server answered with status ${response.status}.`, error?.code);
}

async function* readChoices(reader) {
  const cutOff = "The reply was cut off: the server closed the connection.";
  let rest = "";
  for (;;) {
    const { done, value } = await orProblem(reader.read(), cutOff);
    if (done) throw new Problem(cutOff);
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Problem(chunk.error.message, chunk.error.code);
      yield* chunk.choices;
    }
  }
}

async function orProblem(promise, message) {
  try {
    return await promise;
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem(message);
  }
}
