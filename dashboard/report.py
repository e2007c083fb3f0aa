"""A verdict as one HTML file that needs nothing else: no network, no server, no other file."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment
from markupsafe import Markup
from plotly.io import to_html

from dashboard import verdict_words as words
from dashboard.charts import GRAPH_CONFIG, Stats

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
</style></head><body>
{% macro table(content) %}<div class="wide"><table>
<thead><tr>{% for head in content[0] %}<th scope="col">{{ head }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in content[1] %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>{% endmacro %}
<h1>{{ told.sentence }}</h1>
<p>{{ told.estimand }}</p>
<p class="note">{{ words.basis(told, mixed=mixed) }} Experiment {{ told.experiment }},
version {{ told.version }}, as of {{ told.as_of }}.</p>
<h2>Can this be trusted?</h2>
{{ table((("Check", "State", "What was seen"), words.checks(told))) }}
{% for each in told.comparisons %}
<h2>{{ told.champion }} and {{ each.challenger }}</h2>
{{ table(words.figures(told, each)) }}
<p>{{ words.funnel_summary(told, each) }}</p>
{{ charts[loop.index0] }}
{% if each.guardrails %}<h2>Guardrails</h2>{{ table(words.guardrails(each)) }}{% endif %}
{% if each.segments %}<h2>Parts of the traffic</h2>{{ table(words.segments(each)) }}{% endif %}
{% endfor %}
{% if told.gaps %}<h2>Between groups</h2>{{ table(words.gaps(told)) }}{% endif %}
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
    page = environment.from_string(PAGE)
    return page.render(told=told, words=words, charts=_charts(told), mixed=mixed)


def _charts(told: Stats) -> Sequence[Markup]:
    """The funnels as HTML; the first one brings the script for all."""
    config = GRAPH_CONFIG | {"toImageButtonOptions": {"format": "png", "scale": 2}}
    return [
        Markup(  # noqa: S704 (plotly's own)
            to_html(
                words.funnel(told, each, words.role_list(told), "light"),
                config=config,
                full_html=False,
                include_plotlyjs=number == 0,
                default_height="340px",
            )
        )
        for number, each in enumerate(told["comparisons"])
    ]
