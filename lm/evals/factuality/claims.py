"""Split a text into atomic claims, by rules, in English.

A claim is a clause with its own subject and finite verb. The rules do not parse: a verb is in a list of common ones or ends in
-ed, and a subject is what comes before a verb. The rules:

    sentences          end at . ! ?, not after abbreviations and initials; list items and headings are separate lines
    no claims          questions, headings, remarks about the answer ("Here is …", "I hope this helps")
    ;                  two claims
    S, who V …, W      S V …; S W                  (who or which, after a subject or after a name)
    S, born …, W       S was born …; S W
    S (1879–1955) W    S was born in 1879; S died in 1955; S W        (after a name, also with day and month)
    S was born in X in 1879   S was born in X; S was born in 1879    (also died, and with day and month, in either order)
    S V … and W …      S V …; S W …                if W is a verb: the subject is repeated
    S V … and T W …    S V …; T W …                also but, while, whereas, although, though, yet, if both have verbs
    He V …             Einstein V …                the last subject that is a name, for "it" any; at first the topic

Limits: two objects or dates of one verb ("in 1903 and 1911") stay one claim, verbs outside the list are missed, and a pronoun
inside a clause stays.
"""

import re
from collections.abc import Iterator

PRONOUNS = {"he", "she", "it", "they"}
POSSESSIVES = {"his", "her", "its", "their"}
DETERMINERS = set("the a an this that these those some any each every no".split()) | POSSESSIVES
PREPOSITIONS = set(
    "in on at by of from to with for into onto near during after before since until under over between among through against "
    "about as within without toward towards across along around behind beyond despite like off outside inside upon".split()
)
ADVERBS = set("also later then first never always often soon now still just once again eventually finally originally".split())
AUXILIARIES = set(
    "is are was were am be been being has have had having does did do done can could will would may might must shall "
    "should".split()
)
ABBREVIATIONS = set(
    "dr mr mrs ms prof st no vs e.g i.e jr sr inc ltd co corp approx fig vol ca cf gen col lt sgt capt rev hon gov sen rep mt "
    "jan feb mar apr jun jul aug sep sept oct nov dec u.s u.k a.m p.m d.c ph.d b.c a.d etc al".split()
)
ENDING = {"inc", "ltd", "co", "corp", "jr", "sr", "u.s", "u.k", "a.m", "p.m", "d.c", "ph.d", "b.c", "a.d", "etc", "al"}
STARTERS = set(
    "the a an he she it they we i you his her its their this that these those in on at after before when but".split()
)
LONGEST = 1000  # characters of a sentence; a longer one is not split
LINE = 60  # a line of at least so many characters without an end continues on the next line

# Finite forms that do not end in -ed.
VERBS = AUXILIARIES - {"being", "been", "having", "done"} | set(
    "cannot became become becomes began begins broke brought built bought came comes chose contains consists covers dies "
    "drew fell felt flows flew fought found gave get gets give gives go goes got grew grows held holds includes kept knew "
    "knows lay led leads left lies lives lost made makes means met orbits ordered ran reads remains rose runs said sang saw "
    "sees sent serves shows sold speaks spent spoke stands stood supports takes taught teaches tells thought told took uses "
    "went wins won wore works writes wrote plays belongs borders produces feeds eats ate lays needs weighs costs turns "
    "moves likes loves slept wept crept swept dealt meant heard sat drank drove forgot froze hid knelt rode rang sank stole "
    "struck swam swore tore threw woke blew bit bent bled caught clung dug fed fled leapt paid shook shone shrank slid "
    "stuck swung understood withdrew lent lit sought wound forbade forgave overcame undertook absorbs acts allows appears "
    "applies argues attracts believes brings builds calls carries claims connects controls creates crosses depends "
    "describes develops drives earns employs ends enters exists extends falls follows forbids gains generates governs "
    "happens helps hosts involves joins keeps leaves loses manages melts occurs offers operates owns passes pays performs "
    "prevents protects provides publishes pumps pushes reaches receives reduces reflects refuses releases represents "
    "requires rotates sells separates shines sings sits spreads starts stays stops stretches supplies surrounds travels "
    "treats visits wants watches wears".split()
)
NO_VERBS = set(
    "red united hundred sacred need seed speed breed indeed kindred hatred naked wicked rugged bed feed exceed".split()
)

_END = re.compile(r"""[.!?]+["'”’)\]]*(?=\s+["'“‘(\[]*(\w+))""")
_ITEM = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,3}[.)]|#+)\s+")
_META = re.compile(
    r"^(?:sure|certainly|of course|okay|ok|here(?:'s| is| are)|let me|i hope|i would|i'd|as an ai|please|thank|note that i|"
    r"in (?:summary|conclusion)\W*$|yes\W*$|no\W*$)\b",
    re.IGNORECASE,
)
_OPENERS = re.compile(
    r"^(?:(?:however|moreover|furthermore|additionally|also|in addition|therefore|thus|meanwhile|besides|in fact|for example|"
    r"for instance|overall|and|but|so|yes|no),?\s+|(?:i|we) (?:think|believe|know|recall) (?:that )?|"
    r"it is (?:known|true) that )+",
    re.IGNORECASE,
)
_RELATIVE = re.compile(r"^(?P<head>[^,]+), (?:who|which) (?P<said>[^,]+)(?:,\s*(?P<rest>.*))?$")
_BORN = re.compile(r"^(?P<head>[^,]+), born (?P<said>(?:in|on) [^,]+(?:, \d{4})?),\s*(?P<rest>.*)$")
_DATE = r"(?:\d{1,2} [A-Z][a-z]+ |[A-Z][a-z]+ \d{1,2}, |c\. ?)?\d{3,4}"
_LIFE = re.compile(
    rf"^(?P<head>[^(]+?) \((?:born (?P<only>[^)–—-]+)|(?P<born>{_DATE}) ?[-–—] ?(?P<died>{_DATE}))\),?\s*(?P<rest>.*)$"
)
_EVENT = re.compile(
    rf"^(?P<event>.*\b(?:born|died)) (?:(?P<place>(?:in|at) [^\d,]+(?:, [^\d,]+)?),? (?P<date>(?:in|on) {_DATE})"
    rf"|(?P<date_first>(?:in|on) {_DATE}),? (?P<place_last>(?:in|at) [^\d]+))$"
)
_JOINT = re.compile(r",?\s+(?:and then|and|but|while|whereas|although|though|yet)\s+")
_NAME = re.compile(r"(?:[A-Z][\w'’.-]*)(?: (?:[A-Z][\w'’.-]*|of|the|de|von|van|da|al|bin))*$")


def claims(text: str, topic: str = "") -> list[str]:
    """Return the atomic claims of a text, in order and unique.

    Args: topic: the subject of the text; pronouns refer to it until another name appears.
    """
    found: dict[str, str] = {}
    named, subject = topic, topic  # referents of "he" and of "it"
    for sentence in sentences(text):
        plain = _OPENERS.sub("", sentence.rstrip(".! ").strip())
        if not plain or sentence.rstrip("\"'”’) ").endswith(("?", ":")) or _META.match(plain):
            continue
        for clause in clauses(plain):
            clause = _resolved(clause, named, subject)
            if (begun := before_verb(clause)) and begun.split()[0].lower() not in PRONOUNS:
                subject = begun
                named = begun if _NAME.fullmatch(begun) and begun.split()[0].lower() not in DETERMINERS else named
            if len(clause.split()) > 1:
                found.setdefault(clause.lower(), clause[0].upper() + clause[1:])
    return list(found.values())


def sentences(text: str) -> list[str]:
    """Return the sentences of a text; each line that is a list item, a heading or a verse is separate."""
    found = []
    for paragraph in _paragraphs(text):
        begin = 0
        for match in _END.finditer(paragraph):
            following = match[1]
            if not (following[0].isupper() or following[0].isdigit() or not following[0].isascii()):
                continue
            before = paragraph[max(begin, match.start() - 30) : match.start()].split(" ")[-1]
            word = before.strip("([\"'“‘").lower()
            if match[0][0] == "." and (word in ABBREVIATIONS or re.fullmatch(r"[^\W\d]|(?:[^\W\d]\.)+[^\W\d]", word)):
                if word not in ENDING or following.lower() not in STARTERS:
                    continue
            found.append(paragraph[begin : match.end()].strip())
            begin = match.end()
        found.append(paragraph[begin:].strip())
    return [sentence for sentence in found if re.search(r"\w", sentence)]


def _paragraphs(text: str) -> Iterator[str]:
    """Yield paragraphs: consecutive lines joined."""
    joined = ""
    for line in text.splitlines():
        apart = not line.strip() or _ITEM.match(line) or joined.endswith((".", "!", "?", ":")) or (0 < len(joined) < LINE)
        if joined and apart:
            yield joined
            joined = ""
        joined = f"{joined} {_ITEM.sub('', line).strip()}".strip()
    if joined:
        yield joined


def clauses(sentence: str) -> list[str]:
    """Return a sentence, without its final mark, as clauses that can stand alone."""
    if len(sentence) > LONGEST:
        return [sentence]
    found = []
    for part in re.split(r"\s*;\s*", sentence):
        for whole in _unfolded(part):
            found += [piece for clause in _separated(whole) for piece in _place_and_date(clause.strip(" ,."))]
    return [clause for clause in found if re.search(r"\w", clause)]


def _place_and_date(clause: str) -> list[str]:
    if not (match := _EVENT.match(clause)):
        return [clause]
    return [f"{match['event']} {match[part]}" for part in ("place", "date", "date_first", "place_last") if match[part]]


def _unfolded(part: str) -> list[str]:
    """Return asides about the subject, or about a name, as separate claims before the main one."""
    if (match := _LIFE.match(part)) and _NAME.search(match["head"]) and not first_verb(match["head"].split()):
        head = match["head"].strip()
        if match["only"]:
            made = [f"{head} was born {_dated(match['only'])}"]
        else:
            made = [f"{head} was born {_dated(match['born'])}", f"{head} died {_dated(match['died'])}"]
        return made + (_unfolded(f"{head} {match['rest']}") if first_verb(match["rest"].split()) is not None else [])
    if (match := _BORN.match(part)) and first_verb(match["head"].split()) is None:
        return [f"{match['head']} was born {match['said']}", *_unfolded(f"{match['head']} {match['rest']}")]
    if (match := _RELATIVE.match(part)) and first_verb(match["said"].split()) == 0:
        head, rest = match["head"].strip(), match["rest"] or ""
        if first_verb(head.split()) is None:
            return [f"{head} {match['said']}", *(_unfolded(f"{head} {rest}") if rest else [])]
        if name := _NAME.search(head):
            return [f"{head}{' ' + rest if rest else ''}", f"{name[0]} {match['said']}"]
    return [part]


def _dated(when: str) -> str:
    when = when.strip()
    return when if when.split()[0] in ("in", "on") else f"{'in' if when.isdigit() else 'on'} {when}"


def _separated(clause: str) -> list[str]:
    """Split clauses joined by and, but, while …; repeat the subject if the second clause has none."""
    found = []
    while (parts := _first_joint(clause)) is not None:
        found.append(parts[0])
        clause = parts[1]
    return [*found, clause]


def _first_joint(clause: str) -> tuple[str, str] | None:
    """Return the first clause and the rest, split at the first word that joins two clauses; None if there is none."""
    for joint in _JOINT.finditer(clause):
        left, right = clause[: joint.start()], clause[joint.end() :]
        words = right.split()
        where = first_verb(words)
        if where is None or first_verb(left.split()) is None:
            continue
        if where == 0 or (where == 1 and words[0].lower() in ADVERBS):
            return left, f"{before_verb(left)} {right}"
        begun = " ".join(words[:where])
        if "," in begun or _JOINT.search(f" {begun} "):
            continue
        if words[0].lower() in PRONOUNS | DETERMINERS or words[0][0].isupper():
            return left, right
    return None


def first_verb(words: list[str]) -> int | None:
    """Return the index of the first word that looks like a finite verb, or None."""
    for at, word in enumerate(words):
        plain = re.sub(r"(?:n['’]t)$", "", word.lower().strip(",.\"'“”()"))
        if plain in VERBS:
            if not (at and words[at - 1].lower() in DETERMINERS):
                return at
        elif plain.endswith("ed") and len(plain) > 3 and plain not in NO_VERBS and word[0].islower():
            before = words[at - 1].lower() if at else ""
            if before not in DETERMINERS | PREPOSITIONS and not before.endswith("ly") and not words[at:][1:2] == ["by"]:
                return at
    return None


def before_verb(clause: str) -> str:
    """Return the subject of a clause: the text before its verb, without a leading phrase and adverbs."""
    words = clause.split()
    where = first_verb(words)
    if where is None:
        return ""
    parts = [part.strip() for part in " ".join(words[:where]).split(",") if part.strip()]
    if not parts:
        return ""
    chosen = (parts[-1] if parts[0].split()[0].lower() in PREPOSITIONS | {"when"} else parts[0]).split()
    while len(chosen) > 1 and (chosen[-1].lower() in ADVERBS or chosen[-1].lower().endswith("ly")):
        chosen.pop()
    return " ".join(chosen)


def _resolved(clause: str, named: str, subject: str) -> str:
    """Return the clause with its leading pronoun replaced, also after a phrase ("In 1933, he moved")."""
    match = re.match(r"((?:(?:in|on|at|after|before|during|from|since|by|later)\b[^,]*, )?)(\w+) (?=\S)", clause, re.IGNORECASE)
    word = match[2].lower() if match else ""
    stands_for = (subject if word in ("it", "its") else named) or named or subject
    if not stands_for or word not in PRONOUNS | POSSESSIVES:
        return clause
    return f"{match[1]}{stands_for}{chr(39) + 's' if word in POSSESSIVES else ''} {clause[match.end() :]}"
