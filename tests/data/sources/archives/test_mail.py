"""Mail gives subject and text; attachments and addresses stay out."""

import email.message
import email.policy

from data.sources.archives import mail
from tests.data.sources.archives.common import read


def message(text: str, subject="Größe", **options) -> email.message.EmailMessage:
    mail = email.message.EmailMessage(policy=email.policy.default.clone(linesep="\n"))
    mail["From"], mail["To"], mail["Subject"] = "Ann <ann@a.example>", "bob@a.example", subject
    mail["Date"] = "Mon, 6 May 2024 07:08:09 +0200"
    mail.set_content(text, **options)
    return mail


def test_a_message(tmp_path):
    for charset, coding in (("utf-8", "base64"), ("utf-8", "quoted-printable"), ("iso-8859-1", "8bit")):
        (tmp_path / "a.eml").write_bytes(bytes(message("Schöne Grüße\n", charset=charset, cte=coding)))
        [document], quarantined = read(tmp_path / "a.eml")
        assert not quarantined and document.text == "Größe\n\nSchöne Grüße"
        assert (document.date, document.metadata) == ("2024-05-06T07:08:09+02:00", {"title": "Größe"})


def test_plain_text_wins_and_attachments_are_left_out(tmp_path):
    both = message("the plain part\n")
    both.add_alternative("<p>the <b>HTML</b> part</p>", subtype="html")
    both.add_attachment("secret notes", filename="a.txt")
    both.add_attachment(b"\x89PNG", "image", "png", filename="a.png")
    (tmp_path / "a.eml").write_bytes(bytes(both))
    assert [d.text for d in read(tmp_path / "a.eml")[0]] == ["Größe\n\nthe plain part"]
    only = message("<html><body><p>Hello,</p><p>the &auml;rger</p></body></html>", subtype="html")
    (tmp_path / "b.eml").write_bytes(bytes(only))
    assert [d.text for d in read(tmp_path / "b.eml")[0]] == ["Größe\n\nHello,\n\nthe ärger"]
    forwarded = message("see below\n")
    forwarded.add_attachment(message("inner text\n"), disposition="inline")
    (tmp_path / "c.eml").write_bytes(bytes(forwarded))
    assert [d.text for d in read(tmp_path / "c.eml")[0]] == ["Größe\n\nsee below\n\ninner text"]


def test_an_mbox(tmp_path, monkeypatch):
    monkeypatch.setattr(mail, "MAX_MESSAGE_BYTES", 10_000)
    bodies = ["one\n>From here on\n", "x" * 20_000 + "\n", "\n", "four\nFrom within a paragraph\n"]
    texts = [f"From ann@a.example Mon May  6 07:08:09 2024\n{message(body, f'S{k}')}\n" for k, body in enumerate(bodies)]
    (tmp_path / "a.mbox").write_text("".join(texts))
    documents, quarantined = read(tmp_path / "a.mbox")
    assert [d.text for d in documents] == ["S0\n\none\nFrom here on", "S3\n\nfour\nFrom within a paragraph"]
    assert [d.id for d in documents] == ["a.mbox#1", "a.mbox#4"]
    assert quarantined == [("message 2", "mail over 0 MiB"), ("message 3", "no text")]
    (tmp_path / "b.mbox").write_text("nothing of the kind\n")
    assert read(tmp_path / "b.mbox") == ([], [("", "not an mbox")])


def test_a_maildir_and_names_without_an_ending(tmp_path):
    (tmp_path / "cur").mkdir()
    for path in (tmp_path / "cur/1715.M1P2.host:2,S", tmp_path / "00001.7c53336b37003a9286aba55d2945844c"):
        path.write_bytes(bytes(message("text\n")))
        assert [d.text for d in read(path)[0]] == ["Größe\n\ntext"]


def test_what_a_message_says_of_archives(tmp_path):
    one = message("text\n")
    one["X-No-Archive"], one["List-Id"], one["Content-Language"] = "Yes", "Bees <bees.example>", "de-AT"
    (tmp_path / "a.eml").write_bytes(bytes(one))
    [document] = read(tmp_path / "a.eml")[0]
    assert document.metadata == {"title": "Größe", "x_no_archive": "Yes", "list_id": "Bees <bees.example>"}
    assert document.language == "de"


def test_hostile_messages_are_quarantined(tmp_path):
    deep = b"".join(b'Content-Type: multipart/mixed; boundary="%d"\n\n--%d\n' % (k, k) for k in range(5_000))
    deep_enough = b"".join(b'Content-Type: multipart/mixed; boundary="%d"\n\n--%d\n' % (k, k) for k in range(100))
    encoded = b"Subject: =?utf-8?b?!!?= =?nope?q?=ff?=\nDate: nonsense\nContent-Type: text/plain; charset"
    for data, reason in (
        (deep + b"\ntext", "mail too deep"),
        (deep_enough + b"\ntext", "mail too deep"),
        (
            b"Subject: =?utf-8?b?!!?= =?nope?q?=ff?=\nDate: nonsense\nContent-Type: text/plain; charset*=nope'x'%ff\n\n \n",
            "no text",
        ),
        (b"Subject: x\nContent-Type: text/html\n\n" + b"<div>" * 100_000, "html too deep"),
        (b"", "no text"),
    ):
        (tmp_path / "a.eml").write_bytes(data)
        assert read(tmp_path / "a.eml") == ([], [("", reason)])
    (tmp_path / "a.eml").write_bytes(encoded + b"=nope\n\ntext \xe9t\xe9\n")
    assert read(tmp_path / "a.eml")[0][0].text.endswith("text été")
