"""The losses by their names. Adding one: its class in a file of its own, and a line here."""

from minibule.core.fused import ComplementLoss
from minibule.core.loss import Loss
from minibule.core.objective import OBJECTIVES
from minibule.methods.npo import NPO

LOSSES: dict[str, Loss] = {
    **{name: ComplementLoss(objective) for name, objective in OBJECTIVES.items()},
    "npo": NPO(),
}
