// The chart of one sensor: readings, the range that was forecast k steps before each, and the fan of the latest forecast.
//
// Columns of the plot: time | before low, before high, before median | quantiles of the fan, low to high | readings | outside
// A value that is undefined has no part in a line; null ends the line, for a gap in the readings.

import { Chart, band, colour, labelFont, line, timeAxis, valueAxis } from "./charts.js";

const HEIGHT_PX = 380;
const LOW_HEIGHT_PX = 320;

/** Columns for the plot, from a history, the latest forecast and the choices of the view. */
export function fanColumns(history, forecast, target, step, cadenceMs) {
  const times = history.time_ms;
  const values = history.values[target] ?? [];
  const before = history.made_before[step]?.[target] ?? { low: [], median: [], high: [] };
  const quantiles = forecast?.quantiles[target] ?? {};
  const levels = Object.keys(quantiles).sort((one, other) => one - other);
  const issuedMs = forecast ? Date.parse(forecast.issued_at) : null;
  const points = new Map(); // time -> its row
  const at = (ms) => points.get(ms) ?? points.set(ms, { fan: null }).get(ms);
  times.forEach((ms, index) => {
    const row = at(ms);
    row.value = values[index] ?? null;
    row.low = before.low[index] ?? null;
    row.high = before.high[index] ?? null;
    row.median = before.median[index] ?? null;
    if (index && ms - times[index - 1] > 1.5 * cadenceMs) {
      Object.assign(at(times[index - 1] + cadenceMs / 2), { value: null, low: null, high: null, median: null });
    }
  });
  if (issuedMs !== null) {
    const lastValue = values[times.indexOf(issuedMs)] ?? null;
    if (lastValue !== null) at(issuedMs).fan = levels.map(() => lastValue); // the fan opens at the last reading
    const steps = levels.length ? quantiles[levels[0]].length : 0;
    for (let ahead = 1; ahead <= steps; ahead += 1) {
      at(issuedMs + ahead * cadenceMs).fan = levels.map((level) => quantiles[level][ahead - 1]);
    }
  }
  const ordered = [...points.keys()].sort((one, other) => one - other);
  const rows = ordered.map((ms) => points.get(ms));
  const isOutside = (row) => row.value != null && row.low != null && (row.value < row.low || row.value > row.high);
  return {
    times: ordered,
    levels,
    rows,
    lastMs: times.at(-1) ?? issuedMs,
    columns: [
      ordered.map((ms) => ms / 1000),
      rows.map((row) => row.low), rows.map((row) => row.high), rows.map((row) => row.median),
      ...levels.map((_, place) => rows.map((row) => (row.fan ? row.fan[place] : undefined))),
      rows.map((row) => row.value),
      rows.map((row) => (isOutside(row) ? row.value : null)),
    ],
  };
}

/** Moments at which another model version made the forecasts: [{ms, from, to}]. */
export function swapsOf(history) {
  const swaps = [];
  history.models.forEach((version, index) => {
    const earlier = history.models[index - 1];
    if (index && version !== null && earlier !== null && version !== earlier) swaps.push({ ms: history.time_ms[index], from: earlier, to: version });
  });
  return swaps;
}

export class FanChart {
  /** `pointed(index)` gets the row under the cursor, or null where the cursor left. */
  constructor(container, pointed) {
    this.container = container;
    this.pointed = pointed;
    this.chart = null;
    this.marks = { nowMs: null, swaps: [] };
  }

  draw(fan, swaps) {
    this.marks = { nowMs: fan.lastMs, swaps };
    const key = fan.levels.join();
    if (this.chart && key === this.key) return this.chart.set(fan.columns);
    this.destroy();
    this.key = key;
    const height = innerWidth < 900 ? LOW_HEIGHT_PX : HEIGHT_PX;
    this.chart = new Chart(this.container, height, this.#options(fan.levels), fan.columns);
  }

  #options(levels) {
    const first = 4; // column of the lowest quantile
    const middle = levels.findIndex((level) => Number(level) === 0.5);
    const bands = [{ series: [2, 1], fill: () => band("before") }];
    for (let place = 0; place < Math.floor(levels.length / 2); place += 1) {
      bands.push({ series: [first + levels.length - 1 - place, first + place], fill: () => band(place || levels.length < 4 ? "band-inner" : "band-outer") });
    }
    const hidden = { width: 0, stroke: () => "transparent" };
    return {
      scales: { x: { time: true }, y: { range: (_, low, high) => padded(low, high) } },
      axes: [timeAxis(), valueAxis()],
      padding: [18, 22, 0, 0],
      cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
      series: [
        {},
        line("lower end made before", "forecast", hidden),
        line("upper end made before", "forecast", hidden),
        line("median made before", "forecast", { width: 1.25, dash: [4, 4] }),
        ...levels.map((level, place) => line(`quantile ${level}`, "forecast", { spanGaps: true, ...(place === middle ? { width: 2.25 } : hidden) })),
        line("reading", "actual", { width: 1.75 }),
        line("outside", "outside", { width: 0, stroke: () => colour("outside"), paths: () => null, points: { show: true, size: 8, width: 2, stroke: () => colour("outside"), fill: () => colour("surface") } }),
      ],
      bands,
      hooks: {
        drawClear: [(plot) => this.#drawFuture(plot)],
        draw: [(plot) => this.#drawMarks(plot)],
        setCursor: [(plot) => this.pointed(plot.cursor.left >= 0 ? plot.cursor.idx : null)],
      },
    };
  }

  #drawFuture(plot) {
    if (this.marks.nowMs === null) return;
    const { ctx, bbox } = plot;
    const x = Math.max(bbox.left, plot.valToPos(this.marks.nowMs / 1000, "x", true));
    ctx.save();
    ctx.fillStyle = colour("bg");
    ctx.fillRect(x, bbox.top, bbox.left + bbox.width - x, bbox.height);
    ctx.restore();
  }

  #drawMarks(plot) {
    this.labels = []; // places that the labels above the plot take: [left, right]
    if (this.marks.nowMs !== null) this.#mark(plot, this.marks.nowMs, "last reading", colour("ink"), []);
    for (const swap of this.marks.swaps) this.#mark(plot, swap.ms, `model ${swap.from} → ${swap.to}`, colour("swap"), [5, 4]);
  }

  /** A vertical line with a label above the plot. */
  #mark(plot, ms, label, ink, dash) {
    const { ctx, bbox } = plot;
    const x = Math.round(plot.valToPos(ms / 1000, "x", true));
    if (x < bbox.left || x > bbox.left + bbox.width) return;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = ink;
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash(dash.map((length) => length * devicePixelRatio));
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.font = labelFont(devicePixelRatio);
    const half = ctx.measureText(label).width / 2;
    const middle = Math.max(bbox.left + half, Math.min(bbox.left + bbox.width - half, x));
    const [left, right] = [middle - half - 5 * devicePixelRatio, middle + half + 5 * devicePixelRatio];
    const isFree = this.labels.every((other) => right < other[0] || left > other[1]);
    if (isFree) this.labels.push([left, right]);
    ctx.textAlign = isFree ? "center" : "right"; // a label without room above the plot stands inside it
    ctx.textBaseline = isFree ? "bottom" : "top";
    ctx.fillText(label, isFree ? middle : x - 5 * devicePixelRatio, bbox.top + (isFree ? -4 : 4) * devicePixelRatio);
    ctx.restore();
  }

  /** Put the cursor on a row, as the arrow keys do. */
  point(index) {
    const plot = this.chart?.plot;
    if (!plot) return;
    plot.setCursor({ left: plot.valToPos(plot.data[0][index], "x"), top: 0 });
  }

  destroy() {
    this.chart?.destroy();
    this.chart = null;
  }
}

function padded(low, high) {
  if (low === null || high === null) return [0, 1];
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  return [low - room, high + room];
}
