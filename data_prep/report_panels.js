"use strict";
// The gallery of datasets of images and stereo records: pictures side by side. report.js has the rest.

/** One record's figure: its picture and its labels in colour, named; the classes that are in it. */
function panelFigure(record) {
  const scene = data.scenes[record.scene];
  const panels = record.panels.map(({name, words, picture}) => {
    const shown = picture === null
      ? element("div", {className: "broken", textContent: `${name} cannot be decoded`})
      : element("img", {src: `data:image/jpeg;base64,${picture}`, alt: `${name} of ${scene.name}`, decoding: "async"});
    const text = words && picture !== null ? `${name}, ${words}` : name;
    return element("div", {className: "panel"}, shown, element("div", {className: "words", textContent: text}));
  });
  const frames = record.frames.filter((frame) => frame >= 0);
  const facts = [data.sources.length > 1 ? data.sources[record.source].name : "",
    frames.length ? `frame${frames.length > 1 ? "s" : ""} ${frames.join(" and ")}` : "",
    record.label ?? ""].filter(Boolean).join(" · ");
  const legend = record.legend.map(([name, colour]) => {
    const swatch = element("span", {className: "swatch"});
    swatch.style.background = colour;
    return element("span", {className: "class"}, swatch, name);
  });
  const caption = element("figcaption", {},
    element("span", {className: "scene", textContent: scene.name, title: scene.name}),
    element("span", {className: "overlap", textContent: facts}),
    element("span", {className: "facts"}, ...legend));
  return {figure: element("figure", {className: "wide"}, element("div", {className: "panels"}, ...panels), caption),
    draw: () => {}};
}
