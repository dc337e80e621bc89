"""Tables from which `generated` writes its passages: things, what can be said of them, and how it is asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribute:
    """One property that a passage can state and a question can ask about."""

    values: tuple[str, ...]
    """What the property can be; every value can be true and can be asked for."""
    statements: tuple[str, ...]
    """Ways to state it: `{s}` is the subject, `{v}` the value."""
    questions: tuple[str, ...]
    """Ways to ask for it: `{n}` is the full name, `{v}` the value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Domain:
    """One kind of thing that passages are about."""

    first: tuple[str, ...]
    """First parts of names."""
    second: tuple[str, ...]
    """Second parts of names."""
    name: str
    """How a name is put together from `{a}` and `{b}`."""
    again: tuple[str, ...]
    """How a passage refers to the same thing a second time."""
    attributes: tuple[Attribute, ...]
    """What can be said of it."""
    fillers: tuple[str, ...]
    """Sentences that answer none of the questions."""


PLACES = ("Norway", "Portugal", "Kenya", "Peru", "Canada", "Vietnam", "Poland", "Morocco", "Chile", "Ireland")
YEARS = ("1871", "1894", "1907", "1923", "1938", "1952", "1966", "1979", "1985", "1998")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "grey", "purple")
# fmt: off
GIVEN_NAMES = (
    "Mira", "Tessa", "Jonas", "Amara", "Felix", "Clara", "Hugo", "Nadia", "Oscar", "Lena",
    "Simon", "Irene", "Victor", "Paula", "Martin", "Elsa", "Daniel", "Sofia", "Adrian", "Laura",
)
RIVER_WORDS = (
    "Upper", "Lower", "Little", "Great", "North", "South", "East", "West", "Old", "New",
    "Black", "White", "Silver", "Stony", "Quiet", "Winding", "Middle", "Outer", "Inner", "Long",
)
BOOK_WORDS = (
    "Silent", "Broken", "Golden", "Hidden", "Distant", "Frozen", "Burning", "Forgotten", "Crooked", "Hollow",
    "Bright", "Lonely", "Scarlet", "Sleeping", "Secret", "Final", "Narrow", "Painted", "Paper", "Empty",
)
SURNAMES = (
    "Brandt", "Okafor", "Lindqvist", "Moreau", "Tanaka", "Petrov", "Alvarez", "Keller", "Novak", "Haddad",
    "Fraser", "Romano", "Silva", "Jensen", "Murphy", "Castillo", "Weber", "Ivanova", "Dubois", "Santos",
)
LANDMARKS = (
    "Harlow", "Denby", "Ashford", "Kestrel", "Whitmore", "Larkspur", "Granby", "Tolland", "Merrow", "Stanwick",
    "Calder", "Ravenna", "Osprey", "Belmont", "Fenwick", "Juniper", "Halden", "Marston", "Eastvale", "Corran",
)
# fmt: on

PERSON = Domain(
    first=GIVEN_NAMES,
    second=SURNAMES,
    name="{a} {b}",
    again=("this person", "{a}"),
    attributes=(
        Attribute(
            values=("carpenter", "nurse", "pilot", "baker", "teacher", "lawyer", "farmer", "photographer"),
            statements=("{s} works as a {v}", "{s} earns a living as a {v}", "{s} is a {v} by profession"),
            questions=("is {n} a {v}", "does {n} work as a {v}"),
        ),
        Attribute(
            values=PLACES,
            statements=("{s} was born in {v}", "{s} is a native of {v}", "{s} came into the world in {v}"),
            questions=("was {n} born in {v}", "is {v} the birthplace of {n}"),
        ),
        Attribute(
            values=("the violin", "the piano", "the drums", "the flute", "the guitar", "the trumpet"),
            statements=(
                "{s} plays {v}",
                "{s} learned to play {v} at school",
                "{s} practises {v} every evening",
            ),
            questions=("does {n} play {v}", "is {v} the instrument of {n}"),
        ),
        Attribute(
            values=("a dog", "a cat", "a parrot", "a horse", "a rabbit", "a tortoise"),
            statements=("{s} keeps {v} at home", "{s} has {v} as a pet", "{s} owns {v}"),
            questions=("does {n} own {v}", "does {n} have {v} as a pet"),
        ),
        Attribute(
            values=("by train", "by bicycle", "by car", "by bus", "on foot", "by ferry"),
            statements=("{s} travels to work {v}", "{s} goes to work {v}", "{s} usually gets to work {v}"),
            questions=("does {n} travel to work {v}", "does {n} go to work {v}"),
        ),
    ),
    fillers=(
        "The local newspaper once printed a short portrait",
        "Friends describe a calm and patient character",
        "A family reunion takes place every summer",
    ),
)

BUILDING = Domain(
    first=LANDMARKS,
    second=("Bridge", "Castle", "Lighthouse", "Library", "Theatre", "Museum", "Station", "Tower"),
    name="the {a} {b}",
    again=("it", "the {b}"),
    attributes=(
        Attribute(
            values=YEARS,
            statements=("{s} was completed in {v}", "{s} opened to the public in {v}", "{s} dates from {v}"),
            questions=("was {n} completed in {v}", "does {n} date from {v}"),
        ),
        Attribute(
            values=PLACES,
            statements=("{s} stands in {v}", "{s} is found in {v}", "{s} is located in {v}"),
            questions=("is {n} in {v}", "is {n} located in {v}"),
        ),
        Attribute(
            values=("granite", "brick", "steel", "timber", "concrete", "marble", "limestone"),
            statements=("{s} is made of {v}", "{s} was built from {v}", "{s} consists mostly of {v}"),
            questions=("is {n} made of {v}", "was {n} built from {v}"),
        ),
        Attribute(
            values=("open all year", "closed in winter", "visited by appointment", "under repair"),
            statements=("{s} is {v}", "{s} remains {v}"),
            questions=("is {n} {v}", "does {n} stay {v}"),
        ),
        Attribute(
            values=COLOURS,
            statements=("{s} has a {v} roof", "{s} is topped by a {v} roof", "{s} is known for a {v} roof"),
            questions=("does {n} have a {v} roof", "is the roof of {n} {v}"),
        ),
    ),
    fillers=(
        "Painters have often chosen the view as a subject",
        "A small plaque lists the names of the workers",
        "The surrounding streets are busy on market days",
    ),
)

SHIP = Domain(
    first=LANDMARKS,
    second=("Star", "Queen", "Pioneer", "Breeze", "Dawn", "Spirit", "Trader", "Venture"),
    name="the {a} {b}",
    again=("she", "the ship"),
    attributes=(
        Attribute(
            values=("coal", "grain", "timber", "bananas", "cement", "cotton", "salt"),
            statements=("{s} carries {v}", "{s} transports {v}", "{s} is loaded with {v} on most voyages"),
            questions=("does {n} carry {v}", "is {v} the cargo of {n}"),
        ),
        Attribute(
            values=PLACES,
            statements=("{s} was built in {v}", "{s} left a shipyard in {v}", "{s} comes from a yard in {v}"),
            questions=("was {n} built in {v}", "does {n} come from a shipyard in {v}"),
        ),
        Attribute(
            values=COLOURS,
            statements=("{s} is painted {v}", "{s} has a {v} hull", "{s} is easy to recognise by a {v} hull"),
            questions=("is the hull of {n} {v}", "does {n} have a {v} hull"),
        ),
        Attribute(
            values=YEARS,
            statements=("{s} was launched in {v}", "{s} first sailed in {v}", "{s} entered service in {v}"),
            questions=("was {n} launched in {v}", "did {n} enter service in {v}"),
        ),
        Attribute(
            values=("in regular service", "already retired", "waiting for repairs", "offered for sale"),
            statements=("{s} is {v}", "According to the register, {s} is {v}"),
            questions=("is {n} {v}", "is it true that {n} is {v}"),
        ),
    ),
    fillers=(
        "The crew changes every six weeks",
        "A model is on display in the harbour office",
        "Storms have delayed more than one voyage",
    ),
)

COMPANY = Domain(
    first=LANDMARKS,
    second=("Works", "Partners", "Brothers", "Supplies", "Holdings", "Industries", "Group", "Trading"),
    name="{a} {b}",
    again=("it", "the company"),
    attributes=(
        Attribute(
            values=("bicycles", "furniture", "shoes", "medicines", "toys", "batteries", "clocks", "tractors"),
            statements=("{s} makes {v}", "{s} is a producer of {v}", "{s} earns its money with {v}"),
            questions=("does {n} make {v}", "is {n} a producer of {v}"),
        ),
        Attribute(
            values=PLACES,
            statements=("{s} has its head office in {v}", "{s} is based in {v}", "{s} is run from {v}"),
            questions=("is {n} based in {v}", "does {n} have its head office in {v}"),
        ),
        Attribute(
            values=YEARS,
            statements=("{s} was founded in {v}", "{s} has existed since {v}", "{s} started business in {v}"),
            questions=("was {n} founded in {v}", "has {n} existed since {v}"),
        ),
        Attribute(
            values=("owned by a family", "run by the state", "held by its staff", "in foreign hands"),
            statements=("{s} is {v}", "To this day {s} is {v}", "{s} has always been {v}"),
            questions=("is {n} {v}", "would one call {n} {v}"),
        ),
        Attribute(
            values=("growing fast", "losing money", "hiring engineers", "moving abroad", "cutting jobs"),
            statements=("{s} is {v}", "According to the press, {s} is {v}"),
            questions=("is {n} {v}", "does the press say that {n} is {v}"),
        ),
    ),
    fillers=(
        "The annual report is published in spring",
        "A new canteen was praised by visitors",
        "Two rivals have tried to hire its engineers",
    ),
)

RIVER = Domain(
    first=RIVER_WORDS,
    second=("Tarn", "Lenna", "Osk", "Varda", "Mirin", "Dolva", "Senn", "Aller"),
    name="the {a} {b}",
    again=("it", "the river"),
    attributes=(
        Attribute(
            values=PLACES,
            statements=("{s} flows through {v}", "{s} runs across {v}", "{s} is a river of {v}"),
            questions=("does {n} flow through {v}", "is {n} a river of {v}"),
        ),
        Attribute(
            values=("salmon", "trout", "eels", "pike", "crayfish", "otters"),
            statements=("{s} is known for {v}", "{s} is home to {v}", "People visit {s} to see {v}"),
            questions=("is {n} home to {v}", "are there {v} in {n}"),
        ),
        Attribute(
            values=("a lake", "the sea", "a swamp", "a reservoir", "a larger river"),
            statements=("{s} ends in {v}", "{s} empties into {v}", "After many bends {s} reaches {v}"),
            questions=("does {n} end in {v}", "does {n} empty into {v}"),
        ),
        Attribute(
            values=("clear", "muddy", "green", "salty", "brown"),
            statements=("{s} has {v} water", "The water of {s} is {v}", "{s} is a stream of {v} water"),
            questions=("is the water of {n} {v}", "does {n} have {v} water"),
        ),
        Attribute(
            values=("a glacier", "a spring", "a marsh", "a mountain lake", "a forest"),
            statements=("{s} rises in {v}", "{s} has its source in {v}", "{s} begins in {v}"),
            questions=("does {n} rise in {v}", "is the source of {n} in {v}"),
        ),
    ),
    fillers=(
        "Old maps show a slightly different course",
        "A path for walkers follows the bank",
        "Poems about the valley are taught in schools",
    ),
)

BOOK = Domain(
    first=BOOK_WORDS,
    second=("Garden", "Mirror", "Harbour", "Orchard", "Letter", "Winter", "Staircase", "Compass"),
    name="the {a} {b}",
    again=("it", "the novel"),
    attributes=(
        Attribute(
            values=YEARS,
            statements=("{s} was published in {v}", "{s} appeared in {v}", "{s} came out in {v}"),
            questions=("was {n} published in {v}", "did {n} come out in {v}"),
        ),
        Attribute(
            values=SURNAMES[:10],
            statements=("{s} was written by {v}", "{s} is the work of {v}", "The author of {s} is {v}"),
            questions=("was {n} written by {v}", "is {v} the author of {n}"),
        ),
        Attribute(
            values=("love", "war", "friendship", "music", "travel", "poverty", "science"),
            statements=("{s} is about {v}", "{s} deals with {v}", "The main theme of {s} is {v}"),
            questions=("is {n} about {v}", "does {n} deal with {v}"),
        ),
        Attribute(
            values=PLACES,
            statements=("{s} is set in {v}", "The story of {s} takes place in {v}", "{s} plays in {v}"),
            questions=("is {n} set in {v}", "does the story of {n} take place in {v}"),
        ),
        Attribute(
            values=(
                "a happy ending",
                "a sad ending",
                "an open ending",
                "a violent ending",
                "an ironic ending",
            ),
            statements=("{s} has {v}", "Readers know that {s} has {v}"),
            questions=("does {n} have {v}", "did readers of {n} find {v}"),
        ),
    ),
    fillers=(
        "Critics wrote at length about the style",
        "The first edition had a plain grey cover",
        "A reading group meets every month",
    ),
)

DOMAINS: dict[str, Domain] = {
    "person": PERSON,
    "building": BUILDING,
    "ship": SHIP,
    "company": COMPANY,
    "river": RIVER,
    "book": BOOK,
}
