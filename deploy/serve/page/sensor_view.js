// The view of one sensor: its head, the fan chart with its choices, and the panels of scores.
//
// A forecast event changes the head and the last point at once. The latest forecast and the history follow from the
// server, so that what is missing in an event (other targets, other steps) is complete a moment later.

import { ask, paced } from "./api.js";
import { el, keyItem, say } from "./dom.js";
import { FanChart, fanColumns, swapsOf } from "./fan_chart.js";
import { FanTable } from "./fan_table.js";
import { sensorHash } from "./routes.js";
import { ScorePanels } from "./score_panels.js";
import { count, counted, duration, milliseconds, moment, momentParts, number, sentence, surprise, visible, width } from "./words.js";

const READINGS = [48, 96, 200];
const HISTORY_REST_MS = 1_000;
const FORECAST_REST_MS = 60;

export class SensorView {
  constructor(about, route, failed) {
    this.about = about;
    this.failed = failed;
    this.sensor = route.sensor;
    this.target = about.targets.includes(route.target) ? route.target : about.targets[0];
    this.step = Math.max(1, Math.min(about.horizon_steps, route.step ?? 1));
    this.readings = READINGS.includes(route.readings) ? route.readings : innerWidth < 900 ? 48 : 96;
    this.cadenceMs = about.cadence_s * 1000;
    this.abort = new AbortController();
    this.history = null;
    this.forecast = null;
    this.row = null;
    this.refreshHistory = paced(() => this.#fetchHistory(), HISTORY_REST_MS);
    this.refreshForecast = paced(() => this.#fetchForecast(), FORECAST_REST_MS);
    this.#build();
    this.refreshHistory();
  }

  #build() {
    const seconds = this.about.cadence_s;
    this.title = el("h1", {}, el("bdi", {}, visible(this.sensor)));
    this.facts = Object.fromEntries(["value", "surprise", "next", "time", "model"].map((name) => [name, el("dd")]));
    const fact = (name, label) => el("div", {}, el("dt", {}, label), this.facts[name]);
    this.valueLabel = el("dt");
    this.stepOutput = el("output", { for: "step" });
    this.stepInput = el("input", { type: "range", id: "step", min: 1, max: this.about.horizon_steps, value: this.step, on: { input: () => this.#chooseStep(Number(this.stepInput.value)) } });
    const readingsInput = el("select", { on: { change: () => this.#choose({ readings: Number(readingsInput.value) }) } },
      READINGS.map((amount) => el("option", { value: amount, selected: amount === this.readings }, `${amount} readings`)));
    this.plot = el("div", { class: "figure chart tall", id: "fan", tabIndex: 0, role: "slider", "aria-label": "Chart of readings and forecasts", on: { keydown: (event) => this.#key(event) } });
    this.readout = el("p", { class: "readout", id: "readout" });
    this.note = el("p", { class: "note", id: "fan-note" });
    const share = width(this.about.quantiles[0], this.about.quantiles.at(-1));
    this.fanTable = new FanTable();
    this.scores = new ScorePanels(this.sensor, this.cadenceMs, share, this.abort.signal);
    this.element = el("div", { class: "column" },
      el("div", { class: "sensor-head" },
        el("a", { class: "back", href: "#/" }, "← All sensors"), this.title,
        el("dl", { class: "facts" },
          el("div", {}, this.valueLabel, this.facts.value), fact("surprise", "Surprise"),
          fact("next", `Forecast for ${duration(seconds)} later`), fact("time", "Time of the reading"), fact("model", "Model"))),
      el("section", { class: "panel", "aria-labelledby": "fan-title" },
        el("header", {}, el("h2", { id: "fan-title" }, "Readings and forecasts"), this.note),
        el("div", { class: "controls" }, this.#targets(),
          el("div", { class: "choice step" }, el("label", { for: "step" }, "Forecast made"), this.stepInput, this.stepOutput),
          el("label", { class: "choice" }, "Show", readingsInput)),
        this.plot, this.readout,
        el("ul", { class: "key", "aria-label": "Key of the chart" },
          keyItem("actual", "reading"), keyItem("before", `forecast made before, with its ${share} range`),
          keyItem("outside", "reading outside the range"), keyItem("band", "latest forecast"), keyItem("swap", "another model took over")),
        this.fanTable.element),
      this.scores.element,
      el("p", { class: "note zone" }, this.about.zone));
    this.fan = new FanChart(this.plot, (index) => this.#pointed(index));
    this.#sayStep();
  }

  #targets() {
    const choose = (target) => this.#choose({ target });
    if (this.about.targets.length === 1) return null;
    if (this.about.targets.length > 5) {
      const select = el("select", { on: { change: () => choose(select.value) } },
        this.about.targets.map((target) => el("option", { value: target, selected: target === this.target }, target)));
      return el("label", { class: "choice" }, "Target", select);
    }
    return el("div", { class: "segments", role: "radiogroup", "aria-label": "Target" },
      this.about.targets.map((target) => el("label", {},
        el("input", { type: "radio", name: "target", value: target, checked: target === this.target, on: { change: () => choose(target) } }),
        el("span", {}, target))));
  }

  #chooseStep(step) {
    this.step = step;
    this.#sayStep();
    this.#remember();
    this.refreshHistory();
  }

  #choose(choices) {
    Object.assign(this, choices);
    this.#remember();
    if (choices.readings) this.refreshHistory();
    this.draw();
  }

  #remember() {
    history.replaceState(null, "", sensorHash(this.sensor, { target: this.target, step: this.step, readings: this.readings }));
  }

  #sayStep() {
    const words = `${counted(this.step, "step")} (${duration(this.step * this.about.cadence_s)}) before`;
    say(this.stepOutput, words);
    this.stepInput.setAttribute("aria-valuetext", words);
  }

  /** New forecasts of this sensor, in the order of their offsets. */
  heard(rows) {
    for (const row of rows) this.#append(row);
    this.row = { ...this.row, ...rows.at(-1) };
    this.#sayHead();
    this.draw();
    this.refreshForecast();
    this.refreshHistory();
  }

  /** Fetch everything again, after a gap in the events. */
  reload() {
    this.refreshForecast();
    this.refreshHistory();
  }

  #append(row) {
    const known = this.history;
    if (!known || row.value === null || row.issued_at_ms <= (known.time_ms.at(-1) ?? -Infinity)) return;
    known.time_ms.push(row.issued_at_ms);
    known.models.push(row.model);
    for (const [name, values] of Object.entries(known.values)) values.push(name === row.target ? row.value : null);
    for (const [step, targets] of Object.entries(known.made_before)) {
      for (const [name, columns] of Object.entries(targets)) {
        for (const end of ["low", "median", "high"]) columns[end].push(step === "1" && name === row.target ? row[end] : null);
      }
    }
    if (known.time_ms.length > this.readings) dropOldest(known);
  }

  async #fetchHistory() {
    const step = this.step;
    try {
      const [found, row] = await Promise.all([
        ask("sensor/history", { sensor: this.sensor, count: this.readings, steps: step, forecasts: 1 }, this.abort),
        ask("sensor", { sensor: this.sensor }, this.abort),
      ]);
      if (step !== this.step) return;
      const latest = found.forecasts.at(-1) ?? null;
      this.history = found;
      if (this.content) this.element.replaceChildren(...this.content);
      this.content = null;
      this.row = row;
      if (latest && !(this.forecast && Date.parse(this.forecast.issued_at) > Date.parse(latest.issued_at))) this.forecast = latest;
      this.#sayHead();
      this.draw();
      this.scores.refresh();
    } catch (error) {
      this.#fail(error);
    }
  }

  async #fetchForecast() {
    if (!this.row) return;
    try {
      this.forecast = await ask("forecast", { partition: this.row.partition, offset: this.row.offset }, this.abort);
      this.draw();
    } catch (error) {
      this.#fail(error);
    }
  }

  #fail(error) {
    if (this.abort.signal.aborted) return;
    if (error.status === 404 && !this.history) {
      this.content ??= [...this.element.childNodes]; // shown once the server finds the sensor
      this.element.replaceChildren(el("div", { class: "empty" }, el("h2", {}, "This sensor is not known"),
        el("p", {}, "The page's server has not seen a forecast of ", el("bdi", { class: "wrap" }, visible(this.sensor).slice(0, 200)), ". It looks back over the newest forecasts only."),
        el("p", {}, el("a", { href: "#/" }, "Show all sensors"))));
    } else this.failed(error);
  }

  #sayHead() {
    const row = this.row;
    const values = this.history?.values[this.target] ?? [];
    const value = row.target === this.target ? row.value : values.at(-1) ?? null;
    say(this.valueLabel, `${this.target}, last reading`);
    say(this.facts.value, number(value));
    const words = surprise(row);
    this.facts.surprise.className = row.surprise ? "out" : "";
    say(this.facts.surprise, row.surprise && row.target !== this.target ? `${words} (${row.target})` : row.surprise ? `${words} the range` : words);
    const [local, universal] = momentParts(row.issued_at_ms);
    this.facts.time.replaceChildren(local, " ", el("small", {}, universal));
    say(this.facts.model, `version ${row.model}${row.warm ? "" : ", warming up"}`);
    const quantiles = this.forecast?.quantiles[this.target];
    if (quantiles) {
      const levels = Object.keys(quantiles).sort((one, other) => one - other);
      this.facts.next.replaceChildren(number(quantiles["0.5"][0]), " ", el("small", {}, `${number(quantiles[levels[0]][0])} to ${number(quantiles[levels.at(-1)][0])}`));
    }
    const delay = row.delay_ms === null || row.delay_ms === undefined ? "" : ` ${milliseconds(row.delay_ms)} from its reading to this forecast.`;
    say(this.note, `${this.target} of the last ${count(this.history?.time_ms.length ?? 0)} readings, and the latest forecast, ${counted(this.about.horizon_steps, "step")} ahead (${duration(this.about.horizon_steps * this.about.cadence_s)}).${delay}${this.history?.complete === false && this.history.why ? ` ${sentence(this.history.why)}` : ""}`);
  }

  draw() {
    if (!this.history || !this.element.isConnected) return;
    this.shown = fanColumns(this.history, this.forecast, this.target, this.step, this.cadenceMs);
    const swaps = swapsOf(this.history);
    this.fan.draw(this.shown, swaps);
    this.plot.setAttribute("aria-valuemin", 0);
    this.plot.setAttribute("aria-valuemax", Math.max(0, this.shown.times.length - 1));
    this.fanTable.set(this.shown, this.target, this.about.cadence_s);
    this.scores.draw(this.history, this.forecast, this.target, this.step);
    if (!this.isPointed) this.#sayPoint(this.shown.times.indexOf(this.shown.lastMs));
    this.element.dataset.shown = this.shown.lastMs; // lets a test see which reading the chart has
  }

  #pointed(index) {
    this.isPointed = index !== null;
    this.#sayPoint(index ?? this.shown.times.indexOf(this.shown.lastMs));
  }

  #sayPoint(index) {
    const row = this.shown.rows[index];
    if (!row) return;
    this.at = index;
    const parts = [el("b", {}, moment(this.shown.times[index]))];
    if (row.value !== undefined && row.value !== null) parts.push(el("span", {}, "reading ", el("b", {}, number(row.value))));
    if (row.median !== undefined && row.median !== null) parts.push(el("span", {}, `forecast ${counted(this.step, "step")} before `, el("b", {}, number(row.median)), ` (${number(row.low)} to ${number(row.high)})`));
    const middle = this.shown.levels.findIndex((level) => Number(level) === 0.5);
    if (row.fan && this.shown.times[index] > this.shown.lastMs) parts.push(el("span", {}, "latest forecast ", el("b", {}, number(row.fan[middle])), ` (${number(row.fan[0])} to ${number(row.fan.at(-1))})`));
    this.readout.replaceChildren(...parts);
    this.plot.setAttribute("aria-valuenow", index);
    this.plot.setAttribute("aria-valuetext", parts.map((part) => part.textContent).join(", "));
  }

  #key(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10, Home: -Infinity, End: Infinity };
    if (!this.shown || !(event.key in steps)) return;
    event.preventDefault();
    const index = Math.max(0, Math.min(this.shown.times.length - 1, (this.at ?? 0) + steps[event.key]));
    this.fan.point(index);
    this.isPointed = true;
    this.#sayPoint(index);
  }

  destroy() {
    this.abort.abort();
    this.refreshHistory.cancel();
    this.refreshForecast.cancel();
    this.fan.destroy();
    this.scores.destroy();
  }
}

/** Remove the oldest reading of a history from all of its columns. */
function dropOldest(history) {
  history.time_ms.shift();
  history.models.shift();
  for (const values of Object.values(history.values)) values.shift();
  for (const targets of Object.values(history.made_before)) {
    for (const columns of Object.values(targets)) for (const values of Object.values(columns)) values.shift();
  }
}
