"use strict";
// The pairs of the page: their figures, and the patch that is pointed at. report.js, which comes after, has the rest.

const PAGE = 12;
let shownPairs = PAGE;
let figures = [];

/** Colours a place in view 1: red grows to the right, green downwards, so that neighbours look alike. */
function colour(patch, opacity) {
  const [red, green] = [patch % side, Math.floor(patch / side)].map((place) => Math.round(255 * (place + 0.5) / side));
  return `rgba(${red}, ${green}, ${255 - Math.round((red + green) / 2)}, ${opacity})`;
}

/** One pair's figure: two views, a canvas over each, and which patch is pointed at. */
function pairFigure(pair) {
  const scene = data.scenes[pair.scene];
  const matches = pair.matches;
  const canvases = [];
  const views = element("div", {className: "views"});
  for (const [number, jpeg] of pair.views.entries()) {
    const view = element("div", {className: "view"});
    if (jpeg === null) {
      view.append(element("div", {className: "broken", textContent: "this view cannot be decoded"}));
    } else {
      const canvas = element("canvas");
      canvases[number] = canvas;
      const alt = `view ${number + 1} of ${scene.name}`;
      view.append(element("img", {src: `data:image/jpeg;base64,${jpeg}`, alt, decoding: "async"}), canvas);
    }
    views.append(view);
  }
  const facts = [data.sources.length > 1 ? data.sources[pair.source].name : "",
    pair.frames[0] >= 0 && pair.frames[1] >= 0 ? `frames ${pair.frames.join(" and ")}` : "",
    pair.inliers >= 0 ? plural(pair.inliers, "inlier") : "",
    matches ? "" : "which patches match is not known"].filter(Boolean).join(" · ");
  const words = element("span", {className: "facts", textContent: facts});
  words.setAttribute("aria-live", "polite");
  const known = pair.matched !== null;
  const overlap = known ? `${share(pair.matched, data.patches)} overlap` : "overlap not known";
  const caption = element("figcaption", {},
    element("span", {className: "scene", textContent: scene.name, title: scene.name}),
    element("span", {className: "overlap", textContent: overlap}),
    words);
  const figure = element("figure", {}, views, caption);
  const back = new Map((matches ?? []).map((second, first) => [second, first]));
  let pointed = null;

  const say = () => {
    if (!pointed) words.textContent = facts;
    else if (pointed[0] === null) words.textContent = `${named(pointed[1])} of view 2 has no match`;
    else if (pointed[1] === null) words.textContent = `${named(pointed[0])} of view 1 has no match`;
    else words.textContent = `${named(pointed[0])} → ${named(pointed[1])}`;
  };
  const draw = () => {
    for (const [number, canvas] of canvases.entries()) {
      if (!canvas) continue;
      const box = canvas.getBoundingClientRect();
      const scale = window.devicePixelRatio || 1;
      [canvas.width, canvas.height] = [Math.round(box.width * scale), Math.round(box.height * scale)];
      if (matches) paint(canvas, number, matches, pointed, at("patches").checked);
    }
    say();
  };
  const point = (first, second) => {
    if (pointed?.[0] === first && pointed?.[1] === second) return;
    pointed = first === null && second === null ? null : [first, second];
    draw();
  };
  const leave = () => point(null, null);
  const follow = (number, event) => {
    const box = canvases[number].getBoundingClientRect();
    const place = (offset, length) => Math.min(side - 1, Math.max(0, Math.floor(side * offset / length)));
    const patch = side * place(event.clientY - box.top, box.height) + place(event.clientX - box.left, box.width);
    if (number === 0) point(patch, matches[patch] >= 0 ? matches[patch] : null);
    else point(back.get(patch) ?? null, patch);
  };
  if (matches) {
    views.tabIndex = 0;
    views.setAttribute("role", "application");
    views.setAttribute("aria-label", `${scene.name}, ${overlap}. Arrow keys walk over the patches of view 1.`);
    for (const [number, canvas] of canvases.entries()) {
      canvas?.addEventListener("pointermove", (event) => follow(number, event));
      canvas?.addEventListener("pointerdown", (event) => follow(number, event));
      canvas?.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && leave());
    }
    views.addEventListener("blur", leave);
    views.addEventListener("keydown", (event) => {
      const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
      if (event.key === "Escape") leave();
      if (!step) return;
      event.preventDefault();
      const patch = pointed?.[0] ?? null;
      const clamp = (place) => Math.min(side - 1, Math.max(0, place));
      const next = patch === null ? matches.findIndex((second) => second >= 0)
        : side * clamp(Math.floor(patch / side) + step[1]) + clamp(patch % side + step[0]);
      point(next, matches[next] >= 0 ? matches[next] : null);
    });
  }
  return {figure, draw};
}

const named = (patch) => `row ${Math.floor(patch / side) + 1}, column ${patch % side + 1}`;

function paint(canvas, number, matches, pointed, all) {
  const context = canvas.getContext("2d");
  const [w, h] = [canvas.width / side, canvas.height / side];
  const box = (patch) => {
    const [x, y] = [Math.round(patch % side * w), Math.round(Math.floor(patch / side) * h)];
    return [x, y, Math.round((patch % side + 1) * w) - x, Math.round((Math.floor(patch / side) + 1) * h) - y];
  };
  if (all || pointed) {
    context.fillStyle = `rgba(0, 0, 0, ${all ? 0.62 : 0.45})`;
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
  if (all) {
    for (const [first, second] of matches.entries()) {
      if (second < 0) continue;
      const place = box(number ? second : first);
      context.clearRect(...place);
      context.fillStyle = colour(first, pointed ? 0.25 : 0.42);
      context.fillRect(...place);
    }
  }
  const patch = pointed?.[number] ?? null;
  if (patch === null) return;
  const [x, y, width, height] = box(patch);
  context.clearRect(x, y, width, height);
  const thick = Math.max(2, Math.round(canvas.width / 90));
  for (const [style, reach] of [["#000", thick], ["#fff", thick / 2]]) {
    // Around the patch, but within the view.
    const [left, top] = [Math.max(x - reach, thick / 2), Math.max(y - reach, thick / 2)];
    const right = Math.min(x + width + reach, canvas.width - thick / 2);
    const bottom = Math.min(y + height + reach, canvas.height - thick / 2);
    context.lineWidth = thick;
    context.strokeStyle = style;
    context.strokeRect(left, top, right - left, bottom - top);
  }
}

function renderGallery(chosen, {order, patches, source, scene}) {
  at("gallery-section").hidden = !data.count;
  at("patches").checked = patches;
  for (const radio of at("order").querySelectorAll("input")) radio.checked = radio.value === order;
  const inside = data.gallery.filter((pair) => chosen.has(pair.scene));
  let wanted = inside.filter((pair) => pair.random);
  if (order !== "random") {
    const sign = order === "lowest" ? 1 : -1;
    wanted = inside.filter((pair) => pair.matched !== null).sort((a, b) => sign * (a.matched - b.matched));
  } else if (!wanted.length) {
    wanted = inside;
  }
  const shown = wanted.slice(0, shownPairs);
  const all = data.gallery.length === data.count;
  const held = all ? `All ${plural(data.count, one, many)} of the dataset are in this page.`
    : `Pictures of ${count(data.gallery.length)} of ${plural(data.count, one, many)} are in this page: ` +
      (ofPairs ? `the lowest and highest overlaps of ${count(data.sample.length)} that were drawn, and ` : "") +
      "random ones of as many scenes as fit.";
  const none = source >= 0 || scene ? `No ${one} of this choice has its pictures in the page.` : "";
  const how = !ofPairs ? "" : "Point at a patch, or tap it, to find it in the other view; with the keyboard, the arrow keys.";
  at("gallery-note").textContent = `${wanted.length ? how : none} ${held}`;
  figures = shown.map(ofPairs ? pairFigure : panelFigure);
  at("gallery").replaceChildren(...figures.map(({figure}) => figure));
  at("more").hidden = shown.length === wanted.length;
  for (const {figure, draw} of figures) {
    draw();
    for (const image of figure.querySelectorAll("img")) image.addEventListener("load", draw);
  }
}
