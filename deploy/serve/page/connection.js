// The live connection: server-sent events that resume by themselves, and the verdict whether the page is live or stale.
//
//   waiting ──first status──▶ live ◀──status──▶ stale
//
// Stale means: no status for SILENT_MS (the server sends one a second), or a status that says the broker is silent.
// A browser resumes a broken stream with the id of the last event. It gives up after an answer that is not a stream, and
// it does not notice a connection that died without a word; both cases open a new stream with the same id.

const SILENT_MS = 4_000;
const REOPEN_MS = 9_000;
const HIDDEN_MS = 30_000; // a page out of sight gives its connection back, because a browser has six for one server
const KINDS = "forecasts,dead_letter,status";
const EVENTS = ["forecasts", "dead_letter", "reset"];

export class Connection {
  /**
   * `heard(kind, data)` gets each event, and the kind "opened" once per stream: an answer to a question that was asked
   * before may be older than the stream. "refused" is an answer that is not a stream. `judged({state, from, sinceMs, why})`
   * gets each change of the verdict.
   */
  constructor(heard, judged) {
    this.heard = heard;
    this.judged = judged;
    this.sensor = null;
    this.lastId = null;
    this.lastStatus = null;
    this.heardAt = null; // time of day of the last event
    this.reopens = 0;
    this.state = "waiting";
    this.source = null;
    this.quietFrom = Date.now(); // silence counts from here, or from the last event
    this.isEnded = false;
    setInterval(() => this.#watch(), 500);
    addEventListener("online", () => this.source && this.#open());
    document.addEventListener("visibilitychange", () => this.#seen());
  }

  /** Follow one sensor's forecasts from now on, or none for null. */
  follow(sensor) {
    if (this.source && sensor === this.sensor) return;
    this.sensor = sensor;
    this.lastId = null; // the history that the page asks for next begins before the new stream
    this.#open();
  }

  /** Give the connection back, and judge nothing, until `follow`. */
  end() {
    this.isEnded = true;
    this.source?.close();
    this.source = null;
  }

  #seen() {
    clearTimeout(this.resting);
    if (document.hidden) this.resting = setTimeout(() => this.#rest(), HIDDEN_MS);
    else if (this.isResting && this.source) this.#open();
    else this.#watch();
  }

  #rest() {
    this.isResting = true;
    this.source?.close();
  }

  #open() {
    if (this.isResting || this.isEnded) this.quietFrom = Date.now();
    this.isResting = this.isEnded = false;
    this.source?.close();
    const query = new URLSearchParams({ kinds: this.sensor === null ? KINDS.replace("forecasts,", "") : KINDS });
    if (this.sensor !== null) query.set("sensor", this.sensor);
    if (this.lastId) query.set("last_event_id", this.lastId);
    const source = (this.source = new EventSource(`api/events?${query}`));
    this.openedAt = Date.now();
    source.addEventListener("status", (event) => this.#take("status", event));
    for (const kind of EVENTS) source.addEventListener(kind, (event) => this.#take(kind, event));
    source.onerror = () => {
      this.reopens += 1;
      if (source === this.source && source.readyState === EventSource.CLOSED) this.heard("refused", {});
      this.#watch();
    };
  }

  #take(kind, event) {
    if (event.target !== this.source) return; // an event of a stream that was replaced
    this.lastId = event.lastEventId || this.lastId;
    this.heardAt = Date.now();
    const data = JSON.parse(event.data);
    if (this.confirmed !== this.source) {
      this.confirmed = this.source;
      this.heard("opened", {});
    }
    if (kind === "status") {
      this.lastStatus = data;
      if (data.stale) this.#judge("stale", data.stale_since_ms ?? data.broker_seen_ms ?? this.heardAt, data.trouble || "Kafka does not answer");
      else this.#judge("live", null, "");
    }
    this.heard(kind, data);
  }

  #watch() {
    if (this.isResting || this.isEnded) return;
    const now = Date.now();
    const silentMs = now - Math.max(this.heardAt ?? 0, this.quietFrom);
    if (silentMs > SILENT_MS) this.#judge("stale", this.heardAt, "the page's server does not answer");
    const isClosed = this.source?.readyState === EventSource.CLOSED;
    if (this.source && now - this.openedAt > (isClosed ? 1_000 : REOPEN_MS) && (isClosed || silentMs > REOPEN_MS)) this.#open();
  }

  #judge(state, sinceMs, why) {
    if (state === "stale" && this.state === "stale" && why === this.why) return;
    const from = this.state;
    this.state = state;
    this.why = why;
    if (state !== from || state === "stale") this.judged({ state, from, sinceMs, why });
  }
}
