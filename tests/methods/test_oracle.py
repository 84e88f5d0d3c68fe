"""The methods against TRL's own code, and against torch's derivatives of published formulas.

Needs the extra `oracle`. TRL's trainers are not built: the methods of theirs that compute a loss
are called with a stand-in for the trainer, and a stand-in for the model that says given numbers.
"""

import functools
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import (
    each_pair,
    each_time,
    random_adapter,
    random_answers,
    random_examples,
    random_llama,
)

torch = pytest.importorskip("torch", reason="needs pip install '.[oracle]'")
pytest.importorskip("trl", reason="needs pip install '.[oracle]'")

from torch.nn.functional import logsigmoid, relu
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

from minibule.core.loss import Answers, LinearLoss
from minibule.core.step import gradients
from minibule.methods.kto import KTO
from minibule.methods.pairs import DPO, Hinge, SLiC
from minibule.methods.rejected import NPO, SimNPO
from minibule.methods.rewarded import GRPO, REDI, SFT, Reinforce, WReinforce
from minibule.methods.tokens import NSR

pytestmark = pytest.mark.filterwarnings("ignore")  # the oracles' own deprecations

REFERENCE = -30.0  # log p_ref of every answer: TRL is given both, minibule the difference


def same(x, **_):
    """What a lone process gathers from all."""
    return x


ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"),
    num_processes=1,
    process_index=0,
    gather=same,
    gather_for_metrics=same,
    reduce=same,
)


class Model:
    """Says `log_probs[i]` (n, T) of rows whose first token is i."""

    training = True
    is_gradient_checkpointing = False

    def __init__(self, *log_probs):
        self.log_probs = log_probs

    def __call__(self, input_ids, **_):
        said = self.log_probs[input_ids[0, 0]]
        none = torch.zeros_like(said)
        return SimpleNamespace(
            log_probs=said, entropy=none, mean_logits=none, is_top1=none.to(torch.bool)
        )


def trainer(model, **settings):
    """What TRL's trainers ask of themselves, all of it switched off but for the settings."""
    return SimpleNamespace(
        model=model,
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )


def rows(logp, lengths):
    """log p of answers, (n,), dealt out to their tokens, (n, T); and the mask of these."""
    lengths = torch.as_tensor(lengths)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return torch.where(mask, (logp / lengths)[:, None], 0.0), mask.long()


def inputs(mask, name="", first_token=0):
    """A prompt of one token before the rows."""
    ones = torch.ones(len(mask), 1, dtype=torch.long)
    return {
        f"{name}input_ids": torch.cat([first_token * ones, mask], 1),
        f"{name}attention_mask": torch.cat([ones, mask], 1),
        f"{name}completion_mask": torch.cat([0 * ones, mask], 1),
    }


def compare(loss, answers, logp, oracle, mismatched=None, relative=False):
    """Value and gradient by log p of a loss, with those of oracle(log p of the model)."""
    value, dlogp = loss.answers(answers, logp, mismatched)
    policy = torch.tensor(logp + (REFERENCE if relative else 0), requires_grad=True)
    expected = oracle(policy)
    assert expected.dtype == torch.float64
    expected.backward()
    assert np.abs(dlogp).max() > 1e-6
    assert value == pytest.approx(expected.item(), rel=1e-6)
    np.testing.assert_allclose(dlogp, policy.grad.numpy(), rtol=1e-6, atol=1e-12)


# -- TRL -------------------------------------------------------------------------------------------


def trl_dpo(answers, policy, loss_type, beta):
    w, k = (torch.tensor(side) for side in zip(*each_pair(answers), strict=True))
    both = torch.cat([w, k])
    log_probs, mask = rows(policy[both], answers.length[both])
    settings = {"loss_types": [loss_type], "loss_weights": [1.0], "beta": beta, "ld_alpha": None}
    settings |= {"f_divergence_type": "reverse_kl", "use_weighting": False}
    reference = torch.full((len(w),), REFERENCE, dtype=torch.float64)
    batch = inputs(mask) | {"ref_chosen_logps": reference, "ref_rejected_logps": reference}
    model = Model(log_probs)
    return DPOTrainer._compute_loss(trainer(model, **settings), model, batch, False)


@pytest.mark.parametrize(
    ("loss", "loss_type", "beta"),
    [(DPO(), "sigmoid", 0.1), (DPO(beta=0.05), "sigmoid", 0.05), (Hinge(), "hinge", 0.05)],
    ids=["dpo", "rso", "rso-hinge"],
)
def test_pairs_are_trl_s(loss, loss_type, beta):
    answers, d = random_answers("both")
    d *= 3  # so that some margins are beyond the hinge's 20
    margins = [d[w] - d[k] for w, k in each_pair(answers)]
    assert min(margins) < 20 < max(margins)
    oracle = functools.partial(trl_dpo, answers, loss_type=loss_type, beta=beta)
    compare(loss, answers, d, oracle, relative=True)


def trl_kto(answers, policy, rotated, loss):
    """rotated: log p of the model of each row's prompt with the answer of another."""
    each = each_time(answers)
    log_probs, mask = rows(policy[each], answers.length[each])
    other_log_probs, other_mask = rows(rotated, np.roll(answers.length[each], 1))
    model = Model(log_probs, other_log_probs)
    self = trainer(
        model,
        beta=loss.beta,
        desirable_weight=loss.desirable,
        undesirable_weight=loss.undesirable,
        loss_type="kto",
        calculate_KL=True,
    )
    self._compute_kl_logps = functools.partial(KTOTrainer._compute_kl_logps, self)
    reference = torch.full((len(each),), REFERENCE, dtype=torch.float64)
    batch = inputs(mask) | inputs(other_mask, "KL_", first_token=1)
    batch |= {"ref_logps": reference, "ref_KL_logps": reference}
    batch["label"] = torch.tensor(answers.accepted[each])
    return KTOTrainer._compute_loss(self, model, batch, False)


@pytest.mark.parametrize("uses", ["any", "rejected", "accepted"])
@pytest.mark.parametrize("loss", [KTO(), KTO(0.5, 1.3, 0.7)], ids=["default", "weighted"])
@pytest.mark.parametrize("shift", [-4.0, 4.0])
def test_kto_is_trl_s(uses, loss, shift):
    answers, d = random_answers(uses)
    rotated = np.random.default_rng(5).normal(shift, 2.0, len(each_time(answers)))
    assert (rotated.mean() > 0) == (shift > 0)
    oracle = functools.partial(
        trl_kto, answers, rotated=torch.tensor(rotated + REFERENCE), loss=loss
    )
    compare(loss, answers, d, oracle, mismatched=float(rotated.mean()), relative=True)


SAMPLES = 4  # to a prompt
GROUPS = Answers(
    length=np.array([7, 2, 3, 1, 5, 4, 6, 2, 8, 3]),
    times=np.array([1.0, 3, 2, 1, 1, 1, 1, 1, 1, 4]),
    reward=np.array([1.0, 0, 0, 1, 0, 1, 1, 0, 1, 1]),
    record=np.array([0, 0, 1, 1, 1, 2, 2, 2, 2, 3]),  # the last group's rewards are equal
)


def trl_grpo(answers, policy, loss_type, scale_rewards):
    """Advantages and loss as GRPOTrainer computes them right after sampling."""
    each = each_time(answers)
    log_probs, mask = rows(policy[each], answers.length[each])
    entropies = torch.zeros_like(log_probs)
    completions = [[1] * int(answers.length[k]) for k in each]
    logs = {"prompt": [], "completion": [], "advantages": []}
    model = Model()
    self = trainer(
        model,
        args=SimpleNamespace(
            per_device_train_batch_size=len(each),
            gradient_checkpointing_kwargs=None,
            steps_per_generation=1,
            gradient_accumulation_steps=1,
            delta=None,
        ),
        _generate=lambda p: ([[0]] * len(each), completions, None, completions, *[None] * 4),
        _calculate_rewards=lambda *_: torch.tensor(answers.reward[each])[:, None],
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, entropies, None),
        _tokenizer=SimpleNamespace(pad_token_id=0),
        _logs=logs | {"rewards": defaultdict(list), "extra": defaultdict(list)},
        _pending_extra_logs={},
        _pending_metrics={},
        _entropy_bonus_enabled=False,
        num_generations=SAMPLES,
        num_iterations=1,
        max_completion_length=512,
        current_gradient_accumulation_steps=1,
        loss_type=loss_type,
        scale_rewards=scale_rewards,
        multi_objective_aggregation="sum_then_normalize",
        importance_sampling_level="token",
        reward_weights=torch.ones(1),
        reward_func_names=["reward"],
        beta=0.0,
        epsilon_low=0.2,
        epsilon_high=5.0 if loss_type == "cispo" else 0.2,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        environment_factories=None,
        environments=None,
        tools=None,
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        use_vllm=False,
    )
    batch = GRPOTrainer._generate_and_score_completions(self, [{"prompt": "?"}] * len(each))
    assert torch.equal(batch["completion_mask"], mask)
    return GRPOTrainer._compute_loss(self, model, batch)


@pytest.mark.parametrize(
    ("loss", "loss_type", "scale_rewards"),
    [
        (GRPO(), "grpo", "group"),
        (GRPO(per="budget", scaled=False), "dr_grpo", "none"),
        (GRPO(per="token"), "dapo", "group"),
    ],
    ids=["grpo", "dr-grpo", "dapo"],
)
@pytest.mark.parametrize("graded", [False, True])
def test_groups_are_trl_s(loss, loss_type, scale_rewards, graded):
    """The gradient: TRL's loss itself is minus the mean advantage, its ratio being 1."""
    answers = GROUPS
    if graded:
        answers = answers._replace(reward=np.random.default_rng(2).normal(size=10))
    logp = np.random.default_rng(0).normal(-20, 5, 10)
    policy = torch.tensor(logp, requires_grad=True)
    trl_grpo(answers, policy, loss_type, scale_rewards).backward()
    value, dlogp = loss.answers(answers, logp)
    assert np.abs(dlogp).max() > 1e-6
    np.testing.assert_allclose(dlogp, policy.grad.numpy(), rtol=1e-6, atol=1e-12)
    if loss_type == "dapo":  # of which TRL also has the loss A log p
        expected = trl_grpo(answers, policy, "cispo", scale_rewards)
        assert value == pytest.approx(expected.item(), rel=1e-6)


# -- published formulas, by torch's derivatives ----------------------------------------------------


def npo(answers, d):
    """Zhang et al. 2024: -(2 / beta) log sigmoid(-beta d), beta .1."""
    return (-2 / 0.1 * logsigmoid(-0.1 * (d - REFERENCE)))[each_time(answers)].mean()


def simnpo(answers, logp):
    """Fan et al. 2024: -(2 / beta) log sigmoid(beta (NLL / |y| - gamma)), beta 4.5, gamma 0."""
    nll = -logp / torch.tensor(answers.length)
    return (-2 / 4.5 * logsigmoid(4.5 * nll))[each_time(answers)].mean()


def slic(answers, logp):
    """Zhao et al. 2023: max(0, 1 - log p(w) + log p(l)) - .1 log p(w)."""
    w, k = (list(side) for side in zip(*each_pair(answers), strict=True))
    return (relu(1 - logp[w] + logp[k]) - 0.1 * logp[w]).mean()


def redi(answers, logp):
    """Xu et al. 2025: -log p(w) / |w| + .8 log p(l) / |l|."""
    w, k = (list(side) for side in zip(*each_pair(answers), strict=True))
    mean = logp / torch.tensor(answers.length)
    return (-mean[w] + 0.8 * mean[k]).mean()


def policy_gradient(rewards, answers, logp):
    """- sum of reward log p over all tokens, through their number."""
    each = each_time(answers)
    reward = torch.where(torch.tensor(answers.accepted), rewards[1], rewards[0])
    return -(reward * logp)[each].sum() / int(answers.length[each].sum())


FORMULAS = {
    "npo": (NPO(), npo),
    "simnpo": (SimNPO(), simnpo),
    "slic": (SLiC(), slic),
    "redi": (REDI(), redi),
    "sft": (SFT(), functools.partial(policy_gradient, (0.0, 1.0))),
    "reinforce": (Reinforce(), functools.partial(policy_gradient, (0.0, 1.0))),
    "w-reinforce": (WReinforce(), functools.partial(policy_gradient, (-1.0, 0.1))),
}


@pytest.mark.parametrize(("loss", "formula"), FORMULAS.values(), ids=FORMULAS)
def test_published_formulas(loss, formula):
    answers, logp = random_answers(loss.uses)
    oracle = functools.partial(formula, answers)
    compare(loss, answers, logp, oracle, relative=loss.needs_reference)


class Derived(LinearLoss):
    """Zhu et al. 2025 on wrong answers alone, as torch differentiates it: reward -1 a token."""

    def weights(self, answers):
        logp = torch.zeros(len(answers.times), dtype=torch.float64, requires_grad=True)
        policy_gradient((-1.0, 1.0), answers, logp).backward()
        return logp.grad.numpy()


def test_nsr_of_tokens_is_that_of_answers():
    model = random_llama(dtype=np.float64)
    model.adapter = random_adapter(dtype=np.float64)
    examples = [e._replace(counts=(1,) * len(e.answers)) for e in random_examples()]
    grads, metrics, _ = gradients(model, examples, NSR(), 10**6)
    expected, other, _ = gradients(model, examples, Derived(), 10**6)
    assert metrics["loss"] == pytest.approx(other["loss"], rel=1e-9)
    for name, grad in expected.items():
        assert np.abs(grad).max() > 1e-6
        np.testing.assert_allclose(grads[name], grad, rtol=1e-6, atol=1e-12)
