// What all charts share: colours from the style sheet, size of the container, axes, and uPlot itself (a global script).

import { el } from "./dom.js";
import { number, percent } from "./words.js";

const styles = getComputedStyle(document.documentElement);
const scheme = matchMedia("(prefers-color-scheme: dark)");

/** A colour of the style sheet, as it is now. */
export function colour(name) {
  return styles.getPropertyValue(`--${name}`).trim();
}

/** The colour of quantile bands with the opacity that a variable names. */
export function band(opacity) {
  return `rgba(${colour("band")}, ${colour(opacity)})`;
}

function font() {
  return `${Math.round(12 * Math.max(1, Math.min(1.25, parseFloat(styles.fontSize) / 16)))}px ${getComputedStyle(document.body).fontFamily}`;
}

export function labelFont(ratio) {
  return `600 ${11.5 * ratio}px ${getComputedStyle(document.body).fontFamily}`;
}

/** The axis of times in 24-hour local time. */
export function timeAxis() {
  return {
    stroke: () => colour("muted"), grid: { show: false }, ticks: { stroke: () => colour("line"), width: 1, size: 5 },
    font: font(), space: 76, size: 44,
    values: [
      [31_536_000, "{YYYY}", null, null, null, null, null, null, 1],
      [2_419_200, "{MMM}", "\n{YYYY}", null, null, null, null, null, 1],
      [86_400, "{D} {MMM}", "\n{YYYY}", null, null, null, null, null, 1],
      [3_600, "{HH}:{mm}", "\n{D} {MMM} {YYYY}", null, "\n{D} {MMM}", null, null, null, 1],
      [60, "{HH}:{mm}", "\n{D} {MMM} {YYYY}", null, "\n{D} {MMM}", null, null, null, 1],
      [1, "{HH}:{mm}:{ss}", "\n{D} {MMM}", null, "\n{D} {MMM}", null, null, null, 1],
    ],
  };
}

/** An axis of values; `write` turns a value into its label. */
export function valueAxis(write = number, space = 44) {
  return {
    stroke: () => colour("muted"), grid: { stroke: () => colour("line"), width: 1 }, ticks: { show: false }, gap: 8,
    font: font(), space, values: (_, values) => values.map((value) => (value === null ? "" : write(value))),
    size: (chart, values) => {
      if (!values?.length) return 40;
      chart.ctx.font = font().replace(/^(\d+)px/, (_, size) => `${size * devicePixelRatio}px`);
      return Math.ceil(Math.max(...values.map((value) => chart.ctx.measureText(value).width)) / devicePixelRatio) + 18;
    },
  };
}

export const shareAxis = () => valueAxis((share) => percent(share), 36);

/** A uPlot that fills its container's width, and redraws when the colour scheme changes. */
export class Chart {
  constructor(container, height, options, data) {
    this.container = container;
    this.height = height;
    this.plot = new uPlot({ width: Math.max(200, container.clientWidth), height, legend: { show: false }, ...options }, data, container);
    this.observer = new ResizeObserver(() => {
      const width = container.clientWidth;
      if (width && width !== this.plot.width) this.plot.setSize({ width, height: this.height });
    });
    this.observer.observe(container);
    this.recolour = () => this.plot.redraw(false, true);
    scheme.addEventListener("change", this.recolour);
  }

  set(data) {
    this.plot.setData(data);
  }

  destroy() {
    this.observer.disconnect();
    scheme.removeEventListener("change", this.recolour);
    this.plot.destroy();
  }
}

/** A line of a chart. */
export function line(label, name, options = {}) {
  return { label, stroke: () => colour(name), width: 2, points: { show: false }, spanGaps: false, ...options };
}

/** Lines over time in a small chart, with words for people who do not see it. It makes itself anew if its lines change. */
export class LineChart {
  constructor(label, series, { axis = valueAxis, height = 190, x = "time", range = null } = {}) {
    this.options = { label, series, axis, height, x, range };
    this.figure = el("div", { class: "figure chart low", role: "img", "aria-label": label });
    this.nothing = el("p", { class: "note" }, "Nothing to show yet.");
    this.figure.append(this.nothing);
  }

  /** Columns: x (seconds, or numbers), then a column per line. `words` describes them. */
  set(columns, words) {
    const { series, axis, height, x, range } = this.options;
    this.figure.setAttribute("aria-label", `${this.options.label}. ${words}`);
    const isEmpty = columns.slice(1).every((column) => column.every((value) => value === null || value === undefined));
    this.nothing.hidden = !isEmpty;
    if (this.chart) this.chart.plot.root.hidden = isEmpty;
    if (isEmpty) return;
    if (this.chart) return this.chart.set(columns);
    const across = x === "time" ? timeAxis() : { ...valueAxis(x, 60), grid: { show: false }, size: 32 };
    this.chart = new Chart(this.figure, height, {
      scales: { x: { time: x === "time" }, y: range ? { range } : { range: (_, low, high) => fromZero(low, high) } },
      axes: [across, axis()],
      series: [{}, ...series],
      cursor: { show: false },
      padding: [8, 28, 0, 0],
    }, columns);
  }

  destroy() {
    this.chart?.destroy();
    this.chart = null;
  }
}

function fromZero(low, high) {
  if (low === null || high === null) return [0, 1];
  return [Math.min(0, low), high > 0 ? high * 1.12 : 1];
}
