// How report and page lay a figure out where it is narrow. Both run this file: the one inline, the other as a module.
"use strict";
globalThis.narrow = (() => {
  const NARROW = 600; // pixels
  const NARROW_COLUMNS = 10;
  const SCALE_PIXELS = 48; // of a colour scale that lies below its figure

  const isNarrow = (frame) => frame.clientWidth < NARROW;
  const columnsOf = (layout) => layout.meta?.steps?.length ?? 0;

  // Whether only the newest columns are in sight.
  const isCut = (frame, layout) => isNarrow(frame) && columnsOf(layout) > NARROW_COLUMNS;

  // The newest columns fill the frame and the others are dragged in; the labels stay.
  function fitted(frame, layout) {
    if (!isNarrow(frame)) return layout;
    if (isCut(frame, layout)) {
      const columns = columnsOf(layout);
      layout.xaxis = { ...layout.xaxis, range: [columns - NARROW_COLUMNS - 0.5, columns - 0.5], autorange: false };
    }
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
    return layout;
  }

  return { isNarrow, isCut, fitted };
})();
