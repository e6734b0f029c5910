"""Hostile templates are stopped; ordinary ones render as Jinja renders them."""

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data.chat.limited_jinja import LimitedEnvironment, TooMuch, rendered

DOUBLING = "{% set n = namespace(x=START) %}{% for i in range(99) %}{% set n.x = STEP %}{% endfor %}{{ n.x | length }}"


def doubling(start: str, step: str) -> str:
    return DOUBLING.replace("START", start).replace("STEP", step)


HOSTILE = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "filtered loops": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for a in [1] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "recursive macro": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "branching macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "growing macro": "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n else 'a' * 999 }}{% endmacro %}{{ f(30) }}",
    "doubled text": doubling("'ab'", "n.x ~ n.x"),
    "added text": doubling("'ab'", "n.x + n.x"),
    "doubled list": doubling("[1]", "n.x + n.x"),
    "nested lists": doubling("[1]", "[n.x, n.x]").replace("length", "string"),
    "nested tuples": doubling("[1]", "(n.x, n.x)").replace("length", "string"),
    "nested objects": doubling("{}", "{'a': n.x, 'b': n.x}").replace("length", "string"),
    "nested dicts": doubling("{}", "dict(a=n.x, b=n.x)").replace("length", "string"),
    "times": "{{ 'a' * 999999999999 }}",
    "times a list": "{{ [1] * 999999999 }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "squares": doubling("9", "n.x * n.x").replace("| length", ""),
    "center": "{{ 'a' | center(999999999999) }}",
    "ljust": "{{ 'a'.ljust(999999999999) }}",
    "zfill": "{{ 'a'.zfill(999999999999) }}",
    "indent": "{{ 'a\na' | indent(999999999999) }}",
    "replace": "{{ ('a' * 99999).replace('', 'b' * 99999) }}",
    "replace filter": "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "join": "{{ ('b' * 99999).join('a' * 99999) }}",
    "join of an iterator": "{{ ('b' * 99999).join(range(99999) | map('string')) }}",
    "join filter": "{{ range(99999) | map('string') | join('b' * 99999) }}",
    "printf": "{{ '%999999999999d' % 1 }}",
    "printf filter": "{{ '%0*d' | format(999999999, 1) }}",
    "repeated field": "{{ ('{0}' * 9999).format('a' * 999999) }}",
    "format": "{{ '{:999999999999}'.format(1) }}",
    "format of formats": "{{ '{:{}}'.format(1, 999999999) }}",
    "expandtabs": "{{ ('\t' * 999).expandtabs(99999999) }}",
    "bytes": "{{ (1).to_bytes(999999999, 'big') }}",
    "translate": "{{ ('a' * 99999).translate({97: 'b' * 99999}) }}",
    "json margin": "{{ [1] | tojson(indent=999999999) }}",
    "round": "{{ 1.5 | round(999999999, 'ceil') }}",
    "sum of lists": "{{ [[1], [2]] | sum(start=[]) }}",
    "set block": "{% set x %}{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}{% endset %}",
    "much text": "{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
    "deep source": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep blocks": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "deep loops": "{% for i in [1] %}" * 50 + "{% endfor %}" * 50,
    "long source": "a" * (1 << 21),
}


def environment() -> LimitedEnvironment:
    limited = LimitedEnvironment()
    limited.add_filter("tojson", lambda value, indent=None: str(value))
    return limited


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_stopped(name):
    with pytest.raises(jinja2.TemplateError):
        rendered(environment().compiled(HOSTILE[name]), {})


REACHING = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by filter": "{{ ('' | attr('__class__')).__mro__ }}",
    "class by item": "{{ ''['__class__'].__mro__ }}",
    "class by map": "{{ [''] | map(attribute='__class__.__mro__') | list }}",
    "class by format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "class by format_map": "{{ '{a.__class__.__mro__}'.format_map({'a': ''}) }}",
    "globals of a function": "{{ range.__globals__.os }}{{ namespace.__init__.__globals__ }}",
    "globals of a macro": "{% macro f() %}{% endmacro %}{{ f.__call__.__globals__ }}{{ f._func.__globals__ }}",
    "frame of a generator": "{{ (['a'] | map('upper')).gi_frame.f_globals }}",
    "environment": "{{ self._TemplateReference__context.environment.globals }}",
    "changed list": "{{ messages.append(1) }}{{ messages }}",
    "changed object": "{{ messages[0].update(a=1) }}{{ messages }}",
    "a file": "{% include '/etc/passwd' %}",
    "a module": "{% import 'os' as os %}{{ os.system('true') }}",
}


@pytest.mark.parametrize("name", REACHING)
def test_no_template_reaches_what_it_was_not_given(name):
    messages = [{"role": "user"}]
    with pytest.raises((jinja2.TemplateError, TypeError, AttributeError)):
        rendered(environment().compiled(REACHING[name]), {"messages": messages})
    assert messages == [{"role": "user"}]


def test_slow_steps_are_stopped_by_the_clock(monkeypatch):
    monkeypatch.setattr("data.chat.limited_jinja.SECONDS", 0.05)
    slow = "{% for i in range(99999) %}{% set y = big | sort | list | length %}{% endfor %}"
    with pytest.raises(TooMuch, match="0.05 s"):
        rendered(environment().compiled(slow), {"big": list(range(9999, 0, -1))})


ORDINARY = [
    "{% for m in messages %}{{ loop.index ~ '/' ~ loop.length ~ m.role }}{{ loop.last }}{{ loop.previtem }}{% endfor %}",
    "{% for m in messages recursive %}{{ m.role }}{{ loop(m.inner) if m.inner }}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ m.content | trim }}{% else %}none{% endfor %}",
    "{% set ns = namespace(n=0, text='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{{ messages | map(attribute='role') | join(', ') }} {{ messages | selectattr('role', 'eq', 'user') | list | length }}",
    "{{ '%s is %03d' | format('a', 7) }} {{ '%.2f' % 1.5 }} {{ '{0:>5}|{name}'.format('a', name='b') }}",
    "{{ 'a-b'.split('-')[::-1] }} {{ 'x'.join(['a', 'b']) }} {{ 'aXa'.replace('X', '\n') | indent(2) }}",
    "{% macro f(x, y=2) %}{{ x * y }}{{ caller() if caller }}{% endmacro %}{{ f('a') }}{% call f(3) %}c{% endcall %}",
    "{{ 7 // 2 }} {{ 7 % 2 }} {{ 2 ** 8 }} {{ 1.26 | round(1) }} {{ [1, 2] | sum }} {{ [1] + [2] }} {{ (1, 2) }}{{ {} }}",
    "{% set a %}x{{ 1 }}{% endset %}{{ a ~ a }} {% filter upper %}b{% endfilter %} {{ dict(a=1).items() | list }}",
    "{{ missing }}{% for x in missing %}{% endfor %}{{ missing is defined }}{{ 'a' in 'ab' }}{{ range(3) | list }}",
]


@pytest.mark.parametrize("source", ORDINARY)
def test_an_ordinary_template_renders_as_without_limits(source):
    messages = [{"role": "system", "content": " a "}, {"role": "user", "content": "b ", "inner": [{"role": "tool"}]}]
    expected = ImmutableSandboxedEnvironment().from_string(source).render(messages=messages)
    assert rendered(environment().compiled(source), {"messages": messages}) == expected


def test_a_namespace_does_not_show_what_it_holds():
    nested = doubling("1", "namespace(a=n.x, b=n.x)").replace("| length", "")
    assert rendered(environment().compiled(nested), {}) == "<Namespace>"


def test_limits_grow_with_what_a_template_reads():
    text = "{% for c in x %}{{ c }}{% endfor %}{{ x ~ x }}"
    assert len(rendered(environment().compiled(text), {"x": "a" * 300_000})) == 900_000
