// Addresses of the views, behind the # of the page's address. A sensor's name is percent-encoded, so it may have any
// character: #/sensor/NAME?target=PM2.5&step=6&readings=96

export function sensorHash(sensor, choices = {}) {
  const chosen = Object.entries(choices).filter(([, value]) => value !== null && value !== undefined);
  const query = new URLSearchParams(chosen).toString();
  return `#/sensor/${encodeURIComponent(sensor)}${query ? `?${query}` : ""}`;
}

/** The view that an address names; an address that cannot be read names the list. */
export function parseHash(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const [view, name] = path.split("/", 2);
  if (view === "operation") return { view };
  if (view === "sensor" && name) {
    try {
      const choices = new URLSearchParams(query);
      return {
        view: "sensor",
        sensor: decodeURIComponent(name),
        target: choices.get("target"),
        step: Number.parseInt(choices.get("step"), 10) || null,
        readings: Number.parseInt(choices.get("readings"), 10) || null,
      };
    } catch {
      return { view: "sensors" };
    }
  }
  return { view: "sensors" };
}
