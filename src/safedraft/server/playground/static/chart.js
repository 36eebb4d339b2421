// The bins of a reply: bars for match ratios, colored by scheme, and lines for thresholds.

import { draw } from "./dom.js";
import { describeBin, describeBins } from "./trace.js";

const HEIGHT = 96; // pixels
const MARGIN = 4; // for strokes
const FEWEST = 12; // bins in the width, so that the first bars are not too wide
const NARROWEST = 8; // pixels of a bin; wider charts scroll

const toPixels = (share) => MARGIN + (1 - share) * (HEIGHT - 2 * MARGIN);

export function drawChart(bins) {
  const places = Math.max(bins.length, FEWEST);
  const grid = [0, 0.5, 1].map((at) => line("grid", 0, 100, toPixels(at), toPixels(at)));
  const attributes = { role: "img", "aria-label": describeBins(bins), width: "100%", height: HEIGHT };
  const chart = draw("svg", attributes, ...grid, ...bins.map((bin, number) => drawBin(bin, number, places)));
  chart.style.minWidth = `${places * NARROWEST}px`;
  return chart;
}

function drawBin(bin, number, places) {
  const [left, width] = [(100 * number) / places, 100 / places];
  const top = toPixels(bin.ratio);
  const threshold = toPixels(bin.threshold);
  const switched = bin.following && bin.following !== bin.scheme;
  return draw(
    "g",
    { class: `bin ${bin.scheme}${bin.full ? "" : " open"}`, "data-details": `bin ${number + 1}: ${describeBin(bin)}` },
    rectangle("room", left, width, 0, HEIGHT),
    rectangle("bar", left + 0.15 * width, 0.7 * width, top, Math.max(toPixels(0) - top, 1), bin.scheme),
    line("threshold", left, left + width, threshold, threshold),
    ...(switched ? [line("switched", left + width, left + width, 0, HEIGHT)] : []),
  );
}

function rectangle(name, x, width, y, height, scheme) {
  const hatched = scheme === "union" ? { fill: "url(#hatch)" } : {};
  return draw("rect", { class: name, x: `${x}%`, width: `${width}%`, y, height, ...hatched });
}

const line = (name, x1, x2, y1, y2) => draw("line", { class: name, x1: `${x1}%`, x2: `${x2}%`, y1, y2 });
