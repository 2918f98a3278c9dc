// Draws the report's figures in the reader's theme. The figures come from Python; here nothing is computed.
"use strict";
(() => {
  const NARROW = 600; // pixels
  const NARROW_COLUMNS = 10;
  const SCALE_PIXELS = 48; // of a colour scale that lies below its figure
  const CONFIG = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: "reset" };
  const light = matchMedia("(prefers-color-scheme: light)");
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const themes = read("themes");
  const definitions = read("definitions");
  const strata = document.getElementById("strata-plot");
  const metric = document.getElementById("metric");

  const isNarrow = (frame) => frame.clientWidth < NARROW;

  // On a narrow screen the newest columns fill the frame and the others are dragged in; the labels stay.
  function narrowed(frame, layout) {
    const columns = frame === strata ? layout.meta.steps.length : 0;
    const note = document.getElementById("narrow");
    const isCut = frame === strata && isNarrow(frame) && columns > NARROW_COLUMNS;
    if (note && frame === strata) note.hidden = !isCut;
    if (isCut) {
      layout.xaxis.range = [columns - NARROW_COLUMNS - 0.5, columns - 0.5];
      layout.xaxis.autorange = false;
    }
    if (isNarrow(frame)) {
      layout.font = { size: 11 };
      layout.margin = { ...layout.margin };
      if (layout.coloraxis) {
        // Beside the figure the scale would take a quarter of its width: below it, under the axis's title.
        layout.margin.b += SCALE_PIXELS;
        const plotted = layout.height - layout.margin.t - layout.margin.b;
        const colorbar = { ...layout.coloraxis.colorbar, orientation: "h", x: 0, xanchor: "left", xpad: 0, len: 0.95 };
        Object.assign(colorbar, { y: -(layout.margin.b - 34) / plotted, yanchor: "top", ypad: 0, thickness: 8 });
        layout.coloraxis = { ...layout.coloraxis, colorbar };
      }
    }
    return layout;
  }

  function draw(frame) {
    const name = frame === strata ? `strata-${metric.value}` : frame.dataset.figure;
    const figure = read(name);
    const template = themes[light.matches ? "light" : "dark"];
    const narrow = String(isNarrow(frame));
    // Plotly leaves pieces of a scale behind when it moves from one side to another.
    if (frame.dataset.narrow !== narrow) Plotly.purge(frame);
    frame.dataset.narrow = narrow;
    const layout = narrowed(frame, { ...figure.layout, template, autosize: true });
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
