"""A verdict as one HTML file that needs nothing else: no network, no server, no other file."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from dashboard import verdict_charts
from dashboard import verdict_words as words
from dashboard.charts import GRAPH_CONFIG, Stats
from dashboard.verdict_charts import Shown

THEME = "light"
# What saves a chart as a picture.
PNG = Path(__file__).parent / "assets" / "png.js"
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Verdict on {{ told.experiment }}</title>
<meta name="viewport" content="width=device-width">
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2530; max-width: 960px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; line-height: 1.3; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
p.note { color: #55606e; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.3rem 1rem 0.3rem 0; border-bottom: 1px solid #e1e5ea; }
th { color: #55606e; font-weight: 500; }
summary { color: #55606e; cursor: pointer; }
.heading { display: flex; justify-content: space-between; align-items: baseline; margin-top: 2rem; }
.heading h2 { margin: 0; }
.png { min-height: 24px; border: 0; background: none; color: #55606e; font: inherit; font-size: 0.85rem;
  text-decoration: underline; cursor: pointer; }
</style><script>{{ script }}</script><script>{{ png }}</script></head><body>
{% macro table(content) %}<div class="wide"><table>
<thead><tr>{% for head in content[0] %}<th scope="col">{{ head }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in content[1] %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>{% endmacro %}
{% macro chart(shown) %}<section><div class="heading"><h2>{{ shown.title }}</h2>
{% if shown.table[1] %}<button class="png" type="button" data-title="{{ shown.title }}"
aria-label="PNG: {{ shown.title }}">PNG</button>{% endif %}</div>
<p>{{ shown.summary }}</p>
{% if shown.table[1] %}{{ drawn(shown) }}
<details><summary>As a table</summary>{{ table(shown.table) }}</details>{% endif %}</section>{% endmacro %}
<h1>{{ told.sentence }}</h1>
<p>{{ told.estimand }}</p>
<p class="note">{{ words.models(told) }} {{ told.risk }}</p>
<p class="note">{{ words.basis(told, mixed=mixed) }} Experiment {{ told.experiment }},
version {{ told.version }}, as of {{ told.as_of }}.</p>
<h2>Can this be trusted?</h2>
{{ table((("Check", "State", "What was seen"), words.checks(told))) }}
{% for each in told.comparisons %}
<h2>{{ told.champion }} and {{ each.challenger }}</h2>
{% if not each.rows %}<p>{{ each.sentence }}</p>{% else %}
{% if each.fewer %}<p>{{ words.fewer(told, each) }}</p>{% endif %}
<p class="note">{{ words.E_VALUE }}</p>
{{ table(words.figures(told, each)) }}
{% for shown in compared[loop.index0][:1] %}{{ chart(shown) }}{% endfor %}
{% if each.guardrails %}<h2>Guardrails</h2><p class="note">{{ words.HARM }}</p>
{{ table(words.guardrails(each)) }}{% endif %}
{% if each.segments %}<h2>Parts of the traffic</h2>{{ table(words.segments(told, each)) }}{% endif %}
{% for shown in compared[loop.index0][1:] %}{{ chart(shown) }}{% endfor %}
{% endif %}{% endfor %}
{% if told.gaps %}<h2>Between groups</h2>{{ table(words.gaps(told)) }}{% endif %}
{% for shown in rest %}{{ chart(shown) }}{% endfor %}
</body></html>
"""


def render(told: Stats, *, mixed: bool) -> str:
    """The report of a verdict, as the router tells it. Each chart can be had from it as a PNG.

    Args:
        told: by the router.
        mixed: whether it judges real and simulated traffic together.
    """
    # Whatever is put into it is escaped: others wrote it.
    environment = Environment(autoescape=True)
    compared = [verdict_charts.compared(told, number, THEME) for number in range(len(told["comparisons"]))]
    rest = [*verdict_charts.of_variants(told, THEME), verdict_charts.traffic(told, THEME)]
    return environment.from_string(PAGE).render(
        told=told,
        words=words,
        mixed=mixed,
        script=Markup(get_plotlyjs()),  # noqa: S704 (plotly's own)
        png=Markup(PNG.read_text(encoding="utf-8")),  # noqa: S704 (our own)
        drawn=_drawn,
        compared=compared,
        rest=rest,
    )


def _drawn(shown: Shown) -> Markup:
    """A chart as HTML, which takes the page's script."""
    return Markup(  # noqa: S704 (plotly's own)
        to_html(
            shown.figure,
            config=GRAPH_CONFIG,
            div_id=shown.name,
            full_html=False,
            include_plotlyjs=False,
            default_height=f"{shown.height}px",
        )
    )
