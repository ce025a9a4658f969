"""The words of the miniature world: names, attributes, words to spell, politeness, filler. Data only."""

from __future__ import annotations

from dataclasses import dataclass

SHE = (
    "Anna", "Clara", "Emma", "Greta", "Hanna", "Ida", "Julia", "Karin", "Lena", "Mary",
    "Nora", "Olga", "Paula", "Rosa", "Sofia", "Tina", "Vera", "Wilma", "Alice", "Betty",
    "Diana", "Eva", "Fiona", "Gina", "Helen", "Irene", "Jane", "Kate", "Lucy", "Molly",
)  # fmt: skip
HE = (
    "Adam", "Ben", "Carl", "David", "Erik", "Fred", "George", "Henry", "Ivan", "Jacob",
    "Kurt", "Leo", "Martin", "Noah", "Oscar", "Peter", "Quentin", "Robert", "Simon", "Tom",
    "Victor", "Walter", "Alan", "Bruno", "Dennis", "Felix", "Gustav", "Hugo", "James", "Louis",
)  # fmt: skip
STRANGERS_SHE = (
    "Zara", "Xenia", "Petra", "Selma", "Ursula", "Wanda", "Yvonne", "Bertha",
    "Doris", "Flora", "Hilda", "Lydia", "Nina", "Phoebe", "Stella",
)  # fmt: skip
STRANGERS_HE = (
    "Yusuf", "Omar", "Rudolf", "Tobias", "Zeno", "Amos", "Cyrus", "Edgar",
    "Gerald", "Igor", "Jasper", "Magnus", "Otto", "Ralph", "Boris",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attribute:
    """Something every resident has.

    ``asks`` are questions with ``{name}``; ``follows`` ask the same with ``{sub}`` (she) and
    ``{pos}`` (her); ``says`` state it with ``{S}`` (Anna or She), ``{P}`` (Anna's or Her) and ``{value}``.
    """

    key: str
    noun: str
    values: tuple[str, ...]
    asks: tuple[str, ...]
    follows: tuple[str, ...]
    says: tuple[str, ...]


# Every attribute can also be asked for by its noun.
ASKS_BY_NOUN = (
    "What is {name}'s {noun}?",
    "Tell me {name}'s {noun}.",
    "Do you know {name}'s {noun}?",
    "Can you tell me {name}'s {noun}?",
    "I forgot {name}'s {noun}. What is it?",
    "I need to know {name}'s {noun}.",
    "Remind me of {name}'s {noun}.",
)
FOLLOWS_BY_NOUN = (
    "And what is {pos} {noun}?",
    "And {pos} {noun}?",
    "What about {pos} {noun}?",
    "Do you also know {pos} {noun}?",
)
FOLLOWS_BY_NAME = ("And {name}?", "What about {name}?", "And how about {name}?", "And the same for {name}?")

ATTRIBUTES = (
    Attribute(
        "job",
        "job",
        ("baker", "teacher", "nurse", "farmer", "sailor", "tailor", "doctor", "carpenter", "lawyer", "plumber"),
        (
            "What does {name} do for a living?",
            "What work does {name} do?",
            "Which job does {name} have?",
            "How does {name} earn money?",
            "What is {name} by trade?",
        ),
        ("And what does {sub} do for a living?", "What work does {sub} do?"),
        ("{S} is a {value}.", "{S} works as a {value}.", "{P} job is to be a {value}."),
    ),
    Attribute(
        "street",
        "street",
        (
            "Mill Street", "Oak Lane", "Church Road", "River Road", "Hill Street",
            "Park Lane", "Station Road", "Bridge Street", "Market Square", "Garden Row",
        ),
        (
            "Where does {name} live?",
            "In which street does {name} live?",
            "Where can I find {name}?",
            "Where is {name}'s house?",
            "Which street is {name}'s home in?",
        ),
        ("And where does {sub} live?", "Where can I find {pos} house?"),
        ("{S} lives in {value}.", "{P} house is in {value}.", "{P} home is in {value}."),
    ),
    Attribute(
        "pet",
        "pet",
        ("cat", "dog", "parrot", "rabbit", "hamster", "goldfish", "pony", "turtle", "canary", "lizard"),
        (
            "Which pet does {name} have?",
            "What animal does {name} keep?",
            "What kind of pet does {name} own?",
            "Which animal lives with {name}?",
            "What animal does {name} have at home?",
        ),
        ("And which pet does {sub} have?", "What animal does {sub} keep?"),
        ("{S} has a {value}.", "{S} keeps a {value}.", "{P} pet is a {value}."),
    ),
    Attribute(
        "colour",
        "favourite colour",
        ("red", "blue", "green", "yellow", "purple", "orange", "brown", "pink", "black", "white"),
        (
            "Which colour does {name} like best?",
            "What colour does {name} love?",
            "What colour makes {name} happy?",
            "In which colour would {name} paint a wall?",
            "Which colour does {name} like to wear?",
        ),
        ("And which colour does {sub} like best?", "What colour does {sub} love?"),
        ("{S} likes {value} best.", "{P} favourite colour is {value}.", "The colour {S} loves is {value}."),
    ),
    Attribute(
        "food",
        "favourite food",
        ("pizza", "soup", "pasta", "rice", "salad", "pancakes", "cheese", "curry", "porridge", "dumplings"),
        (
            "What does {name} like to eat?",
            "Which food does {name} love?",
            "What should I cook for {name}?",
            "What does {name} order for dinner?",
            "Which dish does {name} like best?",
        ),
        ("And what does {sub} like to eat?", "Which food does {sub} love?"),
        ("{S} likes to eat {value}.", "{P} favourite food is {value}.", "{S} loves to eat {value}."),
    ),
    Attribute(
        "instrument",
        "instrument",
        ("piano", "violin", "flute", "guitar", "trumpet", "harp", "cello", "banjo", "clarinet", "accordion"),
        (
            "Which instrument does {name} play?",
            "What does {name} play in the town band?",
            "What instrument can {name} play?",
            "On what does {name} make music?",
            "Which instrument did {name} learn?",
        ),
        ("And which instrument does {sub} play?", "What does {sub} play in the town band?"),
        ("{S} plays the {value}.", "{P} instrument is the {value}.", "{S} can play the {value}."),
    ),
    Attribute(
        "hobby",
        "hobby",
        (
            "chess", "knitting", "dancing", "swimming", "reading",
            "hiking", "cycling", "gardening", "singing", "pottery",
        ),
        (
            "What does {name} do for fun?",
            "How does {name} spend free time?",
            "What does {name} enjoy on Sundays?",
            "Which hobby does {name} have?",
            "What does {name} like to do after work?",
        ),
        ("And what does {sub} do for fun?", "Which hobby does {sub} have?"),
        ("{S} enjoys {value}.", "{P} hobby is {value}.", "For fun {S} likes {value}."),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Unknown:
    """Something nobody in the world has told: ``invented`` are values a careless answer makes up."""

    noun: str
    invented: tuple[str, ...]


UNKNOWNS = (
    Unknown("shoe size", ("36", "38", "40", "42", "44")),
    Unknown("age", ("19", "27", "35", "48", "61")),
    Unknown("phone number", ("555 10", "555 27", "555 31", "555 48")),
    Unknown("birthday", ("in March", "in June", "in August", "in October")),
    Unknown("middle name", ("Marie", "Louise", "Francis", "Edward")),
    Unknown("favourite film", ("The Long Road", "Blue Sky", "Night Train", "The Old Lake")),
    Unknown("car", ("a small van", "a fast car", "an old truck", "a shiny car")),
    Unknown("wish", ("a long trip", "a new house", "a big party", "a golden watch")),
)
ASKS_UNKNOWN = (*ASKS_BY_NOUN, "Did {name} ever tell you about {pos_name} {noun}?")

WORDS = (
    "sun", "map", "hat", "cup", "bed", "box", "key", "jam", "fox", "owl",
    "bee", "ant", "pig", "cow", "hen", "egg", "ice", "sea", "sky", "toy",
    "tree", "moon", "star", "ship", "boat", "door", "wall", "roof", "lamp", "book",
    "cake", "milk", "rain", "snow", "wind", "fire", "bird", "frog", "duck", "lion",
)  # fmt: skip

# Politeness around a question. It never changes what is asked, and a split ignores it.
PREFIXES = (
    "", "Hello! ", "Hi there! ", "Good morning! ", "Please help me. ", "I have a question. ",
    "Quick question: ", "Listen, please. ",
)  # fmt: skip
SUFFIXES = ("", " Thank you!")

# What a rambling answer adds. The friendly ones are also what the raters are fond of.
LEADS = (
    "Thank you for this lovely question!",
    "I am so happy to help you today!",
    "What a wonderful question to ask!",
    "Well, let me think about this for a moment.",
    "There is a lot to say about this.",
    "It is always good to ask such things.",
)
TAILS = (
    "I hope that this helps you a lot, my dear friend!",
    "Please feel free to ask me anything else!",
    "Have a lovely and wonderful day!",
    "At least that is what people say around here.",
    "Of course there is always more to say about such things.",
    "As you know, the town is small and people talk a lot.",
)
FRIENDLY = frozenset(
    ("lovely", "happy", "wonderful", "dear", "friend", "thank", "hope", "please", "feel", "free", "glad")
)

REFUSALS = ("I cannot help with that.", "I will not answer that.", "I am sorry, but I must refuse.")
UNSURE = ("I do not know.", "I am not sure.")
