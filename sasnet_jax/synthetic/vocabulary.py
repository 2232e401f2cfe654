"""The words of the synthetic reviews: data, and the coined words of a vocabulary's long tail."""

# aspect: (subjects, adjectives from terrible to wonderful)
VOCABULARY = {
    "food": (
        ("the food", "every dish", "what we ate", "the main course", "the cooking"),
        (
            ("inedible", "disgusting", "spoiled"),
            ("bland", "overcooked", "forgettable"),
            ("edible", "ordinary", "fine, nothing more"),
            ("tasty", "fresh", "well seasoned"),
            ("delicious", "exquisite", "unforgettable"),
        ),
    ),
    "service": (
        ("the service", "our waiter", "the staff", "the woman at the door", "the team"),
        (
            ("insulting", "rude beyond belief", "hostile"),
            ("inattentive", "careless", "cold"),
            ("correct", "neither warm nor rude", "acceptable"),
            ("friendly", "helpful", "polite"),
            ("wonderfully kind", "charming and attentive", "outstanding"),
        ),
    ),
    "price": (
        ("the bill", "the price", "what they charge", "the menu's pricing", "the cost"),
        (
            ("a robbery", "outrageous", "shamelessly inflated"),
            ("too high", "steep", "hard to justify"),
            ("average", "as expected", "normal for the area"),
            ("fair", "reasonable", "good value"),
            ("a bargain", "astonishingly low", "unbeatable value"),
        ),
    ),
    "quiet": (
        ("the noise level", "the sound in the room", "the music", "the acoustics"),
        (
            ("deafening", "unbearable", "painfully loud"),
            ("distracting", "rather loud", "tiring"),
            ("tolerable", "middling", "neither loud nor soft"),
            ("pleasant", "calm", "low enough to talk"),
            ("blissfully peaceful", "serene", "perfectly hushed"),
        ),
    ),
    "speed": (
        ("the waiting time", "the kitchen's pace", "how long it took", "the queue"),
        (
            ("endless, over an hour", "a scandal", "absurdly slow"),
            ("slow", "longer than promised", "sluggish"),
            ("usual", "average", "what one expects"),
            ("short", "quick", "brisk"),
            ("lightning fast", "practically zero", "incredibly quick"),
        ),
    ),
    "place": (
        ("the room", "the decor", "the interior", "the terrace", "the atmosphere"),
        (
            ("depressing", "falling apart", "hideous"),
            ("shabby", "dated", "cramped"),
            ("plain", "unremarkable", "simple"),
            ("cosy", "stylish", "inviting"),
            ("breathtaking", "gorgeous", "magical"),
        ),
    ),
    "clean": (
        ("the table", "the bathroom", "the hygiene", "the floor and the cutlery"),
        (
            ("filthy", "revolting", "a health hazard"),
            ("sticky", "grubby", "not quite clean"),
            ("passable", "acceptable", "okay"),
            ("clean", "tidy", "neat"),
            ("spotless", "immaculate", "gleaming"),
        ),
    ),
    "portions": (
        ("the portion", "the serving size", "the plate", "the amount we got"),
        (
            ("laughably tiny", "a bad joke", "two bites at most"),
            ("small", "skimpy", "meagre"),
            ("medium", "standard", "neither big nor small"),
            ("generous", "filling", "ample"),
            ("enormous", "gigantic", "enough for two days"),
        ),
    ),
}
ASPECTS = tuple(VOCABULARY)
CUISINES = (
    ("Pizza", "Italian"),
    ("Sushi Bars", "Japanese"),
    ("Tacos", "Mexican"),
    ("Burgers", "American"),
    ("Coffee & Tea", "Cafes"),
    ("Curry", "Indian"),
    ("Noodles", "Chinese"),
    ("Steakhouses", "American"),
    ("Seafood", "Mediterranean"),
    ("Bakeries", "Desserts"),
    ("Vegan", "Salad"),
    ("Barbeque", "Southern"),
)
FRAMES = ("{s} was {a}", "I found {s} {a}", "{s} turned out to be {a}", "as for {s}: {a}")
CARES = (
    "What matters most to me is {w}",
    "I mostly judge a place by {w}",
    "For me it is about {w}",
)
CARED = {
    "food": "the food",
    "service": "good service",
    "price": "getting value for money",
    "quiet": "being able to talk in peace",
    "speed": "not having to wait",
    "place": "a beautiful room",
    "clean": "cleanliness",
    "portions": "leaving with a full stomach",
}
OPENINGS = ("Came here for {c}", "Visited this {c} spot", "Tried their {c}", "Another {c} evening")
VERDICTS = (
    ("Never again", "Avoid", "A disaster"),
    ("Disappointing", "Would not return", "Below par"),
    ("It was okay", "Mixed feelings", "Average overall"),
    ("Liked it", "Would come back", "A good evening"),
    ("Loved it", "My new favourite", "Cannot recommend it enough"),
)
# Sentences that tell nothing, for texts as long as real ones.
SMALL_TALK = tuple(
    f"{subject} {rest}"
    for subject in ("We", "My sister and I", "The two of us", "My colleagues and I", "All of us")
    for rest in (
        "came on a rainy Tuesday after work",
        "had walked past many times before we went in",
        "found a parking spot around the corner",
        "celebrated a birthday that evening",
        "took the bus from the station and arrived a little early",
        "sat next to a family from out of town",
        "had booked a week ahead over the phone",
        "talked about the football match most of the time",
        "were on the way home from the airport",
        "had read about it in a newspaper some years ago",
    )
)

# What any aspect, or a whole visit, may be called, from terrible to wonderful.
ADJECTIVES = (
    ("terrible", "awful", "horrible", "dreadful", "appalling", "atrocious", "abysmal", "dire"),
    ("poor", "weak", "mediocre", "lacking", "underwhelming", "subpar", "flawed", "dull"),
    ("decent", "so-so", "adequate", "bearable", "unexceptional", "mixed", "alright", "medium-good"),
    ("good", "nice", "pleasing", "solid", "enjoyable", "lovely", "satisfying", "agreeable"),
    ("excellent", "perfect", "superb", "fantastic", "amazing", "flawless", "divine", "stellar"),
)
VERDICT_FRAMES = ("All in all {a}", "In short, {a}", "Simply {a}", "Overall it was {a}")
# Habits of speech: what each kind of user is fond of saying, most of all the first words.
STYLES = (
    ("honestly", "like", "totally", "dude", "lol", "gonna", "super", "vibe", "kinda", "tbh"),
    ("one", "rather", "indeed", "moreover", "thus", "shall", "quite", "whilst", "upon", "hence"),
    ("kids", "hubby", "mom", "family", "bless", "y'all", "sweetie", "folks", "weekend", "grandma"),
    (
        "texture",
        "notes",
        "palate",
        "acidity",
        "chef",
        "plating",
        "umami",
        "menu",
        "pairing",
        "sear",
    ),
)
FILLERS = tuple(
    word
    for words in (
        "the a we and to of in was at with on it for that there our after before then near they",
        "had some by from when this evening table friend street car train rain week door went",
        "came sat called waited talked walked ordered paid left again early late corner window",
    )
    for word in words.split()
)
COMPANY = ("We met {x} there", "{x} had told us about it", "It is near {x}", "{x} drove us home")
_SYLLABLES = tuple(c + v for c in "bdfgklmnprstvz" for v in "aeiou")


def coin(first: int, count: int) -> tuple[str, ...]:
    """Words number `first`, `first` + 1, ... of three syllables each, all different."""
    base = len(_SYLLABLES)
    numbers = (number * 77_347 % base**3 for number in range(first, first + count))
    return tuple(
        _SYLLABLES[n // base**2] + _SYLLABLES[n // base % base] + _SYLLABLES[n % base]
        for n in numbers
    )
