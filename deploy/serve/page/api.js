// Questions to the server. Addresses are relative, so that the page works behind a proxy with a path of its own.

export class Unauthorised extends Error {}

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The JSON answer to a question; parameters that are null are left out. */
export async function ask(path, parameters = {}, { signal, timeoutMs = 15_000 } = {}) {
  const chosen = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const query = new URLSearchParams(chosen).toString();
  const limit = AbortSignal.timeout(timeoutMs);
  const response = await fetch(`api/${path}${query ? `?${query}` : ""}`, {
    signal: signal ? AbortSignal.any([signal, limit]) : limit,
    credentials: "same-origin",
    headers: { Accept: "application/json" },
  });
  if (response.status === 401) throw new Unauthorised("a token is needed");
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, [answer.error, answer.remedy].filter(Boolean).join(" ") || `the server answered ${response.status}`);
  return answer;
}

/** Exchange a token for a cookie; false if the token is wrong. */
export async function logIn(token) {
  const response = await fetch("api/login", {
    method: "POST",
    credentials: "same-origin",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ token }),
  });
  if (response.status === 401) return false;
  if (!response.ok) throw new Refused(response.status, `the server answered ${response.status}`);
  return true;
}

/** A function that runs one job at a time; calls during a run lead to one more run, at least `restMs` after it began. */
export function paced(job, restMs) {
  let running = false;
  let again = false;
  let timer = null;
  let began = -Infinity;
  async function run() {
    timer = null;
    running = true;
    began = performance.now();
    try {
      await job();
    } finally {
      running = false;
      if (again) {
        again = false;
        call();
      }
    }
  }
  function call() {
    if (running) again = true;
    else if (timer === null) timer = setTimeout(run, Math.max(0, began + restMs - performance.now()));
  }
  call.cancel = () => {
    clearTimeout(timer);
    timer = null;
    again = false;
  };
  return call;
}
