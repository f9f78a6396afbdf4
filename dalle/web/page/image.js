// The image that some is kept of: its top rows, or all but a rectangle of cells.

import { still } from "./tiles.js";

const at = id => document.getElementById(id);
const board = at("board"), picture = at("picture"), veil = at("veil"), SIDE = 640;
let image = null, grid = 8, mode = "rows", rows = 4, cells = [2, 4, 6, 8], corner = null, latest = 0;
let most = { bytes: Infinity, pixels: Infinity }, alarm = () => {}, complained = "";

export function prepare(limits, onWrong) { most = limits; alarm = onWrong; }

function complain(why) { alarm(why); complained = why; }

// Takes back what was said of another file, and nothing else.
function settleComplaint() {
  if (complained && at("alert").textContent === complained) alarm("");
  complained = "";
}

export function ofGrid(size) {
  if (size !== grid) {
    grid = size;
    rows = Math.floor(grid / 2);
    cells = [Math.floor(grid / 4), Math.floor(grid / 2), Math.ceil(3 * grid / 4), grid];
  }
  at("rows").max = grid - 1;
  at("rows").value = rows;
  paint();
}

// Take an image, of a file or of a drawing, unless another was chosen meanwhile. wanted: rows to keep; null leaves what was chosen.
export async function take(blob, wanted = null) {
  const turn = ++latest;
  const refuse = why => { if (turn === latest) { complain(why); at("file").value = ""; } return false; };
  const bytes = 0.74 * most.bytes; // as base64 takes a third more
  if (blob.size > bytes) return refuse(`The file is larger than the ${(bytes / 1e6).toFixed(1)} MB that this server takes.`);
  let bitmap;
  try { bitmap = await createImageBitmap(blob); } catch { return refuse("This file is no image that the browser can show."); }
  if (bitmap.width * bitmap.height > most.pixels) {
    const told = `The image has ${bitmap.width} by ${bitmap.height} pixels; this server takes ${most.pixels / 1e6} million of them.`;
    bitmap.close();
    return refuse(told);
  }
  if (turn !== latest) { bitmap.close(); return false; }
  settleComplaint();
  image = { blob, width: bitmap.width, height: bitmap.height };
  const side = Math.min(bitmap.width, bitmap.height), pen = picture.getContext("2d");
  picture.width = picture.height = SIDE;
  pen.imageSmoothingEnabled = side > 160;
  pen.drawImage(bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side, 0, 0, SIDE, SIDE);
  bitmap.close();
  if (wanted !== null) { choose("rows"); rows = wanted; }
  at("editor").hidden = at("no-image").hidden = false;
  at("drop").hidden = true;
  at("rows").value = rows;
  paint();
  at("editor").scrollIntoView({ behavior: still.matches ? "auto" : "smooth", block: "nearest" });
  return true;
}

export function drop() {
  latest++;
  image = null;
  settleComplaint();
  at("editor").hidden = at("no-image").hidden = true;
  at("drop").hidden = false;
  at("file").value = "";
}

// What a request says of it; null without an image.
export function asked() {
  if (!image) return null;
  if (mode === "rows") return { blob: image.blob, rows };
  const side = Math.min(image.width, image.height);
  const [left, top] = [Math.floor((image.width - side) / 2), Math.floor((image.height - side) / 2)];
  const low = cell => Math.ceil(cell * side / grid), high = cell => Math.floor(cell * side / grid);
  return { blob: image.blob, region: [left + low(cells[0]), top + low(cells[1]), left + high(cells[2]), top + high(cells[3])] };
}

function choose(wanted) {
  mode = wanted;
  for (const radio of document.getElementsByName("mode")) radio.checked = radio.value === mode;
  board.classList.toggle("region", mode === "region");
  at("rows-field").hidden = mode !== "rows";
  paint();
}

function paint() {
  if (!image) return;
  veil.width = veil.height = SIDE;
  const pen = veil.getContext("2d"), cell = SIDE / grid, style = getComputedStyle(document.documentElement);
  const [x0, y0, x1, y1] = (mode === "rows" ? [0, rows, grid, grid] : cells).map(place => place * cell);
  pen.fillStyle = "rgb(255 255 255 / .18)";
  for (let line = 1; line < grid; line++) { pen.fillRect(line * cell, 0, 1, SIDE); pen.fillRect(0, line * cell, SIDE, 1); }
  pen.fillStyle = style.getPropertyValue("--page");
  pen.globalAlpha = .72;
  pen.fillRect(x0, y0, x1 - x0, y1 - y0);
  pen.globalAlpha = .35;
  pen.strokeStyle = style.getPropertyValue("--accent");
  pen.lineWidth = 2;
  pen.save();
  pen.beginPath();
  pen.rect(x0, y0, x1 - x0, y1 - y0);
  pen.clip();
  pen.beginPath();
  for (let line = -SIDE; line < SIDE; line += 26) { pen.moveTo(line, SIDE); pen.lineTo(line + SIDE, 0); }
  pen.stroke();
  pen.restore();
  pen.globalAlpha = 1;
  pen.lineWidth = 4;
  if (mode === "rows") { pen.beginPath(); pen.moveTo(0, y0); pen.lineTo(SIDE, y0); pen.stroke(); }
  else pen.strokeRect(x0 + 2, y0 + 2, x1 - x0 - 4, y1 - y0 - 4);
  at("rows-out").textContent = `${rows} of ${grid}`;
  at("kept").textContent = mode === "rows" ? `The top ${rows === 1 ? "row of cells is" : `${rows} rows of cells are`} kept; the rest is drawn.`
    : `Drawn: columns ${cells[0] + 1} to ${cells[2]} of rows ${cells[1] + 1} to ${cells[3]}. Drag a rectangle, or use arrow keys, with Shift for its size.`;
  board.ariaLabel = mode === "rows" ? "Image, of which the top rows are kept. Arrow up and down change how many."
    : "Image, of which a rectangle is drawn anew. Arrow keys move it, with Shift they change its size.";
}

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

function cellAt(event) {
  const box = veil.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map(part => clamp(Math.floor(part * grid), 0, grid - 1));
}

function drag(event) {
  if (!corner) return;
  const [x, y] = cellAt(event);
  if (mode === "rows") rows = clamp(Math.round((event.clientY - veil.getBoundingClientRect().top) / veil.clientHeight * grid), 1, grid - 1);
  else {
    const wanted = [Math.min(x, corner[0]), Math.min(y, corner[1]), Math.max(x, corner[0]) + 1, Math.max(y, corner[1]) + 1];
    if (!whole(wanted)) cells = wanted;
  }
  at("rows").value = rows;
  paint();
}

const whole = wanted => wanted[0] === 0 && wanted[1] === 0 && wanted[2] === grid && wanted[3] === grid;

veil.addEventListener("pointerdown", event => { corner = cellAt(event); veil.setPointerCapture(event.pointerId); drag(event); });
veil.addEventListener("pointermove", drag);
for (const name of ["pointerup", "pointercancel"]) veil.addEventListener(name, () => { corner = null; });
board.addEventListener("keydown", event => {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  const wanted = [...cells];
  if (mode === "rows") rows = clamp(rows + step[1], 1, grid - 1);
  else for (const axis of [0, 1]) {
    if (event.shiftKey) wanted[axis + 2] = clamp(wanted[axis + 2] + step[axis], wanted[axis] + 1, grid);
    else if (wanted[axis] + step[axis] >= 0 && wanted[axis + 2] + step[axis] <= grid) { wanted[axis] += step[axis]; wanted[axis + 2] += step[axis]; }
  }
  if (!whole(wanted)) cells = wanted;
  at("rows").value = rows;
  paint();
});
at("rows").addEventListener("input", () => { rows = Number(at("rows").value); paint(); });
for (const radio of document.getElementsByName("mode")) radio.addEventListener("change", () => choose(radio.value));
at("file").addEventListener("change", () => { if (at("file").files[0]) take(at("file").files[0]); });
at("no-image").addEventListener("click", () => { drop(); at("file").focus(); });
for (const name of ["dragenter", "dragover"]) at("drop").addEventListener(name, event => { event.preventDefault(); at("drop").classList.add("over"); });
for (const name of ["dragleave", "drop"]) at("drop").addEventListener(name, () => at("drop").classList.remove("over"));
at("drop").addEventListener("drop", event => { event.preventDefault(); if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
