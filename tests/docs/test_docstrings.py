"""Docstrings become HTML that says the same."""

import ast
import html
import re

import docstrings
import function_pages


def test_paragraphs_are_joined_and_lists_stay_as_typed():
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
        "<pre>1. first\n2. second,\n   which goes on</pre>"
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
        "<p>Return both.</p><pre>p = q\n  + r</pre><p>Rules:</p><pre>one    what one does\nthree  what three does,\n"
        "       in two lines</pre><p><strong>Args:</strong></p><pre>a, b: of it: both\n  for long.\nother</pre>"
        "<p><strong>Raises:</strong> UserError if not.</p><pre>&gt;&gt;&gt; 1 &lt; 2\nTrue</pre>"
    )


def test_no_word_of_the_public_docstrings_is_lost():
    tags = re.compile(r"</?(?:a|br|code|p|pre|strong)\b[^>]*>")
    for module in function_pages.modules():
        for node in (module.tree, *module.public()):
            text = ast.get_docstring(node) or ""
            shown, bare = html.unescape(tags.sub(" ", docstrings.to_html(text))), text
            assert re.sub(r"[\s`]", "", shown) == re.sub(r"[\s`]", "", bare), f"{module.path}: {text}"
