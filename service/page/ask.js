// Asking the service: every request of the page and every refusal goes through here. A new question ends the one
// before it. Knows of the document only the model's and the key's field, and where an error is said.

import { number } from "./text.js";

const RETRY_S = 2;

export const $ = (id) => document.getElementById(id);

export function element(tag, className, ...children) {
  const node = document.createElement(tag);
  node.className = className;
  node.append(...children);
  return node;
}

export let limits = null; // of the service, with its models: GET /v1/models
export let hasFeedback = false; // whether it keeps corrections
let turn = new AbortController(); // what is under way; a new question ends it
export let again = () => {}; // the same question once more

class Refused extends Error {
  constructor(status, error, retryAfter) {
    super(error?.message ?? `status ${status}`);
    this.status = status; // 0: nothing answered
    this.retryS = [0, 429, 502, 503].includes(status) ? Number(retryAfter) || RETRY_S : null;
  }
}

// The key stays with this tab, in its session's storage: no other site and no URL sees it.
const KEY = "heed-api-key";
$("key").value = ifAllowed(() => sessionStorage.getItem(KEY)) ?? "";
export const keepKey = () => ifAllowed(() => sessionStorage.setItem(KEY, $("key").value));

function ifAllowed(use) {
  try {
    return use();
  } catch {
    return null; // the browser keeps nothing: the key is asked for at each visit
  }
}

const headers = () => ($("key").value ? { authorization: `Bearer ${$("key").value}` } : {});
export const chosen = () => limits.models.find((model) => model.name === $("model").value) ?? limits.models[0];

export async function ask(path, signal, fields) {
  const options = fields ? { method: "POST", body: JSON.stringify(fields) } : {};
  let response, text;
  try {
    response = await fetch(path, { ...options, headers: headers(), signal });
    text = await response.text();
  } catch (error) {
    throw signal?.aborted ? error : new Refused(0);
  }
  const body = parsed(text);
  if (!response.ok) throw new Refused(response.status, body?.error, response.headers.get("retry-after"));
  return body;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // nothing, or something between the page and the service speaks
  }
}

// Asks until there is an answer, or a refusal that will not pass by itself.
export async function patiently(path, signal, fields) {
  for (;;) {
    try {
      const answer = await ask(path, signal, fields);
      showError(null);
      return answer;
    } catch (error) {
      if (signal.aborted || !error.retryS) throw error;
      showError(error);
      await sleep(error.retryS * 1000, signal);
    }
  }
}

export function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

export function start(task) {
  turn.abort();
  turn = new AbortController();
  const { signal } = turn;
  again = () => start(task);
  task(signal).catch((error) => signal.aborted || showError(error));
}

export async function loadModels(signal) {
  if (limits) return;
  const listed = await patiently("v1/models", signal);
  hasFeedback = "/v1/feedback" in (await patiently("openapi.json", signal)).paths;
  $("model").replaceChildren(...listed.models.map((model) => new Option(model.name)));
  limits = listed;
}

export function showError(error) {
  const message = error ? said(error) : "";
  if (error instanceof Refused && error.status === 401) $("key-box").hidden = false;
  if (error) $("answer").classList.add("is-stale");
  if ($("error").textContent !== message) $("error").textContent = message; // said once, not at each attempt
  $("error").hidden = !message;
}

function said(error) {
  if (!(error instanceof Refused)) return error.message;
  const length = Array.from($("text").value).length;
  const most = limits?.max_text_chars;
  const isTooLong = [413, 422].includes(error.status) && length > most;
  if (isTooLong) return `The text has ${number(length)} characters and ${number(most)} are read: shorten it.`;
  const gone = `The service at ${location.host} does not answer. The page keeps asking.`;
  const words = {
    0: gone,
    401: "The service wants an API key: type it here.",
    413: `The text is too large: a request has at most ${number(limits?.max_body_bytes ?? 0)} bytes.`,
    429: `The service is busy. The page asks again in ${error.retryS} s.`,
    502: gone,
    503: "The service is not ready: it starts or stops. The page keeps asking.",
  };
  return words[error.status] ?? `The service gave no answer: ${error.message}`;
}
