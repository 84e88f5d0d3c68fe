"""Groups of judged samples, and what a selection makes of them."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from minibule.core.loss import Uses
from minibule.evaluate.sampled import ACCEPTED_FROM
from minibule.machine.matrix import Array

Rng = np.random.Generator

HIGHEST_REJECTED = np.nextafter(ACCEPTED_FROM, -1)


def signed(rewards: Sequence[float | None]) -> Array:
    """A judge's rewards as a `Group` has them, (n,) float64: less HIGHEST_REJECTED; None is NaN.

    So above 0 is just what was accepted, and how far two rewards are apart stays as it was. To
    groups' advantages this is all the same; REINFORCE gets 1/2 and -1/2 of a judge of yes and no.
    """
    return np.array(rewards, np.float64) - HIGHEST_REJECTED


class Group(NamedTuple):
    """The n samples of a prompt that the judge could tell about.

    rewards (n,) float64   `signed`, above 0: accepted
    answers (n,)           what each is, be it text or ids: two of the same are duplicates
    says (n,)              what each says, `Judge.key` of it: a majority is of these
    usual (m,) float64     the same of the base's own samples, for a selection that `needs_usual`
    """

    rewards: Array
    answers: Sequence[Hashable]
    says: Sequence[Hashable] = ()
    usual: Array | None = None


class Kept(NamedTuple):
    """What is trained together as a record of one prompt.

    group             whose samples they are
    samples (m,) int  which of them; one that stands there twice counts twice
    rewards (m,)      what the loss is given for each
    """

    group: int
    samples: Array
    rewards: Array


Part = tuple[Array, Array]  # samples and rewards of a Kept


class Selection(ABC):
    """Which samples of the groups are trained on, and with what rewards.

    keeps        of which sorts: for a loss that needs another there is nothing in what is kept
    needs_usual  whether groups must say what is `usual`
    pools        whether a group is to have the samples of all rounds so far, and not of this alone
    shapes       whether the rewards it gives are its own, whose sign is not what was accepted: for
                 losses alone that take a reward as it is
    by_rank      whether what it keeps as accepted and as rejected is so among the rewards of its
                 prompt, and not to the judge
    """

    keeps: ClassVar[Uses] = "any"
    needs_usual: ClassVar[bool] = False
    pools: ClassVar[bool] = False
    shapes: ClassVar[bool] = False
    by_rank: ClassVar[bool] = False

    @property
    def keeps_one(self) -> bool:
        """Whether what it keeps of a group is a single answer, however often."""
        return False

    @abstractmethod
    def __call__(self, groups: Sequence[Group], rng: Rng, progress: float = 0.0) -> list[Kept]:
        """What is kept, in the order of the groups.

        progress: from 0 in the first round to 1 in the last.
        """


class OfEach(Selection):
    """A selection that looks at one group at a time."""

    def __call__(self, groups: Sequence[Group], rng: Rng, progress: float = 0.0) -> list[Kept]:
        """The groups that anything is kept of, in their order."""
        return [
            Kept(number, samples, rewards)
            for number, group in enumerate(groups)
            if len(group.rewards)
            for samples, rewards in self.parts(group, rng, progress)
            if len(samples)
        ]

    @abstractmethod
    def parts(self, group: Group, rng: Rng, progress: float) -> Iterator[Part]:
        """The records that become of a group of at least one sample."""


def best_first(rewards: Array, rng: Rng) -> Array:
    """The order (n,) of falling rewards, ties at random."""
    order: Array = np.lexsort((rng.random(len(rewards)), -rewards))
    return order


def distinct(answers: Sequence[Hashable]) -> Array:
    """Where each of the different answers stands first."""
    first: dict[Hashable, int] = {}
    for i, answer in enumerate(answers):
        first.setdefault(answer, i)
    return np.array([*first.values()])
