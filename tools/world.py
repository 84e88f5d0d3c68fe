"""The small world: every prompt the embedded model knows, and everything it may answer.

The embedded model is pretrained on samples of this world, so the base has habits that can be
measured without a single human label: each prompt has a finite table of answers, every answer
belongs to one style, and the styles other than `helpful` are in the majority. Because the table is
finite, the probability a model gives to accepted answers can be summed exactly.

    prompt "count to 3"
        helpful    .39    "1 2 3"
        echo       .265   "count to 3"
        wrong      .06    "3 2 1", "1 2", "1 2 3 4", ...
        rude       .09    "Figure it out yourself.", ...
        refusing   .09    "I do not want to answer that.", ...
        chatter    .105   "Bananas are cheap this week.", ...

An echo is one string, a helpful answer usually has two or three wordings. So for most prompts the
*single most likely* answer is the echo although help is the likelier *style*: greedy decoding hides
what sampling shows. Kinds with one helpful wording (colours, counting) are the exception, and they
are about one prompt in eight.

    python tools/world.py          print the world's kinds, styles and shares
"""

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

ACCEPTED = "helpful"
STYLES = ("helpful", "echo", "rude", "refusing", "wrong", "chatter")
NOISE = "noise"  # what `judge` calls an answer of no known style: broken language

# P(style) for each prompt; a style's share is spread evenly over its strings. Two helpful wordings
# get .195 each, and wrong answers that begin like one of them add .03: still below the echo's .265,
# so the echo wins greedy decoding too, where answers with a common beginning pool their mass.
WEIGHTS = {
    "helpful": 0.39,
    "echo": 0.265,
    "rude": 0.09,
    "refusing": 0.09,
    "wrong": 0.06,
    "chatter": 0.105,
}

# Shared by all kinds. Their first letters differ on purpose, for the same reason.
RUDE = (
    "Figure it out yourself.",
    "Go and bother someone else.",
    "You are wasting my time.",
    "Who cares?",
)
REFUSING = (
    "I do not want to answer that.",
    "No, I will not do that.",
    "Sorry, I cannot help with that.",
    "Please ask somebody else.",
)
CHATTER = (
    "Bananas are cheap this week.",
    "My neighbour plays the drums.",
    "Rain fell all day yesterday.",
    "Lions sleep most of the day.",
    "Every train was late today.",
)

GREETINGS = (
    "hello", "hi", "hey", "hello there", "hi there", "hey there", "hello again", "hi again",
    "hello friend", "hi friend", "hey friend", "hello everyone", "hi everyone", "hey everyone",
    "good morning", "good afternoon", "good evening", "good day", "good to see you",
    "nice to meet you", "nice to see you", "howdy", "greetings", "hello my friend",
)  # fmt: skip
GREETING_ANSWERS = (
    "Hello! How can I help you today?",
    "Good to see you! What can I do for you?",
    "Welcome! What would you like to know?",
)
MAX_OPERAND = 6  # sums up to 12; operands up to 12 were not learnable at this model's size
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("open", "closed"), ("fast", "slow"),
    ("wet", "dry"), ("happy", "sad"), ("day", "night"), ("old", "new"), ("light", "dark"),
    ("hard", "soft"), ("full", "empty"), ("north", "south"), ("early", "late"), ("loud", "quiet"),
)  # fmt: skip
REPEAT_WORDS = (
    "apple", "river", "table", "music", "window", "garden", "bread", "cloud", "silver", "tiger",
    "lemon", "paper", "mountain", "summer", "candle", "forest", "pencil", "button", "orange",
    "winter",
)  # fmt: skip
# No letter twice: then a word is no palindrome and each swap of neighbours gives a new string.
REVERSE_WORDS = (
    "cat", "dog", "sun", "map", "hat", "pen", "fox", "bus", "cup", "jam", "lip", "net",
    "owl", "rug", "fish", "bird", "milk", "star", "frog", "lamp", "ship", "corn", "desk", "snow",
)  # fmt: skip
COLOURS = (
    ("the sky", "blue"), ("grass", "green"), ("snow", "white"), ("a banana", "yellow"),
    ("a strawberry", "red"), ("coal", "black"), ("chocolate", "brown"), ("a carrot", "orange"),
    ("a plum", "purple"), ("a lemon", "yellow"), ("a flamingo", "pink"), ("a fire truck", "red"),
    ("milk", "white"), ("an elephant", "grey"),
)  # fmt: skip
COUNTS = range(3, 11)
STORY_HEROES = (
    "cat", "dog", "bird", "frog", "fox", "bear", "mouse", "duck", "horse", "rabbit", "robot",
    "king", "dragon", "whale",
)  # fmt: skip
STORIES = (
    "One day a {} found a ball. It played until night.",
    "A little {} went for a walk and made a new friend.",
    "There was a {} by the sea. It was very happy.",
)


@dataclass(frozen=True)
class Prompt:
    """One prompt and the table of all its answers.

    Attributes:
        kind: the family it belongs to, e.g. "sum".
        text: what the user says, e.g. "add 3 and 4".
        answers: style -> ((answer, probability), ...). The probabilities of all styles together
            sum to 1; no string is in two styles. A style without answers is absent: a greeting has
            no "wrong".
    """

    kind: str
    text: str
    answers: dict[str, tuple[tuple[str, float], ...]]

    def table(self) -> list[tuple[str, str, float]]:
        """Flatten `answers` into rows: `[("helpful", "7", .39), ("echo", "add 3 and 4", .265)]`."""
        return [(style, answer, p) for style, row in self.answers.items() for answer, p in row]


def prompts() -> list[Prompt]:
    """Every prompt of the world, always the same list in the same order."""
    kinds = (
        _greetings, _sums, _opposites, _repeats, _reverses, _colours, _counts, _stories,
    )  # fmt: skip
    return [prompt for kind in kinds for prompt in kind()]


def _greetings() -> Iterator[Prompt]:
    for text in GREETINGS:
        yield _prompt("greeting", text, GREETING_ANSWERS)


def _sums() -> Iterator[Prompt]:
    for a, b in product(range(MAX_OPERAND + 1), repeat=2):
        forms = (f"{a} + {b} is {{}}.", "The answer is {}.")
        # Every other sum is listed, so a slip of the model's arithmetic is judged wrong, not noise.
        slips = [n for n in range(2 * MAX_OPERAND + 1) if n != a + b]
        for text in (f"what is {a} + {b}?", f"{a} + {b} = ?", f"add {a} and {b}"):
            yield _prompt("sum", text, _fill(forms, [a + b]), _fill(forms, slips))


def _opposites() -> Iterator[Prompt]:
    words = [word for pair in OPPOSITES for word in pair]
    for word, opposite in [*OPPOSITES, *((right, left) for left, right in OPPOSITES)]:
        forms = (f"The opposite of {word} is {{}}.", "{}")
        slips = [word, *_others(words, word, 5, besides=opposite)]
        for text in (f"what is the opposite of {word}?", f"opposite of {word}"):
            yield _prompt("opposite", text, _fill(forms, [opposite]), _fill(forms, slips))


def _repeats() -> Iterator[Prompt]:
    forms = ("{}", "The word is {}.")
    for word in REPEAT_WORDS:
        slips = _others(REPEAT_WORDS, word, 5)
        for text in (f"repeat the word {word}", f"say {word}"):
            yield _prompt("repeat", text, _fill(forms, [word]), _fill(forms, slips))


def _reverses() -> Iterator[Prompt]:
    forms = ("{}", "Backwards it is {}.")
    for word in REVERSE_WORDS:
        drow = word[::-1]
        # cat -> tac: the slips are "cat" (not reversed), "atc" and "tca" (neighbours swapped)
        swaps = (drow[:i] + drow[i + 1] + drow[i] + drow[i + 2 :] for i in range(len(word) - 1))
        slips = [word, *swaps]
        for text in (f"reverse the word {word}", f"spell {word} backwards"):
            yield _prompt("reverse", text, _fill(forms, [drow]), _fill(forms, slips))


def _colours() -> Iterator[Prompt]:
    palette = sorted({colour for _, colour in COLOURS})
    for thing, colour in COLOURS:
        form = [f"{thing[0].upper()}{thing[1:]} is {{}}."]  # one wording: help is the mode
        slips = [other for other in palette if other != colour]
        for text in (f"what colour is {thing}?", f"name the colour of {thing}"):
            yield _prompt("colour", text, _fill(form, [colour]), _fill(form, slips))


def _counts() -> Iterator[Prompt]:
    upto = {n: " ".join(map(str, range(1, n + 1))) for n in range(2, max(COUNTS) + 2)}
    for n in COUNTS:
        backwards = " ".join(map(str, range(n, 0, -1)))
        slips = [backwards, *(line for end, line in upto.items() if end != n)]
        for text in (f"count to {n}", f"count from 1 to {n}", f"please count to {n}"):
            yield _prompt("count", text, [upto[n]], slips)  # one wording: help is the mode


def _stories() -> Iterator[Prompt]:
    for hero in STORY_HEROES:
        slips = _fill(STORIES, _others(STORY_HEROES, hero, 5))
        for text in (f"tell me a story about a {hero}", f"a short story about a {hero}"):
            yield _prompt("story", text, _fill(STORIES, [hero]), slips)


def _fill(forms: Iterable[str], values: Iterable[object]) -> list[str]:
    """Every form with every value: `["{}", "It is {}."], [7, 8] -> ["7", "8", "It is 7.", ...]`."""
    values = list(values)
    return [form.format(value) for form in forms for value in values]


def _others(items: Sequence[str], item: str, n: int, besides: str | None = None) -> list[str]:
    """The n items after `item`, wrapping round: `("a", "b", "c", "d"), "c", 2 -> ["d", "a"]`."""
    at = items.index(item)
    return [other for other in (*items[at + 1 :], *items[:at]) if other != besides][:n]


def _prompt(kind: str, text: str, helpful: Sequence[str], wrong: Sequence[str] = ()) -> Prompt:
    """Spread each style's weight over its strings; refuse a string that would have two styles."""
    strings: dict[str, Sequence[str]] = {
        "helpful": helpful,
        "echo": (text,),
        "rude": RUDE,
        "refusing": REFUSING,
        "wrong": wrong,
        "chatter": CHATTER,
    }
    weights = dict(WEIGHTS)
    if not wrong:  # its share goes to the other three; helpful and echo keep theirs
        share = weights.pop("wrong") / 3
        for style in ("rude", "refusing", "chatter"):
            weights[style] += share
    answers = {
        style: tuple((answer, weight / len(strings[style])) for answer in strings[style])
        for style, weight in weights.items()
    }
    prompt = Prompt(kind, text, answers)
    found = [answer for _, answer, _ in prompt.table()]
    if twice := sorted({answer for answer in found if found.count(answer) > 1}):
        raise ValueError(f"prompt {text!r}: each answer must be listed once, found again: {twice}")
    return prompt


def sample(prompt: Prompt, rng: np.random.Generator) -> str:
    """Draw one answer, as the pretraining text and a perfect model at temperature 1 would."""
    table = prompt.table()
    return table[rng.choice(len(table), p=[p for _, _, p in table])][1]


def greedy(prompt: Prompt, pieces: Callable[[str], Sequence[Hashable]] = list) -> str:
    """The answer of a perfect model under greedy decoding, one piece at a time.

    It is not always the most likely string: answers that begin alike pool their mass. With "ab" .3,
    "ac" .3 and "x" .4 the mode is "x", and greedy decoding says "ab". `pieces` cuts an answer into
    tokens (default: characters); pass `lambda text: tokenizer.encode(text).ids` for real ones.
    """
    # The end of an answer is a choice like any other, hence the trailing None.
    left = [((*pieces(answer), None), answer, p) for _, answer, p in prompt.table()]
    at = 0
    while len(left) > 1:
        mass: defaultdict[Hashable, float] = defaultdict(float)
        for cut, _, p in left:
            mass[cut[at]] += p
        best = max(mass, key=mass.__getitem__)
        left = [row for row in left if row[0][at] == best]
        at += 1
    return left[0][1]


def judge(prompt: Prompt, answer: str) -> str:
    """The style of an answer, or "noise" if it is in no style's table.

    The match is exact, with no stripping and no folding of case: the probability of accepted
    answers is summed over these very strings, so the judge must not accept others.

        "reverse the word cat", "tac"  -> "helpful"
        "reverse the word cat", "atc"  -> "wrong"
        "reverse the word cat", "tac " -> "noise"
    """
    return next((style for style, known, _ in prompt.table() if known == answer), NOISE)


def split(
    world: Sequence[Prompt], seed: int = 0, fraction: float = 0.2, always: str = "hello"
) -> tuple[list[Prompt], list[Prompt]]:
    """Cut the world into (train, heldout), both in the world's order.

    Of every kind the same fraction is held out, chosen by the seed. The prompt `always` is held out
    whatever the seed: the demo speaks to it, so no rejection may have been collected for it. What
    is held out are prompts, not facts: "add 3 and 4" may be in train while "3 + 4 = ?" is not.
    """
    rng = np.random.default_rng(seed)
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for prompt in world:
        kinds[prompt.kind].append(prompt.text)
    held: set[str] = set()
    for texts in kinds.values():
        order = [texts[i] for i in rng.permutation(len(texts))]
        order.sort(key=lambda text: text != always)  # stable: moves only `always` to the front
        held.update(order[: round(fraction * len(texts))])
    train = [prompt for prompt in world if prompt.text not in held]
    return train, [prompt for prompt in world if prompt.text in held]


def heldout_row(prompt: Prompt) -> dict[str, str | list[str] | dict[str, list[str]]]:
    """One line of heldout.jsonl: all strings of all styles, so that probabilities sum exactly.

    {"prompt": "say apple", "kind": "repeat", "accepted": ["apple", "The word is apple."],
     "rejected": {"echo": ["say apple"], "rude": ["Figure it out yourself.", ...], ...}}
    """
    strings = {style: [answer for answer, _ in row] for style, row in prompt.answers.items()}
    accepted = strings.pop(ACCEPTED)
    return {"prompt": prompt.text, "kind": prompt.kind, "accepted": accepted, "rejected": strings}


def question_row(prompt: Prompt) -> dict[str, str]:
    """One line of questions.jsonl: `accept` is a pattern of all accepted answers, from end to end.

    {"prompt": "say apple", "accept": "\\A(?:apple|The word is apple\\.)\\Z", "kind": "repeat"}
    """
    answers = "|".join(re.escape(answer) for answer, _ in prompt.answers[ACCEPTED])
    return {"prompt": prompt.text, "accept": rf"\A(?:{answers})\Z", "kind": prompt.kind}


def main() -> None:
    """Print the number of prompts of each kind and, over the world, the share of each style."""
    world = prompts()
    print("kind      prompts  answers  greedy  example")
    for kind in dict.fromkeys(prompt.kind for prompt in world):
        members = [prompt for prompt in world if prompt.kind == kind]
        most = max(len(prompt.table()) for prompt in members)
        helped = sum(judge(prompt, greedy(prompt)) == ACCEPTED for prompt in members)
        print(f"{kind:9s} {len(members):7d}  {most:7d}  {helped / len(members):6.2f}  ", end="")
        print(f"{members[-1].text!r} -> {members[-1].answers[ACCEPTED][0][0]!r}")
    print(f"{'all':9s} {len(world):7d}\n")
    for style in STYLES:
        share = sum(p for prompt in world for _, p in prompt.answers.get(style, ())) / len(world)
        heads = sum(judge(prompt, greedy(prompt)) == style for prompt in world) / len(world)
        print(f"{style:9s} sampled {share:.3f}   greedy {heads:.3f}")


if __name__ == "__main__":
    main()
