"""Templates: what they make has an end, whether read or filled in."""

from typing import Any

import pytest
from jinja2.exceptions import SecurityError
from pydantic import TypeAdapter, ValidationError

from tasks.templates import Template, render

read = TypeAdapter(Template).validate_python
pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ 9**(9**9) }}", "number of bits"),
        ('{{ "a" * 3000000000 }}', "text or list"),
        ('{{ 3000000000 * "a" }}', "text or list"),
        ('{% if "%1000000000d" % 1 %}{% endif %}', "width"),
        ("(" * 5000 + "a" + ")" * 5000, None),
        ("{{ " + "(" * 5000 + "a" + ")" * 5000 + " }}", "nested too deeply"),
        ("{{ " + "-" * 5000 + "a }}", "nested too deeply"),
    ],
)
def test_what_would_never_end_is_refused_when_read(template: str, why: str | None) -> None:
    if why is None:
        assert read(template) == template
        return
    with pytest.raises(ValidationError, match=why):
        read(template)


@pytest.mark.parametrize(
    "template",
    [
        '{{ "a" * n }}',
        "{{ 9**n }}",
        "{{ [1] * n }}",
        '{{ "%1000000000d" | format(1) }}',
        '{{ "%*d" | format(n, 1) }}',
        '{{ "%1000000000d" % text }}',
        '{{ "{:1000000000}".format(1) }}',
        '{{ "{:{}}".format(1, n) }}',
        '{{ "{a:1000000000}".format_map({"a": 1}) }}',
        "{{ text | center(10**9) }}",
        "{{ text | center(width=n) }}",
        "{{ text | indent(n) }}",
        "{{ [1] | batch(n, 'x') | list }}",
        "{{ [1] | slice(n, 'x') | list }}",
        "{{ 1.5 | round(n) }}",
        "{{ [1] | tojson(indent=n) }}",
        "{{ text.ljust(n) }}",
        "{{ text.zfill(n) }}",
        "{{ '\t'.expandtabs(n) }}",
        "{% set t = text * 100000 %}{{ t | replace('a', t) }}",
        "{% set t = text * 100000 %}{{ t.replace('a', t) }}",
        "{% set t = text * 100000 %}{{ ([t] * 1000000) | join }}",
        "{% set t = text * 100000 %}{{ ([t] * 1000000) | map('string') | join }}",
        "{% set t = text * 100000 %}{{ t.join([1] * 1000000) }}",
        "{% set t = text * 100000 %}{{ t | wordwrap(1, wrapstring=t) }}",
        "{% for a in range(10**5) %}{% for b in range(10**5) %}{% endfor %}{% endfor %}",
        "{% for a in 'a' * 10**6 %}{% for b in 'a' * 10**6 %}{% endfor %}{% endfor %}",
        "{% set m = namespace(t='aa') %}{% for a in range(100) %}{% set m.t = m.t ~ m.t %}{% endfor %}",
        "{% set m = namespace(t='aa') %}{% for a in range(100) %}{% set m.t = m.t + m.t %}{% endfor %}",
        "{% set m = namespace(t=99) %}{% for a in range(100) %}{% set m.t = m.t * m.t %}{% endfor %}",
        "{% set t = 'a' * 10**6 %}{% for a in range(100000) %}{{ t }}{% endfor %}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{{ lipsum(n=1000000) }}",
        "{{ rows.append(1) }}",
    ],
)
def test_what_would_never_end_fails_its_row(template: str) -> None:
    with pytest.raises((SecurityError, ValueError)):
        render(read(template), {"n": 10**9, "text": "abc" * 10, "rows": [1]})


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ 2**10 * 3 + 7 % 4 }} {{ 'ab' * 3 + 'c' }}", "3075 abababc"),
        (
            "{{ '%05.1f' | format(1.25) }} {{ '%s: %d' % ('a', 3000000) }} {{ '{:>4}'.format('a') }}",
            "001.2 a: 3000000    a",
        ),
        (
            "{% for row in rows %}{{ loop.index }}/{{ loop.length }}{{ '' if loop.last else ' ' }}{% endfor %}",
            "1/2 2/2",
        ),
        ("{% for a, b in pairs.items() recursive %}{{ a }}{{ b }}{% else %}none{% endfor %}", "x1"),
        (
            "{{ rows | join(', ') }} {{ 'a' ~ 1 ~ none }} {{ 'x'.center(3) }} {{ rows | tojson }}",
            'a, b a1None  x  ["a", "b"]',
        ),
        (
            "{{ text | replace('b', 'xy') }} {{ 1.256 | round(2) }} {{ text | indent(2) }} {{ big }}",
            "axyc 1.26 abc 12345678901",
        ),
        ("{% for each in rows if each != 'a' %}{{ each }}{% endfor %}{{ '<b>' }}", "b<b>"),
    ],
)
def test_what_templates_are_for_is_as_ever(template: str, text: str) -> None:
    columns: dict[str, Any] = {"rows": ["a", "b"], "pairs": {"x": 1}, "text": "abc", "big": 12345678901}
    assert render(read(template), columns) == text
