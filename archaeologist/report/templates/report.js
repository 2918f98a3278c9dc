// Draws the report's figures in the reader's theme. The figures come from Python; here nothing is computed.
"use strict";
(() => {
  const { isNarrow, isCut, fitted } = globalThis.narrow;
  const CONFIG = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: "reset" };
  const light = matchMedia("(prefers-color-scheme: light)");
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const themes = read("themes");
  const definitions = read("definitions");
  const strata = document.getElementById("strata-plot");
  const metric = document.getElementById("metric");

  function draw(frame) {
    const name = frame === strata ? `strata-${metric.value}` : frame.dataset.figure;
    const figure = read(name);
    const template = themes[light.matches ? "light" : "dark"];
    const narrow = String(isNarrow(frame));
    // Plotly leaves pieces of a scale behind when it moves from one side to another.
    if (frame.dataset.narrow !== narrow) Plotly.purge(frame);
    frame.dataset.narrow = narrow;
    const layout = fitted(frame, { ...figure.layout, template, autosize: true });
    const note = document.getElementById("narrow");
    if (note && frame === strata) note.hidden = !isCut(frame, layout);
    if (frame.closest("#layers")) {
      // Its heading says the same.
      delete layout.title;
      layout.margin = { ...layout.margin, t: 32 };
    }
    return Plotly.react(frame, figure.data, layout, CONFIG);
  }

  const frames = [...document.querySelectorAll("[data-figure]"), strata].filter(Boolean);
  const drawAll = () => Promise.all(frames.map(draw));

  function select() {
    document.getElementById("definition").textContent = definitions[metric.value];
    for (const table of document.querySelectorAll("[data-table]")) table.hidden = table.dataset.table !== metric.value;
  }

  if (metric) {
    select();
    metric.addEventListener("change", () => { select(); draw(strata); });
    for (const link of document.querySelectorAll("a[data-metric]")) {
      link.addEventListener("click", () => {
        metric.value = link.dataset.metric;
        select();
        draw(strata);
      });
    }
  }
  light.addEventListener("change", drawAll);
  // Drawn again where a frame crosses the width at which its layout changes.
  const widths = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.clientWidth && target.dataset.narrow !== String(isNarrow(target))) draw(target);
    }
  });
  // Whoever makes an image of the report needs to know that it is drawn, and how high.
  drawAll().then(() => {
    document.documentElement.dataset.drawn = String(document.documentElement.scrollHeight);
    for (const frame of frames) widths.observe(frame);
  });
})();
