"""Word lists for the rules on English statements: function words, synonyms, and words that exclude each other."""

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
NEGATIONS = set("not no never none neither nor cannot without hardly nothing nobody fails failed unable".split())
QUANTIFIERS = set("all every only always everyone everything both most half exactly".split())
_LITTLE = set(
    "and or but so as than that which who whom whose it he she they i we you him me us them there here if because very quite "
    "really well known called named one such own other others more less yes about approximately around nearly almost roughly "
    "some many several much".split()
)
# Words without a meaning of their own. The subtracted ones have one: another word of their kind changes the statement.
FUNCTION = (AUXILIARIES | DETERMINERS | PREPOSITIONS | ADVERBS | NEGATIONS | _LITTLE) - (
    QUANTIFIERS | {"before", "after", "under", "over", "inside", "outside", "first"}
)

# Irregular forms and synonyms. The first word of each group replaces the others.
_GROUPS = """
die died dies dying death
born birth birthplace
write wrote written writes author authored
win won wins winner
found founded establish established set create created creates creator
situated located lies lie lay sits location
film movie
invent invented invents inventor devised
discover discovered discovers discoverer discovery
begin began begun begins start started starts
marry married marries wife husband spouse
build built builds builder
lead led leads leader
make made makes
become became becomes
big large
small little
people inhabitants
km kilometre kilometres kilometer kilometers
m metre metres meter meters
kg kilogram kilograms
play played plays
compose composed composer composes
paint painted painter paints
direct directed director
teach taught teaches
buy bought purchased
sell sold
leave left leaves
lose lost loses
take took taken takes
rise rose risen rises
fall fell fallen falls
speak spoke spoken speaks
grow grew grown grows
north northern
south southern
east eastern
west western
gray grey
long length
high height
wide width
deep depth
old age aged
"""
SAME = {form: group.split()[0] for group in _GROUPS.strip().splitlines() for form in group.split()}


def stem(word: str) -> str:
    """Return the rough stem of a lower-case word: create, created, creates, creating -> creat."""
    if word in SAME:
        return SAME[word]
    if not word.endswith(("ss", "us", "is")):
        for ending, instead in (("ies", "y"), ("ied", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", ""), ("e", "")):
            if word.endswith(ending) and len(word) - len(ending) + len(instead) > 2:
                word = word.removesuffix(ending) + instead
                break
    if len(word) > 4 and word[-1] == word[-2] and word[-1] not in "lsz":
        word = word[:-1]
    word = word.removesuffix("e") if len(word) > 4 else word
    return SAME.get(word, word)


MONTHS = frozenset("january february march april may june july august september october november december".split())
_EXCLUSIVE = """
january february march april may june july august september october november december
monday tuesday wednesday thursday friday saturday sunday
red blue green yellow black white brown orange purple pink grey
north south east west
first second third fourth fifth last
solid liquid gas
alive dead
rise fall
increase decrease
win lose
buy sell
begin end
before after
inside outside
over under
true false
open closed
big small
hot cold
even odd
day night
legal illegal
male female
possible impossible
largest smallest
longest shortest
highest lowest
oldest youngest
larger smaller
longer shorter
higher lower
older younger
faster slower
hotter colder
"""
EXCLUSIVE = tuple(frozenset(map(stem, group.split())) for group in _EXCLUSIVE.strip().splitlines())
# Relations with only one value: two different names as their value exclude each other.
ONE_VALUED = set(
    "born die capital write found invent discover compose paint direct situated president king queen name marry largest "
    "smallest longest highest lowest tallest oldest deepest first last orbit currency mother father symbol".split()
)
NUMBERS = {word: n for n, word in enumerate("two three four five six seven eight nine ten eleven twelve".split(), start=2)} | {
    "zero": 0,
    "thirteen": 13,
    "fourteen": 14,
    "fifteen": 15,
    "sixteen": 16,
    "seventeen": 17,
    "eighteen": 18,
    "nineteen": 19,
    "twenty": 20,
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "sixty": 60,
    "seventy": 70,
    "eighty": 80,
    "ninety": 90,
    "hundred": 100,
}
# Relations whose value several things may share: another name as the subject excludes nothing.
SHARED_VALUES = set("born die situated name marry orbit currency first last".split())
# People who are seldom the topic of a text.
PERSONS = set(
    "man woman boy girl child father mother brother sister son daughter king queen president doctor teacher student friend "
    "wife husband player officer author writer artist scientist farmer soldier driver baby person lady uncle aunt captain "
    "judge prince princess nurse neighbour neighbor owner girlfriend boyfriend grandmother grandfather director singer "
    "actor".split()
)
MULTIPLES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
