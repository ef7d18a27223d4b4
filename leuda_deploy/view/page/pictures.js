// images and what the controls say -> pictures. NiiVue draws, this decides what.
"use strict";
const DIFFERENCE = [ // value in the difference, colour, meaning; the values are those of label_files.py
  [1, [86, 180, 233], "only in the first"], [2, [230, 159, 0], "only in the second"], [3, [204, 121, 167], "another structure in each"]];
const LAYOUTS = {
  all: [SLICE_TYPE.MULTIPLANAR, 2], planes: [SLICE_TYPE.MULTIPLANAR, 2], axial: [SLICE_TYPE.AXIAL, 2],
  coronal: [SLICE_TYPE.CORONAL, 1], sagittal: [SLICE_TYPE.SAGITTAL, 0], "3d": [SLICE_TYPE.RENDER, 2] };
const AXIS_OF_TILE = { 0: 2, 1: 1, 2: 0 }; // NiiVue's axial, coronal, sagittal -> axis that runs through the slices
const OPTIONS = {
  isRadiologicalConvention: true, sagittalNoseLeft: true, showAllOrientationMarkers: true, backColor: [0, 0, 0, 1],
  crosshairColor: [1, 1, 1, 0.7], crosshairGap: 8, crosshairWidth: 0.4, crosshairWidthUnit: "percent", fontColor: [1, 1, 1, 1], dragAndDropEnabled: false,
  clipPlaneHotKey: "", viewModeHotKey: "", cycleClipPlaneHotKey: "", logLevel: "error",
  multiplanarPadPixels: 14, isForceMouseClickToVoxelCenters: true, isColorbar: false, loadingText: "", scrollRequiresFocus: false };
const views = [];

async function view(canvas) {
  const made = new Niivue(OPTIONS);
  await made.attachToCanvas(canvas, false);
  made.onLocationChange = (there) => {
    follow(made);
    tellPlace(there);
  };
  views.push(made);
  return made;
}

/** The other view goes where one is. NiiVue's own sync asks that the mouse was in that one. */
function follow(one) {
  for (const other of views.filter((each) => each !== one && !each.canvas.closest("figure").hidden)) {
    other.scene.crosshairPos = one.scene.crosshairPos.slice();
    other.drawScene();
  }
}

/** A second view that moves with the first; what the mouse turns, NiiVue turns in both. */
async function viewBeside() {
  const second = await view($("second"));
  views[0].broadcastTo([second], { "2d": true, "3d": true });
  second.broadcastTo([views[0]], { "2d": true, "3d": true });
}

function colourLabels() {
  const rows = state.facts.structures.map((s) => [s.value, s.colour, s.name]);
  for (const which of ["labels-0", "labels-1", "difference"]) {
    const table = which === "difference" ? DIFFERENCE : rows, image = state.images[which];
    if (!image || !table.length) continue;
    // NiiVue outlines what the header calls labels, and fades its rims, which would hide a thin difference
    const outlined = $("outline").checked && which !== "difference";
    image.hdr.intent_code = outlined ? 1002 : 0;
    // else it takes all above the table's first value for 2/256 of the table at least: 0 would be 1 in a long one
    const all = [...(outlined ? [] : [[-2, [0, 0, 0], ""]]), [0, [0, 0, 0], ""], ...table];
    image.setColormapLabel({
      I: all.map((row) => row[0]), R: all.map((row) => row[1][0]), G: all.map((row) => row[1][1]),
      B: all.map((row) => row[1][2]), labels: all.map((row) => row[2]),
      A: all.map((row) => (row[0] <= 0 || (which !== "difference" && state.hidden.has(row[0])) ? 0 : 255)) });
  }
}

/** Fetch an image once it is wanted: of a large scan each takes a while. */
async function fetchLate(which, wanted, colormap, opacity) {
  const { images, index } = state;
  if (!wanted || images[which]) return;
  images[`${which}, on its way`] ||= getImage(index, which, colormap, opacity);
  images[which] = await images[`${which}, on its way`];
}

/** Show what the controls say. Uploads the volumes anew. */
async function draw() {
  const shown = $("shown").value, beside = shown === "beside", scan = state.images.scan;
  if (!scan) return;
  await fetchLate("difference", shown === "difference", "gray", 1);
  await fetchLate("uncertainty", $("uncertainty").value > 0, "inferno", 0);
  if (scan !== state.images.scan) return; // another scan was chosen meanwhile
  colourLabels();
  const [low, high] = state.windows[$("window").value] || Object.values(state.windows)[0];
  Object.assign(scan, { cal_min: low, cal_max: high });
  const sides = beside ? ["labels-0", "labels-1"] : [shown];
  document.querySelectorAll("#pictures figure").forEach((figure, k) => {
    figure.hidden = k >= sides.length;
    const name = { "labels-0": state.facts.labels[0], "labels-1": state.facts.labels[1] }[sides[k]];
    figure.firstElementChild.textContent = shown === "difference"
      ? `Difference: ${DIFFERENCE.map((row) => row[2]).join(", ")}` : name || "";
  });
  if (beside) await (state.second ||= viewBeside());
  views.slice(0, sides.length).forEach((one, k) => {
    const overlays = [state.images[sides[k]], state.images.uncertainty].filter(Boolean);
    if (state.images[sides[k]]) state.images[sides[k]].opacity = $("opacity").value / 100;
    if (state.images.uncertainty) state.images.uncertainty.opacity = $("uncertainty").value / 100;
    one.opts.atlasOutline = $("outline").checked ? 1 : 0;
    one.opts.sliceType = arrange(one);
    one.volumes = [scan, ...overlays.filter((image) => image.opacity > 0)];
    one.setVolume(scan, 0); // as the background; uploads all
  });
  if (beside) follow(views[0]);
  keyOfDifference(shown === "difference");
}

function redraw() {
  draw().catch((error) => say(error.message, true));
}

/** "card" or "processor": who draws. */
function drawnBy() {
  const { gl } = views[0], known = gl.getExtension("WEBGL_debug_renderer_info");
  const name = known ? gl.getParameter(known.UNMASKED_RENDERER_WEBGL) : "";
  return /swiftshader|llvmpipe|softpipe|software|basic render/i.test(name) ? "processor" : "card";
}

/** Resolves when the graphics processor has drawn what it was given. */
function drawn() {
  return Promise.all(views.map(({ gl }) => new Promise((done) => {
    const fence = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
    gl.flush();
    const look = () => (gl.getSyncParameter(fence, gl.SYNC_STATUS) === gl.SIGNALED ? done() : setTimeout(look, 2));
    setTimeout(look, 0);
  })));
}

/** 3D by the processor takes a second a picture, which would stop the slices: on demand then. */
function chooseLayout() {
  if (state.chosen || state.drawnBy === "card") return;
  $("layout").value = "planes";
  state.slow = note("3D is left out: it is slow without a graphics card. View > 3D shows it.");
}

/** Four pictures lie in two rows, three as they are largest; returns what NiiVue calls the view. */
function arrange(one) {
  const name = $("layout").value, with3d = name === "all";
  one.opts.multiplanarShowRender = with3d ? SHOW_RENDER.ALWAYS : SHOW_RENDER.NEVER;
  one.opts.multiplanarLayout = with3d ? MULTIPLANAR_TYPE.GRID : MULTIPLANAR_TYPE.AUTO;
  return LAYOUTS[name][0];
}

function layOut() {
  for (const one of views) one.setSliceType(arrange(one));
}

const scrolling = { move: [0, 0, 0], began: 0, busy: false, ended: 0 };
const COARSE = { ratio: 0.5, rest_ms: 250 }; // pixels while the processor scrolls, until it rests

/** Draw with so many pixels a pixel of the screen; 0: as many as it has. */
function resolve(ratio) {
  for (const one of views.filter(({ opts }) => opts.forceDevicePixelRatio !== ratio)) {
    one.opts.forceDevicePixelRatio = ratio;
    one.resizeListener();
  }
}

/** Move some slices along an axis. Input that comes while a picture is drawn waits and is added up. */
async function step(by, axis = LAYOUTS[$("layout").value][1]) {
  if (!state.images.scan) return;
  scrolling.move[axis] += by;
  scrolling.began ||= performance.now();
  if (scrolling.busy) return;
  scrolling.busy = true;
  clearTimeout(scrolling.ended);
  if (state.drawnBy === "processor") resolve(COARSE.ratio);
  while (scrolling.move.some(Boolean)) {
    const { move, began } = scrolling;
    Object.assign(scrolling, { move: [0, 0, 0], began: 0 });
    views[0].moveCrosshairInVox(...move);
    await drawn();
    performance.measure("leuda:step", { start: began }); // from the key or wheel to the finished picture
  }
  scrolling.busy = false;
  scrolling.ended = setTimeout(() => resolve(0), COARSE.rest_ms);
}

/** The axis through the slices under the mouse; undefined over the 3D rendering. */
function axisUnder(event) {
  const one = views.find(({ canvas }) => canvas === event.target);
  if (!one) return undefined;
  const box = one.canvas.getBoundingClientRect(), scale = one.canvas.width / box.width;
  const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
  const tile = one.screenSlices.find(({ leftTopWidthHeight: [left, top, width, height] }) =>
    x >= left && y >= top && x < left + width && y < top + height);
  return AXIS_OF_TILE[tile?.axCorSag];
}

/** Go to the middle of a structure, or of all of them with 0. */
function goTo(value) {
  const place = state.images["labels-0"] && centreOf(state.images["labels-0"], value);
  if (place) views[0].scene.crosshairPos = views[0].mm2frac(place);
  views[0].createOnLocationChange();
  views[0].drawScene();
}

/** What graphics drew is blank on paper: a copy stands in for it there. */
addEventListener("beforeprint", () => {
  resolve(0);
  for (const one of views) {
    one.drawScene();
    const paper = one.canvas.parentElement.querySelector(".paper") || document.createElement("canvas");
    Object.assign(paper, { className: "paper", width: one.canvas.width, height: one.canvas.height, role: "img", ariaLabel: one.canvas.ariaLabel });
    paper.getContext("2d").drawImage(one.canvas, 0, 0);
    one.canvas.after(paper);
  }
});
