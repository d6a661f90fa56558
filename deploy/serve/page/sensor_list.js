// The list of sensors: only the rows in sight exist, so that 10,000 sensors scroll like 12.
//
// Rows are links. One of them is in the tab order; the arrow keys move on from it. The order is fetched again at most
// every REFRESH_MS, and not while a pointer moves over the list: no row shall move away under a finger.

import { ask, paced } from "./api.js";
import { coded, el, say, svg } from "./dom.js";
import { sensorHash } from "./routes.js";
import { brief, counted, moment, surprise, visible } from "./words.js";

const ROW_PX = 62;
const PAGE = 50; // rows of one question
const SPARE = 4; // rows drawn above and below the window
const REFRESH_MS = 1_000;
const REST_MS = 1_200; // the order stays for this long after a pointer moved over the list

const gauges = new WeakMap();

export class SensorList {
  /** `failed(error)` gets the error of a question; `arrived(total, first)` each answer. */
  constructor({ failed, arrived }) {
    this.pane = document.getElementById("list-pane");
    this.list = document.getElementById("list");
    this.search = document.getElementById("search");
    this.order = document.getElementById("order");
    this.count = document.getElementById("list-count");
    this.failed = failed;
    this.arrived = arrived;
    this.spacer = el("div", { class: "spacer", "aria-hidden": "true" });
    this.list.append(this.spacer);
    this.pages = new Map(); // number of the page -> its rows
    this.rows = new Map(); // index -> link
    this.total = 0;
    this.version = null;
    this.focused = 0; // index of the row in the tab order
    this.current = null; // sensor that is open
    this.movedAt = 0;
    this.refresh = paced(() => this.#fetch(), REFRESH_MS);
    this.list.addEventListener("scroll", () => this.#draw(), { passive: true });
    this.list.addEventListener("keydown", (event) => this.#key(event));
    this.list.addEventListener("pointermove", () => (this.movedAt = Date.now()), { passive: true });
    this.list.addEventListener("focusin", (event) => this.#focusedOn(event.target));
    this.search.addEventListener("input", () => this.#restart());
    this.search.addEventListener("keydown", (event) => event.key === "ArrowDown" && (event.preventDefault(), this.focusRow(0)));
    this.order.addEventListener("change", () => this.#restart());
    new ResizeObserver(() => this.#draw()).observe(this.list);
  }

  /** Fetch again if the server's rows changed since the last answer. */
  changed(version) {
    if (version !== this.version && this.isVisible() && Date.now() - this.movedAt > REST_MS) this.refresh();
  }

  isVisible() {
    return this.list.clientHeight > 0 && !document.hidden;
  }

  /** Mark the sensor that is open. */
  mark(sensor) {
    this.current = sensor;
    this.#draw();
  }

  focusRow(index) {
    if (!this.total) return;
    this.focused = Math.max(0, Math.min(this.total - 1, index));
    const top = this.focused * ROW_PX;
    if (top < this.list.scrollTop) this.list.scrollTop = top;
    else if (top + ROW_PX > this.list.scrollTop + this.list.clientHeight) this.list.scrollTop = top + ROW_PX - this.list.clientHeight;
    this.#draw();
    this.rows.get(this.focused)?.focus({ preventScroll: true });
  }

  #restart() {
    this.version = null;
    this.list.scrollTop = 0;
    this.focused = 0;
    this.pages.clear();
    this.refresh();
  }

  #window() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW_PX) - SPARE);
    const last = Math.min(this.total - 1, Math.ceil((this.list.scrollTop + this.list.clientHeight) / ROW_PX) + SPARE);
    return [first, last];
  }

  async #fetch() {
    const [first, last] = this.#window();
    const wanted = { search: this.search.value.trim(), sort: this.order.value };
    const numbers = [];
    for (let page = Math.floor(first / PAGE); page <= Math.floor(Math.max(last, 0) / PAGE); page += 1) numbers.push(page);
    try {
      const answers = await Promise.all(numbers.map((page) => ask("sensors", { ...wanted, offset: page * PAGE, limit: PAGE })));
      if (wanted.search !== this.search.value.trim() || wanted.sort !== this.order.value) return this.refresh();
      this.version = answers[0].list_version;
      this.total = answers[0].total;
      this.pages = new Map(numbers.map((page, place) => [page, answers[place].rows]));
      const active = this.list.contains(document.activeElement) ? document.activeElement : null;
      const sensor = active?.dataset.sensor;
      this.#draw();
      if (active && active.dataset.sensor !== sensor) this.#follow(sensor);
      this.arrived(this.total, answers[0].offset === 0 ? answers[0].rows[0] : null);
    } catch (error) {
      this.failed(error);
    }
  }

  #rowAt(index) {
    return this.pages.get(Math.floor(index / PAGE))?.[index % PAGE] ?? null;
  }

  #draw() {
    say(this.count, this.version === null ? "" : this.total.toLocaleString("en-GB"));
    this.spacer.style.height = `${this.total * ROW_PX}px`;
    const [first, last] = this.#window();
    for (const [index, link] of this.rows) {
      if (index < first || index > last) {
        if (link === document.activeElement) continue; // keeps the focus of a row that scrolled out of sight
        link.parentElement.remove();
        this.rows.delete(index);
      }
    }
    let isMissing = false;
    for (let index = first; index <= last; index += 1) {
      const row = this.#rowAt(index);
      isMissing ||= row === null;
      let link = this.rows.get(index);
      if (!link) {
        link = el("a", { class: "row" },
          el("bdi", { class: "name" }), el("span", { class: "surprise" }), el("span", { class: "said" }), gauge());
        gauges.set(link, link.lastChild);
        link.style.transform = `translateY(${index * ROW_PX}px)`;
        this.rows.set(index, link);
        this.#place(el("div", { class: "item", role: "listitem" }, link), index);
      }
      this.#fill(link, index, row);
    }
    this.#empty();
    if (isMissing && this.version !== null) this.refresh();
  }

  /** Keep the elements in the order of the list, because the tab key and screen readers go by it. */
  #place(item, index) {
    let next = null;
    let nearest = Infinity;
    for (const [other, element] of this.rows) {
      if (other > index && other < nearest) [next, nearest] = [element.parentElement, other];
    }
    this.list.insertBefore(item, next);
  }

  /** Let the focus stay with its sensor when the order changes. */
  #follow(sensor) {
    for (const [index, link] of this.rows) {
      if (link.dataset.sensor === sensor) {
        this.focused = index;
        link.focus({ preventScroll: true });
        return;
      }
    }
  }

  #empty() {
    const isEmpty = this.version !== null && this.total === 0;
    if (!isEmpty) {
      this.nothing?.remove();
      this.nothing = null;
    } else {
      this.nothing ??= this.list.appendChild(el("p", { class: "empty" }));
      this.nothing.replaceChildren(...coded(this.search.value ? "No sensor has this text in its name." : "No forecast was seen yet. Is a `streamgru forecast` running, and are readings being sent?"));
    }
  }

  #fill(link, index, row) {
    link.tabIndex = index === this.focused ? 0 : -1;
    link.parentElement.setAttribute("aria-posinset", index + 1);
    link.parentElement.setAttribute("aria-setsize", this.total);
    link.classList.toggle("waiting", row === null);
    const [name, level, said] = link.children;
    if (row === null) {
      say(name, "…");
      say(said, "");
      say(level, "");
      return;
    }
    if (link.dataset.sensor !== row.sensor) {
      link.dataset.sensor = row.sensor;
      link.href = sensorHash(row.sensor);
      link.title = visible(row.sensor).slice(0, 300);
      say(name, visible(row.sensor));
    }
    if (row.sensor === this.current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    say(level, surprise(row));
    level.className = `surprise ${row.surprise ? "some" : "none"}`;
    const value = row.target === null ? moment(row.issued_at_ms, { utc: false }) : `${row.target} ${brief(row.value)}`;
    say(said, row.low === null ? value : `${value}, range ${brief(row.low)} to ${brief(row.high)}`);
    drawGauge(gauges.get(link), row);
  }

  #focusedOn(element) {
    const link = element.closest(".row");
    for (const [index, row] of this.rows) {
      if (row === link) this.focused = index;
      row.tabIndex = row === link ? 0 : -1;
    }
  }

  #key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const page = Math.max(1, Math.floor(this.list.clientHeight / ROW_PX) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    if (event.key === "ArrowUp" && this.focused === 0) return this.search.focus();
    this.focusRow(this.focused + steps[event.key]);
  }

  /** What the list holds, for the page's title. */
  get summary() {
    return counted(this.total, "sensor");
  }
}

function gauge() {
  return svg("svg", { class: "gauge", viewBox: "0 0 74 12", "aria-hidden": "true" },
    svg("rect", { class: "track", x: 0, y: 5, width: 74, height: 2, rx: 1 }),
    svg("rect", { class: "range", x: 23, y: 2, width: 28, height: 8, rx: 2 }),
    svg("circle", { class: "at", cx: 37, cy: 6, r: 3.5 }));
}

/** Show where the reading fell beside the forecast range; beyond one width the mark stays at the edge. */
function drawGauge(element, row) {
  const [, range, at] = element.children;
  const isKnown = row.value !== null && row.low !== null && row.high !== null;
  range.setAttribute("visibility", row.low === null ? "hidden" : "visible");
  at.setAttribute("visibility", isKnown ? "visible" : "hidden");
  if (!isKnown) return;
  const size = row.high - row.low || 1;
  const place = 23 + (28 * (row.value - row.low)) / size;
  at.setAttribute("cx", Math.max(4, Math.min(70, place)));
  at.setAttribute("class", row.surprise ? "at out" : "at");
}
