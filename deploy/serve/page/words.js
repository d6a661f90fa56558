// Numbers, times and names as people read them.

const LANGUAGE = "en-GB";
export const ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
const IS_UTC = new Date().getTimezoneOffset() === 0 && new Date(2026, 6, 1).getTimezoneOffset() === 0;

const formats = new Map();

function format(options, ms) {
  const key = JSON.stringify(options);
  if (!formats.has(key)) formats.set(key, new Intl.DateTimeFormat(LANGUAGE, { hourCycle: "h23", ...options }));
  return formats.get(key).format(ms);
}

const DAY = { day: "numeric", month: "short" };
const MINUTE = { hour: "2-digit", minute: "2-digit" };
const SECOND = { ...MINUTE, second: "2-digit" };

/** A moment in local time, with its year unless it is this year, and its time in UTC behind it. */
export function moment(ms, { seconds = false, utc = true } = {}) {
  if (ms === null || ms === undefined) return "unknown";
  const [local, universal] = momentParts(ms, { seconds });
  if (IS_UTC) return utc ? `${local} UTC` : local;
  return utc ? `${local} (${universal})` : local;
}

/** A moment as two texts: local time, and the time in UTC, with its day if it is another one. */
export function momentParts(ms, { seconds = false } = {}) {
  const day = new Date(ms).getFullYear() === new Date().getFullYear() ? DAY : { ...DAY, year: "numeric" };
  const clock = seconds ? SECOND : MINUTE;
  const local = format({ ...day, ...clock }, ms);
  if (IS_UTC) return [local, "UTC"];
  const sameDay = format({ ...DAY, timeZone: "UTC" }, ms) === format(DAY, ms);
  return [local, `${format({ ...(sameDay ? {} : DAY), ...clock, timeZone: "UTC" }, ms)} UTC`];
}

/** A time of today's clock, with seconds. */
export function clock(ms) {
  return format(SECOND, ms);
}

/** The sentence that says which zone the page shows. */
export function zoneSentence() {
  if (IS_UTC) return "Times are in UTC.";
  const minutes = -new Date().getTimezoneOffset();
  const rest = Math.abs(minutes) % 60;
  const offset = `UTC${minutes < 0 ? "−" : "+"}${Math.floor(Math.abs(minutes) / 60)}${rest ? `:${String(rest).padStart(2, "0")}` : ""}`;
  return `Times are in ${ZONE} (${offset}), with UTC in brackets.`;
}

/** A measured value with four significant digits and no exponent where none is needed. */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-3)) return value.toExponential(2).replace("-", "−");
  const digits = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 1 ? 2 : 3;
  return value.toLocaleString(LANGUAGE, { maximumFractionDigits: digits }).replace("-", "−");
}

/** A value with three significant digits, where there is little room. */
export function brief(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-3)) return number(value);
  return value.toLocaleString(LANGUAGE, { maximumSignificantDigits: size >= 1000 ? 6 : 3, maximumFractionDigits: 3 }).replace("-", "−");
}

/** A count with separators. */
export function count(value) {
  return value === null || value === undefined ? "–" : value.toLocaleString(LANGUAGE);
}

/** A clause of the server as a sentence. */
export function sentence(clause) {
  return `${clause.charAt(0).toUpperCase()}${clause.slice(1).replace(/\.$/, "")}.`;
}

/** A count with its noun in singular or plural. */
export function counted(value, noun) {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}

/** A share as a percentage. */
export function percent(share) {
  if (share > 0 && share < 0.005) return "< 1 %";
  return share === null || share === undefined ? "–" : `${(share * 100).toLocaleString(LANGUAGE, { maximumFractionDigits: share > 0.995 && share < 1 ? 1 : 0 })} %`;
}

/** Milliseconds, or seconds if they are many. */
export function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 10_000 ? `${Math.round(value).toLocaleString(LANGUAGE)} ms` : `${number(value / 1000)} s`;
}

const UNITS = [["day", 86_400], ["hour", 3_600], ["minute", 60], ["second", 1]];

/** A duration in its largest whole unit, or in the largest unit with a decimal: "6 hours". */
export function duration(seconds) {
  const [name, size] = UNITS.find(([, unit]) => seconds >= unit && seconds % unit === 0) ?? UNITS.find(([, unit]) => seconds >= unit) ?? UNITS[3];
  const amount = Math.round((seconds / size) * 10) / 10;
  return `${amount.toLocaleString(LANGUAGE)} ${name}${amount === 1 ? "" : "s"}`;
}

/** The surprise of a reading in words: its distance from the forecast range, in widths of the range. */
export function surprise(row) {
  if (row.surprise === null || row.surprise === undefined) return "not yet known";
  if (row.surprise === 0) return "in range";
  const side = row.value > row.high ? "above" : "below";
  return `${row.surprise < 0.1 ? "< 0.1" : row.surprise.toLocaleString(LANGUAGE, { maximumFractionDigits: 1, minimumFractionDigits: 1 })} ${side}`;
}

const SPOOFING = /[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\u2028\u2029\u0080-\u009f]/g;

/** A name as it is, except that control characters and invisible direction marks become visible. */
export function visible(name) {
  return name
    .replace(/[\u0000-\u001f]/g, (character) => String.fromCharCode(0x2400 + character.charCodeAt(0)))
    .replace(/\u007f/g, "\u2421")
    .replace(SPOOFING, (character) => `[U+${character.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);
}

/** The range between two quantiles as its share: "80 %". */
export function width(low, high) {
  return percent(Math.round((high - low) * 1000) / 1000);
}
