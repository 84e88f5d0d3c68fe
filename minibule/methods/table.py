"""The losses by their names. Adding one: its class in a file of its own, and a line here."""

from minibule.core.fused import ComplementLoss
from minibule.core.loss import Loss
from minibule.core.objective import OBJECTIVES
from minibule.methods.npo import NPO
from minibule.methods.tokens import NSR, Ratio, Unlikelihood

LOSSES: dict[str, Loss] = {
    **{name: ComplementLoss(objective) for name, objective in OBJECTIVES.items()},
    "ratio": Ratio(),
    "nsr": NSR(),
    "unlikelihood": Unlikelihood(),
    "npo": NPO(),
}
