"""The grammar of the synthetic reviews: what a visit was like, in words, and back.

In: tastes, experiences and stars [n, ...]. Out: n texts, of the aspects that each user cares for
(`ReviewWriter`), and what such a text says (`read_facts`).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

# aspect: (subjects, adjectives from terrible to wonderful)
_VOCABULARY = {
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
ASPECTS = tuple(_VOCABULARY)
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
_FRAMES = ("{s} was {a}", "I found {s} {a}", "{s} turned out to be {a}", "as for {s}: {a}")
_CARES = (
    "What matters most to me is {w}",
    "I mostly judge a place by {w}",
    "For me it is about {w}",
)
_CARED = {
    "food": "the food",
    "service": "good service",
    "price": "getting value for money",
    "quiet": "being able to talk in peace",
    "speed": "not having to wait",
    "place": "a beautiful room",
    "clean": "cleanliness",
    "portions": "leaving with a full stomach",
}
_OPENINGS = ("Came here for {c}", "Visited this {c} spot", "Tried their {c}", "Another {c} evening")
_VERDICTS = (
    ("Never again", "Avoid", "A disaster"),
    ("Disappointing", "Would not return", "Below par"),
    ("It was okay", "Mixed feelings", "Average overall"),
    ("Liked it", "Would come back", "A good evening"),
    ("Loved it", "My new favourite", "Cannot recommend it enough"),
)
LEVEL_CUTS = (-1.2, -0.4, 0.4, 1.2)  # of an experience, in standard deviations of quality
MENTION_FLOOR = 0.05  # so that now and then a user speaks of what they do not care for
_MOST_MENTIONS = 4
_TELLS_TASTE = 0.3  # the fraction of reviews that say what their user cares for
# Sentences that tell nothing, for texts as long as real ones.
_SMALL_TALK = tuple(
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


class Facts(NamedTuple):
    """What one text says."""

    cuisine: int  # index into CUISINES
    mentions: tuple[tuple[int, int], ...]  # (aspect, level of 0 to 4), in the order of the text
    favourite: int | None  # the aspect that its user says to care for most
    stars: int


class ReviewWriter:
    """Writes texts, drawing every choice from one generator.

    Args:
      rng: the generator.
      small_talk: the mean number of sentences per text that tell nothing.
    """

    def __init__(self, rng: np.random.Generator, small_talk: float = 0.0):
        self._rng = rng
        self._small_talk = small_talk
        self._sentences = _sentences()

    def write(
        self,
        taste: Float[np.ndarray, "n k"],
        experience: Float[np.ndarray, "n k"],
        stars: Int[np.ndarray, "n"],
        cuisine: Int[np.ndarray, "n"],
    ) -> list[str]:
        """One text per row."""
        n = stars.size
        # Gumbel top-k: aspects without replacement, with probability as the taste for them.
        scores = np.log(taste + MENTION_FLOOR) + self._rng.gumbel(size=taste.shape)
        ranked = np.argsort(-scores, axis=1).tolist()
        mentions = self._rng.integers(2, _MOST_MENTIONS + 1, size=n).tolist()
        levels = np.searchsorted(LEVEL_CUTS, experience).tolist()
        dice = self._rng.integers(1 << 30, size=(n, _MOST_MENTIONS + 3)).tolist()
        tells = (self._rng.random(n) < _TELLS_TASTE).tolist()
        favourite = taste.argmax(axis=1).tolist()
        talks = self._rng.poisson(self._small_talk, size=n).tolist()
        texts = []
        for i in range(n):
            roll = dice[i]
            parts = [_pick(_OPENINGS, roll[0]).format(c=CUISINES[cuisine[i]][0].lower())]
            for j in range(mentions[i]):
                aspect = ranked[i][j]
                parts.append(_pick(self._sentences[aspect][levels[i][aspect]], roll[j + 1]))
            if tells[i]:
                parts.append(_pick(_CARES, roll[-2]).format(w=_CARED[ASPECTS[favourite[i]]]))
            parts += [_pick(_SMALL_TALK, roll[0] // 7 + 11 * j) for j in range(talks[i])]
            parts.append(_pick(_VERDICTS[stars[i] - 1], roll[-1]))
            texts.append(". ".join(parts) + ".")
        return texts


def read_facts(text: str) -> Facts:
    """What a text of `ReviewWriter` says."""
    cuisine, mentions, favourite, stars = -1, [], None, 0
    for sentence in text.removesuffix(".").split(". "):
        kind, *found = _MEANINGS.get(sentence, ("small talk",))
        if kind == "mention":
            mentions.append((found[0], found[1]))
        elif kind == "favourite":
            favourite = found[0]
        elif kind == "stars":
            stars = found[0]
        elif kind == "cuisine":
            cuisine = found[0]
    return Facts(cuisine, tuple(mentions), favourite, stars)


def _sentences() -> list[list[list[str]]]:
    """For each aspect and level, every sentence that tells it."""
    return [
        [
            [
                sentence[0].upper() + sentence[1:]
                for frame in _FRAMES
                for subject in subjects
                for word in words
                for sentence in [frame.format(s=subject, a=word)]
            ]
            for words in adjectives
        ]
        for subjects, adjectives in _VOCABULARY.values()
    ]


def _meanings() -> dict[str, tuple]:
    """Every sentence that tells something -> what."""
    found: dict[str, tuple] = {}
    for aspect, levels in enumerate(_sentences()):
        for level, sentences in enumerate(levels):
            found |= dict.fromkeys(sentences, ("mention", aspect, level))
    for aspect, name in enumerate(ASPECTS):
        found |= {frame.format(w=_CARED[name]): ("favourite", aspect) for frame in _CARES}
    for stars, verdicts in enumerate(_VERDICTS, start=1):
        found |= dict.fromkeys(verdicts, ("stars", stars))
    for cuisine, (name, *_) in enumerate(CUISINES):
        found |= {frame.format(c=name.lower()): ("cuisine", cuisine) for frame in _OPENINGS}
    return found


def _pick(choices, roll: int) -> str:
    return choices[roll % len(choices)]


_MEANINGS = _meanings()
