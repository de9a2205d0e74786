// The page of a Heed service: shows the answer to a text while it is typed, and why, when typing pauses. Whatever a
// person or the service wrote is inserted as text, never as markup. Asking is in ask.js, a file's rows in rows.js, what
// needs no document in text.js.

import { $, again, ask, chosen, element, hasFeedback, keepKey, loadModels } from "./ask.js";
import { patiently, showError, sleep, start } from "./ask.js";
import { openFile } from "./rows.js";
import { inUnits, number, percent, signed, strongest } from "./text.js";

const DEBOUNCE_MS = 15; // keys that come together are one question
const PAUSE_MS = 350; // typing has paused: an explanation, which takes tens of passes, is worth asking for
const FAINT = 0.1; // of the strongest token: less is left unpainted
const LABELS_SHOWN = 8;
const NO_ANSWER = "the service does not answer. Send it again.";
const NOT_KEPT = {
  0: NO_ANSWER,
  401: "the service wants an API key.",
  404: "the service does not remember this answer any more. Change the text, and it answers again.",
  502: NO_ANSWER,
};

async function readText(signal) {
  const text = $("text").value;
  $("table").hidden = true;
  $("empty").hidden = text !== "";
  if (!text) {
    $("answer").hidden = true;
    showError(null);
    return;
  }
  $("why").classList.add("is-stale");
  await sleep(DEBOUNCE_MS, signal);
  await loadModels(signal);
  const model = chosen();
  const asked = performance.now();
  const answer = await patiently("v1/classify", signal, { texts: [text], model: model.name });
  const [result] = answer.results;
  if (result.error) throw new Error(result.error.message);
  showAnswer(model, text, answer, result, performance.now() - asked);
  await sleep(PAUSE_MS, signal);
  $("status").textContent = summary(result);
  const explained = await patiently("v1/classify", signal, { texts: [text], model: model.name, explain: true });
  showWhy(text, explained.results[0]);
}

// ---- Its answer.

let shown = null; // request_id, text and model, for a correction

function summary(result) {
  const [best] = result.labels;
  const set = result.label_set ? ` Label set: ${result.label_set.join(", ") || "empty"}.` : "";
  const abstained = result.abstained ? " Abstained: unlike the texts that the model knows." : "";
  return `${best.label}, ${percent(best.score)}.${abstained}${set}`;
}

function showAnswer(model, text, answer, result, tripMs) {
  const [best] = result.labels;
  shown = { text, model, request_id: answer.request_id };
  $("best-label").textContent = best.label;
  $("best-score").textContent = percent(best.score);
  $("abstained").hidden = !result.abstained;
  const inSet = new Set(result.label_set ?? [best.label]);
  showLabels($("labels"), result.labels.slice(0, LABELS_SHOWN), inSet);
  const more = result.labels.slice(LABELS_SHOWN);
  $("more").hidden = more.length === 0;
  $("more").querySelector("summary").textContent = `${more.length} more labels`;
  showLabels($("more").querySelector("ol"), more, inSet);
  showSet(model, result);
  showFacts(model, answer, result, tripMs);
  showRequest(model, text);
  showCorrection(model);
  $("answer").hidden = false;
  $("answer").classList.remove("is-stale");
}

function showLabels(list, labels, inSet) {
  const rows = new Map(Array.from(list.children, (row) => [row.dataset.label, row])); // kept, so that bars glide
  const wanted = labels.map(({ label, score }) => {
    const row = rows.get(label) ?? labelRow(label);
    row.classList.toggle("in-set", inSet.has(label));
    row.querySelector("i").style.width = `${100 * Math.min(1, score)}%`;
    row.querySelector(".score").textContent = percent(score);
    return row;
  });
  const isSame = wanted.length === list.children.length && wanted.every((row, i) => row === list.children[i]);
  if (!isSame) list.replaceChildren(...wanted);
}

function labelRow(label) {
  const bar = element("span", "bar", element("i", ""));
  bar.ariaHidden = "true"; // the number beside it says the same
  const row = element("li", "", element("span", "name", label), bar, element("span", "score"));
  row.dataset.label = label;
  return row;
}

function showSet(model, result) {
  const set = result.label_set;
  $("set").hidden = !set;
  if (!set) return;
  $("set-labels").replaceChildren(...set.map((label) => element("span", "", label)));
  $("set-labels").hidden = set.length === 0;
  $("set-meaning").textContent = meaning(model, set.length);
}

function meaning(model, size) {
  if (model.coverage === null) return size ? "The labels over their thresholds." : "No label is over its threshold.";
  const share = percent(model.coverage).replace(".0%", "%");
  const promise = `The set holds the right label for ${share} of texts like those it was calibrated on.`;
  if (size === 0) return `Empty: no label is likely enough, the model does not know. ${promise}`;
  if (size === model.labels.length) return `Every label is in it: the model cannot tell. ${promise}`;
  return promise;
}

function showFacts(model, answer, result, tripMs) {
  const cut = result.truncated_tokens;
  const { queue, tokenize, forward, total } = answer.timing_ms;
  const parts = `queue ${queue.toFixed(1)}, tokenize ${tokenize.toFixed(1)}, forward ${forward.toFixed(1)}`;
  $("tokens").textContent = cut
    ? `${number(result.tokens)}, all that the model reads; ${number(cut)} more were cut off`
    : `${number(result.tokens)} of at most ${number(model.max_tokens)}`;
  $("time").textContent = `${total.toFixed(1)} ms in the service (${parts}), ${tripMs.toFixed(0)} ms from here`;
  $("version").textContent = `${answer.model}@${answer.version}`;
}

// ---- Why: token attributions, painted on the text.

function showWhy(text, result) {
  $("why").hidden = !result.explanation;
  $("why").classList.remove("is-stale");
  if (!result.explanation) return;
  const tokens = inUnits(text, result.explanation.tokens);
  $("why-label").textContent = result.explanation.label;
  $("painted").replaceChildren(...painted(text, tokens, result.truncated_tokens > 0));
  const [speakFor, against] = strongest(text, tokens);
  const sides = [speakFor && `For: ${speakFor}.`, against && `Against (underlined): ${against}.`].filter(Boolean);
  $("words").textContent = sides.length ? `${sides.join(" ")} In log-odds.` : "No word stands out.";
}

function painted(text, tokens, isCut) {
  const most = Math.max(0.5, ...tokens.map(({ score }) => Math.abs(score)));
  const nodes = [];
  let at = 0;
  for (const { start, end, score } of tokens) {
    if (end <= at) continue; // another token of the same character
    const from = Math.max(at, start);
    const strength = Math.abs(score) / most;
    const [tag, look] = strength < FAINT ? ["span", ""] : score < 0 ? ["span", "against"] : ["mark", ""];
    const node = element(tag, look, text.slice(from, end));
    node.style.setProperty("--strength", strength.toFixed(2));
    node.title = signed(score);
    nodes.push(text.slice(at, from), node);
    at = end;
  }
  return [...nodes, element("span", isCut ? "cut" : "", text.slice(at))];
}

// ---- Corrections, where the service keeps them; copies of the request.

function showCorrection(model) {
  $("correction").hidden = !hasFeedback;
  $("right").multiple = model.problem_type === "multi_label_classification";
  $("right").required = !$("right").multiple; // a text may have none of many labels
  $("right").replaceChildren(...model.labels.map((label) => new Option(label, label, false, false)));
  $("right").selectedIndex = -1;
  $("corrected").textContent = "";
}

async function sendCorrection(event) {
  event.preventDefault();
  const button = $("correction").querySelector("button");
  if (button.ariaDisabled === "true") return; // a double click
  button.ariaDisabled = "true"; // not disabled, which would take the focus from it
  const corrected = shown;
  const outcome = await correct(corrected);
  button.ariaDisabled = "false";
  if (shown === corrected) $("corrected").textContent = outcome; // and not under the answer to another text
}

async function correct({ request_id, text }) {
  const right = Array.from($("right").selectedOptions, (option) => option.value);
  const label = $("right").multiple ? { labels: right } : { label: right[0] };
  try {
    await ask("v1/feedback", null, { request_id, index: 0, ...label, text });
    return `Thank you: kept as ${right.join(", ") || "none of them"}.`;
  } catch (error) {
    return `Not kept: ${NOT_KEPT[error.status] ?? error.message}`;
  }
}

function showRequest(model, text) {
  const url = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const body = JSON.stringify({ texts: [text], model: model.name, explain: true });
  const hasKey = $("key").value !== "";
  const header = hasKey ? ' -H "Authorization: Bearer $HEED_API_KEY"' : "";
  $("curl").textContent = `curl ${url}/v1/classify${header} -d '${body.replaceAll("'", "'\\''")}'`;
  const key = hasKey ? ', api_key=os.environ["HEED_API_KEY"]' : "";
  const call = `client.classify([${JSON.stringify(text)}], model=${JSON.stringify(model.name)}, explain=True)`;
  $("python").textContent = `${hasKey ? "import os\n\n" : ""}import heed

with heed.Client(${JSON.stringify(url)}${key}) as client:
    [result] = ${call}
    print(result.label, result.score)`;
}

async function copy(button) {
  const source = $(button.dataset.copies);
  getSelection().selectAllChildren(source); // where the clipboard is closed to the page, Ctrl+C is left to do
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = $("status").textContent = "Copied";
  } catch {
    button.textContent = "Press Ctrl+C";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

// ---- What starts it all.

$("text").addEventListener("input", () => start(readText));
$("model").addEventListener("change", () => again());
$("key-box").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey();
  again();
});
$("file").addEventListener("change", () => {
  if ($("file").files[0]) openFile($("file").files[0]);
  $("file").value = ""; // so that the same file can be chosen again
});
$("correction").addEventListener("submit", sendCorrection);
for (const button of document.querySelectorAll("[data-copies]")) button.addEventListener("click", () => copy(button));

const hasFiles = (event) => event.dataTransfer.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (hasFiles(event)) event.preventDefault();
  document.body.classList.toggle("is-dropping", hasFiles(event));
});
document.addEventListener("dragleave", () => document.body.classList.remove("is-dropping"));
document.addEventListener("drop", (event) => {
  document.body.classList.remove("is-dropping");
  if (!hasFiles(event)) return;
  event.preventDefault();
  openFile(event.dataTransfer.files[0]);
});

start(async (signal) => {
  await loadModels(signal);
  await readText(signal); // what the browser kept of an earlier visit
});
