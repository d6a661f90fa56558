// The operator's view: throughput, delay, lag, scores, models, dead letters, flows and the links to MLflow and Prefect.

import { ask, paced } from "./api.js";
import { LineChart, line, shareAxis } from "./charts.js";
import { coded, el, keyItem, panel, refill, say, table } from "./dom.js";
import { clock, count, counted, milliseconds, moment, number, percent, sentence, visible } from "./words.js";

const REST_MS = 2_000;
const SLOW_REST_MS = 3_000;
const SLOW_EVERY_MS = 15_000;
const SHOWN_SWAPS = 12;
const SHOWN_LETTERS = 8;
const FULL_LAG = 100; // readings that fill a bar, unless a partition has more

export class OperationView {
  constructor(about, connection, failed) {
    this.about = about;
    this.connection = connection;
    this.failed = failed;
    this.abort = new AbortController();
    this.refresh = paced(() => this.#fetch(), REST_MS);
    this.refreshSlow = paced(() => this.#fetchSlow(), SLOW_REST_MS);
    this.every = setInterval(this.refreshSlow, SLOW_EVERY_MS);
    this.#build();
    if (connection.lastStatus) this.heard("status", connection.lastStatus);
    this.reload();
  }

  #build() {
    this.tiles = {};
    const tile = (name, label) => {
      this.tiles[name] = { main: el("dd"), under: el("dd", { class: "under" }) };
      return el("div", { class: "tile" }, el("dt", {}, label), this.tiles[name].main, this.tiles[name].under);
    };
    this.rates = new LineChart("Readings and forecasts a second", [line("readings", "actual", { width: 1.5 }), line("forecasts", "forecast")]);
    this.delays = new LineChart("From reading to visible forecast", [line("median", "forecast"), line("p99", "persistence", { dash: [6, 4] })], { axis: undefined });
    this.scoreChart = new LineChart("Share of readings inside the range, all sensors", [line("inside", "forecast"), line("expected", "muted", { dash: [2, 4], width: 1.5 })], { axis: shareAxis, range: [0, 1.02] });
    this.errorChart = new LineChart("Mean error one step ahead, all sensors", [line("forecast", "forecast"), line("persistence", "persistence", { dash: [6, 4] })]);
    this.scoresNote = el("p", { class: "note" });
    this.errorNote = el("p", { class: "note" });
    this.scoreTarget = el("select", { "aria-label": "Target of the scores", on: { change: () => this.#drawScores() } }, this.about.scored_targets.map((target) => el("option", { value: target }, target)));
    this.slots = Object.fromEntries(["lag", "models", "letters", "flows", "page"].map((name) => [name, el("div")]));
    const link = (address, words) => (address ? el("li", {}, el("a", { href: address, rel: "noreferrer", target: "_blank" }, words), el("span", { class: "unseen" }, " (opens a new tab)")) : null);
    this.element = el("div", { class: "column" },
      el("h1", {}, "Operation"),
      el("dl", { class: "tiles" }, tile("readings", "Readings a second"), tile("forecasts", "Forecasts a second"), tile("delay", "Reading to forecast, median"), tile("slow", "Reading to forecast, p99"), tile("lag", "Lag"), tile("sensors", "Sensors"), tile("champion", "Model"), tile("letters", "Dead letters")),
      el("div", { class: "panels" },
        panel("Throughput", "Readings and forecasts a second, over the last ten minutes.", this.rates.figure, el("ul", { class: "key" }, keyItem("actual", "readings"), keyItem("forecast", "forecasts"))),
        panel("From reading to visible forecast", "From the moment a reading was sent until its committed forecast arrived here, in milliseconds.", this.delays.figure, el("ul", { class: "key" }, keyItem("forecast", "median"), keyItem("persistence", "p99: 1 of 100 takes longer"))),
        panel("Lag by partition", "Readings that the forecasters have not processed yet.", this.slots.lag),
        panel("Flows and links", null, this.slots.flows, el("ul", { class: "list-plain" }, link(this.about.links.mlflow, "Models and training runs in MLflow"), link(this.about.links.prefect, "Flows and their runs in Prefect"))),
        el("section", { class: "panel" }, el("header", {}, el("h2", {}, "Readings inside the range, all sensors"), this.about.scored_targets.length > 1 ? el("span", { class: "choice" }, this.scoreTarget) : null, this.scoresNote), this.scoreChart.figure, el("ul", { class: "key" }, keyItem("forecast", "share inside"), keyItem("expected", "aim"))),
        panel("Error one step ahead, all sensors", null, this.errorNote, this.errorChart.figure, el("ul", { class: "key" }, keyItem("forecast", "forecast"), keyItem("persistence", "persistence: the last reading stays"))),
        panel("Models", "The version that makes the forecasts, and the swaps that this page's server saw.", this.slots.models),
        panel("Dead letters", "Records that the forecasters set aside, with the reason. `streamgru dlq show` takes one apart.", this.slots.letters),
        wide(panel("This page", null, this.slots.page))),
      el("p", { class: "note zone" }, this.about.zone));
  }

  heard(kind, data) {
    if (kind !== "status") return this.refreshSlow();
    const [tiles, status] = [this.tiles, data];
    if (status.swaps !== this.knownSwaps) this.refreshSlow();
    this.knownSwaps = status.swaps;
    const put = (name, main, under = "") => {
      say(tiles[name].main, main);
      say(tiles[name].under, under);
    };
    put("readings", number(status.readings_per_s), `${count(status.readings)} seen`);
    put("forecasts", number(status.forecasts_per_s), `${count(status.forecasts)} seen`);
    put("lag", count(status.lag), status.lag === null ? "the group's offsets are not known" : status.lag === 0 ? "no reading waits" : status.lag === 1 ? "reading waits" : "readings wait");
    put("delay", milliseconds(status.delay_p50_ms), "last 60 seconds");
    put("slow", milliseconds(status.delay_p99_ms), "last 60 seconds");
    put("sensors", count(status.sensors));
    put("champion", status.champion === null ? "–" : `version ${status.champion}`, counted(status.swaps, "partition swap"));
    put("letters", count(status.dead_letters));
    const behind = status.catching_up;
    const opened = Math.max(0, this.connection.reopens);
    this.slots.page.replaceChildren(el("p", { class: "note" },
      `Last answer of the server at ${clock(this.connection.heardAt)}. ${opened === 0 ? "The connection never broke." : `The connection broke ${opened === 1 ? "once" : `${opened} times`} and resumed where it was.`} ` +
      `${counted(status.events_clients, "page")} ${status.events_clients === 1 ? "is" : "are"} connected. streamgru ${this.about.version}, model ${this.about.model_name}, settings ${this.about.settings}.` +
      (status.trouble ? ` ${sentence(status.trouble)}` : "") +
      (behind ? ` The server still reads past records: ${count(behind.done)} of ${count(behind.total)}.` : "")));
    this.refresh();
  }

  reload() {
    this.refresh();
    this.refreshSlow();
  }

  async #fetch() {
    if (document.hidden) return;
    try {
      const [rates, partitions] = await Promise.all([ask("rates", {}, this.abort), ask("partitions", {}, this.abort)]);
      const seconds = rates.time_ms.map((ms) => ms / 1000);
      const perSecond = (values) => values.map((value) => (value === null ? null : value / rates.step_s));
      const last = (values) => values.at(-1) ?? null;
      const [readings, forecasts] = [perSecond(rates.readings), perSecond(rates.forecasts)];
      this.rates.set([seconds, readings, forecasts], `Now ${number(last(readings))} readings and ${number(last(forecasts))} forecasts a second.`);
      this.delays.set([seconds, rates.delay_p50_ms, rates.delay_p99_ms], `Now ${milliseconds(last(rates.delay_p50_ms))} in the median, p99 ${milliseconds(last(rates.delay_p99_ms))}.`);
      this.#drawLag(partitions.partitions);
    } catch (error) {
      this.#fail(error);
    }
  }

  async #fetchSlow() {
    try {
      const [models, letters, flows, scores] = await Promise.all(["models", "dead-letters", "flows", "scores"].map((path) => ask(path, {}, this.abort)));
      this.scores = scores;
      this.#drawModels(models);
      this.#drawLetters(letters);
      this.#drawFlows(flows);
      this.#drawScores();
    } catch (error) {
      this.#fail(error);
    }
  }

  #fail(error) {
    if (!this.abort.signal.aborted) this.failed(error);
  }

  #drawLag(partitions) {
    const most = Math.max(FULL_LAG, ...partitions.map((one) => one.lag ?? 0));
    const bar = (lag) => {
      const fill = el("span", { class: "fill" });
      fill.style.width = `${(100 * (lag ?? 0)) / most}%`;
      return el("span", { class: "bar", "aria-hidden": "true" }, fill);
    };
    refill(this.slots.lag, partitions.length <= 16
      ? el("div", { class: "bars" }, partitions.flatMap((one) => [el("span", {}, `partition ${one.partition}`), bar(one.lag), el("span", { class: "amount" }, one.lag === null ? "unknown" : count(one.lag))]))
      : table("Lag by partition", ["Partition", "Lag", "Readings", "Forecasts"], partitions.map((one) => [`${one.partition}`, count(one.lag), count(one.readings_end), count(one.forecasts_end)]), [1, 2, 3]));
  }

  #drawModels(models) {
    const swaps = grouped(models.swaps).slice(0, SHOWN_SWAPS);
    refill(this.slots.models,
      models.trouble ? el("p", { class: "note" }, coded(sentence(models.trouble))) : "",
      models.versions.length ? table("Versions in the registry", ["Version", "Aliases", "Gate"], models.versions.slice(0, SHOWN_SWAPS).map((one) => [`${one.version}`, one.aliases.join(", ") || "–", one.reason || "–"])) : "",
      swaps.length ? table("Swaps", ["Swap", "Partitions", "Version"], swaps.map((one) => [moment(one.firstMs, { seconds: true }), one.partitions.join(", "), `${one.from} → ${one.to}`]), [2]) : el("p", { class: "note" }, "No swap was seen."));
  }

  #drawLetters(letters) {
    const reasons = Object.entries(letters.by_reason).sort(([, one], [, other]) => other - one);
    refill(this.slots.letters,
      reasons.length ? table("Dead letters by reason", ["Reason", "Count"], reasons.map(([reason, amount]) => [reason, count(amount)]), [1]) : el("p", { class: "ok-line good" }, el("span", { class: "mark", "aria-hidden": "true" }, "✓"), "None was seen."),
      letters.latest.length ? el("details", {}, el("summary", {}, `Show the latest ${Math.min(SHOWN_LETTERS, letters.latest.length)}`),
        table("Latest dead letters", ["Time", "Reason", "Detail", "At"], letters.latest.slice(0, SHOWN_LETTERS).map((one) => [moment(one.at_ms, { seconds: true }), one.reason, visible(one.detail), `${one.input_partition ?? one.partition}:${one.input_offset ?? one.offset}`]))) : "");
  }

  #drawFlows(flows) {
    const line = (sign, kind, words) => el("p", { class: `ok-line ${kind}` }, el("span", { class: "mark", "aria-hidden": "true" }, sign), el("span", {}, coded(words)));
    const lines = flows.trouble ? [line("?", "muted", sentence(flows.trouble))]
      : flows.checked_ms === null ? [line("…", "muted", "The flows were not checked yet.")]
      : flows.overdue.length ? flows.overdue.map((words) => line("!", "bad", sentence(words)))
      : [line("✓", "good", `No flow is overdue. Checked at ${clock(flows.checked_ms)}.`)];
    refill(this.slots.flows, ...lines);
  }

  #drawScores() {
    const found = this.scores?.targets.find((one) => one.target === (this.scoreTarget.value || one.target));
    if (!found) return;
    const { series } = found;
    const seconds = series.time_ms.map((ms) => ms / 1000);
    say(this.scoresNote, `${percent(found.coverage)} of ${counted(found.count, "reading")}, expected ${percent(found.expected_coverage)}. Worked out by this page's server from what it has seen.`);
    say(this.errorNote, `${number(found.mae)} for ${found.target}, persistence ${number(found.persistence_mae)}. Worked out by this page's server from what it has seen.`);
    this.scoreChart.set([seconds, series.coverage, series.coverage.map(() => found.expected_coverage)], `${percent(found.coverage)}, expected ${percent(found.expected_coverage)}.`);
    this.errorChart.set([seconds, series.mae, series.persistence_mae], `${number(found.mae)}, persistence ${number(found.persistence_mae)}.`);
  }

  destroy() {
    this.abort.abort();
    clearInterval(this.every);
    this.refresh.cancel();
    this.refreshSlow.cancel();
    for (const chart of [this.rates, this.delays, this.scoreChart, this.errorChart]) chart.destroy();
  }
}

/** Swaps of all partitions to the same version as one, newest first: every partition swaps at its own moment. */
function grouped(swaps) {
  const groups = [];
  for (const { at_ms, partition, from_version: from, to_version: to } of swaps) {
    const last = groups.at(-1);
    if (last && last.from === from && last.to === to && !last.partitions.includes(partition)) {
      last.partitions.push(partition);
      last.partitions.sort((one, other) => one - other);
      last.firstMs = Math.min(last.firstMs, at_ms);
    } else groups.push({ firstMs: at_ms, partitions: [partition], from, to });
  }
  return groups;
}

function wide(element) {
  element.classList.add("wide");
  return element;
}
