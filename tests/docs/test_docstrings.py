"""Docstrings become HTML that says the same."""

import ast
import html
import re

import docstrings
import function_pages


def test_paragraphs_are_joined_and_lists_kept():
    text = """Return x < y.

    A paragraph that is wrapped after a long line, because the next word did not fit into this line.
    It goes on. See lm.infer.load and `code`.
    k1 = 1
    k2 = 2

    1. first
    2. second,
       which goes on
    """
    assert docstrings.to_html(text, {"lm.infer.load": "lm.html#x"}.get) == (
        "<p>Return x &lt; y.</p><p>A paragraph that is wrapped after a long line, because the next word did not fit into "
        'this line. It goes on. See <a href="lm.html#x">lm.infer.load</a> and <code>code</code>.<br>k1 = 1<br>k2 = 2</p>'
        "<ul><li>first</li><li>second,<br>which goes on</li></ul>"
    )


def test_fields_columns_and_blocks():
    text = """Return both.

        p = q
          + r

    Rules:
      one    what one does
      three  what three does,
             in two lines

    Args:
      a, b: of it: both
        for long.
      other
    Raises: UserError if not.
    >>> 1 < 2
    True
    """
    assert docstrings.to_html(text) == (
        "<p>Return both.</p><pre>p = q\n  + r</pre><p>Rules:</p><table><tbody><tr><td>one</td><td>what one does</td></tr>"
        "<tr><td>three</td><td>what three does, in two lines</td></tr></tbody></table>"
        "<p><strong>Args:</strong></p><ul><li><code>a, b</code>: of it: both<br>for long.</li><li>other</li></ul>"
        "<p><strong>Raises:</strong> UserError if not.<br>&gt;&gt;&gt; 1 &lt; 2<br>True</p>"
    )


def test_no_word_of_the_public_docstrings_is_lost():
    tags = re.compile(r"</?(?:a|br|code|li|p|pre|strong|table|tbody|td|tr|ul)\b[^>]*>")
    numbers = re.compile(r"^(?:\d+\.|[-*•]) ", re.M)
    for module in function_pages.modules():
        for node in (module.tree, *module.public()):
            text = ast.get_docstring(node) or ""
            shown, bare = html.unescape(tags.sub(" ", docstrings.to_html(text))), numbers.sub("", text)
            assert re.sub(r"[\s`]", "", shown) == re.sub(r"[\s`]", "", bare), f"{module.path}: {text}"
