"""Links of the documentation hold in the repository."""

import links
import pytest

DOCUMENTS = [*sorted(links.ROOT.glob("*.md")), *sorted((links.ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(links.ROOT)))
def test_links_hold(path):
    assert links.broken(path) == []


def test_wrong_links_are_named(tmp_path):
    (tmp_path / "other.md").write_text("# Some `code`, and more\n\n## Twice\n\n## Twice\n\n```\n# not a heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n[a](other.md#some-code-and-more) [b](other.md#twice-1) [c](#page)\n"
        "[d](https://example.com/x.md) `[e](none.md)`\n"
        "\n    [f](none.md) in code\n\n[g](missing.md) [h](other.md#not-a-heading) ![i](missing.png) [j](../outside.md)\n"
    )
    (tmp_path.parent / "outside.md").write_text("")
    assert links.broken(page, tmp_path) == [
        "page.md: missing.md: no such file",
        "page.md: other.md#not-a-heading: no such heading",
        "page.md: missing.png: no such file",
        "page.md: ../outside.md: no such file",
    ]


def test_links_lead_to_pages_of_the_site():
    found = []
    text = "[a](../lm/errors.py#L12) [b](train.md#text) [c](../README.md) [d](../configs/smollm2) [e](#text) ![f](mup.png)"
    assert links.for_site("docs/align.md", text, found.append) == (
        "[a](source/lm/errors.py.md#__codelineno-0-12) [b](train.md#text) [c](index.md) [d](source/configs/smollm2/index.md) "
        "[e](#text) ![f](mup.png)"
    )
    assert sorted(found) == ["README.md", "configs/smollm2", "docs/mup.png", "docs/train.md", "lm/errors.py"]
    assert links.for_site("README.md", "[a](docs/train.md) [b](lm/errors.py)") == "[a](train.md) [b](source/lm/errors.py.md)"
