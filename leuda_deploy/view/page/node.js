"use strict";
const STATES = ["received", "running", "labelled", "sent", "passed over", "failed"];
const at = (id) => document.getElementById(id);

function cell(text) {
  const made = document.createElement("td");
  made.textContent = text;
  return made;
}

function show(state) {
  at("about").textContent = Object.entries(state.about).map(([k, v]) => `${k}: ${v}`).join(" · ");
  at("counts").replaceChildren(...STATES.map((name) => {
    const item = document.createElement("li");
    const count = document.createElement("b");
    item.dataset.state = name;
    count.textContent = state.counts[name] ?? 0;
    item.append(count, name);
    return item;
  }));
  at("series").replaceChildren(...state.series.map((each) => {
    const row = document.createElement("tr");
    row.dataset.state = each.state;
    const came = new Date(each.received * 1000).toLocaleString();
    row.append(...[each.id, came, each.sender, `${each.images} ${each.modality}`, each.state,
      each.attempts, each.reason].map(cell));
    return row;
  }));
  at("status").textContent = `as of ${new Date().toLocaleTimeString()}`;
}

async function refresh() {
  try {
    const answer = await fetch("state");
    if (!answer.ok) throw new Error(await answer.text());
    show(await answer.json());
  } catch (error) {
    at("status").textContent = `no answer: ${error.message}`;
  }
  setTimeout(refresh, 2000);
}

refresh();
