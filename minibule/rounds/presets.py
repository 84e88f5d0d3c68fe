"""Whole published systems in a word: what each draws, keeps and trains.

Numbers are the published ones, but for models and machines that are a thousand times as large: a
budget that is too much for a CPU is best cut in `samples`.
"""

from typing import NamedTuple


class Preset(NamedTuple):
    """A system of rounds.

    selection, budget  names of `SELECTIONS` and `BUDGETS`
    objective          the loss, a name of `LOSSES`
    samples            how many are drawn of each prompt, or with a budget of its own at a time
    temperature        at which they are drawn
    kl                 how strongly the model is held to its base; None: as the loss has it
    """

    selection: str
    budget: str
    objective: str
    samples: int
    temperature: float = 1.0
    kl: float | None = None


DEFAULT = "rejection"

PRESETS: dict[str, Preset] = {
    # Ours: GRPO, an answer's reward less the mean of its prompt's, held to the base by its KL, at
    # the rate of `train`.
    "rejection": Preset("all", "fixed", "grpo", 8, kl=0.1),
    # Yuan et al. 2023, with the numbers of trlx; and Dong et al. 2023, RAFT.
    "rft": Preset("rft", "fixed", "sft", 32),
    "raft": Preset("raft", "fixed", "sft", 8, 0.85),
    # Liu et al. 2023; 64 samples also take the 40 likeliest tokens alone.
    "rso": Preset("rso", "fixed", "rso", 64, 0.7),
    # Zhu et al. 2025: the wrong answers alone, or with a tenth of the weight the right ones.
    "nsr": Preset("all", "fixed", "nsr", 8),
    "w-reinforce": Preset("all", "fixed", "w-reinforce", 8),
    # Shao et al. 2024; the loss leaves out prompts whose answers are judged alike.
    "grpo": Preset("all", "fixed", "grpo", 8),
    # Yao et al. 2025, on RAFT++; Xiong et al. 2025, until both sorts are there.
    "gvm-raft": Preset("raft++", "gvm", "reinforce", 8),
    "reinforce-ada": Preset("balanced", "balance", "reinforce", 8),
    # Di et al. 2025, who choose answers so and train nothing: here the chosen are.
    "best-of-majority": Preset("majority", "fixed", "sft", 32),
}
