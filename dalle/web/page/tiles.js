// The candidates: each fills row by row, and moves to its place once it is scored.

const FEW_PIXELS = 160;
const list = document.getElementById("tiles");
export const still = matchMedia("(prefers-reduced-motion: reduce)");
let tiles = new Map(), now = [], grid = 1, chosen = () => {};

export function onChoice(call) { chosen = call; }

// Empty places for n candidates, so that nothing moves but they.
export function lay(seeds, size) {
  clear();
  grid = size.grid;
  for (const seed of seeds) tiles.set(seed, make(seed));
  list.append(...[...tiles.values()].map(tile => tile.element));
}

// Places that nothing is drawn at yet.
export function promise(count) {
  clear();
  list.append(...Array.from({ length: count }, () => make(null).element));
}

export function clear() {
  for (const tile of tiles.values()) if (tile.url) URL.revokeObjectURL(tile.url);
  tiles = new Map();
  now = [];
  list.style.minHeight = "";
  list.replaceChildren();
}

function make(seed) {
  const element = document.createElement("li"), button = document.createElement("button");
  const canvas = document.createElement("canvas"), image = document.createElement("img");
  const rank = span("tag"), times = span("tag times"), meta = document.createElement("div");
  const score = document.createElement("b"), told = document.createElement("span");
  element.className = "tile";
  if (seed !== null) element.dataset.seed = seed;
  element.style.setProperty("--grid", grid);
  button.type = "button";
  button.disabled = true;
  button.ariaLabel = "Not drawn yet";
  canvas.width = canvas.height = grid;
  image.alt = "";
  image.hidden = true;
  if (seed !== null) told.append(Object.assign(document.createElement("i"), { textContent: "seed " }), String(seed));
  meta.className = "meta";
  meta.append(score, told);
  button.append(canvas, image, rank, times);
  element.append(button, meta);
  const tile = { seed, element, button, canvas, image, rank, times, score, drawing: null, same: 1, url: null };
  button.addEventListener("click", () => chosen(tile.drawing));
  return tile;
}

function span(name) {
  const element = document.createElement("span");
  element.className = name;
  return element;
}

// The candidates that are drawn now; given: RGBA of the cells that are there from the start.
export function begin(seeds, given) {
  now = seeds;
  const cells = given && new ImageData(new Uint8ClampedArray(bytes(given)), grid, grid);
  for (const tile of seeds.map(seed => tiles.get(seed))) {
    tile.element.classList.add("drawing");
    tile.element.style.setProperty("--row", 0);
    if (cells) tile.canvas.getContext("2d").putImageData(cells, 0, 0);
  }
}

// One row of cells of those that are drawn now, RGB.
export function fill(row, colours) {
  const rgb = bytes(colours);
  now.forEach((seed, place) => {
    const tile = tiles.get(seed), cells = new ImageData(grid, 1);
    for (let x = 0; x < grid; x++) {
      const from = 3 * (place * grid + x);
      cells.data.set([rgb[from], rgb[from + 1], rgb[from + 2], 255], 4 * x);
    }
    tile.canvas.getContext("2d").putImageData(cells, 0, row);
    tile.element.style.setProperty("--row", row + 1);
  });
}

// Finished ones: drawings with their blob. Each goes to its place, and one that is the same as another into that.
export function place(drawings, animate = true) {
  const before = new Map([...tiles.values()].map(tile => [tile, tile.element.getBoundingClientRect()]));
  if (animate) list.style.minHeight = `${list.offsetHeight}px`;
  for (const drawing of drawings) {
    const tile = tiles.get(drawing.seed);
    tile.element.classList.remove("drawing");
    if (drawing.same_as !== null && drawing.same_as !== undefined) {
      const first = tiles.get(drawing.same_as);
      first.same += 1;
      first.drawing.times = first.same;
      tile.element.remove();
      tiles.delete(drawing.seed);
      continue;
    }
    tile.drawing = drawing;
    tile.same = drawing.times;
    tile.url = URL.createObjectURL(drawing.blob);
    tile.image.src = tile.url;
    tile.image.hidden = false;
    tile.image.onload = () => {
      tile.image.classList.toggle("sharp", tile.image.naturalWidth < FEW_PIXELS);
      tile.element.classList.add("done");
    };
    tile.score.textContent = drawing.score === null ? "" : drawing.score.toFixed(3);
    tile.button.disabled = false;
  }
  now = [];
  order();
  if (animate && !still.matches) for (const tile of tiles.values()) move(tile.element, before.get(tile));
}

function order() {
  const focused = document.activeElement;
  const best = (one, other) => (other.drawing.score ?? 0) - (one.drawing.score ?? 0) || one.seed - other.seed;
  const done = [...tiles.values()].filter(tile => tile.drawing).sort(best);
  const rest = [...tiles.values()].filter(tile => !tile.drawing);
  list.append(...[...done, ...rest].map(tile => tile.element));
  done.forEach((tile, index) => {
    tile.drawing.rank = index + 1;
    tile.rank.textContent = index + 1;
    tile.times.textContent = tile.same > 1 ? `×${tile.same}` : "";
    tile.element.classList.toggle("first", index === 0 && tile.drawing.score !== null);
    const score = tile.drawing.score === null ? "" : `, score ${tile.drawing.score.toFixed(3)}`;
    tile.button.ariaLabel = `Rank ${index + 1}, seed ${tile.seed}${score}`;
  });
  if (list.contains(focused)) focused.focus({ preventScroll: true });
}

function move(element, from) {
  const to = element.getBoundingClientRect();
  const x = from.left - to.left, y = from.top - to.top;
  if (x || y) element.animate([{ transform: `translate(${x}px, ${y}px)` }, { transform: "none" }],
    { duration: 450, easing: "cubic-bezier(.2, .8, .2, 1)" });
}

// What was finished, best first; places of what was not are taken away.
export function settle() {
  for (const tile of [...tiles.values()]) if (!tile.drawing) { tile.element.remove(); tiles.delete(tile.seed); }
  list.style.minHeight = "0px";
  return ranked();
}

export function ranked() {
  return [...tiles.values()].filter(tile => tile.drawing).map(tile => tile.drawing).sort((one, other) => one.rank - other.rank);
}

export function urlOf(drawing) { return tiles.get(drawing.seed).url; }

export function focus(drawing) { tiles.get(drawing.seed)?.button.focus(); }

export function bytes(text) { return Uint8Array.from(atob(text), letter => letter.charCodeAt(0)); }
