// Numbers, offsets and tables as text: pure functions of page.js, without a document and without a service.

const WORDS_SHOWN = 4;
const LEAST_SHOWN = 0.05; // log-odds: less is noise

export const number = (value) => value.toLocaleString("en");
export const signed = (score) => (score < 0 ? "−" : "+") + Math.abs(score).toFixed(1);

export function percent(score) {
  if (score > 0.999 && score < 1) return "> 99.9%";
  if (score > 0 && score < 0.001) return "< 0.1%";
  return `${(100 * score).toFixed(1)}%`;
}

// Offsets of the API count characters (code points), those of JavaScript UTF-16 units.
export function inUnits(text, tokens) {
  const units = [0];
  for (const character of text) units.push(units.at(-1) + character.length);
  return tokens.map(({ start, end, score }) => ({ start: units[start], end: units[end], score }));
}

// Words that speak most for, and against, the label; a word that comes again is counted with the first.
export function strongest(text, tokens) {
  const scores = new Map();
  let i = 0;
  for (const { segment, index, isWordLike } of new Intl.Segmenter("en", { granularity: "word" }).segment(text)) {
    const word = segment.toLowerCase();
    for (; i < tokens.length && tokens[i].start < index + segment.length; i++) {
      if (isWordLike) scores.set(word, (scores.get(word) ?? 0) + tokens[i].score);
    }
  }
  const words = [...scores].filter(([, score]) => Math.abs(score) >= LEAST_SHOWN).sort((a, b) => b[1] - a[1]);
  const list = (some) => some.slice(0, WORDS_SHOWN).map(([word, score]) => `${word} ${signed(score)}`).join(", ");
  return [list(words.filter(([, score]) => score > 0)), list(words.filter(([, score]) => score < 0).reverse())];
}

// CSV (RFC 4180) whose header tells the separator; at most mostRows rows, the last one left out if the file was cut.
export function parseTable(source, isCut, mostRows) {
  const text = source.replace(/^\uFEFF/, "");
  const first = text.slice(0, text.search(/[\r\n]|$/));
  const separator = [",", ";", "\t"].reduce((a, b) => (first.split(b).length > first.split(a).length ? b : a));
  const cell = new RegExp(`(?:"([^"]*(?:""[^"]*)*)"|([^${separator}\\r\\n]*))(${separator}|\\r\\n|\\r|\\n|$)`, "y");
  const rows = [];
  let row = [];
  while (cell.lastIndex < text.length && rows.length < mostRows + 2) {
    const [, quoted, plain, end] = cell.exec(text);
    row.push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
    if (end === separator) continue;
    if (row.length > 1 || row[0]) rows.push(row); // a blank line is no row
    row = [];
  }
  if (row.length) rows.push([...row, ""]); // ends with a separator
  const isWhole = !isCut && rows.length <= mostRows + 1;
  const header = (rows.shift() ?? []).map((name) => name.trim());
  return { header, rows: (isCut ? rows.slice(0, -1) : rows).slice(0, mostRows), isWhole };
}

export function asTable(rows) {
  const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : cell);
  return rows.map((row) => row.map(quoted).join(",") + "\r\n").join("");
}

export function counts(labels) {
  const found = new Map();
  for (const label of labels) found.set(label, (found.get(label) ?? 0) + 1);
  return [...found].sort((a, b) => b[1] - a[1]).map(([label, count]) => `${number(count)} ${label}`).join(", ");
}
