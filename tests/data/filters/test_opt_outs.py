"""Objections to training, from headers and from pages."""

import pytest

from data.filters.opt_outs import opt_outs


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, ""),
        (None, ""),
        ({"robots": "index, follow"}, ""),
        ({"robots": "noindex, NoAI"}, "noai"),
        ({"Robots": "noai, noimageai"}, "noai+noimageai"),
        ({"X-Robots-Tag": "otherbot: noindex, noimageai"}, "noimageai"),
        ({"googlebot": "noai"}, "noai"),
        ({"description": "noai"}, ""),
        ({"robots": "nothing about noaix"}, ""),
        ({"TDM-Reservation": "1"}, "tdm"),
        ({"tdm-reservation": "0"}, ""),
        ({"robots": "noai", "tdm-reservation": " 1 "}, "noai+tdm"),
    ],
)
def test_an_objection_is_found(metadata, expected):
    columns = opt_outs([metadata])
    assert columns["opt_out_reason"] == [expected]
    assert [name for name in ("noai", "noimageai", "tdm") if columns[f"opt_out_{name}"][0]] == (
        expected.split("+") if expected else []
    )


def test_no_documents():
    assert len(opt_outs([])["opt_out_reason"]) == 0
