// What the browser decides by itself; the rest is in dashboard/*.py.
window.dash_clientside = window.dash_clientside || {};
window.dash_clientside.runoff = (() => {
  // After this long without news the page says so; milliseconds.
  const PATIENCE = 8000;
  const FIRST_RETRY = 10000;
  const LAST_RETRY = 30000;

  let heard = Date.now(); // when the router's counts last came
  let waiting = null; // since when a question is open
  let asked = 0;
  let retry = FIRST_RETRY;

  // Without the server's help, since it may be the server that is silent.
  setInterval(() => {
    const now = Date.now();
    document.documentElement.toggleAttribute("data-stale", now - heard > PATIENCE);
    const silence = document.getElementById("silence");
    if (silence) silence.hidden = waiting === null || now - waiting < PATIENCE;
  }, 1000);

  // What pages keep in the address for themselves: the name there of each control.
  const KEPT = {
    "load-runs": "runs",
    "drift-variant": "variant",
    feature: "feature",
    "compare-one": "models",
    "compare-other": "models",
  };

  // What the address holds, as people read it.
  const written = (query) => {
    const text = query.toString().replaceAll("%2C", ",").replaceAll("%2F", "/");
    return text ? "?" + text : "";
  };

  const one = (value, known, usual) => (known.includes(value) ? value : usual);

  return {
    // The address holds the state: ?range=15m&traffic=real&theme=dark. It sets the controls, and they set it.
    address(search, pathname, traffic, range, clicks, look, links) {
      const query = new URLSearchParams(search || "");
      const trigger = (window.dash_clientside.callback_context.triggered[0] || {}).prop_id || "";
      const byDefault = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
      for (const [name, value] of [["traffic", traffic], ["range", range]]) {
        if (trigger.startsWith(name + ".") && look) {
          if (value === "all") query.delete(name);
          else query.set(name, value);
        }
      }
      if (trigger.startsWith("theme-button.") && look) {
        query.set("theme", look.theme === "dark" ? "light" : "dark");
      }
      const tag = one(query.get("traffic"), ["real", "simulation"], "all");
      const shown = one(query.get("range"), ["15m", "1h", "24h"], "all");
      const theme = one(query.get("theme"), ["light", "dark"], byDefault);
      const narrow = matchMedia("(max-width: 768px)").matches;
      const text = written(query);
      const here = (pathname || "").split("/").pop();
      // What a page keeps in the address for itself stays behind.
      const shared = new URLSearchParams([...query].filter(([name]) => ["traffic", "range", "theme"].includes(name)));
      const rest = written(shared);
      document.querySelectorAll("nav a").forEach((link, i) => {
        if (links[i].page === here) link.setAttribute("aria-current", "page");
        else link.removeAttribute("aria-current");
        if (links[i].page === here) document.title = `${link.textContent} – Runoff`;
      });
      const same = look && look.theme === theme && look.narrow === narrow;
      const seen = same ? window.dash_clientside.no_update : { theme, narrow };
      return [text, tag, shown, seen, theme, links.map((link) => `./${link.page}${rest}`)];
    },

    // What was chosen on a page, within what the address holds besides: ?runs=…, ?variant=…&feature=….
    keep(...given) {
      const query = new URLSearchParams(given.at(-1) || "");
      const chosen = {};
      for (const { id, value } of window.dash_clientside.callback_context.inputs_list) {
        // Before anything is known nothing is chosen, and the address says what will be.
        if (value !== null && value !== undefined) (chosen[KEPT[id]] ??= []).push(...[value].flat());
      }
      for (const [name, values] of Object.entries(chosen)) {
        if (values.length) query.set(name, values.join(","));
        else query.delete(name);
      }
      return written(query);
    },

    // A tab that nobody sees, or that is paused, asks for nothing; and none asks twice at a time.
    tick(intervals, live) {
      const now = Date.now();
      const busy = waiting !== null && now - asked < retry;
      if (!live || document.hidden || busy) return window.dash_clientside.no_update;
      if (waiting === null) waiting = now;
      else retry = Math.min(2 * retry, LAST_RETRY);
      asked = now;
      return now;
    },

    answered() {
      waiting = null;
      retry = FIRST_RETRY;
    },

    heard() {
      heard = Date.now();
    },
  };
})();
