// The fan chart in numbers: a table of the latest forecast and one of the last readings, for people who do not see the chart.

import { el, refill, table } from "./dom.js";
import { duration, moment, number } from "./words.js";

const READINGS = 24;

export class FanTable {
  constructor() {
    this.body = el("div");
    this.element = el("details", { id: "fan-table", on: { toggle: () => this.#fill() } }, el("summary", {}, "Show the numbers as tables"), this.body);
  }

  set(shown, target, cadence_s) {
    Object.assign(this, { shown, target, cadence_s });
    this.#fill();
  }

  #fill() {
    if (!this.element.open || !this.shown) return; // a closed table costs nothing
    const { times, rows, levels, lastMs } = this.shown;
    const future = times.map((ms, index) => [ms, rows[index]]).filter(([ms, row]) => ms > lastMs && row.fan);
    const past = times.map((ms, index) => [ms, rows[index]]).filter(([ms, row]) => ms <= lastMs && row.value !== null && row.value !== undefined);
    refill(this.body,
      el("h3", {}, "Latest forecast"),
      table(`Latest forecast of ${this.target}`, ["Ahead", "Time", ...levels.map((level) => (Number(level) === 0.5 ? "Median" : `Quantile ${level}`))],
        future.map(([ms, row], index) => [duration((index + 1) * this.cadence_s), moment(ms), ...row.fan.map(number)]), levels.map((_, place) => place + 2)),
      el("h3", {}, `Last ${Math.min(READINGS, past.length)} readings`),
      table(`Last readings of ${this.target}`, ["Time", "Reading", "Forecast before", "From", "To"],
        past.slice(-READINGS).reverse().map(([ms, row]) => [moment(ms), number(row.value), number(row.median), number(row.low), number(row.high)]), [1, 2, 3, 4]));
  }
}
