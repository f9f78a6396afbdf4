// Keeps the reader's place when the page is loaded again, and loads it every EVERY_S seconds; 0 is never.
(() => {
  const every = EVERY_S * 1000, name = "place on " + location.pathname, patience = 15 * 60;
  const rows = () => [...document.querySelectorAll(".row, figure.wide")];
  const folds = () => [...document.querySelectorAll("details")];
  const stops = () => [...document.querySelectorAll("a, button, summary, input, [tabindex]")];
  const isAtEnd = row => row.scrollLeft + row.clientWidth >= row.scrollWidth - 4;

  const keep = () => {
    const place = {
      y: scrollY,
      rows: rows().map(row => (isAtEnd(row) ? "end" : row.scrollLeft)),
      open: folds().map(fold => fold.open),
      focus: stops().indexOf(document.activeElement),
      held: hold?.getAttribute("aria-pressed") === "true",
    };
    try { sessionStorage.setItem(name, JSON.stringify(place)); } catch { /* a browser that keeps nothing */ }
  };

  const hold = document.getElementById("hold");
  let place = null;
  try { place = JSON.parse(sessionStorage.getItem(name)); } catch { /* likewise */ }
  // the newest picture is what is looked for, where nobody has looked yet
  rows().forEach((row, i) => {
    const x = place?.rows?.[i] ?? (row.matches(".row:not(.layers)") ? "end" : 0);
    row.scrollLeft = x === "end" ? row.scrollWidth : x;
  });
  folds().forEach((fold, i) => { fold.open = place?.open?.[i] ?? fold.open; });
  history.scrollRestoration = "manual";
  stops()[place?.focus]?.focus({ preventScroll: true });
  if (place) scrollTo(0, place.y);
  addEventListener("pagehide", keep);
  if (!every) return;

  hold.setAttribute("aria-pressed", String(Boolean(place?.held)));
  hold.addEventListener("click", () => {
    hold.setAttribute("aria-pressed", String(hold.getAttribute("aria-pressed") !== "true"));
  });

  const again = async () => {
    // not under the eyes of somebody who is marking text or holds it, nor where nobody looks
    const isHeld = hold.getAttribute("aria-pressed") === "true";
    const isBusy = document.hidden || isHeld || !getSelection().isCollapsed;
    let isThere = !isBusy;
    if (isThere && location.protocol !== "file:") {
      try { isThere = (await fetch(location.href, { cache: "no-store" })).ok; } catch { isThere = false; }
    }
    if (isThere) { keep(); location.reload(); }
    else setTimeout(again, 5000);
  };
  setTimeout(again, every);

  const age = document.getElementById("age");
  const tell = () => {
    const old = Math.max(0, Math.round(Date.now() / 1000 - age.dataset.written));
    const ago = old < 90 ? `${old} s` : old < 5400 ? `${Math.round(old / 60)} min` : `${Math.round(old / 3600)} h`;
    age.textContent = `, ${ago} ago` + (old > patience ? " (is the run still there?)" : "");
  };
  if (age) { tell(); setInterval(tell, 1000); }
})();
