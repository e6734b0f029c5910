"""Find keys, tokens and passwords.

Forms come from the issuers' documentation, and from gitleaks 8 for those who do not publish theirs. A value after a name such
as `password` or `api_key` is a secret if it looks random and is no placeholder.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator

from data.filters.pii.folding import Span, adjoins, lowered

# name: (a part that must be in the text, the whole form). All end where letters, digits and "_" end.
FORMS = {
    "aws": (("AKIA", "ASIA", "ABIA", "ACCA"), r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}"),
    "github": (("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"gh[pousr]_[A-Za-z0-9]{36,255}"),
    "github_fine": (("github_pat_",), r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}"),
    "gitlab": (("glpat-", "gldt-", "glrt-", "glptt-", "glcbt-", "glsoat-"), r"gl(?:pat|dt|rt|ptt|cbt|soat)-[\w-]{20,64}"),
    "slack": (("xoxa-", "xoxb-", "xoxe-", "xoxo-", "xoxp-", "xoxr-", "xoxs-"), r"xox[abeoprs]-(?:\d+-)?[A-Za-z0-9-]{10,250}"),
    "slack_webhook": (("hooks.slack.com",), r"hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9+/]{43,56}"),
    "slack_app": (("xapp-",), r"xapp-\d-[A-Z0-9]{8,16}-\d{8,16}-[a-z0-9]{32,80}"),
    "google": (("AIza",), r"AIza[\w-]{35}"),
    "google_oauth": (("ya29.",), r"ya29\.[\w-]{20,512}"),
    "google_client": (("GOCSPX-",), r"GOCSPX-[\w-]{28}"),
    "openai": (("sk-",), r"sk-(?<![\w-]sk-)(?:(?:proj|svcacct|admin|ant|or|live|test)-)?[\w-]{20,256}+"),
    "stripe": (("k_live_", "k_test_"), r"[srp]k_(?:live|test)_[A-Za-z0-9]{10,99}"),
    "webhook": (("whsec_",), r"whsec_[A-Za-z0-9+/]{24,64}=*"),
    "huggingface": (("hf_", "api_org_"), r"(?:hf|api_org)_[A-Za-z]{34}"),
    "npm": (("npm_",), r"npm_[A-Za-z0-9]{36}"),
    "pypi": (("pypi-AgE",), r"pypi-AgE[\w-]{50,1000}"),
    "sendgrid": (("SG.",), r"SG\.[\w-]{22}\.[\w-]{43}"),
    "twilio": (("SK", "AC"), r"(?:SK|AC)[0-9a-f]{32}"),
    "mailgun": (("key-",), r"key-[0-9a-f]{32}"),
    "digitalocean": (("_v1_",), r"do[opr]_v1_[0-9a-f]{64}"),
    "telegram": ((":AA",), r"\d{8,10}:AA[\w-]{33}"),
    "discord": (("iscord", "oken", "OKEN"), r"[MNO][A-Za-z\d_-]{23,25}\.[\w-]{6}\.[\w-]{27,40}"),
    "shopify": (("shpat_", "shpca_", "shppa_", "shpss_"), r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    "databricks": (("dapi",), r"dapi[0-9a-f]{32}(?:-\d)?"),
    "linear": (("lin_api_",), r"lin_api_[A-Za-z0-9]{40}"),
    "groq": (("gsk_",), r"gsk_[A-Za-z0-9]{52}"),
    "replicate": (("r8_",), r"r8_[A-Za-z0-9]{37}"),
    "docker": (("dckr_pat",), r"dckr_pat_[\w-]{27}"),
    "vault": (("hvs.", "hvb."), r"hv[sb]\.[\w-]{24,300}"),
    "age": (("AGE-SECRET-KEY-1",), r"AGE-SECRET-KEY-1[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58}"),
    "newrelic": (("NRAK-",), r"NRAK-[A-Z0-9]{27}"),
    "postman": (("PMAK-",), r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}"),
    "atlassian": (("ATATT3",), r"ATATT3[\w=-]{100,300}"),
    "brevo": (("xkeysib-",), r"xkeysib-[0-9a-f]{64}-[A-Za-z0-9]{16}"),
    "grafana": (("glsa_",), r"glsa_[A-Za-z0-9]{32}_[0-9a-f]{8}"),
    "sentry": (("sntrys_", "sntryu_"), r"sntry[su]_[A-Za-z0-9+/=_]{60,400}"),
    "notion": (("ntn_",), r"ntn_[A-Za-z0-9]{40,50}"),
    "rubygems": (("rubygems_",), r"rubygems_[0-9a-f]{48}"),
    "pulumi": (("pul-",), r"pul-[0-9a-f]{40}"),
    "perplexity": (("pplx-",), r"pplx-[A-Za-z0-9]{40,60}"),
    "xai": (("xai-",), r"xai-[A-Za-z0-9]{70,90}"),
    "square": (("sq0atp-", "sq0csp-"), r"sq0(?:atp-[\w-]{22}|csp-[\w-]{43})"),
    "jwt": (("eyJ",), r"eyJ(?<![\w-]eyJ)[\w-]{8,4096}+\.eyJ[\w-]{8,65536}+\.[\w-]{10,4096}+"),
    "azure": (("AccountKey=",), r"AccountKey=[A-Za-z0-9+/]{86}=="),
}
# Bits a character; words of a language have about 2.5 to 3, random letters and digits of this length over 3.3.
MIN_ENTROPY = 3.0
MIN_PASSWORD = 6  # characters of a value after a name
LONGEST_KEY = 16384  # characters of a PEM block

_FORMS = tuple((part, re.compile(rf"(?:{form})(?![A-Za-z0-9_])")) for parts, form in FORMS.values() for part in parts)
# Searches for a sign or a capital and what follows, each in place of searches for many parts. Its matches end after the part.
_GATES = tuple(
    (re.compile(gate), tuple(part for part, _ in _FORMS if part.endswith(ends)))
    for gate, ends in ((r"_(?=[A-Za-z0-9+/]{16})", "_"), (r"-(?=[\w-]{16})(?!-)", "-"))
)
_CAPITALS = re.compile(r"A(?:[KSB]IA|CCA|Iza|C[0-9a-f]{32}|ccountKey=)|S(?:K[0-9a-f]{32}|G\.)")
_BEHIND_CAPITALS = ("AKIA", "ASIA", "ABIA", "ACCA", "AIza", "AC", "AccountKey=", "SK", "SG.")
_UNGATED = tuple(part for part, _ in _FORMS if not part.endswith(("_", "-")) and part not in _BEHIND_CAPITALS)
_PEM = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_PEM_END = re.compile(r"-----END (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_KEY_LINE = re.compile(r"[A-Za-z0-9+/=]{16}")  # not "… the key in base64 …"
_URL = re.compile(r"://([^\s/:@?#\"'<>]{0,64}+:[^\s/@\"'<>]{3,128}+)@[\w.-]")
_SCHEMES = ("bearer ", "basic ", "authorization: ")  # of an HTTP header
_BEARER = re.compile(
    r"(?:(?<=authorization: )(?:token|apikey|api-key)\s)?\s{0,2}([A-Za-z0-9+/._~-]{16,2048}=*+)", re.IGNORECASE
)
# A password on a command line: curl -u name:password, sshpass -p password, mysql -ppassword.
_OPTION = re.compile(
    r"\b(?:curl\b[^\n]{0,200}?\s(?:-u|--user)[ =]|sshpass\s-p\s?|mysql\w{0,6}\b[^\n]{0,80}?\s-p)[\"']?(?P<value>[^\s\"']{6,64})"
)
# Names of secrets begin with one of these, or are a "key" after one of _KEYS. `str.find` finds them faster than an expression.
_NAMES = ("pass", "pwd", "secret", "token", "credential", "key")
_PASSWORDS = ("pass", "pwd")
# "Password" in other languages: Spanish, Portuguese, Dutch, Italian and Turkish; those with letters beyond ASCII apart.
_FOREIGN = ("contrasena", "senha", "wachtwoord", "parola")
_FOREIGN_LETTERS = (*"contraseña hasło lösenord şifre пароль 密码 密碼 パスワード 비밀번호".split(), "كلمة المرور")
_KEYS = re.compile(r"(?:api|access|private|auth|encryption|secret|account|signing|master|shared)[_ -]?\Z")
_ASSIGNED = re.compile(
    r"(?:(?<!pass)|(?<=_pass)|w(?:or)?[dt]?|phrase|code|(?<=mot de pass)e)s?(?:[_-]?(?:key|id|value|string|access[_-]?key))?"
    r"[\"'\]]{0,2}\s{0,3}(?:(?:lautet|ist|est|es)\b\s?)?(?::=|=>|={1,2}|:|\bis\b|(?<=ist )|(?<=est ))\s{0,3}"
    r"(?P<quote>[\"'`]?)(?P<value>[^\s\"'`<>]{6,512}+)",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"your|example|change_?me|placeholder|xxx|\*\*\*|\.\.\.|dummy|sample|redacted|hidden|insert|replace|todo|null|none|true|false|"
    r"environ|getenv|process\.env|config|settings|self\.|this\.|request|params|options|args|string|function|required|optional|"
    r"secret|password|passwd|token|^1234",
    re.IGNORECASE,
)
_CODE = re.compile(r"[(){}\[\]]|^\$|->|::|^\w+\.\w+(?:\.\w+)*[,;]?$|^/|^https?:|^%|^&|^@|:$")


def entropy(text: str) -> float:
    """Return the Shannon entropy of the characters, in bits a character: −Σ p log₂ p."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)


def find_secrets(text: str) -> Iterator[Span]:
    """Yield the spans of keys, tokens and passwords in a folded text. The name before a value is not part of it."""
    parts = _present(text)
    for part, form in _FORMS if parts else ():
        if part in parts:
            for match in form.finditer(text):
                before = text[max(0, match.start() - 1) : match.start()]
                if not (adjoins(before) or before in ("_", "-")) and (part != "sk-" or _random(match[0][3:])):
                    yield Span(match.start(), match.end(), "secret")
    if "PRIVATE KEY" in text:
        for begin in _PEM.finditer(text):
            end = _PEM_END.search(text, begin.end(), min(len(text), begin.end() + LONGEST_KEY))
            if end is not None and _KEY_LINE.search(text, begin.end(), end.start()):
                yield Span(begin.start(), end.end(), "secret")
    if "://" in text and "@" in text:
        for match in _URL.finditer(text):
            password = match[1].partition(":")[2]
            if not (_PLACEHOLDER.search(password) and re.fullmatch(r"[A-Za-z_-]+", password)):
                yield Span(match.start(1), match.end(1), "secret")
    lower = lowered(text)
    for scheme in _SCHEMES:
        at = lower.find(scheme)
        while at >= 0:
            match = _BEARER.match(text, at + len(scheme))
            if match is not None and _random(match[1]):
                yield Span(*match.span(1), "secret")
            at = lower.find(scheme, at + len(scheme))
    for name in (*_NAMES, *_FOREIGN) if text.isascii() else (*_NAMES, *_FOREIGN, *_FOREIGN_LETTERS):
        if name in lower:
            yield from _named(text, name)
    if "curl" in text or "mysql" in text or "sshpass" in text:
        for match in _OPTION.finditer(text):
            if _is_secret(match["value"].rpartition(":")[2], password=True):
                yield Span(*match.span("value"), "secret")


def _present(text: str) -> set[str]:
    """Return the parts of `_FORMS` that may be in the text: all those that are, before a long word."""
    parts = {part for part in _UNGATED if part in text}
    for gate, ends in _GATES:
        for match in gate.finditer(text):
            before = text[max(0, match.end() - 16) : match.end()]
            if before.endswith(ends):
                parts.update(part for part in ends if before.endswith(part))
    parts.update(part for match in _CAPITALS.finditer(text) for part in _BEHIND_CAPITALS if match[0].startswith(part))
    return parts


def _named(text: str, name: str) -> Iterator[Span]:
    lower = lowered(text)
    at = lower.find(name)
    while at >= 0:
        end = at + len(name)
        match = _ASSIGNED.match(text, end)
        variable = name == "key" and text[max(0, at - 2) : end + 1].endswith("_KEY=") and text[max(0, at - 2)].isupper()
        if match is not None and (name != "key" or variable or _KEYS.search(lower[max(0, at - 12) : at])):
            value = match["value"]
            if not match["quote"]:
                value = re.split(r"[,;)}\]]|&(?=[\w.-]+=)", value, maxsplit=1)[0].rstrip(".")
            if _is_secret(value, password=name in _PASSWORDS or name not in _NAMES):
                yield Span(match.start("value"), match.start("value") + len(value), "secret")
        at = lower.find(name, end)


def _is_secret(value: str, password: bool) -> bool:
    if len(value) < MIN_PASSWORD or _PLACEHOLDER.search(value) or _CODE.search(value):
        return False
    return _random(value) or (password and _mixed(value))


def _random(value: str) -> bool:
    """Return whether the value is long, has letters and digits, and has the entropy of random characters."""
    return len(value) >= 16 and _mixed(value) and entropy(value) >= MIN_ENTROPY


def _mixed(value: str) -> bool:
    """Return whether the value has letters, and digits or signs, and is no number, date, version or word with a hyphen."""
    value = value.rstrip("?!")
    letters = any(character.isalpha() for character in value)
    digits = any(character.isdigit() for character in value)
    signs = any(character in "!@#$%^&*+=?~|" for character in value)
    return letters and (digits or signs) and not re.fullmatch(r"v?\d[\d.]*[a-z]{0,3}\d?", value)
