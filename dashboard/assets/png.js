// A chart as a picture that stands by itself: with its title, and opaque in whichever theme is on.
document.addEventListener("click", (event) => {
  const button = event.target.closest("button.png");
  const plot = button && button.closest("section").querySelector(".js-plotly-plot");
  if (!plot || !plot.layout) return;
  const [ROOM, EDGE] = [40, 8]; // for the title, and below, in pixels
  const { layout, clientWidth, clientHeight } = plot;
  const surface = getComputedStyle(document.documentElement).getPropertyValue("--surface").trim() || "#ffffff";
  const ink = getComputedStyle(document.body).color;
  const title = {
    text: button.dataset.title,
    font: { size: 16, color: ink },
    x: 0,
    xref: "container",
    y: 1,
    yref: "container",
    yanchor: "top",
    pad: { l: 16, t: 14 },
  };
  const margin = { ...layout.margin, t: layout.margin.t + ROOM, b: layout.margin.b + EDGE };
  Plotly.downloadImage(
    { data: plot.data, layout: { ...layout, title, margin, paper_bgcolor: surface } },
    {
      format: "png",
      scale: 2,
      width: clientWidth,
      height: clientHeight + ROOM + EDGE,
      filename: plot.id || plot.parentElement.id,
    },
  );
});
