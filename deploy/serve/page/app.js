// The start of the page: what the server says of itself, the live connection, and the view that the address names.

import { Unauthorised, ask, logIn } from "./api.js";
import { Connection } from "./connection.js";
import { el, say } from "./dom.js";
import { OperationView } from "./operation_view.js";
import { parseHash, sensorHash } from "./routes.js";
import { SensorList } from "./sensor_list.js";
import { SensorView } from "./sensor_view.js";
import { clock, sentence, visible, zoneSentence } from "./words.js";

const RETRY_MS = 1_500;
const NARROW = matchMedia("(max-width: 900px)");

const [main, frame, banner, pulse, pulseText] = ["main", "frame", "banner", "pulse", "pulse-text"].map((id) => document.getElementById(id));

let about = null;
let view = null;
let verdict = { state: "waiting" };
let top = null; // the first row of the list, which a wide window opens by itself

const list = new SensorList({ failed, arrived: (total, first) => {
  top = first ?? top;
  openTop();
} });
const connection = new Connection(heard, judged);

function heard(kind, data) {
  if (kind === "refused") return void ask("about").catch(failed); // the server may have forgotten the login
  if (kind === "opened" || kind === "reset") view?.reload?.();
  else if (view instanceof OperationView) view.heard(kind, data);
  else if (kind === "forecasts" && data.rows.length) view?.heard(data.rows);
  if (kind === "reset") list.refresh();
  if (kind === "status") {
    list.changed(data.list_version);
    showState(data);
  }
  document.dispatchEvent(new CustomEvent(`streamgru:${kind}`, { detail: data }));
}

function judged(next) {
  verdict = next;
  if (next.state === "live" && next.from === "stale") {
    list.refresh();
    view?.reload?.(); // what was shown may be old; the events that were missed follow on the stream
  }
  showState(connection.lastStatus);
}

function showState(status) {
  const isStale = verdict.state === "stale";
  document.body.toggleAttribute("data-stale", isStale);
  pulse.dataset.state = verdict.state;
  const behind = verdict.state === "live" ? status?.catching_up : null;
  banner.hidden = !isStale && !behind;
  banner.dataset.kind = isStale ? "stale" : "wait";
  if (isStale) {
    const since = verdict.sinceMs === null ? "" : ` since ${clock(verdict.sinceMs)}`;
    say(pulseText, `Stale${since}`);
    const why = verdict.why.split(/ \(|; |\.$/)[0]; // the operator's view has the details and the remedy
    const words = `Stale${since}: ${why}. You see the last known state. The page continues by itself.`;
    say(banner, words);
  } else if (behind) {
    say(pulseText, "Catching up");
    say(banner, `The server reads past records: ${Math.floor((100 * behind.done) / Math.max(1, behind.total))} % done. Sensors appear as they are found.`);
  } else {
    say(pulseText, verdict.state === "live" ? "Live" : "Connecting");
  }
}

function failed(error) {
  if (error instanceof Unauthorised) return showLogin();
  console.info(`a question to the server failed: ${error.message}`); // the banner tells people, and the page asks again
}

function openTop() {
  const isWide = !NARROW.matches;
  if (isWide && !view && top && parseHash(location.hash).view === "sensors") location.replace(sensorHash(top.sensor));
}

function show() {
  if (!about) return;
  const route = parseHash(location.hash);
  view?.destroy();
  view = null;
  frame.dataset.view = route.view;
  for (const link of document.querySelectorAll(".top nav a")) {
    if (link.dataset.view === (route.view === "operation" ? "operation" : "sensors")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  list.mark(route.sensor ?? null);
  connection.follow(route.sensor ?? null);
  if (route.view === "sensor") view = new SensorView(about, route, failed);
  else if (route.view === "operation") view = new OperationView(about, connection, failed);
  main.replaceChildren(view ? view.element : el("div", { class: "empty" }, el("h2", {}, "No sensor is open"), el("p", {}, "Choose one from the list.")));
  main.scrollTop = 0;
  const name = route.sensor ? visible(route.sensor).slice(0, 80) : route.view === "operation" ? "Operation" : "Sensors";
  document.title = `${name} · streamgru`;
  if (route.view !== "operation") list.refresh();
  openTop();
  view?.draw?.();
}

function showLogin(words = "") {
  if (frame.dataset.view === "login" && !words) return; // keeps the text that is being typed
  connection.end();
  banner.hidden = true;
  document.body.removeAttribute("data-stale");
  say(pulseText, "Not logged in");
  pulse.dataset.state = "waiting";
  view?.destroy();
  view = null;
  about = null;
  frame.dataset.view = "login";
  const input = el("input", { type: "password", id: "token", autocomplete: "current-password", required: true });
  const form = el("form", { class: "panel login", on: { submit: async (event) => {
    event.preventDefault();
    try {
      if (await logIn(input.value)) start();
      else showLogin("This token is not the server's.");
    } catch (error) {
      showLogin(sentence(`the token could not be checked: ${error.message}`));
    }
  } } },
  el("h1", {}, "This page needs a token"),
  el("p", { class: "muted" }, "It is the value of the setting serve.token, or of the option --token."),
  el("label", { class: "field", for: "token" }, "Token", input), words ? el("p", { class: "bad", role: "alert" }, words) : null, el("button", { type: "submit" }, "Open"));
  main.replaceChildren(form);
  input.focus();
}

/** Log in with a token in the address, and take it out of the address, where histories and screens would keep it. */
async function takeToken() {
  const given = /^#token=(.+)$/.exec(location.hash);
  if (!given) return;
  history.replaceState(null, "", "#/");
  await logIn(decodeURIComponent(given[1]));
}

async function start() {
  try {
    about = { ...(await ask("about")), zone: zoneSentence() };
  } catch (error) {
    if (error instanceof Unauthorised) return showLogin();
    setTimeout(start, RETRY_MS); // the server is not up yet, or is gone; the banner says so
    return;
  }
  document.documentElement.dataset.ready = "";
  show();
}

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
document.addEventListener("keydown", (event) => {
  const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName ?? "");
  if (event.key === "/" && !isTyping && list.isVisible()) {
    event.preventDefault();
    list.search.focus();
  }
});
addEventListener("hashchange", show);
NARROW.addEventListener("change", openTop);
takeToken().then(start, start); // without a token that can be read, the form asks for it
