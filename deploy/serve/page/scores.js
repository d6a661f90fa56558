// Errors and coverage of one sensor over time, from its history: means over the last WINDOW readings.

export const WINDOW = 24;

/** Columns over time for one target and step; both errors are of the same readings. */
export function scoresOverTime(history, target, step, cadenceMs) {
  const values = history.values[target] ?? [];
  const before = history.made_before[step]?.[target] ?? { low: [], median: [], high: [] };
  const scored = [];
  history.time_ms.forEach((ms, index) => {
    const [value, low, median, high] = [values[index], before.low[index], before.median[index], before.high[index]];
    const persisted = values[indexBefore(history.time_ms, index, step, cadenceMs)];
    if ([value, low, median, high, persisted].some((one) => one === null || one === undefined)) return;
    scored.push({ ms, inside: value >= low && value <= high ? 1 : 0, error: Math.abs(value - median), persistence: Math.abs(value - persisted) });
  });
  const mean = (end, name) => {
    const part = scored.slice(Math.max(0, end - WINDOW + 1), end + 1);
    return part.reduce((sum, one) => sum + one[name], 0) / part.length;
  };
  const shown = scored.map((_, index) => index).filter((index) => index >= Math.min(WINDOW, scored.length) - 1);
  return {
    count: scored.length,
    seconds: shown.map((index) => scored[index].ms / 1000),
    coverage: shown.map((index) => mean(index, "inside")),
    error: shown.map((index) => mean(index, "error")),
    persistence: shown.map((index) => mean(index, "persistence")),
  };
}

/** The index of the reading `step` cadences before another one, within half a cadence as the server matches them; -1. */
function indexBefore(times, index, step, cadenceMs) {
  const wanted = times[index] - step * cadenceMs;
  let at = index;
  while (at > 0 && times[at] - wanted > cadenceMs / 2) at -= 1;
  return Math.abs(times[at] - wanted) <= cadenceMs / 2 ? at : -1;
}
