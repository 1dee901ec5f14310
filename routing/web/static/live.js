// Keeps a page up to date through server-sent events. Without it every page works, and stands still.
"use strict";

const MOST_ROWS = 200;
const place = document.querySelector("[data-live]");
const status = document.getElementById("live");

function replacePart(id, markup) {
  const part = document.getElementById(id);
  // Markup is compared and replaced only where it differs, and never while the keyboard's focus is inside.
  if (part && part.dataset.shown !== markup && !part.contains(document.activeElement)) {
    part.innerHTML = markup;
    part.dataset.shown = markup;
  }
}

function addRow(markup) {
  const rows = document.getElementById("rows");
  rows.insertAdjacentHTML("afterbegin", markup);
  while (rows.childElementCount > MOST_ROWS) {
    rows.lastElementChild.remove();
  }
}

function follow() {
  const source = new EventSource(place.dataset.live);
  source.addEventListener("open", () => { status.textContent = "Live: this page follows the ledger."; });
  source.addEventListener("error", () => {
    const closed = source.readyState === EventSource.CLOSED;
    status.textContent = closed ? "No longer live. Reload the page." : "Connection lost. Trying again…";
  });
  source.addEventListener("parts", (message) => {
    for (const [id, markup] of Object.entries(JSON.parse(message.data))) {
      replacePart(id, markup);
    }
  });
  source.addEventListener("row", (message) => addRow(JSON.parse(message.data)));
  source.addEventListener("end", () => { source.close(); window.location.reload(); });
}

if (place && status) {
  follow();
}
