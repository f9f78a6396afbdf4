import { Lost, Refusal, base64, bundle, drawn, models } from "./stream.js";
import * as tiles from "./tiles.js";
import * as image from "./image.js";
import * as history from "./history.js";

const at = id => document.getElementById(id);
const OWN = "the model's own", PENDING = "pending";
let known = [], limits = {}, running = null, shown = null, said = "", changed = { temperature: false, guidance: false };

// ---- the form

function pace() { return tiles.still.matches ? "auto" : "smooth"; }

function model() { return known.find(one => one.name === at("model").value) ?? known[0]; }

function settle() {
  const { grid, about, example, guidance, temperature } = model();
  at("about").textContent = about.split(/(?<=\.) (?=[A-Z])/)[0];
  at("about").title = about;
  at("example").hidden = !example;
  at("example").textContent = `Try: ${example}`;
  at("guidance-field").hidden = guidance === null;
  if (guidance === null) changed.guidance = false;
  if (!changed.guidance) at("guidance").value = guidance ?? 1;
  if (!changed.temperature) at("temperature").value = temperature;
  image.ofGrid(grid);
  told();
}

function told() {
  const own = model();
  at("temperature-out").textContent = changed.temperature ? Number(at("temperature").value).toFixed(2) : `${own.temperature} (${OWN})`;
  at("top_p-out").textContent = Number(at("top_p").value) === 1 ? "all codes" : Number(at("top_p").value).toFixed(2);
  const guidance = Number(at("guidance").value) === 1 ? "1, none" : Number(at("guidance").value).toFixed(2);
  at("guidance-out").textContent = changed.guidance ? guidance : `${guidance} (${OWN})`;
}

function anotherSeed() { at("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000; }

function defaults() {
  changed.temperature = changed.guidance = false;
  at("top_p").value = 1;
  settle();
}

async function asked() {
  const ask = { caption: at("caption").value, model: model().name, n: Number(at("n").value), seed: Number(at("seed").value) };
  if (changed.temperature) ask.temperature = Number(at("temperature").value);
  if (Number(at("top_p").value) < 1) ask.top_p = Number(at("top_p").value);
  if (changed.guidance) ask.guidance = Number(at("guidance").value);
  const { blob, ...kept } = image.asked() ?? {};
  return blob ? { ...ask, ...kept, image: await base64(blob) } : ask;
}

function alarm(message) {
  at("alert").textContent = message;
  at("alert").hidden = !message;
  if (message) at("alert").scrollIntoView({ block: "nearest" });
}

at("model").addEventListener("change", settle);
at("example").addEventListener("click", () => { at("caption").value = model().example; at("caption").focus(); });
at("n-range").addEventListener("input", () => { at("n").value = at("n-range").value; });
at("n").addEventListener("input", () => { at("n-range").value = at("n").value; });
at("n").addEventListener("change", () => { at("n").value = at("n-range").value; });  // which keeps to the limits
at("dice").addEventListener("click", anotherSeed);
at("seed").addEventListener("input", () => { at("new-seed").checked = false; });
for (const id of ["temperature", "guidance"]) at(id).addEventListener("input", () => { changed[id] = true; told(); });
at("top_p").addEventListener("input", told);
at("defaults").addEventListener("click", defaults);
at("caption").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); at("ask").requestSubmit(); }
});
at("ask").addEventListener("submit", async event => {
  event.preventDefault();
  if (running) return;
  alarm("");
  if (!at("caption").value.trim()) { alarm("Say what to draw: the caption is empty."); at("caption").focus(); return; }
  start();
  let ask;
  try { ask = await asked(); } catch (error) { alarm(error.message); say(said); stop(); return; }
  draw(ask);
});
for (const id of ["cancel", "stop"]) {
  at(id).addEventListener("click", () => running?.abort());
  // of the key that is still held after it sent the caption
  at(id).addEventListener("keydown", event => { if (event.repeat) event.preventDefault(); });
}

// ---- drawing

function start() {
  running = new AbortController();
  busy(true);
  said = at("status").textContent;
  say("Sent");
  at("cancel").focus({ preventScroll: true });
}

function stop() {
  const lost = [document.body, at("cancel"), at("stop")].includes(document.activeElement);
  running = null;
  remember(null);
  busy(false);
  if (lost) at("draw").focus({ preventScroll: true });
  buttons(shown?.drawings.length > 0);
}

async function draw(ask) {
  const { signal } = running;
  remember(ask);
  const size = known.find(one => one.name === ask.model) ?? known[0];
  const mine = { ask: { ...ask, image: undefined }, size_px: size.size_px, grid: size.grid, when: Date.now(), drawings: [] };
  // all that takes room is laid out at once, when the server has taken it, and nothing moves after that but candidates
  const lay = notes => {
    at("one").close();
    shown = mine;
    at("title").textContent = ask.caption;
    at("notes").replaceChildren();
    note(notes);
    bar(0);
    tiles.lay(Array.from({ length: ask.n }, (_, place) => ask.seed + place), size);
    if (innerWidth <= 860) at("results").scrollIntoView({ behavior: pace() });
  };
  let ended = "";
  try {
    while (!(ended = await attempt(ask, signal, lay)));
  } catch (error) {
    if (signal.aborted) ended = "Cancelled";
    else { ended = "Stopped"; alarm(error instanceof Lost ? `${error.message} What was finished stays.` : error.message); }
  }
  mine.drawings = shown === mine ? tiles.settle() : [];
  const count = mine.drawings.reduce((sum, one) => sum + one.times, 0);
  if (shown === mine) {
    say(count ? `${ended}: ${told_of(count)}` : ended);
    bar(count ? 1 : 0);
  } else say(said);
  stop();
  if (at("new-seed").checked) anotherSeed();
  await history.keep(mine);
}

// The whole of a request, told in a word; nothing where the queue is full and it is to be sent again.
async function attempt(ask, signal, lay) {
  let finished = 0, rows = 0, began = performance.now();
  try {
    for await (const [event, values] of drawn(ask, signal)) {
      if (event === "accepted") lay(values.notes);
      if (event === "queue") { if (values.ahead) say(values.ahead === 1 ? "Waiting: one turn of others comes before yours" : `Waiting: ${values.ahead} turns of others come before yours`); else say(progress(finished, ask.n)); }
      if (event === "chunk") { tiles.begin(values.seeds, values.given); rows = values.seeds.length; say(progress(finished, ask.n)); }
      if (event === "row") { tiles.fill(values.row, values.colours); bar((finished + rows * (values.row + 1) / values.of) / ask.n); }
      if (event === "candidates") {
        finished = values.drawn;
        tiles.place(values.drawings.map(({ png, ...one }) => ({ ...one, blob: new Blob([tiles.bytes(png)], { type: "image/png" }) })));
        if (at("one").open) look(opened.drawing);
        say(progress(finished, ask.n));
      }
      if (event === "error") throw new Refusal(values.error);
      if (event === "done") {
        if (values.stopped) note([values.stopped]);
        return `Done in ${((performance.now() - began) / 1000).toFixed(1)} s`;
      }
    }
  } catch (error) {
    if (!(error instanceof Refusal) || !error.wait_s || finished) throw error;
    for (let left = error.wait_s; left > 0; left--) {
      say(`Many are drawing; trying again in ${left} s`);
      await new Promise(resolve => { setTimeout(resolve, 1000); signal.addEventListener("abort", resolve); });
      if (signal.aborted) throw error;
    }
  }
  return "";
}

const progress = (finished, of) => `Drawing: ${finished} of ${of}`;
const told_of = count => {
  const differ = shown.drawings.length;
  return `${count} ${count === 1 ? "candidate" : "candidates"}${differ < count ? `, ${differ} of which differ` : ""}`;
};
function say(text) { if (at("status").textContent !== text) at("status").textContent = text; }
function bar(share) {
  at("bar").style.transform = `scaleX(${Math.min(1, share)})`;
  at("track").ariaValueNow = Math.round(100 * share);
}
function note(notes) {
  at("notes").append(...notes.map(text => Object.assign(document.createElement("li"), { textContent: text })));
}
function busy(on) {
  at("draw").hidden = at("as-grid").hidden = at("as-zip").hidden = on;
  at("cancel").hidden = at("stop").hidden = !on;
}
function buttons(on) { for (const id of ["as-grid", "as-zip"]) at(id).disabled = !on; }

// A reload ends what the server draws; the same request is then sent once more, and draws the same.
function remember(ask) {
  try {
    if (ask) sessionStorage.setItem(PENDING, JSON.stringify(ask)); else sessionStorage.removeItem(PENDING);
  } catch { sessionStorage?.removeItem(PENDING); } // too large, with its image
}

async function resume() {
  let ask = null;
  try { ask = JSON.parse(sessionStorage.getItem(PENDING)); } catch { /* nothing */ }
  if (!ask || !known.some(one => one.name === ask.model)) return;
  at("caption").value = ask.caption;
  at("model").value = ask.model;
  at("n").value = at("n-range").value = ask.n;
  at("seed").value = ask.seed;
  for (const id of ["temperature", "guidance"]) if (ask[id] !== undefined) { changed[id] = true; at(id).value = ask[id]; }
  at("top_p").value = ask.top_p ?? 1;
  settle();
  toast(`The page was reloaded: the same is drawn again${ask.image ? ". Choose the image anew for another one" : ""}`);
  start();
  draw(ask);
}

// ---- one candidate

let opened = null;
function look(drawing) {
  const all = tiles.ranked(), index = all.indexOf(drawing);
  if (index < 0) return;
  opened = { drawing, entry: shown };
  at("one-title").textContent = shown.ask.caption;
  at("one-image").src = tiles.urlOf(drawing);
  at("one-image").alt = shown.ask.caption;
  at("one-image").classList.toggle("sharp", shown.size_px < 160);
  at("one-rank").textContent = `${index + 1} of ${all.length}`;
  at("one-score").textContent = drawing.score === null ? "not ranked" : drawing.score.toFixed(4);
  at("one-seed").textContent = drawing.seed;
  at("one-times").textContent = drawing.times === 1 ? "once" : `${drawing.times} times`;
  at("command").textContent = drawing.command;
  at("command-hint").textContent = drawing.command.includes(" --again ") ? "Needs the downloaded file, which holds what was kept of the image." : "";
  at("copy").textContent = "Copy";
  at("save").href = tiles.urlOf(drawing);
  at("save").download = drawing.file;
  at("place").textContent = `${index + 1} / ${all.length}`;
  at("before").disabled = index === 0;
  at("after").disabled = index === all.length - 1;
  if (!at("one").open) at("one").showModal();
}

tiles.onChoice(look);
function turn(by) {
  const all = tiles.ranked();
  look(all[all.indexOf(opened.drawing) + by]);
}
at("before").addEventListener("click", () => turn(-1));
at("after").addEventListener("click", () => turn(1));
at("one").addEventListener("keydown", event => {
  if (event.key === "ArrowLeft") turn(-1);
  if (event.key === "ArrowRight") turn(1);
});
at("one").addEventListener("click", event => { if (event.target === at("one")) at("one").close(); });
at("one").addEventListener("close", () => { if (shown === opened?.entry) tiles.focus(opened.drawing); });
at("copy").addEventListener("click", async () => {
  const text = at("command").textContent;
  try { await navigator.clipboard.writeText(text); at("copy").textContent = "Copied"; }
  catch { // a page that is reached by another name than localhost, without TLS
    getSelection().selectAllChildren(at("command"));
    at("copy").textContent = document.execCommand("copy") ? "Copied" : "Selected: press Ctrl-C";
  }
});
at("vary").addEventListener("click", async () => {
  const { drawing, entry } = opened;
  at("one").close();
  if (!running) at("model").value = entry.ask.model;
  settle();
  if (!await image.take(drawing.blob, Math.max(1, Math.floor(entry.grid / 2)))) return;
  at("caption").value = entry.ask.caption;
  at("rows").focus({ preventScroll: true });
  toast("Choose how much of it is kept, then draw");
});

// ---- files, and what was drawn before

async function download(as) {
  try {
    const file = await bundle(as, shown.drawings.map(drawing => drawing.blob));
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: as === "grid" ? "grid.png" : "drawings.zip" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (error) { alarm(error.message); }
}

at("as-grid").addEventListener("click", () => download("grid"));
at("as-zip").addEventListener("click", () => download("zip"));

function reopen(entry) {
  if (running) { toast("Cancel what is being drawn first"); return; }
  shown = entry;
  at("title").textContent = entry.ask.caption;
  at("notes").replaceChildren();
  tiles.lay(entry.drawings.map(drawing => drawing.seed), entry);
  tiles.place(entry.drawings.map(drawing => ({ ...drawing, same_as: null })), false);
  const count = entry.drawings.reduce((sum, one) => sum + one.times, 0);
  say(`Earlier: ${told_of(count)}`);
  bar(1);
  buttons(true);
  at("results").scrollIntoView({ behavior: pace(), block: "start" });
}

let fading = 0;
function toast(text) {
  at("toast").textContent = text;
  at("toast").classList.add("shown");
  clearTimeout(fading);
  fading = setTimeout(() => at("toast").classList.remove("shown"), 3500);
}

try {
  ({ models: known, limits } = await models());
  at("model").append(...known.map(one => new Option(one.name, one.name)));
  at("model-field").hidden = known.length < 2;
  at("caption").maxLength = limits.most_caption_chars;
  at("n").max = at("n-range").max = limits.most_n;
  at("n").value = at("n-range").value = Math.min(2 * limits.chunk, limits.most_n);
  tiles.promise(Number(at("n").value));
  image.prepare({ bytes: limits.most_bytes, pixels: limits.most_pixels }, alarm);
  anotherSeed();
  defaults();
  history.open(reopen);
  document.body.dataset.ready = "yes";
  await resume();
} catch (error) {
  alarm(`${error.message} Reload the page when it is back.`);
}
