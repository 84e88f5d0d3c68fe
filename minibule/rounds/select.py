"""Which of a round's samples are trained on, and with what reward: the published choices by name.

Every choice is a `Selection`: called with (groups, rng, progress), it says what is kept. A group is
the samples of one prompt; rewards above 0 are those of accepted answers, as all losses take them,
but for the choices that give rewards of their own (`shapes`). Where rewards are tied, and with a
judge that says yes or no nearly all are, the choice between them is drawn from `rng`, never made by
position.

    all              every sample with its reward: NSR, W-REINFORCE and GRPO
    pooled           the same, with the samples of all rounds so far: our own
    rft, raft        answers that are good for their prompt; the best one, if accepted
    raft++           all that are accepted, with their rewards
    rso              statistical rejection sampling, then pairs
    majority         the best of the answers that come often
    bon, br, bw      PF-PPO's: the best again and again; the best or any; the best or the worst
    d3s              those whose advantages are the farthest apart
    dapo             the groups whose rewards are not all the same
    par              every sample, with a reward that is bounded
    balanced         as many accepted as rejected ones, less the mean of all
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from minibule.core.ops import sigmoid
from minibule.machine.matrix import Array
from minibule.methods.rewarded import advantages
from minibule.rounds.groups import Group, Kept, OfEach, Part, Rng, Selection, best_first, distinct


def _as_accepted(samples: Array) -> Part:
    """Samples that are trained as accepted ones, whatever their rewards."""
    return samples, np.ones(len(samples))


@dataclass(frozen=True)
class All(OfEach):
    """Every sample with its reward."""

    def parts(self, group: Group, rng: Rng, progress: float) -> Iterator[Part]:
        yield np.arange(len(group.rewards)), group.rewards


class Pooled(All):
    """Every sample with its reward, those of the rounds before among them.

    What was rejected once stays rejected: else nothing would stand against an anchor, which pulls
    back to the base, where the model no longer says what it was trained not to say.
    """

    pools = True


@dataclass(frozen=True)
class Dapo(OfEach):
    """DAPO's dynamic sampling: groups whose rewards are all the same are left out.

    Told by the largest and the least: the deviation of equal rewards may round to more than 0.
    Source: Yu et al. 2025, "DAPO", which draws until a batch is full of the others.
    """

    def parts(self, group: Group, rng: Rng, progress: float) -> Iterator[Part]:
        if np.ptp(group.rewards) > 0:
            yield np.arange(len(group.rewards)), group.rewards


# -- the best --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RFT(OfEach):
    """Rejection fine-tuning: answers at or above a quantile of their prompt's, each once.

    The quantile grows from `start` in the first round to `end` in the last.

    Sources: Yuan et al. 2023, "Scaling Relationship on Learning Mathematical Reasoning"; Gulcehre
    et al. 2023, "ReST"; the numbers of the trlx library, which differs in four ways. There the
    quantile stops a step short of `end`. A threshold is cut to the range of all prompts' thresholds
    less .001, so that where these are equal, as on hard questions with rewards 0 and 1, everything
    passes, wrong answers too; here what is kept exceeds the worst of its prompt. Samples of older
    models stay in the pool with their old scores; here a group is what it is given as. And where
    nothing passes, it trains again on what was kept before.
    """

    start: float = 0.7
    end: float = 0.95
    keeps = "accepted"
    by_rank = True

    def parts(self, group: Group, rng: Rng, progress: float) -> Iterator[Part]:
        quantile = self.start + (self.end - self.start) * progress
        rewards = group.rewards
        threshold = np.quantile(rewards, quantile)
        once = distinct(group.answers)
        good = (rewards[once] >= threshold) & (rewards[once] > rewards.min())
        yield _as_accepted(once[good])


@dataclass(frozen=True)
class RAFT(OfEach):
    """Reward-ranked fine-tuning: of each prompt the best answer, where it was accepted.

    Without that condition a prompt that has no right answer would have a wrong one trained.
    Source: Dong et al. 2023, "RAFT".
    """

    keeps = "accepted"

    def parts(self, group: Group, rng: Rng, progress: float) -> Iterator[Part]:
        best = best_first(group.rewards, rng)[:1]
        yield _as_accepted(best[group.rewards[best] > 0])


@dataclass(frozen=True)
class RAFTPlus(OfEach):
    """RAFT++: all accepted answers, each with its reward.

    Source: Xiong et al. 2025, "A Minimalist Approach to LLM Reasoning", whose mean is over the
    tokens of the others, too: that scales a step by the share of accepted ones.
    """

    keeps = "accepted"

    def parts(self, group: Group, rng: Rng, progress: float) -> Iterator[Part]:
        accepted = np.flatnonzero(group.rewards > 0)
        yield accepted, group.rewards[accepted]


@dataclass(frozen=True)
class Majority(OfEach):
    """Best-of-Majority: of what comes with a frequency of at least `least`, the `best` by reward.

    An answer is what it says, in whatever words, and of these the best are taken; where none comes
    often enough, those that come most often stand for all. As in RAFT only what was accepted is
    trained. With least = 0 this is the best of all; with n samples anything up to 1 / n is the
    same.

    Source: Di et al. 2025, "Best-of-Majority", arXiv:2510.03199, for many more samples: .003-.015.
    """

    least: float = 0.05
    best: int = 1
    keeps = "accepted"

    def parts(self, group: Group, rng: Rng, progress: float) -> Iterator[Part]:
        _, said, times = np.unique(_numbered(group.says), return_inverse=True, return_counts=True)
        least = min(self.least * len(said), times.max())
        order = best_first(group.rewards, rng)
        order = order[times[said[order]] >= least]
        best = order[distinct(said[order].tolist())][: self.best]  # each once, by its best sample
        yield _as_accepted(best[group.rewards[best] > 0])


def _numbered(says: Sequence[Hashable]) -> Array:
    """A number for each, the same where they are."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(one, len(numbers)) for one in says])


# -- by chance -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RSO(OfEach):
    """Statistical rejection sampling, and pairs of what it accepts: each a record of its own.

    Different answers are gone through, and one of reward r is taken with the probability
    exp((r - max) / beta); again without those that were taken, whose maximum is another, until
    there are `best`. Then they are paired at random, and pairs of equal rewards, which have no
    winner, are dropped. beta = 0 takes the best, a large one any. Rewards of 0 and 1 let a wrong
    answer pass with exp(-1 / beta), .135 for .5.

    Source: Liu et al. 2023, "Statistical Rejection Sampling Improves Preference Optimization", with
    64 samples; its `first-round-rank`. There answers are gone through in the order they came in.
    """

    best: int = 8
    beta: float = 0.5
    keeps = "both"
    by_rank = True

    def parts(self, group: Group, rng: Rng, progress: float) -> Iterator[Part]:
        once = distinct(group.answers)
        taken = once[accept_reject(group.rewards[once], self.best, self.beta, rng)]
        for one, other in rng.permutation(taken)[: len(taken) // 2 * 2].reshape(-1, 2):
            pair = np.array([one, other])
            rewards = group.rewards[pair]
            if rewards[0] != rewards[1]:
                yield pair, (rewards == rewards.max()).astype(float)


def accept_reject(rewards: Array, n: int, beta: float, rng: Rng) -> Array:
    """Which n of the samples are taken, or all if they are fewer, in the order of their taking."""
    left, taken = np.arange(len(rewards)), np.zeros(0, int)
    while len(left) and len(taken) < n:
        left = rng.permutation(left)
        below = rewards[left] - rewards[left].max()
        chance = np.exp(below / beta) if beta else (below == 0).astype(float)
        passed = rng.random(len(left)) < chance  # the best do, so each time something is taken
        taken, left = np.append(taken, left[passed]), left[~passed]
    return taken[:n]


@dataclass(frozen=True)
class PFPPO(OfEach):
    """Policy filtration: n samples drawn again, with replacement and by the rank of their rewards.

    The best has the weight `best`, the worst `worst`, and the others share the rest: where rewards
    are unsure, their two ends are surer than what lies between. bon is best of n, (1, 0); br is
    best or random, (1/2, the others together 1/2); bw is best or worst, (1/2, ..., 1/2).

    Source: Shen and Zhang 2024, "Policy Filtration in RLHF", arXiv:2409.06957, whose code has br's
    weights for five samples, whatever their number.
    """

    best: float
    worst: float | None = None

    @property
    def keeps_one(self) -> bool:
        return self.best == 1

    def parts(self, group: Group, rng: Rng, progress: float) -> Iterator[Part]:
        n = len(group.rewards)
        drawn = np.sort(rng.choice(best_first(group.rewards, rng), n, p=self.weights(n)))
        yield drawn, group.rewards[drawn]

    def weights(self, n: int) -> Array:
        """(n,), the best first; they sum to 1."""
        if n == 1:
            return np.ones(1)
        if self.worst is None:
            return np.array([self.best] + [(1 - self.best) / (n - 1)] * (n - 1))
        return np.array([self.best] + [0.0] * (n - 2) + [self.worst])


# -- by advantage ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class D3S(Selection):
    """Of all groups together those samples whose GRPO advantages vary most; with these as rewards.

    share: of the samples, how many. Source: "D3S", arXiv:2509.22115, for whole answers; its other
    half chooses tokens. The schedule of its shares is not published.
    """

    share: float = 0.5
    shapes = True

    def __call__(self, groups: Sequence[Group], rng: Rng, progress: float = 0.0) -> list[Kept]:
        sizes = [len(group.rewards) for group in groups]
        rewards = np.concatenate([*(group.rewards for group in groups), np.zeros(0)])
        number_of = np.repeat(np.arange(len(groups)), sizes)
        values = advantages(rewards, np.ones(len(rewards)), number_of)
        chosen = np.zeros(len(values), bool)
        chosen[max_variance(values, round(self.share * len(values)), rng)] = True
        ends = np.cumsum(sizes)
        kept = []
        for number, (size, end) in enumerate(zip(sizes, ends, strict=True)):
            samples = np.flatnonzero(chosen[end - size : end])
            if len(samples):
                kept.append(Kept(number, samples, values[end - size : end][samples]))
        return kept


def max_variance(values: Array, m: int, rng: Rng) -> Array:
    """Which m of the values have the largest variance: always some largest and some smallest.

    For were one of them between two that are left out, moving it to one of these would not lessen
    the variance. After the sort O(m): for each split the sums of both ends.
    """
    order = best_first(values, rng)
    v = values[order] - values.mean() if len(values) else values
    top, bottom = v[:m], v[len(v) - m :][::-1]  # the largest first, the smallest first

    def sums(ends: Array) -> Array:
        return np.append(0.0, np.cumsum(ends))  # of the first 0, 1, ..., m

    total = sums(top) + sums(bottom)[::-1]
    squares = sums(top**2) + sums(bottom**2)[::-1]
    split = int(np.argmax(m * squares - total**2))
    return np.concatenate([order[:split], order[len(order) - (m - split) :]])


@dataclass(frozen=True)
class PAR(OfEach):
    """Preference as reward: how surely an answer beats the base's, less 1/2, so in (-1/2, 1/2).

    The mean of sigmoid(k (r - r_usual)) over the base's own samples. With a judge of yes and no it
    is a number for each, which a division by the deviation takes away again.
    Source: Fu et al. 2025, "Reward Shaping to Mitigate Reward Hacking in RLHF", without the 1/2:
    here what is as good as the base's is worth 0, and advantages do not see it.
    """

    k: float = 1.0
    needs_usual = True
    shapes = True

    def parts(self, group: Group, rng: Rng, progress: float) -> Iterator[Part]:
        if group.usual is None or not len(group.usual):
            raise ValueError("PAR needs rewards of the base's own samples")
        apart = self.k * (group.rewards[:, None] - group.usual)
        yield np.arange(len(apart)), sigmoid(apart).mean(axis=1) - 0.5


@dataclass(frozen=True)
class Balanced(OfEach):
    """Reinforce-Ada's: the first `keep` / 2 accepted and as many rejected, filled from either.

    Their reward is r less the mean of *all* samples that were drawn of the prompt, which the
    balance does not move. Prompts of one sort alone, whose rewards would be 0, are left out.
    Source: Xiong et al. 2025, "Reinforce-Ada", arXiv:2510.04996, whose n is 4.
    """

    keep: int = 4
    shapes = True

    def parts(self, group: Group, rng: Rng, progress: float) -> Iterator[Part]:
        right, wrong = np.flatnonzero(group.rewards > 0), np.flatnonzero(group.rewards <= 0)
        if not len(right) or not len(wrong):
            return
        half = self.keep // 2
        accepted = max(min(len(right), half), self.keep - len(wrong))
        kept = np.sort(np.append(right[:accepted], wrong[: self.keep - accepted]))
        yield kept, group.rewards[kept] - group.rewards.mean()


SELECTIONS: dict[str, Selection] = {
    "all": All(),
    "pooled": Pooled(),
    "rft": RFT(),
    "raft": RAFT(),
    "raft++": RAFTPlus(),
    "rso": RSO(),
    "majority": Majority(),
    "bon": PFPPO(1.0, 0.0),
    "br": PFPPO(0.5),
    "bw": PFPPO(0.5, 0.5),
    "d3s": D3S(),
    "dapo": Dapo(),
    "par": PAR(),
    "balanced": Balanced(),
}
