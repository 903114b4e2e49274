// What the service answers, as elements: probabilities as bars, spans in their text, weights of words, and the time.
// Offsets are those of Python, which counts code points; a string of JavaScript counts UTF-16 units.

import { make } from "./card.js";

const VISIBLE_ROWS = 10; // of a long list, before "Show all" is pressed
const HUE_COUNT = 6; // colours of labels in style.css
const ABSTAINED = "The model abstained: the probability is too low to rely on this label.";
const MIN_MARKED_WEIGHT = 0.005; // a word with less is not marked

export const percent = (share) => {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  if (share < 1 && share > 0.999) return "> 99.9 %";
  return `${(share * 100).toFixed(1)} %`;
};
const signed = (weight) => `${weight < 0 ? "−" : "+"}${Math.abs(weight).toFixed(3)}`;
export const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

function bar(share, kind = "") {
  const fill = make("span", { class: `fill ${kind}` });
  fill.style.setProperty("--share", Math.min(1, Math.abs(share)));
  return make("span", { class: "bar", "aria-hidden": "true" }, fill);
}

/** Adds rows to a list, and hides all but the first ones; returns a button that shows all. `noun` names the rows. */
function foldRows(rows, list, noun) {
  rows.forEach((row, index) => { row.hidden = index >= VISIBLE_ROWS; });
  list.append(...rows);
  if (rows.length <= VISIBLE_ROWS) return [];
  const all = `Show all ${rows.length} ${noun}`;
  const button = make("button", { type: "button", class: "quiet", "aria-expanded": "false" }, all);
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", open);
    button.textContent = open ? `Show the first ${VISIBLE_ROWS}` : all;
    rows.slice(VISIBLE_ROWS).forEach((row) => { row.hidden = !open; });
  });
  return [button];
}

/** A number that the model predicts, in the units of its data. */
const number = (value) => Number(value.toPrecision(4)).toString();

/** The answer to a question, marked in its context, or that there is none. */
function questionAnswer(answer, context) {
  const verdict = make("p", { class: "verdict" }, make("strong", {}, answer.answer ?? "No answer in this text"), " ",
    make("span", {}, percent(answer.score)));
  if (answer.answer === null) return [verdict];
  const marked = cutAtParts(context, [answer]).map(({ text, part }) => part ? make("mark", { class: "for" }, text) : text);
  return [verdict, passage("Context with the answer", marked)];
}

/** The label or labels, and a bar for the probability of each. */
function scoreBars(answer) {
  const ranked = Object.entries(answer.scores).sort((one, other) => other[1] - one[1]);
  const rows = ranked.map(([label, score], index) => make("li", { class: index ? null : "first" },
    make("span", { class: "name" }, label), make("span", { class: "figure" }, percent(score)), bar(score)));
  const list = make("ol", { class: "bars", "aria-label": "Probability of each label" });
  return [
    answer.labels
      ? make("p", { class: "verdict" }, make("strong", {}, answer.labels.join(", ") || "No label"))
      : make("p", { class: "verdict" }, make("strong", {}, answer.label), " ", make("span", {}, percent(answer.score))),
    ...(answer.abstained ? [make("p", { class: "notice" }, ABSTAINED)] : []),
    list, ...foldRows(rows, list, "labels"),
  ];
}

/** Cuts a text at code points: `[{text, part}]`, where `part` is null between the parts. */
function cutAtParts(text, parts) {
  const points = Array.from(text);
  const pieces = [];
  let last = 0;
  for (const part of [...parts].sort((one, other) => one.start - other.start)) {
    if (part.start > last) pieces.push({ text: points.slice(last, part.start).join(""), part: null });
    pieces.push({ text: points.slice(part.start, part.end).join(""), part });
    last = part.end;
  }
  if (last < points.length) pieces.push({ text: points.slice(last).join(""), part: null });
  return pieces;
}

/** A table whose first rows are visible; `noun` names the rows. */
function table(caption, titles, rows, noun) {
  const body = make("tbody");
  const more = foldRows(rows, body, noun);
  const head = make("tr", {}, ...titles.map((title) => make("th", { scope: "col" }, title)));
  const title = make("caption", { class: "hidden-text" }, caption);
  return [make("table", { class: `rows ${noun}` }, title, make("thead", {}, head), body), ...more];
}

/** A text in a box that scrolls if it is long. */
const passage = (name, parts) => make("p", { class: "passage", dir: "auto", role: "group", "aria-label": name }, ...parts);

/** Returns a function from a label to the CSS class of its colour: labels of the model first, then of the answer. */
function labelColours(labels, answer) {
  const names = labels.map((label) => label.replace(/^[BI]-/, "")).filter((label) => label !== "O");
  const places = [...new Set([...names, ...answer.entities.map((entity) => entity.label).sort()])];
  return (label) => `hue-${places.indexOf(label) % HUE_COUNT}`;
}

/** The text with its entities marked, a table of them, and the relations between them. */
function markedEntities(answer, text, labels) {
  const hue = labelColours(labels, answer);
  const tag = (label) => make("span", { class: `tag ${hue(label)}` }, label);
  const marked = cutAtParts(text, answer.entities).map(({ text: piece, part }) => part
    ? make("mark", { class: hue(part.label) }, piece, "\u00a0", tag(part.label))
    : piece);
  if (!answer.entities.length) return [passage("Text", marked), make("p", {}, "Nothing was found in this text.")];
  const rows = answer.entities.map((found) => make("tr", {}, make("th", { scope: "row", dir: "auto" }, found.text),
    make("td", {}, tag(found.label)), make("td", { class: "figure" }, percent(found.score)),
    make("td", { class: "figure" }, `${found.start}–${found.end}`)));
  return [passage("Text with what was found", marked),
    ...table("What was found", ["Text", "Label", "Probability", "Characters"], rows, "spans"),
    ...(answer.relations ? relations(answer, hue) : [])];
}

/** Which entity is related to which, and how. */
function relations(answer, hue) {
  const title = make("h3", {}, "Relations");
  if (!answer.relations.length) return [title, make("p", {}, "No relation was found between these.")];
  const entity = ({ label, text }) => make("mark", { class: hue(label), dir: "auto" }, text);
  const rows = answer.relations.map((found) => make("li", {}, entity(answer.entities[found.head]), " → ",
    make("strong", {}, found.label), " → ", entity(answer.entities[found.tail]), " ",
    make("span", { class: "figure" }, percent(found.score))));
  const list = make("ol", { class: "relations", "aria-label": "Relations" });
  return [title, list, ...foldRows(rows, list, "relations")];
}

/** The answers of the heads of a model, by name; heads that were not asked have none. */
const headAnswers = (answer) => Object.entries(answer).filter(([, value]) => value !== null && typeof value === "object");

const hasHeads = (model) => model.task === "multi-task";

/** The elements that show a prediction. */
export function prediction(answer, text, model) {
  if (hasHeads(model)) {
    return headAnswers(answer).map(([name, headAnswer]) => make("section", { class: "head", "aria-label": name },
      make("h3", {}, name), ...answerElements(headAnswer, text, [])));
  }
  return answerElements(answer, text, model.labels);
}

/** The elements that show one answer; one of an unknown kind is shown as JSON. */
function answerElements(answer, text, labels) {
  if ("answer" in answer) return questionAnswer(answer, text);
  if (answer.scores) return scoreBars(answer);
  if (answer.entities) return markedEntities(answer, text, labels);
  if (typeof answer.score === "number") {
    return [make("p", { class: "verdict" }, make("strong", {}, number(answer.score)))];
  }
  return [make("pre", {}, JSON.stringify(answer, null, 2))];
}

/** One sentence about an answer, for screen readers. */
export function spoken(answer, model) {
  if (hasHeads(model)) return `Answer: ${headAnswers(answer).map(([name, headAnswer]) => `${name}: ${summary(headAnswer)}`).join("; ")}.`;
  return `Answer: ${summary(answer)}.${answer.abstained ? ` ${ABSTAINED}` : ""}`;
}

/** A few words about an answer. */
function summary(answer) {
  if ("answer" in answer) return `${answer.answer ?? "none"}, ${percent(answer.score)}`;
  if (answer.labels) return answer.labels.join(", ") || "no label";
  if (answer.scores) return `${answer.label}, ${percent(answer.score)}`;
  if (typeof answer.score === "number") return number(answer.score);
  const related = answer.relations ? `, ${answer.relations.length} related` : "";
  return answer.entities ? `${answer.entities.length} found${related}` : "received";
}

/** How the text was read: its tokens, its windows, and whether its end was cut off. */
export function reading(answer) {
  const many = answer.windows > 1 ? `, in ${answer.windows} overlapping windows` : "";
  const notes = [make("p", { class: "muted small" }, `The model read ${answer.tokens} tokens${many}.`)];
  const warning = "The text is longer than this service reads: its end was cut off, and the answer does not know it.";
  if (answer.truncated) notes.push(make("p", { class: "notice" }, warning));
  return notes;
}

/** The text with the words marked that speak for a label or against it, and a table of their weights. */
export function explanation(found, text) {
  const largest = Math.max(...found.parts.map((part) => Math.abs(part.weight)), MIN_MARKED_WEIGHT);
  const marked = cutAtParts(text, found.parts).map(({ text: piece, part }) => {
    if (!part || Math.abs(part.weight) < MIN_MARKED_WEIGHT) return piece;
    const mark = make("mark", { class: part.weight > 0 ? "for" : "against" }, piece);
    mark.style.setProperty("--strength", Math.abs(part.weight) / largest);
    return mark;
  });
  const ranked = [...found.parts].sort((one, other) => Math.abs(other.weight) - Math.abs(one.weight));
  const rows = ranked.map((part) => make("tr", {}, make("th", { scope: "row", dir: "auto" }, part.text),
    make("td", { class: "figure" }, signed(part.weight)),
    make("td", { class: "effect" }, bar(part.weight / largest, part.weight < 0 ? "against" : "for"),
      make("span", { class: "hidden-text" }, part.weight < 0 ? "against" : "for"))));
  const legend = make("p", { class: "muted small" }, make("mark", { class: "for" }, "Solid line"), " speaks for ",
    make("strong", {}, found.label), " (now ", percent(found.score), "), ",
    make("mark", { class: "against" }, "dashed line"), " against it; the rest matters little.");
  return [passage("Text with what each word does", marked), legend,
    ...table(`What each word does for ${found.label}, the strongest first`, ["Word", "Weight", "Effect"], rows, "words")];
}

const STEP_TITLES = { tokenize: "Tokenizing", queue: "Waiting", inference: "Model" };

/** The time of the round trip as this browser saw it, and of its steps as the header `Server-Timing` gives them. */
export function time(elapsed, header) {
  const steps = Object.fromEntries([...(header ?? "").matchAll(/([\w-]+);dur=([\d.]+)/g)].map(
    ([, name, value]) => [name, Number(value)]));
  const figures = [["Round trip", elapsed]];
  if ("total" in steps) figures.push(["Service", steps.total]);
  for (const [name, title] of Object.entries(STEP_TITLES)) if (name in steps) figures.push([title, steps[name]]);
  const rows = figures.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, milliseconds(value))));
  return [make("h3", {}, "Time"), make("dl", { class: "time" }, ...rows)];
}
