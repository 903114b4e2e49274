// The page's own flow: who is asking, what the model is, what it answers. It speaks to the service that it came from
// and to nobody else. A key is held in memory; in the tab's storage only where its visitor ticks the box.

import { explanation, milliseconds, prediction, reading, spoken, time } from "./answers.js";
import { make, render } from "./card.js";

const KEPT = "deploykit-key";
const PATIENCE_MS = 20_000; // beyond the service's own deadline
const NOT_READY_MS = 3_000;
const at = (id) => document.getElementById(id);

let key = "";
let model = null;
let looking = 0; // for readiness, while there is none
let answered = null; // the text, and the second one, that the answer on the page is to

class Failure extends Error {
  constructor(message, status = 0, errors = []) {
    super(message);
    this.status = status;
    this.errors = errors;
  }
}

/** Says in a sentence or two what a refusal means. */
function describe(status, problem, wait) {
  const told = String(problem.detail ?? "").replace(/\.$/, "");
  const detail = told && `${told.charAt(0).toUpperCase()}${told.slice(1)}.`;
  const later = wait ? ` Try again in ${wait} s.` : "";
  if (status === 429) return `Too many requests. ${detail}${later}`;
  if (status === 503) return `The service cannot answer now. ${detail}${later || " Try again soon."}`;
  return detail ? `${detail}${later}` : `The service answered with the status ${status}.${later}`;
}

/** Asks the service; returns its JSON, the milliseconds that it took and where they went. */
async function ask(path, body) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const signal = AbortSignal.timeout((model?.timeout_s ?? 10) * 1000 + PATIENCE_MS);
  const options = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), cache: "no-store", signal };
  const start = performance.now();
  let reply, text;
  try {
    reply = await fetch(path, options);
    text = await reply.text();
  } catch (error) {
    throw new Failure(error.name === "TimeoutError"
      ? "The service did not answer in time. Try again."
      : "The service cannot be reached. Check the network and try again.");
  }
  const elapsed = performance.now() - start;
  let content = null;
  try { content = JSON.parse(text); } catch { /* a proxy's page; its status says enough */ }
  if (!reply.ok || content === null) {
    const problem = content ?? {};
    throw new Failure(describe(reply.status, problem, reply.headers.get("Retry-After")), reply.status, problem.errors);
  }
  return { content, elapsed, timing: reply.headers.get("Server-Timing") };
}

function show(id) {
  for (const name of ["loading", "unreachable", "door", "room"]) at(name).hidden = name !== id;
}

function say(text) {
  at("said").textContent = text;
}

function complain(node, failure) {
  const errors = (failure?.errors ?? []).map(({ where, message }) => `${where}: ${message}`);
  node.textContent = failure ? [failure.message, ...errors].join("\n") : "";
  node.hidden = !failure;
}

// the key

function keep(remember) {
  try {
    if (remember) sessionStorage.setItem(KEPT, key);
    else sessionStorage.removeItem(KEPT);
  } catch { /* storage is switched off: the key stays in memory */ }
}

function kept() {
  try { return sessionStorage.getItem(KEPT) ?? ""; } catch { return ""; }
}

function askForKey(message) {
  key = "";
  model = null;
  keep(false);
  at("forget").hidden = true;
  at("key").value = "";
  at("key-fault").textContent = message;
  at("key").setAttribute("aria-invalid", message !== "");
  show("door");
  at("key").focus();
}

at("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = at("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(given)) {
    askForKey(given ? "A key has letters, digits and signs only, and no spaces." : "Enter a key first.");
    return;
  }
  key = given;
  await load(at("remember").checked);
});

at("forget").addEventListener("click", () => {
  leave();
  askForKey("");
});

// the model

/** Asks what is served; with a key that is refused, or none where one is needed, the key is asked for. */
async function load(remember) {
  try {
    model = (await ask("v1/model")).content;
  } catch (failure) {
    if (failure.status === 401 || failure.status === 403) {
      askForKey(key ? `This key was not accepted. ${failure.message}` : "");
    } else {
      at("unreachable-why").textContent = failure.message;
      show("unreachable");
    }
    return;
  }
  if (key) keep(remember);
  at("key").value = "";
  introduce();
  show("room");
  at(needed()[0]).focus();
}

function introduce() {
  document.title = `${model.name} · try the model`;
  at("name").textContent = model.name;
  at("about").textContent = `${model.task.replaceAll("-", " ")} · version ${model.version}`;
  at("forget").hidden = !key;
  const names = texts() ? ["First text", "Second text"] : words().map(title);
  at("text-label").textContent = (texts() && !model.pair ? "Text" : names[0]) ?? "";
  at("picture").hidden = !model.files.length;
  at("first").hidden = !words().length;
  at("second-label").textContent = names[1] ?? "";
  at("pair").hidden = !two();
  at("text").rows = texts() ? 5 : 2;
  at("second").rows = texts() ? 3 : 8;
  const long = model.pair || model.max_windows === 1 ? "longer texts are cut" : "longer texts are read in parts";
  const masked = model.redact ? " E-mail addresses and numbers of persons are masked before it reads them." : "";
  const limits = `A PNG, JPEG or WebP file of at most ${model.max_file_bytes / 2 ** 20} MiB.`;
  at("hint").textContent = `${model.files.length ? limits : `The model reads ${model.max_tokens} tokens at once; ${long}.`}${masked}`;
  const card = render(model.card);
  if (card[0]?.textContent === model.name) card.shift(); // the page's own title says it
  at("card-text").replaceChildren(...card);
  at("card").hidden = !card.length;
}

/** Whether an input is one text or two alike; other tasks name the fields of an input. */
const texts = () => model.fields[0] === "text";
const words = () => model.fields.filter((name) => !model.files.includes(name));
const two = () => words().length > 1;

/** The elements that must be filled. */
const needed = () => [...(model.files.length ? ["image"] : []), ...["text", "second"].slice(0, words().length)];
const title = (name) => name[0].toUpperCase() + name.slice(1).replaceAll("_", " ");

/** Clears what a visitor has left on the page. */
function leave() {
  answered = null;
  for (const id of ["image", "text", "second"]) at(id).value = "";
  for (const id of ["preview", "prediction", "reading", "time", "explanation", "why-time", "card-text"]) at(id).replaceChildren();
  for (const id of ["answer", "why", "fault"]) at(id).hidden = true;
  document.title = at("name").textContent = "Try the model";
  at("about").textContent = "A model served by deploykit";
  say("");
}

/** Shows whether the model is ready, and looks again while it is not. */
async function watch() {
  clearTimeout(looking);
  let text = "Not reachable";
  try { text = (await fetch("readyz", { cache: "no-store" })).ok ? "Ready" : "Not ready"; } catch { /* no network */ }
  if (at("health").textContent !== text) at("health").textContent = text;
  at("health").classList.toggle("good", text === "Ready");
  clearTimeout(looking);
  if (text !== "Ready") looking = setTimeout(watch, NOT_READY_MS);
}

// what is asked

/** Runs one question at a time; the button says that it runs, and keeps the focus. */
async function busily(button, work, fault) {
  if (button.getAttribute("aria-disabled") === "true") return;
  const name = button.textContent;
  button.setAttribute("aria-disabled", "true");
  button.textContent = "Working…";
  complain(fault, null);
  say("Working…");
  try {
    await work();
    if (!at("health").classList.contains("good")) watch();
  } catch (failure) {
    say("");
    if (!(failure instanceof Failure)) throw failure;
    if (failure.status === 401) askForKey(`This key is not accepted any more. ${failure.message}`);
    else complain(fault, failure);
    if (failure.status === 503 || failure.status === 0) watch();
  } finally {
    button.textContent = name;
    button.removeAttribute("aria-disabled");
  }
}

/** Says of each field that is empty that it is; returns whether all are filled. */
function filled(ids) {
  const empty = ids.filter((id) => !at(id).value.trim());
  const missing = (id) => (id === "image" ? "Choose an image first." : "Enter a text first.");
  for (const id of ids) {
    at(`${id}-fault`).textContent = empty.includes(id) ? missing(id) : "";
    at(id).setAttribute("aria-invalid", empty.includes(id));
  }
  if (empty.length) {
    at(empty[0]).focus();
    say(missing(empty[0]));
  }
  return !empty.length;
}

async function predict() {
  const [text, second] = [at("text").value, at("second").value];
  const [first, other] = words();
  const files = model.files.length && { [model.files[0]]: await dataUrl(at("image").files[0]) };
  const body = model.body === "texts"
    ? { texts: [text], ...(model.pair && { text_pairs: [second] }) }
    : { inputs: [{ ...files, ...(first && { [first]: text }), ...(other && { [other]: second }) }] };
  const { content, elapsed, timing } = await ask("v1/predict", body);
  const [answer] = content.predictions;
  answered = body;
  at("prediction").replaceChildren(...prediction(answer, texts() ? text : second, model));
  at("reading").replaceChildren(...reading(answer));
  at("time").replaceChildren(...time(elapsed, timing));
  at("answer").hidden = false;
  at("why").hidden = !model.explains;
  at("explanation").replaceChildren();
  at("why-time").replaceChildren();
  complain(at("why-fault"), null);
  if (model.explains) {
    const best = answer.label ?? answer.labels[0];
    at("target").replaceChildren(...model.labels.map((label) => new Option(label, label, false, label === best)));
  }
  reachable();
  say(`${spoken(answer, model)} Round trip ${milliseconds(elapsed)}.`);
}

/** Reads a file as a data URL, which the service accepts, and which the page's policy lets an image show. */
function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Failure("The file cannot be read. Choose it again."));
    reader.readAsDataURL(file);
  });
}

async function tellWhy() {
  const { content, elapsed, timing } = await ask("v1/explain", { ...answered, label: at("target").value });
  at("explanation").replaceChildren(...explanation(content, answered.texts[0]));
  at("why-time").replaceChildren(...time(elapsed, timing));
  reachable();
  const [first] = [...content.parts].sort((one, other) => Math.abs(other.weight) - Math.abs(one.weight));
  say(first ? `Explanation ready. The strongest word is ${first.text}.` : "There are no words to explain.");
}

/** Lets the keyboard scroll what scrolls, and shows the first part that is marked in a text longer than its box. */
function reachable() {
  for (const node of document.querySelectorAll(".passage")) {
    if (node.scrollHeight > node.clientHeight) node.tabIndex = 0;
    const mark = node.querySelector("mark");
    if (mark) node.scrollTop = mark.offsetTop - node.offsetTop - node.clientHeight / 2;
  }
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (filled(needed())) busily(at("predict"), predict, at("fault"));
});
at("image").addEventListener("change", async () => {
  const [file] = at("image").files;
  const shown = file && make("img", { class: "preview", alt: "The chosen image", src: await dataUrl(file) });
  at("preview").replaceChildren(...(shown ? [shown] : []));
});
at("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
});
at("why-form").addEventListener("submit", (event) => {
  event.preventDefault();
  busily(at("explain"), tellWhy, at("why-fault"));
});
at("again").addEventListener("click", () => {
  show("loading");
  load(Boolean(kept()));
});

key = kept();
at("remember").checked = Boolean(key);
watch();
load(Boolean(key));
