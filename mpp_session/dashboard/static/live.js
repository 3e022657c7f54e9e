// Keeps the figures and the live streams of a page current, from the server's events.
// Every text is set as text: nothing from the server is read as HTML.
"use strict";

function token_from_link() {
  const field = document.querySelector("input[name=token]");
  if (!field || location.hash.length < 2) return;
  field.value = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname);
  field.form.requestSubmit();
}

function cell(text, label, kind) {
  const td = document.createElement("td");
  td.dataset.label = label;
  if (kind) td.className = kind;
  if (text instanceof Node) td.append(text);
  else td.textContent = text;
  return td;
}

function money(text) {
  const [number, ...symbol] = text.split(" ");
  const amount = document.createElement("span");
  const unit = document.createElement("span");
  amount.className = "amount";
  unit.className = "unit";
  unit.textContent = symbol.join(" ");
  amount.append(number + " ", unit);
  return amount;
}

function link(id) {
  if (!id) return "unknown";
  const a = document.createElement("a");
  a.href = "/channels/" + id;
  const code = document.createElement("code");
  code.title = id;
  code.textContent = id.slice(0, 10) + "…" + id.slice(-6);
  a.append(code);
  return a;
}

function fill(row, stream) {
  const [model, channel, began, units, charged] = stream.cells;
  if (!row.cells.length) {
    row.append(
      cell(model, "Model"), cell(link(channel), "Channel"), cell(began, "Started"),
      cell(units, "Units", "num"), cell(money(charged), "Charged", "num"));
  }
  row.cells[2].textContent = began;
  row.cells[3].textContent = units;
  row.cells[4].replaceChildren(money(charged));
}

function show(state) {
  for (const [key, text] of Object.entries(state.figures)) {
    for (const place of document.querySelectorAll(`[data-figure="${key}"]`)) {
      if (place.textContent.trim() === text) continue;
      if (place.querySelector(".unit")) place.replaceChildren(money(text));
      else place.textContent = text;
    }
  }
  const body = document.getElementById("stream-rows");
  if (!body) return;
  // the server's own rows carry no id: the first event replaces them
  for (const row of [...body.rows]) {
    if (!state.streams.some((stream) => stream.id === row.dataset.id)) row.remove();
  }
  state.streams.forEach((stream, index) => {
    let row = [...body.rows].find((each) => each.dataset.id === stream.id);
    if (!row) {
      row = document.createElement("tr");
      row.dataset.id = stream.id;
      body.insertBefore(row, body.rows[index] || null);
    }
    fill(row, stream);
  });
  document.getElementById("streams").toggleAttribute("data-empty", !state.streams.length);
}

function listen() {
  const place = document.querySelector("[data-live]");
  if (!place) return;
  const source = new EventSource("/events");
  source.addEventListener("state", (event) => {
    place.textContent = "live";
    show(JSON.parse(event.data));
  });
  source.addEventListener("error", () => { place.textContent = "not live: reconnecting"; });
  addEventListener("pagehide", () => source.close());
}

token_from_link();
addEventListener("hashchange", token_from_link);
listen();
