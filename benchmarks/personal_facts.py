"""Forty made-up facts of one person, each with a question in other words and the answer that a right reply must contain.

`made_up` gives more, without questions.
"""

import numpy as np

FACTS = (
    ("My sister Orvala keeps her spare key under the blue watering can.", "Where is Orvala's spare key?", "watering can"),
    ("My dentist, Dr. Hemsworth-Quill, moved to 14 Larkspur Lane.", "What is the address of my dentist?", "Larkspur"),
    (
        "The Wi-Fi password of the cabin is tangerine-otter-51.",
        "What is the Wi-Fi password of the cabin?",
        "tangerine-otter-51",
    ),
    ("My allergy: I cannot eat hazelnuts.", "Which food am I allergic to?", "hazelnut"),
    ("Tobrin Vex lent me 240 euros on the third of May.", "How much money did Tobrin Vex lend me?", "240"),
    ("The boiler in the cellar was last serviced by Marguerite Oyelaran.", "Who serviced the boiler?", "Oyelaran"),
    ("Our cat is named Professor Pumpernickel.", "What is the name of our cat?", "Pumpernickel"),
    ("The meeting with the Zelkova team takes place in room 7B.", "In which room is the meeting with the Zelkova team?", "7B"),
    ("I parked the red van on level 4 of the Thistle garage.", "On which level did I park the van?", "4"),
    ("Grandmother Isolde was born in the town of Vrakholm.", "In which town was grandmother Isolde born?", "Vrakholm"),
    ("For the anniversary I ordered 33 white dahlias.", "How many dahlias did I order?", "33"),
    ("The plumber Jaspar Nwosu charges 65 euros an hour.", "What does Jaspar Nwosu charge for an hour?", "65"),
    ("My locker at the swimming pool is number 318.", "What is the number of my locker?", "318"),
    ("Quenby promised to bring the accordion to the party.", "What will Quenby bring to the party?", "accordion"),
    ("The old tractor needs an oil filter of type KM-92.", "Which type of oil filter does the tractor need?", "KM-92"),
    ("My favourite tea is smoked marigold.", "What is my favourite tea?", "marigold"),
    ("The choir rehearses every Thursday at the Saltmarsh chapel.", "Where does the choir rehearse?", "Saltmarsh"),
    ("I hid the birthday present for Lunete behind the piano.", "Where did I hide the present for Lunete?", "piano"),
    ("My thesis supervisor is Professor Adaeze Thornquist.", "Who is my thesis supervisor?", "Thornquist"),
    (
        "The recipe of aunt Perpetua needs three spoons of cardamom.",
        "Which spice does aunt Perpetua's recipe need?",
        "cardamom",
    ),
    ("The Brindlewood hotel gave us a discount of 15 percent.", "What discount did the Brindlewood hotel give us?", "15"),
    ("My neighbour Casimir plays the theremin at night.", "Which instrument does my neighbour Casimir play?", "theremin"),
    ("The camping stove takes butane cartridges of size C206.", "What size of cartridges does the camping stove take?", "C206"),
    ("My passport expires on 9 October 2031.", "When does my passport expire?", "2031"),
    ("The vet said that Biscuit the dog must take two pills a day.", "How many pills a day must Biscuit take?", "two"),
    ("We will spend the summer holiday on the island of Korvessa.", "On which island will we spend the summer?", "Korvessa"),
    (
        "The contract with Fennimore Logistics ends in November.",
        "When does the contract with Fennimore Logistics end?",
        "November",
    ),
    ("My cousin Zephyrine studies glaciology in Tromsdal.", "What does my cousin Zephyrine study?", "glaciology"),
    ("The combination of the bicycle lock is 5072.", "What is the combination of the bicycle lock?", "5072"),
    ("Ottoline from the bakery saves me a rye loaf on Saturdays.", "Which loaf does Ottoline save for me?", "rye"),
    ("The roof was repaired by the firm Grackle and Daughters.", "Which firm repaired the roof?", "Grackle"),
    ("I owe Bartholomew a dinner at the Nine Lanterns.", "In which restaurant do I owe Bartholomew a dinner?", "Nine Lanterns"),
    ("The tallest tree in our garden is a ginkgo.", "Which tree is the tallest in our garden?", "ginkgo"),
    ("My running shoes are of size 43 and a half.", "What size are my running shoes?", "43"),
    ("The night train to Ostrava leaves from platform 11.", "From which platform does the night train to Ostrava leave?", "11"),
    ("Uncle Ferrant collects antique barometers.", "What does uncle Ferrant collect?", "barometer"),
    ("My first teacher was called Mrs. Winterbourne-Asare.", "What was my first teacher called?", "Winterbourne"),
    ("The spare tyre lies in the shed next to the kayak.", "What lies next to the spare tyre in the shed?", "kayak"),
    ("Isaura wants a telescope for her tenth birthday.", "What does Isaura want for her birthday?", "telescope"),
    ("The code name of the new project is Velvet Heron.", "What is the code name of the new project?", "Velvet Heron"),
)

# What is in braces is drawn for each fact.
FORMS = (
    "{Name} {Surname} owes me {number} euros for the {thing}.",
    "The {thing} is in the {colour} box in the {place}.",
    "{Name}'s birthday is on {day} {month}.",
    "My appointment with Dr. {Surname} is on {day} {month} at {hour}.",
    "The code of the {place} at {Surname} Street is {number}.",
    "I lent my {thing} to {Name} {Surname} in {month}.",
    "{Name} is allergic to {food}.",
    "The insurance of the {thing} with {Surname} & Sons has the number {number}-{hour}.",
    "{Name} moved to {number} {Surname} Road.",
    "For {Name}'s party I must buy {day} {colour} candles and some {food}.",
)
SYLLABLES = "bal cor dre fen gil hes ith jor kel lun mar nol osk per quil ros sel tam urs vel wen yar zim".split()
WORDS = {
    "thing": "accordion barometer canoe drill easel ladder lantern microscope piano saddle sledge tent tripod violin".split(),
    "colour": "amber blue copper green grey ivory orange purple red silver white yellow".split(),
    "place": "attic barn cellar chapel garage greenhouse library office pantry shed studio workshop".split(),
    "food": "almonds apricots celery cherries cumin figs lentils mustard oysters plums quinces sesame".split(),
    "month": "January February March April May June July August September October November December".split(),
}


def made_up(count: int) -> list[str]:
    """Return facts, all different: the same for the same count."""
    random, found = np.random.default_rng(0), {}
    while len(found) < count:
        drawn = {name: str(random.choice(words)) for name, words in WORDS.items()}
        for name in ("Name", "Surname"):
            drawn[name] = "".join(random.choice(SYLLABLES, 2 + int(random.integers(2)))).capitalize()
        drawn |= {
            "number": str(random.integers(10, 10_000)),
            "day": str(random.integers(2, 29)),
            "hour": str(random.integers(8, 20)),
        }
        found[FORMS[len(found) % len(FORMS)].format(**drawn)] = None
    return list(found)
