"""The page of a report, as a jinja2 template."""

TEMPLATE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<title>{{ title }}</title>
<style>
body { margin: 0 auto; max-width: 960px; padding: 2.5rem 1.5rem 4rem; background: #fff;
  color: #22262b;
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 3rem 0 1rem; padding-top: 1.2rem; border-top: 1px solid #e3e6ea; font-size: 1.3rem; }
.subtitle { margin: .4rem 0 0; color: #5b626b; }
p { max-width: 44rem; overflow-wrap: anywhere; }
nav { margin: 1.6rem 0; padding: .8rem 1.2rem; background: #f6f7f9; border-radius: 6px; }
nav ol { margin: 0; padding-left: 1.2rem; columns: 2; }
a { color: #00568a; text-decoration: none; }
a:hover { text-decoration: underline; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.4rem, 1fr)); gap: .8rem;
  margin: 1.6rem 0; }
dl div { padding: .8rem 1rem; background: #f6f7f9; border-radius: 6px; overflow-wrap: anywhere; }
dt { color: #5b626b; font-size: .82rem; line-height: 1.3; }
dd { margin: .2rem 0 0; font-size: 1.35rem; font-weight: 600; line-height: 1.25; }
dd.long { font-size: 1rem; }
dd.whole { white-space: nowrap; }
figure { margin: 1.6rem 0 2rem; }
figure svg, figure img { display: block; width: 100%; height: auto; }
figcaption { color: #5b626b; font-size: .88rem; line-height: 1.45; text-align: left; }
figcaption { margin-top: .5rem; max-width: 44rem; }
figure.table figcaption { margin: 0 0 .5rem; }
/* A shade at the right edge, where columns are out of sight, that moves away with the last one. */
.scroll { overflow-x: auto; border-bottom: 1.5px solid #e3e6ea;
  background: linear-gradient(to left, #fff 40%, #fff0) right / 3rem 100% no-repeat local,
    linear-gradient(to left, #22262b2e, #22262b00) right / 1.2rem 100% no-repeat scroll; }
table { border-collapse: separate; border-spacing: 0; font-size: .86rem;
  font-variant-numeric: tabular-nums; }
th { border-bottom: 1.5px solid #8a9099; font-weight: 600; vertical-align: bottom; }
th, td { padding: .28rem .9rem .28rem 0; text-align: left; white-space: nowrap; }
td { border-bottom: 1px solid #eceef1; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
.number { text-align: right; }
td.bits { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
details { margin: 3rem 0 0; padding-top: 1.2rem; border-top: 1px solid #e3e6ea; }
summary { cursor: pointer; font-weight: 600; }
h3 { margin: 1.2rem 0 .4rem; font-size: .95rem; }
pre { margin: 0; padding: .8rem 1rem; background: #f6f7f9; border-radius: 6px;
  white-space: pre-wrap; overflow-wrap: anywhere;
  font: .82rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
@media print { body { max-width: none; padding: 0; } figure, tr { break-inside: avoid; } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% if subtitle %}
<p class="subtitle">{{ subtitle }}</p>
{% endif %}
{% if contents %}
<nav aria-label="Contents"><ol>
{% for section in contents %}
<li><a href="#{{ section.id }}">{{ section.heading }}</a></li>
{% endfor %}
</ol></nav>
{% endif %}
{% for item in items %}
{% if item.kind == 'section' %}
<h2 id="{{ item.id }}">{{ item.heading }}</h2>
{% elif item.kind == 'text' %}
<p>{{ item.text }}</p>
{% elif item.kind == 'facts' %}
<dl>
{% for fact in item.facts %}
<div><dt>{{ fact.name }}</dt>
<dd class="{{ fact.style }}">{{ fact.text }}</dd></div>
{% endfor %}
</dl>
{% elif item.kind == 'figure' %}
<figure><div role="img" aria-label="{{ item.caption }}" style="max-width: {{ item.width }}px">
{% if item.svg is defined %}
{{ item.svg|safe }}
{% else %}
<img alt="" src="data:image/png;base64,{{ item.png }}">
{% endif %}
</div><figcaption>{{ item.caption }}</figcaption></figure>
{% elif item.kind == 'table' %}
<figure class="table">
<figcaption>{{ item.caption }}{% if item.note %} {{ item.note }}{% endif %}</figcaption>
<div class="scroll" role="region" tabindex="0" aria-label="{{ item.caption }}"><table>
<thead><tr>
{% for column in item.columns %}
<th scope="col" class="{{ column.align }}">{{ column.name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in item.rows %}
<tr>
{%- for value in row -%}
<td class="{{ item.columns[loop.index0].align }}">{{ value }}</td>
{%- endfor -%}
</tr>
{% endfor %}
</tbody></table></div></figure>
{% elif item.kind == 'details' %}
<details><summary>{{ item.summary }}</summary>
{% for name, text in item.parts %}
<h3>{{ name }}</h3>
<pre>{{ text }}</pre>
{% endfor %}
</details>
{% endif %}
{% endfor %}
</body>
</html>
"""
