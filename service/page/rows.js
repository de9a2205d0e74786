// A file: its rows are answered some at a time, shown as a table and offered with their labels.

import { $, chosen, element, limits, loadModels, patiently, start } from "./ask.js";
import { asTable, counts, number, parseTable, percent } from "./text.js";

const MOST_ROWS = 1000;
const MOST_FILE_BYTES = 8_000_000;
const ROWS_AT_A_TIME = 50;

export function openFile(file) {
  $("empty").hidden = $("answer").hidden = true;
  start((signal) => readFile(file, signal));
}

async function readFile(file, signal) {
  $("table").hidden = true;
  await loadModels(signal);
  const source = await file.slice(0, MOST_FILE_BYTES).text();
  const { header, rows, isWhole } = parseTable(source, file.size > MOST_FILE_BYTES, MOST_ROWS);
  const column = header.indexOf("text");
  if (column < 0) throw new Error(`The file has no column text. Its columns are: ${header.join(", ")}.`);
  if (!rows.length) throw new Error("The file has no rows below its header.");
  const all = rows.length === 1 ? "1 row" : `${number(rows.length)} rows`;
  const of = isWhole ? all : `the first ${all} (heed predict reads files of any size)`;
  const labelled = [[...header, "label", "score"]];
  $("rows").replaceChildren();
  $("download").hidden = true;
  $("table").hidden = false;
  for (let at = 0; at < rows.length; ) {
    $("progress").textContent = `${file.name}: ${number(at)} of ${of}`;
    const some = rows.slice(at, at + roomFor(rows.slice(at, at + ROWS_AT_A_TIME), column));
    const results = await answerRows(some.map((row) => row[column] ?? ""), signal);
    results.forEach((result, i) => {
      const answer = labelAndScore(result);
      showRow([at + i + 1, some[i][column] ?? "", ...answer], result.error);
      labelled.push([...header.map((_, j) => some[i][j] ?? ""), ...(result.error ? ["", ""] : answer)]);
    });
    at += some.length;
  }
  $("status").textContent = $("progress").textContent =
    `${file.name}, ${of}: ${counts(labelled.slice(1).map((row) => row.at(-2) || "not answered"))}`;
  offer(labelled);
}

// How many of the rows one request may hold.
function roomFor(rows, column) {
  let bytes = 1000, count = 0;
  for (const row of rows.slice(0, limits.max_texts_per_request)) {
    bytes += new TextEncoder().encode(JSON.stringify(row[column] ?? "")).length + 1;
    if (count && bytes > limits.max_body_bytes) break;
    count += 1;
  }
  return count;
}

// A result for each text; what the service would refuse the whole request for is not sent.
async function answerRows(texts, signal) {
  const why = (text) => {
    if (!text) return "empty";
    return Array.from(text).length > limits.max_text_chars ? "too long" : null;
  };
  const sent = texts.filter((text) => !why(text));
  const fields = { texts: sent, model: chosen().name, top_k: 1 };
  const { results } = sent.length ? await patiently("v1/classify", signal, fields) : { results: [] };
  return texts.map((text) => (why(text) ? { error: { message: why(text) } } : results.shift()));
}

// The best label; of labels that do not exclude one another, all over their thresholds.
function labelAndScore({ labels, label_set: set, error }) {
  if (error) return [error.message, ""];
  const isMulti = chosen().problem_type === "multi_label_classification" && set;
  return [isMulti ? set.join("; ") || "none" : labels[0].label, labels[0].score];
}

function showRow([place, text, label, score], error) {
  const cells = [number(place), text, label, error ? "" : percent(score)].map((cell) => element("td", "", cell));
  if (error) cells[2].className = "failed";
  $("rows").append(element("tr", "", ...cells));
}

function offer(rows) {
  URL.revokeObjectURL($("download").href);
  $("download").href = URL.createObjectURL(new Blob([asTable(rows)], { type: "text/csv" }));
  $("download").hidden = false;
}
