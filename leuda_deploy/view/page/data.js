// a path of the server, or of this very file -> images, and what is in them.
"use strict";
const { Niivue, NVImage, SLICE_TYPE, SHOW_RENDER, MULTIPLANAR_TYPE } = niivue;
const $ = (id) => document.getElementById(id);
const MOST_VOXELS = { processor: 4e6, card: 400e6 }; // that are drawn in full: by software, by a graphics card
const SAMPLES = 300000; // voxels that are looked at for windows and centres
const HOUNSFIELD = { "Soft tissue": [-160, 240], Liver: [-20, 180], Lung: [-1350, 150], Bone: [-500, 1300], Brain: [0, 80] };
const state = { list: [], marks: null, index: 0, turn: 0, facts: null, images: {}, windows: {}, every: [1, 1, 1], hidden: new Set(), chosen: false };

function inOneFile() {
  return document.querySelector("script[data-path]") !== null;
}

/** Bytes from this very file if they are in it, else from the server. */
async function get(path) {
  const own = document.querySelector(`script[data-path="${path}"]`);
  if (own) return Uint8Array.from(atob(own.textContent.trim()), (letter) => letter.charCodeAt(0)).buffer;
  if (inOneFile()) throw new Error(`${path} is not in this file`);
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.arrayBuffer();
}

async function getJson(path) {
  return JSON.parse(new TextDecoder().decode(await get(path)));
}

async function unpacked(buffer) {
  const head = new Uint8Array(buffer, 0, 2);
  if (head[0] !== 0x1f || head[1] !== 0x8b) return buffer;
  try {
    return await new Response(new Blob([buffer]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  } catch {
    return buffer; // gzip of several members: the browser refuses it, NiiVue's own reader does not
  }
}

async function getImage(index, which, colormap, opacity) {
  const coarse = state.every.some((n) => n > 1) ? `?every=${state.every.join("x")}` : "";
  const bytes = await unpacked(await get(`file/${index}/${which}${coarse}`));
  return NVImage.new(bytes, `${which}.nii`, colormap, opacity, null, NaN, NaN, false);
}

/** Steps along the array axes that leave at most `limit` voxels: the finest axes are thinned first. */
function thinned(shape, spacing, limit) {
  const every = [1, 1, 1], voxels = () => shape.reduce((product, n, k) => product * Math.ceil(n / every[k]), 1);
  while (voxels() > limit && Math.max(...every) < 9) {
    const size = spacing.map((mm, k) => (every[k] > 8 ? Infinity : mm * every[k]));
    const finest = 1.01 * Math.min(...size);
    size.forEach((mm, k) => { every[k] += mm <= finest ? 1 : 0; });
  }
  return every;
}

/** Every so manieth voxel of an image, in its scanner's units. */
function sample(image, keep = () => true) {
  const stride = Math.max(1, Math.ceil(image.img.length / SAMPLES)) | 1;
  const slope = image.hdr.scl_slope || 1, values = [];
  for (let i = 0; i < image.img.length; i += stride) {
    if (keep(i) && Number.isFinite(image.img[i])) values.push(image.img[i] * slope + (image.hdr.scl_inter || 0));
  }
  return Float64Array.from(values).sort();
}

function between(sorted, low, high) {
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  return [at(low), at(high)];
}

/** Name -> [low, high]: of the modality, of this scan, of its structures. */
function windowsOf(scan, labels) {
  const all = sample(scan), made = {}, inside = labels ? sample(scan, (i) => labels.img[i] > 0) : [];
  const hounsfield = all[0] <= -500 && state.facts.modality !== "MR"; // there is air in it
  if (inside.length > 50) {
    const [low, high] = between(inside, 0.02, 0.98), room = 0.6 * (high - low), [least, most] = hounsfield ? HOUNSFIELD["Soft tissue"] : [low, high];
    made["The structures"] = [Math.max(all[0], Math.min(least, low - room)), Math.min(all.at(-1), Math.max(most, high + room))];
  }
  made["This scan"] = between(all, 0.01, 0.99);
  if (hounsfield) Object.assign(made, HOUNSFIELD);
  made["All values"] = between(all, 0, 1);
  return Object.fromEntries(Object.entries(made).filter(([, [low, high]]) => high > low));
}

/** Where in mm most of a label lies, or null if it is nowhere. */
function centreOf(labels, value) {
  const [nx, ny] = labels.hdr.dims.slice(1), sum = [0, 0, 0];
  let count = 0;
  const stride = Math.max(1, Math.floor(labels.img.length / (4 * SAMPLES))) | 1;
  for (let i = 0; i < labels.img.length; i += stride) {
    if (value ? labels.img[i] !== value : !labels.img[i]) continue;
    count += 1;
    sum[0] += i % nx; sum[1] += Math.floor(i / nx) % ny; sum[2] += Math.floor(i / (nx * ny));
  }
  if (!count) return null;
  const voxel = sum.map((total) => Math.round(total / count));
  return labels.hdr.affine.slice(0, 3).map((row) => row[0] * voxel[0] + row[1] * voxel[1] + row[2] * voxel[2] + row[3]);
}
