"use strict";
const study = JSON.parse(document.getElementById("study").textContent);
const at = id => document.getElementById(id);
const BIGGEST_PX = 512, SMALLEST_PX = 150, FEW_PIXELS = 160;
const QUESTIONS = ["realistic", "matches"];
let worker = 0, name = "", answers = [], started = "", spent_ms = 0, since = 0, keeps = true, question_ms = {};

// ---- who answers

const asked = new URLSearchParams(location.search);
at("number").max = study.workers.length;
at("number").value = asked.get("worker") ?? "";
at("name").value = asked.get("name") ?? "";
at("of").textContent = study.workers.length;
at("number-field").hidden = isWorker(asked.get("worker"));
greet();
at("number").addEventListener("input", greet);

function isWorker(text) {
  return /^[0-9]{1,6}$/.test(text ?? "") && Number(text) >= 1 && Number(text) <= study.workers.length;
}

function greet() {
  const known = isWorker(at("number").value);
  at("how-many").hidden = !known;
  if (!known) return;
  const shown = study.workers[Number(at("number").value) - 1].length;
  const done = stored(Number(at("number").value)).answers.length;
  at("how-many").textContent = done ? `You have answered ${done} of ${shown} pairs, and go on where you were.`
    : `There are ${shown} pairs. You can stop at any time: reload this page, and you go on where you were.`;
  at("start").textContent = done ? "Go on" : "Start";
}

at("intro").addEventListener("submit", event => {
  event.preventDefault();
  const given = at("number").value.trim();
  at("wrong").hidden = isWorker(given);
  if (!isWorker(given)) { at("number-field").hidden = false; at("number").focus(); return; }
  worker = Number(given);
  const before = stored(worker);
  answers = before.answers;
  spent_ms = before.spent_ms;
  question_ms = before.question_ms;
  started = before.started || new Date().toISOString();
  name = at("name").value.trim() || before.name;
  save();
  show();
});

// ---- what is kept when the page is closed

function key(number) { return `dalle-study ${study.study} ${number}`; }

function stored(number) {
  const nothing = { answers: [], spent_ms: 0, question_ms: {}, started: "", name: "" };
  try {
    const kept = { ...nothing, ...JSON.parse(localStorage.getItem(key(number))) };
    const fits = Array.isArray(kept.answers) && kept.answers.every((answer, index) =>
      answer.trial === study.workers[number - 1][index]?.[0]);
    return fits ? kept : nothing;
  } catch { return nothing; }
}

function save() {
  try {
    localStorage.setItem(key(worker), JSON.stringify({ answers, spent_ms: time(), question_ms, started, name }));
  } catch { keeps = false; }
  at("not-kept").hidden = keeps;
}

// ---- time that is spent on a pair: only while the page is seen

function time() { return Math.round(spent_ms + (since ? performance.now() - since : 0)); }
function stopClock() { spent_ms = time(); since = 0; }
function startClock() { if (worker && !document.hidden && !at("trial").hidden && !since) since = performance.now(); }
document.addEventListener("visibilitychange", () => {
  if (!worker) return;
  if (document.hidden) { stopClock(); save(); } else startClock();
});
addEventListener("pagehide", () => { if (worker) { stopClock(); save(); } });

// ---- a pair

function current() {
  const [trial, flipped] = study.workers[worker - 1][answers.length];
  const [caption, ...images] = study.trials[trial];
  return { trial, caption, images: flipped ? images.reverse() : images };
}

function show() {
  const total = study.workers[worker - 1].length;
  at("intro").hidden = true;
  if (answers.length >= total) { finish(true); return; }
  at("end").hidden = true;
  at("trial").hidden = false;
  const { caption, images } = current();
  at("progress").max = total;
  at("progress").value = answers.length;
  at("count").textContent = `${answers.length + 1} of ${total}`;
  at("caption").textContent = caption;
  at("heading").classList.toggle("long", caption.length > 120);
  at("answers").reset();
  at("next").disabled = true;
  Promise.all(["left", "right"].map((side, index) => {
    at(side).src = study.images[images[index]];
    return at(side).decode().catch(() => {});
  })).then(() => { fit(); since = 0; startClock(); });
  const after = study.workers[worker - 1][answers.length + 1];
  if (after) for (const image of study.trials[after[0]].slice(1)) new Image().src = study.images[image];
  at("heading").focus({ preventScroll: true });
  scrollTo(0, 0);
}

// Both images get one width. Where they have few pixels it is a whole multiple of the screen's, so that none is smeared,
// unless that would leave much of the space empty.
function widthFor(images, space) {
  const natural = Math.max(...images.map(image => image.naturalWidth)), dpr = devicePixelRatio || 1;
  const whole = Math.floor(space * dpr / natural) * natural / dpr;
  return natural <= FEW_PIXELS && whole >= .75 * space ? whole : space;
}

function fit() {
  const images = [at("left"), at("right")];
  const wide = (at("trial").clientWidth - (innerWidth > 640 ? 20 : 8)) / 2;
  const shape = Math.max(...images.map(image => image.naturalHeight / image.naturalWidth)) || 1;
  const high = Math.max(SMALLEST_PX, (innerWidth > 640 ? .5 : .4) * innerHeight) / shape;
  const width = widthFor(images, Math.min(wide, high, BIGGEST_PX));
  for (const image of images) sized(image, width);
}

function sized(image, width) {
  image.style.width = `${width}px`;
  image.classList.toggle("sharp", image.naturalWidth <= Math.min(FEW_PIXELS, width * (devicePixelRatio || 1)));
}
addEventListener("resize", () => { if (!at("trial").hidden) fit(); });

for (const side of ["left", "right"]) at(side).parentNode.addEventListener("click", () => {
  const image = at("large").querySelector("img");
  image.src = at(side).src;
  image.alt = at(side).alt;
  image.decode().catch(() => {}).then(() => {
    const shape = image.naturalHeight / image.naturalWidth;
    sized(image, widthFor([image], Math.min(.94 * innerWidth - 16, (.94 * innerHeight - 16) / shape)));
    at("large").showModal();
  });
});
at("large").addEventListener("click", () => at("large").close());

function chosen(question) { return at("answers").elements[question].value; }

at("answers").addEventListener("change", event => {
  question_ms[event.target.name] = time();
  at("next").disabled = !QUESTIONS.every(chosen);
});

at("answers").addEventListener("submit", event => {
  event.preventDefault();
  if (!QUESTIONS.every(chosen)) return;
  stopClock();
  const { trial, images } = current();
  const sides = { left: images[0], right: images[1], neither: "neither" };
  answers.push({
    trial, left: images[0], realistic: sides[chosen("realistic")], matches: sides[chosen("matches")],
    realistic_ms: question_ms.realistic ?? spent_ms, matches_ms: question_ms.matches ?? spent_ms, ms: spent_ms,
  });
  spent_ms = 0;
  question_ms = {};
  save();
  show();
});

const KEYS = { 1: ["realistic", "left"], 2: ["realistic", "right"], 3: ["matches", "left"], 4: ["matches", "neither"],
  5: ["matches", "right"] };
document.addEventListener("keydown", event => {
  if (at("trial").hidden || at("large").open || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in KEYS) {
    const [question, side] = KEYS[event.key];
    const radio = document.querySelector(`input[name="${question}"][value="${side}"]`);
    if (!radio.checked) radio.click();
    radio.focus();
  }
  if (event.key === "Enter" && event.target.tagName !== "BUTTON") { event.preventDefault(); at("answers").requestSubmit(); }
});

// ---- the end

function finish(whole) {
  stopClock();
  save();
  at("trial").hidden = true;
  at("end").hidden = false;
  at("thanks").textContent = whole ? "Thank you" : "Save what you have so far";
  at("so-far").hidden = whole;
  at("back").hidden = whole;
  at("done").textContent = `${answers.length} of ${study.workers[worker - 1].length}`;
  at("text").value = file();
  at("thanks").focus();
}

function file() {
  return JSON.stringify({ format: 1, study: study.study, worker, name, started, saved: new Date().toISOString(), answers });
}

at("stop").addEventListener("click", () => finish(false));
at("back").addEventListener("click", show);
at("download").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([file()], { type: "application/json" }));
  link.download = `answers-${study.study.slice(0, 8)}-worker-${worker}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  at("saved").hidden = false;
  at("saved").textContent = `${link.download} is in your downloads. Send it to whoever asked you.`;
});
