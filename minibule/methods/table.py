"""The losses by their names. Adding one: its class beside its kin, and a line here."""

from minibule.core.fused import TargetLoss
from minibule.core.loss import Loss
from minibule.core.objective import OBJECTIVES
from minibule.methods.kto import KTO
from minibule.methods.pairs import DPO, Hinge, SLiC
from minibule.methods.rejected import NPO, Complement, SimNPO
from minibule.methods.rewarded import GRPO, REDI, SFT, Reinforce, WReinforce
from minibule.methods.tokens import NSR, Ratio, Unlikelihood

LOSSES: dict[str, Loss] = {
    **{name: TargetLoss(objective) for name, objective in OBJECTIVES.items()},
    # from rejected answers alone
    "complement": Complement(),
    "ratio": Ratio(),
    "nsr": NSR(),
    "unlikelihood": Unlikelihood(),
    "npo": NPO(),
    "simnpo": SimNPO(),
    # from accepted answers, too
    "sft": SFT(),
    "reinforce": Reinforce(),
    "w-reinforce": WReinforce(),
    "kto": KTO(),
    "dpo": DPO(),
    "slic": SLiC(),
    "rso": DPO(beta=0.05),
    "rso-hinge": Hinge(),
    "redi": REDI(),
    "grpo": GRPO(),
    "dr-grpo": GRPO(per="budget", scaled=False),
    "dapo": GRPO(per="token"),
}
