// Errors and coverage of one sensor over time, from its history: means over the last WINDOW readings.

export const WINDOW = 24;

/** Columns over time for one target and step; both errors are of the same readings. */
export function scoresOverTime(history, target, step, cadenceMs) {
  const values = history.values[target] ?? [];
  const before = history.made_before[step]?.[target] ?? { low: [], median: [], high: [] };
  const valueAt = new Map(history.time_ms.map((ms, index) => [ms, values[index]]));
  const scored = [];
  history.time_ms.forEach((ms, index) => {
    const [value, low, median, high] = [values[index], before.low[index], before.median[index], before.high[index]];
    const persisted = valueAt.get(ms - step * cadenceMs);
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
