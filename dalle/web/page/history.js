// What was drawn before, in this browser and nowhere else. Tabs tell one another.

const at = id => document.getElementById(id);
const MOST = 24;
const others = new BroadcastChannel("dalle-serve history");
let shelf = null, urls = [], shown = () => {};

export async function open(show) {
  shown = show;
  try {
    shelf = await finished(Object.assign(indexedDB.open("dalle-serve", 1), {
      onupgradeneeded: event => event.target.result.createObjectStore("draws", { keyPath: "id", autoIncrement: true }),
    }));
  } catch { return; } // of a browser that keeps nothing
  shelf.onversionchange = () => shelf.close();
  others.onmessage = list;
  await list();
}

function finished(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

const store = mode => shelf.transaction("draws", mode).objectStore("draws");

// entry: what was asked for, and the drawings, best first.
export async function keep(entry) {
  if (!shelf || !entry.drawings.length) return;
  try {
    await finished(store("readwrite").add(entry));
    const keys = await finished(store("readonly").getAllKeys());
    for (const key of keys.slice(0, Math.max(0, keys.length - MOST))) await finished(store("readwrite").delete(key));
  } catch { return; } // no room
  changed();
}

function changed() {
  others.postMessage("changed");
  return list();
}

async function list() {
  const entries = (await finished(store("readonly").getAll())).reverse();
  for (const url of urls) URL.revokeObjectURL(url);
  urls = [];
  at("history").hidden = !entries.length;
  at("entries").replaceChildren(...entries.map(card));
}

function card(entry) {
  const element = document.createElement("li"), open = document.createElement("button"), strip = document.createElement("span");
  const caption = document.createElement("b"), told = document.createElement("small"), drop = document.createElement("button");
  element.className = "entry";
  strip.className = "strip";
  for (const drawing of entry.drawings.slice(0, 4)) {
    const image = document.createElement("img");
    image.alt = "";
    image.src = URL.createObjectURL(drawing.blob);
    if (entry.size_px < 160) image.className = "sharp";
    urls.push(image.src);
    strip.append(image);
  }
  caption.textContent = entry.ask.caption;
  const when = new Date(entry.when).toLocaleString([], { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" });
  told.textContent = `${entry.drawings.length} · ${when}`;
  open.type = drop.type = "button";
  open.append(strip, caption, told);
  open.addEventListener("click", () => shown(entry));
  drop.className = "drop-entry";
  drop.textContent = "×";
  drop.ariaLabel = `Forget ${entry.ask.caption}`;
  drop.addEventListener("click", async () => { await finished(store("readwrite").delete(entry.id)); changed(); });
  element.append(open, drop);
  return element;
}

at("forget").addEventListener("click", async () => { await finished(store("readwrite").clear()); changed(); });
