"""The grammars of the synthetic reviews: what a visit was like, in words, and back.

In: tastes, experiences, stars and cuisines [n, ...]. Out: n texts, by one of three writers, and
what such texts say (`read_words`):

- `ReviewWriter`: a sentence per aspect that its user speaks of, and always a verdict;
- `NoisyWriter`: the same amid small talk, with rare synonyms, and a verdict in some texts only;
- `StyleWriter`: shuffled words: fillers, those that the user's kind is fond of, and in some texts a
  verdict. Nothing else of the visit.

The synonyms of a meaning have the frequencies of Zipf's law: in proportion to 1 / rank.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sasnet_jax.synthetic.vocabulary import (
    ADJECTIVES,
    ASPECTS,
    CARED,
    CARES,
    COMPANY,
    CUISINES,
    FILLERS,
    FRAMES,
    OPENINGS,
    SMALL_TALK,
    STYLES,
    VERDICT_FRAMES,
    VERDICTS,
    VOCABULARY,
    coin,
)

LEVEL_CUTS = (-1.2, -0.4, 0.4, 1.2)  # of an experience, in standard deviations of quality
MENTION_FLOOR = 0.05  # so that now and then a user speaks of what they do not care for
OWN_STYLE = 0.6  # the share of style words that are of the user's own kind
_MOST_MENTIONS = 4
_TELLS_TASTE = 0.3  # the fraction of reviews that say what their user cares for
_NOISY_MENTIONS = 3  # at most, among small talk
_NOISY_TELLS_TASTE = 0.1
_TELLS_STARS = 0.6  # the fraction of texts with a verdict, among small talk
_STYLE_WORDS = 6  # at most per text, and half as many at least
_COINED = 30  # rare synonyms of a meaning
_NAMES = 1000  # of people and places in small talk
_KINDS = range(len(STYLES))
# Each list of synonyms has its own range of coined words.
_FIRST_VERDICT = _COINED * len(ASPECTS) * len(ADJECTIVES)
_FIRST_HABIT = _FIRST_VERDICT + _COINED * len(ADJECTIVES)
_FIRST_NAME = _FIRST_HABIT + _COINED * len(STYLES)


class Facts(NamedTuple):
    """What one text says."""

    cuisine: int  # index into CUISINES; -1 where it is not said
    mentions: tuple[tuple[int, int], ...]  # (aspect, level of 0 to 4), in the order of the text
    favorite: int | None  # the aspect that its user says to care for most
    stars: int  # 0 where there is no verdict
    style: tuple[int, ...] = (0,) * len(STYLES)  # words that each kind of user is fond of


class Words(NamedTuple):
    """The facts of n reviews as arrays; an aspect that is not mentioned has level -1."""

    cuisine: Int[np.ndarray, "n"]
    level: Int[np.ndarray, "n k"]
    order: Int[np.ndarray, "n k"]  # the aspects in order of mention, then the others
    mentions: Int[np.ndarray, "n"]
    favorite: Int[np.ndarray, "n"]  # -1 where it is not said
    stars: Int[np.ndarray, "n"]  # 0 where they are not said
    style: Int[np.ndarray, "n h"]

    def take(self, rows: Int[np.ndarray, "m"]) -> "Words":
        """The words of some rows."""
        return Words(*(column[rows] for column in self))


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
        ranked = _aspects_in_order(taste, self._rng).tolist()
        mentions = self._rng.integers(2, _MOST_MENTIONS + 1, size=n).tolist()
        levels = np.searchsorted(LEVEL_CUTS, experience).tolist()
        dice = self._rng.integers(1 << 30, size=(n, _MOST_MENTIONS + 3)).tolist()
        tells = (self._rng.random(n) < _TELLS_TASTE).tolist()
        favorite = taste.argmax(axis=1).tolist()
        talks = self._rng.poisson(self._small_talk, size=n).tolist()
        texts = []
        for i in range(n):
            roll = dice[i]
            parts = [_pick(OPENINGS, roll[0]).format(c=CUISINES[cuisine[i]][0].lower())]
            for j in range(mentions[i]):
                aspect = ranked[i][j]
                parts.append(_pick(self._sentences[aspect][levels[i][aspect]], roll[j + 1]))
            if tells[i]:
                parts.append(_pick(CARES, roll[-2]).format(w=CARED[ASPECTS[favorite[i]]]))
            parts += [_pick(SMALL_TALK, roll[0] // 7 + 11 * j) for j in range(talks[i])]
            parts.append(_pick(VERDICTS[stars[i] - 1], roll[-1]))
            texts.append(". ".join(parts) + ".")
        return texts


class NoisyWriter(ReviewWriter):
    """Writes of the same as people do: with digressions, in rare words, often without a verdict."""

    def write(
        self,
        taste: Float[np.ndarray, "n k"],
        experience: Float[np.ndarray, "n k"],
        stars: Int[np.ndarray, "n"],
        cuisine: Int[np.ndarray, "n"],
    ) -> list[str]:
        """One text per row."""
        rng, n, rated = self._rng, stars.size, stars.tolist()
        ranked = _aspects_in_order(taste, rng).tolist()
        mentions = rng.integers(1, _NOISY_MENTIONS + 1, size=n).tolist()
        levels = np.searchsorted(LEVEL_CUTS, experience).tolist()
        dice = rng.integers(1 << 30, size=(n, 6)).tolist()
        tells_taste = (rng.random(n) < _NOISY_TELLS_TASTE).tolist()
        tells_stars = (rng.random(n) < _TELLS_STARS).tolist()
        # Of several aspects that are equally dear, any.
        favorite = (taste + 1e-6 * rng.random(taste.shape)).argmax(axis=1).tolist()
        talk = [self._talk(count) for count in rng.poisson(self._small_talk, size=n).tolist()]
        texts = []
        for i in range(n):
            roll = dice[i]
            parts = [_pick(OPENINGS, roll[0]).format(c=CUISINES[cuisine[i]][0].lower())]
            for j in range(mentions[i]):
                aspect = ranked[i][j]
                word = _zipf(rng, _synonyms(aspect, levels[i][aspect]))
                subject = _pick(VOCABULARY[ASPECTS[aspect]][0], roll[j + 1] // len(FRAMES))
                parts.append(_capital(_pick(FRAMES, roll[j + 1]).format(s=subject, a=word)))
            if tells_taste[i]:
                parts.append(_pick(CARES, roll[3]).format(w=CARED[ASPECTS[favorite[i]]]))
            for j, sentence in enumerate(talk[i]):
                parts.insert((roll[4] >> 3 * j) % (len(parts) + 1), sentence)
            if tells_stars[i]:
                said = _pick(VERDICT_FRAMES, roll[5]).format(a=_zipf(rng, _verdicts(rated[i])))
                parts.insert(0 if roll[5] % 5 == 0 else len(parts), said)
            texts.append(". ".join(parts) + ".")
        return texts

    def _talk(self, count: int) -> list[str]:
        rng = self._rng
        return [
            _pick(COMPANY, roll // 2).format(x=_zipf(rng, _names()).capitalize())
            if roll % 2
            else _pick(SMALL_TALK, roll // 2)
            for roll in rng.integers(1 << 20, size=count).tolist()
        ]


class StyleWriter(ReviewWriter):
    """Writes shuffled words: small talk, what the user's kind is fond of, and maybe a verdict."""

    def write(
        self,
        taste: Float[np.ndarray, "n h"],
        experience: Float[np.ndarray, "n h"],
        stars: Int[np.ndarray, "n"],
        cuisine: Int[np.ndarray, "n"],
    ) -> list[str]:
        """One text per row, of the one kind of user that has any `taste`."""
        rng, n, rated, kinds = self._rng, stars.size, stars.tolist(), len(STYLES)
        kind = taste.argmax(axis=1)[:, None]
        other = (kind + rng.integers(1, kinds, size=(n, _STYLE_WORDS))) % kinds
        spoken = np.where(rng.random(other.shape) < OWN_STYLE, kind, other).tolist()
        counts = rng.integers(_STYLE_WORDS // 2, _STYLE_WORDS + 1, size=n).tolist()
        fillers = rng.poisson(3 * self._small_talk, size=n).tolist()
        names = rng.poisson(self._small_talk / 2, size=n).tolist()
        tells_stars = (rng.random(n) < _TELLS_STARS).tolist()
        texts = []
        for i in range(n):
            words = [_zipf(rng, _habits(style)) for style in spoken[i][: counts[i]]]
            words += [FILLERS[word] for word in rng.integers(len(FILLERS), size=fillers[i])]
            words += [_zipf(rng, _names()).capitalize() for _ in range(names[i])]
            words += [_zipf(rng, _verdicts(rated[i])) for _ in range(2 * tells_stars[i])]
            texts.append(" ".join([words[word] for word in rng.permutation(len(words))]))
        return texts


def read_facts(text: str) -> Facts:
    """What a text of `ReviewWriter` or `NoisyWriter` says."""
    cuisine, mentions, favorite, stars = -1, [], None, 0
    meanings = _meanings()
    for sentence in text.removesuffix(".").split(". "):
        kind, *told = meanings.get(sentence, ("small talk",))
        if kind == "mention":
            mentions.append((told[0], told[1]))
        elif kind == "favorite":
            favorite = told[0]
        elif kind == "stars":
            stars = told[0]
        elif kind == "cuisine":
            cuisine = told[0]
    return Facts(cuisine, tuple(mentions), favorite, stars)


def read_style(text: str) -> Facts:
    """What a text of `StyleWriter` says."""
    meanings = _meanings_of_words()
    told = [meanings[word] for word in text.split(" ") if word in meanings]
    style = [sum(1 for kind, index in told if (kind, index) == ("style", h)) for h in _KINDS]
    stars = [index for kind, index in told if kind == "stars"]
    return Facts(-1, (), None, stars[0] if stars else 0, tuple(style))


def read_words(texts: Iterable[str], read: Callable[[str], Facts]) -> Words:
    """What texts say, by one of the two readers above."""
    facts = [read(text) for text in texts]
    level = np.full((len(facts), len(ASPECTS)), -1)
    order = np.empty(level.shape, np.int64)
    for row, fact in enumerate(facts):
        mentioned = [aspect for aspect, _ in fact.mentions]
        level[row, mentioned] = [level for _, level in fact.mentions]
        order[row] = mentioned + [k for k in range(len(ASPECTS)) if k not in mentioned]
    return Words(
        np.array([fact.cuisine for fact in facts], int),
        level,
        order,
        np.array([len(fact.mentions) for fact in facts], int),
        np.array([-1 if fact.favorite is None else fact.favorite for fact in facts], int),
        np.array([fact.stars for fact in facts], int),
        np.array([fact.style for fact in facts], int).reshape(len(facts), len(STYLES)),
    )


def _aspects_in_order(
    taste: Float[np.ndarray, "n k"], rng: np.random.Generator
) -> Int[np.ndarray, "n k"]:
    """Aspects without replacement, each with probability as the taste for it (Gumbel top-k)."""
    scores = np.log(taste + MENTION_FLOOR) + rng.gumbel(size=taste.shape)
    return np.argsort(-scores, axis=1)


@functools.cache
def _sentences() -> list[list[list[str]]]:
    """For each aspect and level, every sentence of `ReviewWriter` that tells it."""
    return [
        [
            [
                _capital(frame.format(s=subject, a=word))
                for frame in FRAMES
                for subject in subjects
                for word in words
            ]
            for words in adjectives
        ]
        for subjects, adjectives in VOCABULARY.values()
    ]


@functools.cache
def _meanings() -> dict[str, tuple]:
    """Every sentence that tells something -> what."""
    meanings: dict[str, tuple] = {}
    for aspect, (subjects, adjectives) in enumerate(VOCABULARY.values()):
        for level in range(len(adjectives)):
            for word in _synonyms(aspect, level):
                for subject in subjects:
                    told = (_capital(frame.format(s=subject, a=word)) for frame in FRAMES)
                    meanings |= dict.fromkeys(told, ("mention", aspect, level))
    for aspect, name in enumerate(ASPECTS):
        meanings |= {frame.format(w=CARED[name]): ("favorite", aspect) for frame in CARES}
    for stars, verdicts in enumerate(VERDICTS, start=1):
        meanings |= dict.fromkeys(verdicts, ("stars", stars))
        said = (frame.format(a=word) for frame in VERDICT_FRAMES for word in _verdicts(stars))
        meanings |= dict.fromkeys(said, ("stars", stars))
    for cuisine, (name, *_) in enumerate(CUISINES):
        meanings |= {frame.format(c=name.lower()): ("cuisine", cuisine) for frame in OPENINGS}
    return meanings


@functools.cache
def _meanings_of_words() -> dict[str, tuple[str, int]]:
    """Every word of `StyleWriter` that tells something -> what."""
    meanings = {word: ("style", kind) for kind in _KINDS for word in _habits(kind)}
    return meanings | {word: ("stars", s) for s in range(1, 6) for word in _verdicts(s)}


@functools.cache
def _synonyms(aspect: int, level: int) -> tuple[str, ...]:
    own = VOCABULARY[ASPECTS[aspect]][1][level]
    first = _COINED * (aspect * len(ADJECTIVES) + level)
    return own + ADJECTIVES[level] + coin(first, _COINED)


@functools.cache
def _verdicts(stars: int) -> tuple[str, ...]:
    return ADJECTIVES[stars - 1] + coin(_FIRST_VERDICT + _COINED * (stars - 1), _COINED)


@functools.cache
def _habits(kind: int) -> tuple[str, ...]:
    return STYLES[kind] + coin(_FIRST_HABIT + _COINED * kind, _COINED)


@functools.cache
def _names() -> tuple[str, ...]:
    return coin(_FIRST_NAME, _NAMES)


@functools.cache
def _zipf_shares(count: int) -> Float[np.ndarray, "n"]:
    share = np.cumsum(1 / np.arange(1, count + 1))
    return share / share[-1]


def _zipf(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(_zipf_shares(len(words)).searchsorted(rng.random()))]


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _pick(choices, roll: int) -> str:
    return choices[roll % len(choices)]
