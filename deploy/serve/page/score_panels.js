// The panels under the fan chart: coverage and error over time, error by steps ahead, and the experts' weights.

import { ask, paced } from "./api.js";
import { LineChart, line, shareAxis } from "./charts.js";
import { el, keyItem, panel, say } from "./dom.js";
import { WINDOW, scoresOverTime } from "./scores.js";
import { counted, number, percent } from "./words.js";

const SCORES_REST_MS = 5_000;
const EXPERTS = {
  persistence: "the last reading",
  seasonal: "the reading one season ago",
  gru: "the GRU as trained",
  "persistence+": "the last reading, corrected",
  "profile+": "the usual course of a season, corrected",
  "quick_profile+": "the recent course of a season, corrected",
  "gru+": "the GRU, corrected",
  "profile+hidden": "the usual course, corrected by the GRU's hidden state",
  "gru+hidden": "the GRU, corrected by its hidden state",
};

export class ScorePanels {
  constructor(sensor, cadenceMs, share, signal) {
    this.sensor = sensor;
    this.cadenceMs = cadenceMs;
    this.signal = signal;
    this.coverage = new LineChart("Share of readings inside the range", [line("inside", "forecast"), line("expected", "muted", { dash: [2, 4], width: 1.5 })], { axis: shareAxis, range: [0, 1.02] });
    this.error = new LineChart("Mean error over time", [line("forecast", "forecast"), line("persistence", "persistence", { dash: [6, 4] })]);
    this.ahead = new LineChart("Mean error by steps ahead", [line("forecast", "forecast"), line("persistence", "persistence", { dash: [6, 4] })], { x: (step) => `${step}` });
    this.coverageNote = el("p", { class: "note" });
    this.errorNote = el("p", { class: "note" });
    this.aheadNote = el("p", { class: "note" });
    this.weights = el("div", { class: "bars", id: "weights" });
    this.weightsNote = el("p", { class: "note" });
    const scored = (title, note, chart, ...keys) => panel(title, null, note, chart.figure, el("ul", { class: "key" }, keys));
    this.element = el("div", { class: "panels" },
      scored(`Readings inside the ${share} range`, this.coverageNote, this.coverage, keyItem("forecast", "share inside"), keyItem("expected", "aim")),
      scored("Error over time", this.errorNote, this.error, keyItem("forecast", "forecast"), keyItem("persistence", "persistence: the last reading stays")),
      scored("Error by steps ahead", this.aheadNote, this.ahead, keyItem("forecast", "forecast"), keyItem("persistence", "persistence")),
      panel("Experts in the latest forecast", null, this.weightsNote, this.weights));
    this.refresh = paced(() => this.#fetch(), SCORES_REST_MS);
  }

  draw(history, forecast, target, step) {
    const found = scoresOverTime(history, target, step, this.cadenceMs);
    const isNewTarget = target !== this.target;
    this.target = target;
    const expected = this.answer?.targets.find((one) => one.target === target)?.expected_coverage ?? null;
    const last = (values) => values.at(-1) ?? null;
    const base = found.count ? `Mean over the last ${Math.min(WINDOW, found.count)} readings, forecast ${counted(step, "step")} before. Worked out on this page from the readings shown.` : "No reading has a forecast made that long before yet.";
    say(this.coverageNote, base);
    say(this.errorNote, base);
    this.coverage.set([found.seconds, found.coverage, found.seconds.map(() => expected)], `Now ${percent(last(found.coverage))}, expected ${percent(expected)}.`);
    this.error.set([found.seconds, found.error, found.persistence], `Now ${number(last(found.error))}, persistence ${number(last(found.persistence))}.`);
    this.#drawWeights(forecast?.weights?.[target]);
    if (isNewTarget) this.#drawAhead();
  }

  async #fetch() {
    try {
      this.answer = await ask("sensor/scores", { sensor: this.sensor, count: 200 }, { signal: this.signal });
      this.#drawAhead();
    } catch {
      // The next history asks again, and the connection's banner says what is wrong.
    }
  }

  #drawAhead() {
    const found = this.answer?.targets.find((one) => one.target === this.target);
    if (!found) return say(this.aheadNote, this.answer ? "The server scores the first targets only." : "");
    const steps = found.steps;
    const total = Math.max(0, ...steps.map((one) => one.count));
    say(this.aheadNote, `Mean absolute error of up to ${counted(total, "forecast")}. Worked out by this page's server from what it has seen.`);
    this.ahead.set([steps.map((one) => one.step), steps.map((one) => one.mae), steps.map((one) => one.persistence_mae)],
      steps.length ? `${counted(steps[0].step, "step")} ahead ${number(steps[0].mae)}, persistence ${number(steps[0].persistence_mae)}; ${counted(steps.at(-1).step, "step")} ahead ${number(steps.at(-1).mae)}, persistence ${number(steps.at(-1).persistence_mae)}.` : "");
  }

  #drawWeights(weights) {
    if (!weights) {
      say(this.weightsNote, "The forecasts of this model are the GRU's alone; no experts are mixed.");
      this.weights.replaceChildren();
      return;
    }
    say(this.weightsNote, "The forecast is a mixture. An expert with small recent errors for this sensor has a large share.");
    const ordered = Object.entries(weights).sort(([, one], [, other]) => other - one);
    const names = ordered.map(([name]) => name).join();
    if (names !== this.names) {
      this.names = names;
      this.weights.replaceChildren(...ordered.flatMap(([name]) => [
        el("span", {}, EXPERTS[name] ?? name), el("span", { class: "bar", "aria-hidden": "true" }, el("span", { class: "fill" })), el("span", { class: "amount" })]));
    }
    ordered.forEach(([, share], place) => {
      this.weights.children[place * 3 + 1].firstChild.style.width = `${share * 100}%`;
      say(this.weights.children[place * 3 + 2], percent(share));
    });
  }

  destroy() {
    this.refresh.cancel();
    for (const chart of [this.coverage, this.error, this.ahead]) chart.destroy();
  }
}
