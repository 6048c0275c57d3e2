"use strict";
// The page draws itself from its data. What is shown follows from the address after # alone; the controls write it.
// Text from the data only ever becomes text nodes.

const data = JSON.parse(document.getElementById("data").textContent);
const ROWS = 50;
const {one, many} = data.words;
const ofPairs = data.kind === "pairs";
const side = Math.round(Math.sqrt(data.patches));
const at = (id) => document.getElementById(id);
const count = (number) => number.toLocaleString("en");
const share = (part, whole) =>
  whole ? `${(100 * part / whole).toLocaleString("en", {maximumFractionDigits: 1})}\u00a0%` : "–";
const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

let shownScenes = ROWS;
let sorting = {key: "name", down: false};

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function drawn(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// ---- What is asked for

function asked() {
  const given = new URLSearchParams(location.hash.slice(1));
  const order = ["random", "lowest", "highest"].includes(given.get("order")) ? given.get("order") : "random";
  return {
    source: data.sources.findIndex((source) => source.name === given.get("source")),
    scene: given.get("scene") ?? "",
    order,
    patches: given.get("patches") === "all",
  };
}

function ask(changes) {
  const next = {...asked(), ...changes};
  const words = new URLSearchParams();
  if (next.source >= 0) words.set("source", data.sources[next.source].name);
  if (next.scene) words.set("scene", next.scene);
  if (next.order !== "random") words.set("order", next.order);
  if (next.patches) words.set("patches", "all");
  history.replaceState(null, "", `#${words}`);
  render();
}

/** The scenes that a name or a part of one stands for, those of the source alone where one is chosen. */
function scenesOf({source, scene}) {
  const all = data.scenes.map((_, place) => place).filter((i) => source < 0 || data.scenes[i].source === source);
  const exact = all.filter((i) => data.scenes[i].name === scene);
  if (exact.length) return exact;
  const part = scene.toLowerCase();
  return all.filter((i) => data.scenes[i].name.toLowerCase().includes(part));
}

function sum(entries) {
  const total = {scenes: 0, frames: 0, tried: 0, kept: 0, rejected: {}, problems: {}, yield: {}};
  for (const entry of entries) {
    for (const key of ["scenes", "frames", "tried", "kept"]) total[key] += entry[key];
    for (const key of ["rejected", "problems", "yield"]) {
      for (const [name, number] of Object.entries(entry[key] ?? {})) {
        total[key][name] = (total[key][name] ?? 0) + number;
      }
    }
  }
  return total;
}

// ---- The parts of the page

function renderTiles(total) {
  const tiles = [
    [`${many} kept`, count(total.kept)],
    [`${many} tried`, count(total.tried)],
    ["kept of those tried", share(total.kept, total.tried)],
    ["frames read", count(total.frames)],
    [total.scenes === 1 ? "scene" : "scenes", count(total.scenes)],
  ];
  const anchors = total.yield.anchors;
  if (anchors) {
    tiles.push(["of anchor frames found a partner", share(total.yield.kept ?? 0, anchors)]);
    tiles.push(["would have at the fixed step", share(total.yield["at the fixed step"] ?? 0, anchors)]);
  }
  at("tiles").replaceChildren(...tiles.map(([label, value]) =>
    element("div", {}, element("dt", {textContent: label}), element("dd", {textContent: value}))));
}

function renderReasons(total) {
  const rows = Object.entries(total.rejected).sort((a, b) => b[1] - a[1]);
  at("reasons").replaceChildren(...[["kept", total.kept], ...rows].map(([reason, number]) => {
    const fill = element("div", {className: "fill"});
    fill.style.width = `${total.tried ? 100 * number / total.tried : 0}%`;
    fill.hidden = !number;
    const words = element("div", {className: "words"},
      element("span", {textContent: reason}),
      element("span", {className: "count", textContent: `${count(number)} · ${share(number, total.tried)}`}));
    const row = element("li", {}, words, element("div", {className: "track"}, fill));
    if (reason === "kept") row.className = "kept";
    else if (data.meanings[reason]) row.append(element("p", {className: "meaning", textContent: data.meanings[reason]}));
    return row;
  }));
}

function renderHistogram(sample, bands) {
  const known = sample.map((each) => each[2]).filter((matched) => matched !== null).sort((a, b) => a - b);
  const unknown = sample.length - known.length;
  const whole = data.sample.length === data.count;
  const words = [];
  if (!sample.length) words.push(data.sample.length ? "None of the sampled pairs is of this choice." : "No pair was kept.");
  else if (whole) words.push(`All ${plural(sample.length, "pair")}.`);
  else {
    const of = sample.length < data.sample.length ? ` of ${count(data.sample.length)}` : "";
    words.push(`${plural(sample.length, "pair")}${of} drawn at random from ${count(data.count)}.`);
  }
  if (known.length) words.push(`Half of them overlap by ${share(known[known.length >> 1], data.patches)} or more.`);
  if (unknown) words.push(`Of ${count(unknown)} the overlap is not known.`);
  if (data.unreadable) words.push(`${plural(data.unreadable, "record")} could not be read.`);
  at("overlap-note").textContent = words.join(" ");
  if (!known.length) return at("histogram").replaceChildren();

  // Bins of equally many patches, one of them beginning where the band does.
  const patches = data.patches;
  const width = Math.max(1, Math.round(patches / 40));
  const edges = bands.map(({low, high}) => [Math.ceil(low * patches - 1e-6), Math.floor(high * patches + 1e-6)]);
  const offset = edges.length ? edges[0][0] % width : 0;
  const bins = new Map();
  for (const matched of known) {
    const bin = Math.floor((matched - offset) / width);
    bins.set(bin, (bins.get(bin) ?? 0) + 1);
  }
  const least = Math.min(known[0], ...edges.map(([low]) => low)) / patches;
  const most = Math.max(known[known.length - 1], ...edges.map(([, high]) => high)) / patches;
  const [from, to] = [Math.max(0, Math.floor(10 * least - 0.5) / 10), Math.min(1, Math.ceil(10 * most + 0.5) / 10)];
  const [w, h, left, right, bottom, top] = [560, 270, 44, 24, 44, 22];
  const x = (matched) => left + (w - left - right) * (Math.min(Math.max(matched / patches, from), to) - from) / (to - from);
  const tallest = Math.max(...bins.values());
  const y = (number) => h - bottom - (h - bottom - top) * number / tallest;
  const label = `Histogram of overlap, from ${share(known[0], patches)} to ${share(known[known.length - 1], patches)}`;
  const svg = drawn("svg", {viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": label});
  for (const [low, high] of edges) {
    const [start, end] = [x(low - 0.5), x(high + 0.5)];
    svg.append(drawn("rect", {class: "band", x: start, y: top, width: end - start, height: h - bottom - top}));
  }
  if (edges.length) {
    const [low, high] = edges[0];
    svg.append(drawn("text", {x: (x(low) + x(high)) / 2, y: top - 7, "text-anchor": "middle"},
      edges.length > 1 ? "bands that are kept" : "the band that is kept"));
  }
  for (const [bin, number] of bins) {
    const first = offset + bin * width;
    const [start, end] = [x(first - 0.5), x(first + width - 0.5)];
    const range = `${share(Math.max(0, first), patches)} to ${share(Math.min(patches, first + width - 1), patches)}`;
    svg.append(drawn("rect", {
      class: "bar", "data-first": first, "data-count": number,
      x: start + 1, y: y(number), width: Math.max(1, end - start - 2), height: h - bottom - y(number),
    }, drawn("title", {}, `${range}: ${plural(number, "pair")}`)));
  }
  svg.append(drawn("line", {class: "axis", x1: left, x2: w - right, y1: h - bottom, y2: h - bottom}));
  for (let tick = Math.round(10 * from); tick <= Math.round(10 * to); tick++) {
    svg.append(drawn("text", {x: x(tick / 10 * patches), y: h - bottom + 18, "text-anchor": "middle"}, `${10 * tick} %`));
  }
  svg.append(drawn("text", {x: (left + w - right) / 2, y: h - 6, "text-anchor": "middle"},
    "patches of view 1 that have a match in view 2"));
  for (const number of new Set([tallest, Math.round(tallest / 2)])) {
    if (!number) continue;
    svg.append(drawn("text", {x: left - 8, y: y(number) + 4, "text-anchor": "end"}, count(number)));
  }
  at("histogram").replaceChildren(svg);
}

function renderProblems(total) {
  const rows = Object.entries(total.problems).sort((a, b) => b[1] - a[1]);
  at("problems-section").hidden = !rows.length;
  at("problems").replaceChildren(...rows.map(([problem, number]) =>
    element("li", {textContent: `${problem}: ${count(number)}`})));
}

// ---- Tables

function row(cells) {
  return element("tr", {}, ...cells.map((cell) => cell instanceof Node ? cell
    : element("td", {className: typeof cell === "number" ? "number" : "",
                     textContent: typeof cell === "number" ? count(cell) : cell})));
}

const number = (text) => element("td", {className: "number", textContent: text});

function link(text, change) {
  const button = element("button", {type: "button", className: "link", textContent: text});
  button.addEventListener("click", () => { ask(change); at("tiles").parentElement.scrollIntoView(); });
  return element("td", {}, button);
}

function renderSources() {
  // Of one source alone the sums say the same.
  at("sources-section").hidden = data.sources.length < 2;
  const adaptive = data.sources.some((source) => source.yield);
  const heads = ["source", "scenes", "frames read", `${many} tried`, "kept", "yield"];
  if (adaptive) heads.push("anchors with a partner", "at the fixed step");
  at("sources").replaceChildren(
    element("thead", {}, element("tr", {}, ...heads.map((head, place) =>
      element("th", {textContent: head, scope: "col", className: place ? "number" : ""})))),
    element("tbody", {}, ...data.sources.map((source, place) => row([
      link(source.name, {source: place, scene: ""}), source.scenes, source.frames, source.tried, source.kept,
      number(share(source.kept, source.tried)),
      ...(adaptive ? ["kept", "at the fixed step"].map((key) =>
        number(share(source.yield?.[key] ?? 0, source.yield?.anchors))) : []),
    ]))));
}

const COLUMNS = {
  name: ["scene", (scene) => scene.name],
  frames: ["frames read", (scene) => scene.frames],
  tried: [`${many} tried`, (scene) => scene.tried],
  kept: ["kept", (scene) => scene.kept],
  share: ["yield", (scene) => scene.tried ? scene.kept / scene.tried : -1],
  problems: ["problems", (scene) => Object.values(scene.problems).reduce((a, b) => a + b, 0)],
};
const compareNames = new Intl.Collator("en", {numeric: true}).compare;

function renderScenes(chosen) {
  const of = COLUMNS[sorting.key][1];
  const sorted = [...chosen].map((place) => data.scenes[place]).sort((a, b) => {
    const order = sorting.key === "name" ? compareNames(a.name, b.name) : of(a) - of(b);
    return sorting.down ? -order : order;
  });
  const heads = Object.entries(COLUMNS).map(([key, [title]]) => {
    const arrow = sorting.key === key ? (sorting.down ? " ↓" : " ↑") : "";
    const button = element("button", {type: "button", textContent: title + arrow});
    button.addEventListener("click", () => {
      // Numbers from the largest down at first.
      sorting = {key, down: sorting.key === key ? !sorting.down : key !== "name"};
      render();
      at("scenes").querySelectorAll("th button")[Object.keys(COLUMNS).indexOf(key)].focus();
    });
    const head = element("th", {scope: "col", className: {name: "", problems: "troubled"}[key] ?? "number"}, button);
    if (arrow) head.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
    return head;
  });
  const shown = sorted.slice(0, shownScenes);
  at("scenes").replaceChildren(
    element("thead", {}, element("tr", {}, ...heads)),
    element("tbody", {}, ...shown.map((scene) => row([
      link(scene.name, {source: data.sources.length > 1 ? scene.source : -1, scene: scene.name}),
      scene.frames, scene.tried, scene.kept, number(share(scene.kept, scene.tried)),
      element("td", {className: "troubled", textContent: Object.entries(scene.problems)
        .map(([problem, times]) => times > 1 ? `${problem} (${count(times)})` : problem).join(", ")}),
    ]))));
  const words = data.scenes.length < data.allScenes
    ? `${count(data.scenes.length)} of ${count(data.allScenes)} scenes are listed in this page. ` : "";
  at("scenes-note").textContent = words + (sorted.length ? "Choose one to see it alone." : "No scene has such a name.");
  at("more-scenes").hidden = shown.length === sorted.length;
}

function renderPairsOf(id, rows) {
  at(id).replaceChildren(element("tbody", {}, ...rows.map(({name, value}) => row([name, value]))));
}

// ---- All of it

function render() {
  const state = asked();
  const chosen = new Set(scenesOf(state));
  const whole = state.source < 0 ? data.sources : [data.sources[state.source]];
  // Without a scene the sums are of all scenes, those too that are not listed.
  const total = sum(state.scene ? [...chosen].map((place) => data.scenes[place]) : whole);
  const sample = data.sample.filter(([source, scene]) =>
    (state.source < 0 || source === state.source) && (!state.scene || chosen.has(scene)));
  const sources = new Set(state.scene ? [...chosen].map((place) => data.scenes[place].source)
    : whole.map((source) => data.sources.indexOf(source)));
  const bands = data.bands.filter(({source}) => source === null || sources.has(source));
  const distinct = [...new Map(bands.map((band) => [`${band.low} ${band.high}`, band])).values()];
  at("source").value = String(state.source);
  if (document.activeElement !== at("scene")) at("scene").value = state.scene;
  const narrowed = state.source >= 0 || state.scene;
  at("clear").hidden = !narrowed;
  at("filtered").textContent = narrowed ? `${plural(total.scenes, "scene")}, ${plural(total.kept, one, many)} kept` : "";
  renderTiles(total);
  renderReasons(total);
  if (ofPairs) renderHistogram(sample, distinct);
  renderProblems(total);
  renderGallery(chosen, state);
  renderScenes(chosen);
}

const LEADS = {
  images: "Each image is shown with its labels: depth from red (near) to blue (far); normals with red to the right, " +
    "green upwards, blue towards the camera; a colour for each class. What is unknown is black.",
  stereo: "Each record is two views of one scene. Flow: where a pixel of view 1 moves to in view 2; the hue is the " +
    "direction (red: to the right), the saturation the length. Where it is not valid it is black.",
};

function begin() {
  document.title = `${data.name}: ${data.words.title.toLowerCase()}`;
  at("kicker").textContent = data.words.title;
  at("reasons-title").textContent = `What became of the ${many} tried`;
  at("reasons-note").textContent = ofPairs ? "Every comparison of two frames ends in one of these ways."
    : `Every one of the ${many} that were tried is counted here.`;
  at("gallery-title").textContent = many[0].toUpperCase() + many.slice(1);
  at("more").textContent = `Show more ${many}`;
  for (const id of ["overlap-section", "order", "patches-switch", "how-tested"]) at(id).hidden = !ofPairs;
  at("name").textContent = data.name;
  const bands = new Set(data.bands.map(({low, high}) => `${+(100 * low).toFixed(1)}–${+(100 * high).toFixed(1)}\u00a0%`));
  const rule = bands.size === 1 ? ` A pair is kept when ${[...bands][0]} of view 1 can be found in view 2.` : "";
  at("lead").textContent = !ofPairs ? LEADS[data.kind] : "Each pair is two views of one scene, from which a model learns to complete one from the " +
    `other.${rule} Here is what was tried, what was kept and why the rest was not.`;
  at("source").append(element("option", {value: "-1", textContent: "all sources"}),
    ...data.sources.map((source, place) => element("option", {value: String(place), textContent: source.name})));
  at("scene-names").append(...data.scenes.map((scene) => element("option", {value: scene.name})));
  renderSources();
  renderPairsOf("settings", data.settings);
  renderPairsOf("versions", data.versions);
  const fromStart = (change) => { [shownPairs, shownScenes] = [PAGE, ROWS]; ask(change); };
  at("source").addEventListener("change", () => fromStart({source: Number(at("source").value), scene: ""}));
  at("scene").addEventListener("input", () => fromStart({scene: at("scene").value}));
  at("clear").addEventListener("click", () => { at("scene").value = ""; fromStart({source: -1, scene: ""}); });
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("order").addEventListener("change", (event) => fromStart({order: event.target.value}));
  at("patches").addEventListener("change", () => ask({patches: at("patches").checked}));
  at("more").addEventListener("click", () => { shownPairs += PAGE; render(); });
  at("more-scenes").addEventListener("click", () => { shownScenes += ROWS; render(); });
  window.addEventListener("hashchange", render);
  window.addEventListener("resize", () => figures.forEach(({draw}) => draw()));
  render();
}

begin();
