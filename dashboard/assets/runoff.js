// What the browser decides by itself; the rest is in dashboard/app.py.
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

  return {
    // The address holds the state: ?traffic=real&theme=dark. It sets the controls, and they set it.
    address(search, traffic, clicks, look) {
      const query = new URLSearchParams(search || "");
      const trigger = (window.dash_clientside.callback_context.triggered[0] || {}).prop_id || "";
      const byDefault = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
      if (trigger.startsWith("traffic.") && look) {
        if (traffic === "all") query.delete("traffic");
        else query.set("traffic", traffic);
      }
      if (trigger.startsWith("theme-button.") && look) {
        query.set("theme", look.theme === "dark" ? "light" : "dark");
      }
      const known = ["real", "simulation"].includes(query.get("traffic")) ? query.get("traffic") : "all";
      const theme = ["light", "dark"].includes(query.get("theme")) ? query.get("theme") : byDefault;
      const narrow = matchMedia("(max-width: 768px)").matches;
      const text = query.toString();
      return [text ? "?" + text : "", known, { theme, narrow }, theme];
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
