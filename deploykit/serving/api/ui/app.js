// The flow of the page: asks for the key, shows the model, sends texts and shows the answers. It sends requests to the
// service that it came from, and nowhere else. A key is in memory; in the tab's storage only if its visitor ticks the box.

import { explanation, milliseconds, prediction, reading, spoken, time } from "./answers.js";
import { make, render } from "./card.js";

const KEY_STORAGE_NAME = "deploykit-key";
const TIMEOUT_MARGIN_MS = 20_000; // after the service's own deadline, the page gives up
const READINESS_POLL_MS = 3_000; // between two looks at a service that is not ready
const byId = (id) => document.getElementById(id);

let key = "";
let model = null;
let readinessTimer = 0; // of the next look, while the service is not ready
let answeredBody = null; // the body of the request whose answer the page shows

class Failure extends Error {
  constructor(message, status = 0, errors = []) {
    super(message);
    this.status = status;
    this.errors = errors;
  }
}

/** Returns a sentence or two about an error response; `retryAfter` is in seconds. */
function describeProblem(status, problem, retryAfter) {
  const text = String(problem.detail ?? "").replace(/\.$/, "");
  const detail = text && `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
  const later = retryAfter ? ` Try again in ${retryAfter} s.` : "";
  if (status === 429) return `Too many requests. ${detail}${later}`;
  if (status === 503) return `The service cannot answer now. ${detail}${later || " Try again soon."}`;
  return detail ? `${detail}${later}` : `The service answered with the status ${status}.${later}`;
}

/** Sends a request to the service; returns its JSON, the milliseconds of the round trip, and `Server-Timing`. */
async function callService(path, body) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const signal = AbortSignal.timeout((model?.timeout_s ?? 10) * 1000 + TIMEOUT_MARGIN_MS);
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
    throw new Failure(describeProblem(reply.status, problem, reply.headers.get("Retry-After")), reply.status, problem.errors);
  }
  return { content, elapsed, timing: reply.headers.get("Server-Timing") };
}

/** Shows one section of the page and hides the others. */
function showSection(id) {
  for (const name of ["loading", "unreachable", "door", "room"]) byId(name).hidden = name !== id;
}

/** Announces a text to screen readers. */
function announce(text) {
  byId("said").textContent = text;
}

/** Shows a failure in an element; hides the element if there is none. */
function showFailure(node, failure) {
  const errors = (failure?.errors ?? []).map(({ where, message }) => `${where}: ${message}`);
  node.textContent = failure ? [failure.message, ...errors].join("\n") : "";
  node.hidden = !failure;
}

// the key

/** Stores the key in the tab's storage, or removes it from there. */
function storeKey(remember) {
  try {
    if (remember) sessionStorage.setItem(KEY_STORAGE_NAME, key);
    else sessionStorage.removeItem(KEY_STORAGE_NAME);
  } catch { /* storage is switched off: the key stays in memory */ }
}

function storedKey() {
  try { return sessionStorage.getItem(KEY_STORAGE_NAME) ?? ""; } catch { return ""; }
}

/** Forgets the key and shows the form for one, with a message. */
function askForKey(message) {
  key = "";
  model = null;
  storeKey(false);
  byId("forget").hidden = true;
  byId("key").value = "";
  byId("key-fault").textContent = message;
  byId("key").setAttribute("aria-invalid", message !== "");
  showSection("door");
  byId("key").focus();
}

byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = byId("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(given)) {
    askForKey(given ? "A key has letters, digits and signs only, and no spaces." : "Enter a key first.");
    return;
  }
  key = given;
  await loadModel(byId("remember").checked);
});

byId("forget").addEventListener("click", () => {
  clearPage();
  askForKey("");
});

// the model

/** Loads the description of the model and shows the form for texts; if that needs a key, shows the form for one. */
async function loadModel(remember) {
  try {
    model = (await callService("v1/model")).content;
  } catch (failure) {
    if (failure.status === 401 || failure.status === 403) {
      askForKey(key ? `This key was not accepted. ${failure.message}` : "");
    } else {
      byId("unreachable-why").textContent = failure.message;
      showSection("unreachable");
    }
    return;
  }
  if (key) storeKey(remember);
  byId("key").value = "";
  showModel();
  showSection("room");
  byId(requiredIds()[0]).focus();
}

/** Fills the page with what the service says of the model. */
function showModel() {
  document.title = `${model.name} · try the model`;
  byId("name").textContent = model.name;
  byId("about").textContent = `${model.task.replaceAll("-", " ")} · version ${model.version}`;
  byId("forget").hidden = !key;
  const names = takesPlainTexts() ? ["First text", "Second text"] : textFields().map(labelOf);
  byId("text-label").textContent = (takesPlainTexts() && !model.pair ? "Text" : names[0]) ?? "";
  byId("picture").hidden = !model.files.length;
  byId("first").hidden = !textFields().length;
  byId("second-label").textContent = names[1] ?? "";
  byId("pair").hidden = !hasSecondText();
  byId("text").rows = takesPlainTexts() ? 5 : 2;
  byId("second").rows = takesPlainTexts() ? 3 : 8;
  const long = model.pair || model.max_windows === 1 ? "longer texts are cut" : "longer texts are read in parts";
  const masked = model.redact ? " E-mail addresses and numbers of persons are masked before it reads them." : "";
  const limits = `A PNG, JPEG or WebP file of at most ${model.max_file_bytes / 2 ** 20} MiB.`;
  byId("hint").textContent = `${model.files.length ? limits : `The model reads ${model.max_tokens} tokens at once; ${long}.`}${masked}`;
  const card = render(model.card);
  if (card[0]?.textContent === model.name) card.shift(); // the page's own title says it
  byId("card-text").replaceChildren(...card);
  byId("card").hidden = !card.length;
}

/** Whether an input is a text or a pair of texts; other tasks have inputs with fields of other names. */
const takesPlainTexts = () => model.fields[0] === "text";
/** The fields of an input that hold a text. */
const textFields = () => model.fields.filter((name) => !model.files.includes(name));
const hasSecondText = () => textFields().length > 1;

/** The ids of the elements that must be filled. */
const requiredIds = () => [...(model.files.length ? ["image"] : []), ...["text", "second"].slice(0, textFields().length)];
/** The name of a field as a label. */
const labelOf = (name) => name[0].toUpperCase() + name.slice(1).replaceAll("_", " ");

/** Clears what a visitor has left on the page. */
function clearPage() {
  answeredBody = null;
  for (const id of ["image", "text", "second"]) byId(id).value = "";
  for (const id of ["preview", "prediction", "reading", "time", "explanation", "why-time", "card-text"]) byId(id).replaceChildren();
  for (const id of ["answer", "why", "fault"]) byId(id).hidden = true;
  document.title = byId("name").textContent = "Try the model";
  byId("about").textContent = "A model served by deploykit";
  announce("");
}

/** Shows whether the service is ready, and looks again while it is not. */
async function watchReadiness() {
  clearTimeout(readinessTimer);
  let text = "Not reachable";
  try { text = (await fetch("readyz", { cache: "no-store" })).ok ? "Ready" : "Not ready"; } catch { /* no network */ }
  if (byId("health").textContent !== text) byId("health").textContent = text;
  byId("health").classList.toggle("good", text === "Ready");
  clearTimeout(readinessTimer);
  if (text !== "Ready") readinessTimer = setTimeout(watchReadiness, READINESS_POLL_MS);
}

// what is asked

/** Runs `work`, unless the button's work still runs; shows a failure in `faultNode`. The button keeps the focus. */
async function runOnce(button, work, faultNode) {
  if (button.getAttribute("aria-disabled") === "true") return;
  const name = button.textContent;
  button.setAttribute("aria-disabled", "true");
  button.textContent = "Working…";
  showFailure(faultNode, null);
  announce("Working…");
  try {
    await work();
    if (!byId("health").classList.contains("good")) watchReadiness();
  } catch (failure) {
    announce("");
    if (!(failure instanceof Failure)) throw failure;
    if (failure.status === 401) askForKey(`This key is not accepted any more. ${failure.message}`);
    else showFailure(faultNode, failure);
    if (failure.status === 503 || failure.status === 0) watchReadiness();
  } finally {
    button.textContent = name;
    button.removeAttribute("aria-disabled");
  }
}

/** Marks the fields that are empty; returns whether all are filled. */
function requireFilled(ids) {
  const empty = ids.filter((id) => !byId(id).value.trim());
  const missing = (id) => (id === "image" ? "Choose an image first." : "Enter a text first.");
  for (const id of ids) {
    byId(`${id}-fault`).textContent = empty.includes(id) ? missing(id) : "";
    byId(id).setAttribute("aria-invalid", empty.includes(id));
  }
  if (empty.length) {
    byId(empty[0]).focus();
    announce(missing(empty[0]));
  }
  return !empty.length;
}

/** Asks for a prediction and shows it. */
async function predict() {
  const [text, second] = [byId("text").value, byId("second").value];
  const [first, other] = textFields();
  const files = model.files.length && { [model.files[0]]: await dataUrl(byId("image").files[0]) };
  const body = model.body === "texts"
    ? { texts: [text], ...(model.pair && { text_pairs: [second] }) }
    : { inputs: [{ ...files, ...(first && { [first]: text }), ...(other && { [other]: second }) }] };
  const { content, elapsed, timing } = await callService("v1/predict", body);
  const [answer] = content.predictions;
  answeredBody = body;
  byId("prediction").replaceChildren(...prediction(answer, takesPlainTexts() ? text : second, model));
  byId("reading").replaceChildren(...reading(answer));
  byId("time").replaceChildren(...time(elapsed, timing));
  byId("answer").hidden = false;
  byId("why").hidden = !model.explains;
  byId("explanation").replaceChildren();
  byId("why-time").replaceChildren();
  showFailure(byId("why-fault"), null);
  if (model.explains) {
    const best = answer.label ?? answer.labels[0];
    byId("target").replaceChildren(...model.labels.map((label) => new Option(label, label, false, label === best)));
  }
  prepareScrolling();
  announce(`${spoken(answer, model)} Round trip ${milliseconds(elapsed)}.`);
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

/** Asks for an explanation and shows it. */
async function explain() {
  const { content, elapsed, timing } = await callService("v1/explain", { ...answeredBody, label: byId("target").value });
  byId("explanation").replaceChildren(...explanation(content, answeredBody.texts[0]));
  byId("why-time").replaceChildren(...time(elapsed, timing));
  prepareScrolling();
  const [first] = [...content.parts].sort((one, other) => Math.abs(other.weight) - Math.abs(one.weight));
  announce(first ? `Explanation ready. The strongest word is ${first.text}.` : "There are no words to explain.");
}

/** Lets the keyboard scroll long texts, and scrolls each to its first marked part. */
function prepareScrolling() {
  for (const node of document.querySelectorAll(".passage")) {
    if (node.scrollHeight > node.clientHeight) node.tabIndex = 0;
    const mark = node.querySelector("mark");
    if (mark) node.scrollTop = mark.offsetTop - node.offsetTop - node.clientHeight / 2;
  }
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (requireFilled(requiredIds())) runOnce(byId("predict"), predict, byId("fault"));
});
byId("image").addEventListener("change", async () => {
  const [file] = byId("image").files;
  const preview = file && make("img", { class: "preview", alt: "The chosen image", src: await dataUrl(file) });
  byId("preview").replaceChildren(...(preview ? [preview] : []));
});
byId("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
});
byId("why-form").addEventListener("submit", (event) => {
  event.preventDefault();
  runOnce(byId("explain"), explain, byId("why-fault"));
});
byId("again").addEventListener("click", () => {
  showSection("loading");
  loadModel(Boolean(storedKey()));
});

key = storedKey();
byId("remember").checked = Boolean(key);
watchReadiness();
loadModel(Boolean(key));
