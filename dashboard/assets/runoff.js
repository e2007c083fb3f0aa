// What the browser decides by itself; the rest is in dashboard/app.py.
window.dash_clientside = window.dash_clientside || {};
window.dash_clientside.runoff = {
  // The address holds the state: ?traffic=real&theme=dark. It sets the controls, and they set it.
  address(search, traffic, clicks, theme) {
    const query = new URLSearchParams(search || "");
    const trigger = (window.dash_clientside.callback_context.triggered[0] || {}).prop_id || "";
    const byDefault = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    if (trigger.startsWith("traffic.") && theme) {
      if (traffic === "all") query.delete("traffic");
      else query.set("traffic", traffic);
    }
    if (trigger.startsWith("theme-button.") && theme) {
      query.set("theme", theme === "dark" ? "light" : "dark");
    }
    const known = ["real", "simulation"].includes(query.get("traffic")) ? query.get("traffic") : "all";
    const shown = ["light", "dark"].includes(query.get("theme")) ? query.get("theme") : byDefault;
    const text = query.toString();
    return [text ? "?" + text : "", known, shown, shown];
  },

  // A tab that nobody sees, or that is paused, asks for nothing.
  tick(intervals, live) {
    return live && !document.hidden ? intervals || 0 : window.dash_clientside.no_update;
  },
};
