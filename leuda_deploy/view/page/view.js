// list and facts -> words, and what each control and key does.
"use strict";

function make(tag, text = "", ...children) {
  const node = document.createElement(tag);
  node.textContent = text;
  node.append(...children);
  return node;
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").className = wrong ? "wrong" : "";
}

function note(text, ...more) {
  const item = make("li", text, ...more);
  $("notes").append(item);
  return item;
}

function rows(list, pairs) {
  list.replaceChildren(...pairs.flatMap(([term, meaning]) => [make("dt", term), make("dd", meaning)]));
}

function tellPlace(there) {
  const [x, y, z] = there.mm, of = (n, plus, minus) => `${n < 0 ? minus : plus} ${Math.abs(n).toFixed(1)}`;
  const value = (image) => image && there.values.find((one) => one.id === image.id);
  const scan = value(state.images.scan), parts = [`${of(x, "R", "L")}  ${of(y, "A", "P")}  ${of(z, "S", "I")} mm`];
  if (!scan) return;
  parts.push(`voxel ${scan.vox.map(inScan).join(", ")}`, `value ${Number(scan.value.toPrecision(5))}`);
  const names = new Map(state.facts.structures.map((s) => [s.value, s.name]));
  state.facts.labels.forEach((file, k) => {
    const image = state.images[`labels-${k}`];
    const label = image.getValue(...image.mm2vox(there.mm));
    parts.push((k ? "second: " : "") + (names.get(Math.round(label)) || "background"));
  });
  $("place").textContent = parts.join("  ·  ");
}

/** An index of what is drawn -> the voxel of the scan: some are left out, and a file may hold a part. */
function inScan(n, k) {
  const { every = state.every, first_voxel: first = [0, 0, 0] } = state.facts;
  return first[k] + Math.round(n) * every[k];
}

function tellConvention() {
  const radiological = views[0].opts.isRadiologicalConvention;
  $("convention").firstElementChild.textContent = radiological
    ? "Radiological convention: the patient's right (R) is on the left of the picture."
    : "Neurological convention: the patient's right (R) is on the right of the picture.";
}

function tellStructures() {
  const { structures, labels } = state.facts, two = labels.length === 2;
  $("structures").hidden = !structures.length;
  const heads = ["", ...(two ? ["first mL", "second mL", "Dice"] : ["mL"])];
  document.querySelector("#structures thead").replaceChildren(make("tr", "", ...heads.map((text) => {
    const head = make(text ? "th" : "td", text);
    if (text) head.scope = "col";
    return head;
  })));
  document.querySelector("#structures tbody").replaceChildren(...structures.map((s) => {
    const box = make("input"), swatch = make("span"), go = make("button", s.name.replaceAll("_", "_\u200b")), head = make("th");
    Object.assign(box, { type: "checkbox", checked: !state.hidden.has(s.value), ariaLabel: `show ${s.name}` });
    box.onchange = () => { state.hidden[box.checked ? "delete" : "add"](s.value); redraw(); };
    swatch.className = "swatch";
    swatch.style.background = `rgb(${s.colour.join(" ")})`;
    Object.assign(go, { type: "button", title: `go to ${s.name}`, onclick: () => goTo(s.value) });
    head.scope = "row";
    head.append(make("label", "", box, swatch, go));
    const cells = s.ml.map((ml) => ml.toFixed(1)).concat(two ? [s.dice === null ? "none" : s.dice.toFixed(3)] : []);
    return make("tr", "", head, ...cells.map((text) => make("td", text)));
  }));
}

function keyOfDifference(on) {
  const caption = document.querySelector("#pictures figcaption");
  if (!on) return;
  caption.replaceChildren("Difference: ", ...DIFFERENCE.flatMap(([, colour, text]) => {
    const swatch = make("span");
    swatch.className = "swatch inline";
    swatch.style.background = `rgb(${colour.join(" ")})`;
    return [swatch, ` ${text}  `];
  }));
}

/** What of a scan is most unlike those of training; "" if an older report does not say. */
function why({ figure, value, usual }) {
  if (![value, usual].every(Number.isFinite)) return "";
  const end = { low: "low end", high: "high end" }[figure]; // in scanner units; the others are shares between them
  const [here, there] = [value, usual].map((n) => (end ? Number(n.toPrecision(4)) : `${Math.round(100 * n)} %`));
  return `: the ${end || figure} of its intensities is at ${here}, theirs at ${there}`;
}

function tellReport() {
  const said = state.facts.report, lines = [];
  if (said.low_confidence !== undefined) lines.push(["unsure", `of ${(100 * said.low_confidence).toFixed(1)} % of the structures' voxels`]);
  if (said.domain) lines.push(["looks like training", said.domain.fits ? "yes" : "NO"]);
  if (said.domain && !said.domain.fits) note(`This scan does not look like the scans of training${why(said.domain)}. Do not trust the labels unseen.`);
  for (const flag of Array.isArray(said.flags) ? said.flags : []) {
    note(`${flag.structure}: ${flag.flag}`);
  }
  if (said.engine) lines.push(["engine", said.engine]);
  if (said.total_seconds !== undefined) lines.push(["time", `${said.total_seconds.toFixed(2)} s in all`]);
  const phases = Object.entries(said.seconds || {}).sort((a, b) => b[1] - a[1]);
  if (phases.length) lines.push(["phases", `${phases.map(([phase, seconds]) => `${phase} ${seconds.toFixed(2)} s`).join(", ")}; they overlap`]);
  $("report").hidden = !lines.length;
  rows(document.querySelector("#report dl"), lines);
}

function tellList() {
  const many = state.list.length > 1;
  $("list").hidden = !many;
  document.querySelectorAll(".many").forEach((node) => { node.hidden = !many; });
  $("marking").hidden = !state.marks;
  const mark = state.list[state.index].mark;
  document.querySelectorAll("[data-mark]").forEach((button) => { button.ariaPressed = String(button.dataset.mark === mark); });
  document.querySelectorAll("#list button").forEach((button, k) => {
    const one = state.list[k], unsure = one.unsure === null ? "no report" : `unsure of ${(100 * one.unsure).toFixed(1)} %`;
    button.ariaCurrent = String(k === state.index);
    button.querySelector("small").textContent = [one.unlike ? "unlike training, " : "", unsure, one.mark ? `, ${one.mark}` : ""].join("");
  });
}

function makeList() {
  document.querySelector("#list ol").replaceChildren(...state.list.map((one, k) => {
    const picture = make("img"), button = make("button", "", picture, make("span", "", make("strong", one.name.replace(/\.nii(\.gz)?$/, "")), make("small")));
    if (state.list.length > 1) Object.assign(picture, { src: `thumbnail/${k}`, alt: "", loading: "lazy" });
    Object.assign(button, { type: "button", onclick: () => openScene(k) });
    return make("li", "", button);
  }));
}

// --- what happens -----------------------------------------------------------------------------

function fill(select, choices, old) {
  select.replaceChildren(...choices.map(([value, text]) => Object.assign(make("option", text), { value })));
  if (choices.some(([value]) => value === old)) select.value = old;
}

async function openScene(index, full = false) {
  const turn = ++state.turn, began = turn === 1 ? 0 : performance.now();
  Object.assign(state, { index, images: {} });
  $("name").textContent = state.list[index].name;
  $("notes").replaceChildren();
  tellList();
  say("Opening ...");
  try {
    const facts = await getJson(`facts/${index}`), images = {};
    if (turn !== state.turn) return; // another scan was chosen meanwhile
    if (!views.length) await view($("first"));
    state.drawnBy ||= drawnBy();
    state.every = full || inOneFile() ? [1, 1, 1] : thinned(facts.shape, facts.spacing_mm, MOST_VOXELS[state.drawnBy]);
    const fetched = getImage(index, "scan", "gray", 1);
    fetched.catch(() => {}); // told below; not while the table is waited for
    const { structures, note: fault } = await getJson(`structures/${index}`);
    if (fault) facts.labels = [];
    await Promise.all([
      fetched.then((image) => { images.scan = image; }),
      ...facts.labels.map((_, k) => getImage(index, `labels-${k}`, "gray", 1).then((image) => { images[`labels-${k}`] = image; })),
    ]);
    if (turn !== state.turn) return;
    Object.assign(facts, { structures, notes: [fault, facts.note].filter(Boolean) });
    Object.assign(state, { facts, images, windows: {}, hidden: new Set() });
    state.windows = windowsOf(images.scan, images["labels-0"]);
    tellScene();
    chooseLayout();
    await draw();
    goTo(0);
    await drawn();
    performance.measure("leuda:open", { start: began });
    say(`Opened in ${((performance.now() - began) / 1000).toFixed(1)} s`);
  } catch (error) {
    if (turn === state.turn) say(error.message, true);
  }
}

function tellScene() {
  const { facts } = state, ways = [];
  if (facts.labels.length === 2) ways.push(["labels-0", "First"], ["labels-1", "Second"], ["beside", "Side by side"], ["difference", "Difference"]);
  else if (facts.labels.length) ways.push(["labels-0", "On"]);
  fill($("shown"), [...ways, ["none", "Off"]], $("shown").value);
  fill($("window"), Object.entries(state.windows).map(([name, [low, high]]) => [name, `${name} (${Number(low.toPrecision(3))} to ${Number(high.toPrecision(3))})`]), $("window").value);
  document.querySelector(".uncertainty").hidden = !facts.uncertainty;
  document.querySelectorAll(".labelled").forEach((node) => { node.hidden = !facts.labels.length; });
  facts.notes.forEach((text) => note(text));
  if (state.every.some((n) => n > 1)) {
    const button = Object.assign(make("button", "Load all voxels"), { type: "button", onclick: () => openScene(state.index, true) });
    note(`One voxel in ${state.every.join(" × ")} is shown: all of them are too many for what draws here. Volumes and Dice are of all voxels. `, button);
  }
  tellStructures();
  tellReport();
  tellConvention();
  rows(document.querySelector("#about dl"), [
    ["voxels", facts.shape.join(" × ")], ["size", `${facts.spacing_mm.join(" × ")} mm`],
    ...(facts.tilt_degrees > 1 ? [["tilted", `${facts.tilt_degrees}° from the body's axes; the planes are the scan's own`]] : []),
    ...(facts.modality ? [["model for", facts.modality]] : []),
    ...facts.labels.map((name, k) => [[facts.labels.length < 2 ? "labels" : "first labels", "second labels"][k], name]),
    ...(facts.uncertainty ? [["uncertainty", facts.uncertainty]] : [])]);
}

async function mark(wanted) {
  if (!state.marks) return;
  const index = state.index, one = state.list[index];
  const answer = await fetch(`mark/${index}`, {
    method: "POST", headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ mark: one.mark === wanted ? null : wanted }) });
  if (!answer.ok) return say(await answer.text(), true);
  one.mark = (await answer.json()).mark;
  tellList();
}

function next(select, by = 1) {
  select.selectedIndex = (select.selectedIndex + by + select.length) % select.length;
  select.dispatchEvent(new Event("change"));
}

const KEYS = {
  ArrowUp: () => step(1), ArrowDown: () => step(-1),
  ArrowLeft: () => state.index > 0 && openScene(state.index - 1),
  ArrowRight: () => state.index + 1 < state.list.length && openScene(state.index + 1),
  o: () => mark("ok"), a: () => mark("look again"), d: () => next($("shown")),
  " ": () => {
    const shown = $("shown"), off = shown.value === "none";
    if (!off) state.before = shown.value;
    shown.value = off ? state.before || shown.options[0].value : "none";
    shown.dispatchEvent(new Event("change"));
  },
};
Object.keys(LAYOUTS).forEach((_, k) => { KEYS[k + 1] = () => next($("layout"), k - $("layout").selectedIndex); });

addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select") || (event.key === " " && event.target.closest("button"));
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (event.target.tagName === "CANVAS") event.stopPropagation(); // NiiVue has keys of its own
  if (typing || !act || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  act();
}, true);
$("pictures").addEventListener("wheel", (event) => {
  const axis = axisUnder(event);
  if (axis === undefined) return; // over the 3D rendering NiiVue zooms
  event.preventDefault();
  event.stopPropagation();
  step(event.deltaY < 0 ? 1 : -1, axis);
}, { capture: true, passive: false });
for (const id of ["shown", "window", "outline"]) $(id).addEventListener("change", redraw);
for (const id of ["opacity", "uncertainty"]) $(id).addEventListener("input", redraw);
$("layout").addEventListener("change", () => {
  state.chosen = true;
  state.slow?.remove();
  layOut();
});
$("controls").addEventListener("submit", (event) => event.preventDefault());
document.querySelectorAll("[data-mark]").forEach((button) => { button.onclick = () => mark(button.dataset.mark); });
$("turn").onclick = () => {
  views.forEach((one) => one.setRadiologicalConvention(!one.opts.isRadiologicalConvention));
  tellConvention();
};

(async () => {
  try {
    const said = await getJson("list");
    Object.assign(state, { list: said.scenes, marks: said.marks });
    makeList();
    await openScene(0);
  } catch (error) {
    say(error.message, true);
  }
})();
