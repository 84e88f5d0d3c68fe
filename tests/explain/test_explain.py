"""The worked example: its numbers are the code's own, a wrong gradient shows, the text fits."""

import dataclasses
import importlib
import inspect
import itertools
import json
import math
import operator
import re
import subprocess
import sys
import weakref
from fractions import Fraction

import numpy as np
import pytest
from helpers import ODD, ROOT, random_adapter, random_llama

from minibule import complement_loss, load_model
from minibule.core import complement, head, llama, ops
from minibule.core.counts import Example
from minibule.core.llama import backward, forward_batch
from minibule.core.lora import init_adapter
from minibule.core.objective import OBJECTIVES
from minibule.core.optim import AdamW, clip_gradients
from minibule.errors import InputError
from minibule.explain import check
from minibule.explain.__main__ import main
from minibule.explain.row import Row
from minibule.explain.story import _explain_row, explain, explain_tiny_vocab, scene_of
from minibule.explain.subject import Place, one_pass, row_counts, subject_of, subject_under, worked
from minibule.explain.text import columns_of, shortened
from minibule.files import embedded_folder
from minibule.methods.table import LOSSES
from minibule.methods.tokens import Ratio, TokenLoss
from minibule.models.chat_files import load_chat
from minibule.models.peft import save_adapter
from minibule.records.records import read_records
from minibule.runs.settings import resolve
from minibule.text.examples import tokenize

RECORDS = embedded_folder() / "records.jsonl"
OF_REJECTED = [name for name, loss in LOSSES.items() if loss.uses == "rejected"]
OF_TOKENS = [name for name, loss in LOSSES.items() if isinstance(loss, TokenLoss)]


def lines_of(record=1, answer=1, position=1, until=7, **settings):
    """What is explained, as far as section `until`: the later ones take most of the time."""
    lines = explain(scene_of(resolve(settings), Place(record, answer, position)))
    return list(itertools.takewhile(lambda line: not line.startswith(f"{until + 1}. "), lines))


def section(lines, number):
    """The lines of one section."""
    starts = [i for i, line in enumerate(lines) if re.match(rf"{number}\. ", line)]
    assert len(starts) == 1
    after = [i for i, line in enumerate(lines) if re.match(rf"{number + 1}\. ", line)]
    return lines[starts[0] : after[0] if after else None]


def tables(lines):
    """The tables of some lines: first cell -> {column: number}; cells stand 3 spaces apart."""
    found, header = [], None
    for line in lines:
        cells = [cell for cell in re.split(r" {2,}", line.strip()) if cell]
        if line.startswith("     token "):
            header = [(m.group(), m.end()) for m in re.finditer(r"\S+( \S+)*", line)][1:]
            found.append({})
        elif header and len(cells) > 1 and line.startswith("     "):
            numbers = {}
            for cell in re.finditer(r"(?<=  )-?[\d,]+(\.\d+)?(e[+-]\d+)?(?= |$)", line):
                column = next((name for name, end in header if end == cell.end()), None)
                if column:
                    numbers[column] = float(cell.group().replace(",", ""))
            found[-1][cells[0]] = numbers
        else:
            header = None
    return found


def adds_up(rows, column):
    """Whether the rows of a column make its sum, each rounded to the digits that are shown."""
    *parts, total = [row[column] for row in rows.values() if column in row]
    return math.isclose(sum(parts), total, abs_tol=len(parts) * 6e-6, rel_tol=1e-5)


# -- the numbers -----------------------------------------------------------------------------------


def dense_row(record, answer, position, objective):
    """A row's token ids, counts, logits and attempts, in the plainest way: one sequence."""
    model, chat = load_model(embedded_folder()), load_chat(embedded_folder())
    config = resolve({"objective": objective})
    (example,) = tokenize([read_records(RECORDS)[record - 1]], chat, 512)
    t, chosen = position - 1, example.answers[answer - 1]
    v = np.zeros((1, model.config.vocab_size))
    for ids, times in zip(example.answers, example.counts, strict=True):
        by_position = config.resolved_loss().counts == "position"
        if len(ids) > t and (by_position or (ids[:t] == chosen[:t]).all()):
            v[0, ids[t]] += times
    z = model.logits(np.concatenate([example.prompt, chosen[:t]])).astype(np.float64)
    start = len(example.prompt) - 1
    logp = [complement.log_softmax(z[start + i])[chosen[i]] for i in range(t)]
    attempts = np.array([max(v.sum(), example.total_rounds * math.exp(sum(logp)))])
    return chat, v, z[-1:], attempts


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("place", [(3, 2, 1), (9, 1, 3)])
def test_the_printed_numbers_are_those_of_the_dense_loss(objective, place):
    lines = lines_of(*place, until=5, objective=objective)
    chat, v, z, attempts = dense_row(*place, objective)
    knobs = OBJECTIVES[objective]
    options = {"prior": knobs.prior, "ref_logits": z, "attempts": attempts}
    loss, (dz,) = complement_loss(z, v, knobs.alpha, contrast=knobs.contrast, **options)
    (P,) = complement.target_distribution(v, **options)
    p = np.exp(complement.log_softmax(z[0]))
    target, gradient = (tables(section(lines, n))[0] for n in (3, 5))

    shown = [name for name in gradient if name[0] == "'"]
    assert len(shown) >= 3
    for name in shown:
        text = name[1:-1]
        (i,) = [i for i in range(len(p)) if repr(chat.decode([i])) == name]
        assert target[name]["v"] == v[0, i], text
        for x, printed in ((P, target[name]["P"]), (p, target[name]["p"])):
            assert printed == pytest.approx(x[i], abs=2e-6)  # of float32
        for column in ("dL/dz", "numeric"):
            assert gradient[name][column] == pytest.approx(dz[i], rel=6e-3, abs=2e-6)
    assert {name for name in shown if target[name]["v"]} == {
        repr(chat.decode([i])) for i in np.flatnonzero(v[0])
    }
    (printed,) = re.findall(r"= ([\d.e-]+)$", "\n".join(section(lines, 4)), re.MULTILINE)[-1:]
    assert float(printed) == pytest.approx(loss, rel=6e-3)

    for table in (target, *tables(section(lines, 4)), gradient):
        for column in table["sum"]:
            assert adds_up(table, column), column
    assert target["sum"]["P"] == target["sum"]["p"] == 1
    assert gradient["sum"]["dL/dz"] == pytest.approx(0, abs=1e-9)


def changes(text):
    """Of section 7: the loss before and after, its change, and the change that was predicted."""
    pattern = r"loss: (\S+) -> (\S+), a change of (\S+)\. .*predicted (\S+);"
    return [float(x) for x in re.search(pattern, " ".join(text.split())).groups()]


@pytest.mark.parametrize(
    ("objective", "position"), [("reference", 1), ("literal", 1), ("literal", 2)]
)
def test_a_small_part_of_the_step_changes_the_loss_as_predicted(objective, position):
    """Of the step's change 1 %: curvature, which grows with the square, is then 1 % of itself."""
    place, config = Place(1, 1, position), resolve({"objective": objective})
    model, chat = load_model(embedded_folder()), load_chat(embedded_folder())
    (example,) = tokenize([read_records(RECORDS)[0]], chat, 512)
    lora = config.resolved_lora(model.config.num_hidden_layers)
    adapter = init_adapter(lora, model.config, config.seed)
    subject = subject_of(example, place, config.resolved_loss())
    ref_hidden, _ = forward_batch(model, subject.batch)
    now = one_pass(model, adapter, subject.alone, ref_hidden)
    grads, kept = backward(now.dhidden, now.cache), dict(adapter.params)
    norm = clip_gradients({name: grad.copy() for name, grad in grads.items()}, 0)
    assert (norm > 1) == (objective == "literal")  # so that clipping matters in two of three

    adapter.params.update({name: p.copy() for name, p in kept.items()})
    clip_gradients(grads, config.max_grad_norm)
    AdamW(adapter.params, config.weight_decay).step(grads, config.lr)
    for name, p in adapter.params.items():
        p[...] = 0.99 * kept[name] + 0.01 * p
    part = one_pass(model, adapter, subject.alone, ref_hidden).loss - now.loss
    before, after, _, predicted = changes("\n".join(lines_of(*place, objective=objective)))
    assert before == pytest.approx(now.loss, abs=1e-6) and after < before
    assert part == pytest.approx(0.01 * predicted, rel=0.02)


@pytest.mark.parametrize("objective", OF_REJECTED)
def test_differences_agree_and_one_step_helps(objective):
    text = "\n".join(lines_of(5, 1, 1, objective=objective))
    # The row's logits, two pairs, and A after a step; where the row's loss is another one than the
    # lesson's, that one too.
    checks = 4 if objective in OBJECTIVES else 5
    assert text.count("They agree") == checks and "NOT AGREE" not in text
    errors = [float(e) for e in re.findall(r"relative difference is (\S+)\.", text)]
    assert len(errors) == checks and max(errors) < 1e-6
    before, after, change, predicted = changes(text)
    assert after < before and change == pytest.approx(after - before, abs=2e-6)
    assert predicted < 0
    (step,) = tables(section(text.splitlines(), 7))
    rejected = [row for name, row in step.items() if row["v"]]
    if objective != "literal":  # which, towards the uniform, may move them either way
        assert sum(r["p after"] for r in rejected) < sum(r["p before"] for r in rejected)
    for when in ("p before", "p after"):
        assert sum(row[when] for row in step.values()) == pytest.approx(1, abs=1e-5)


def test_a_wrong_gradient_of_the_loss_shows(monkeypatch):
    right = complement.loss_parts

    def wrong(*args):
        parts = right(*args)
        return parts._replace(dcontrast=parts.dcontrast * 1.0001)

    monkeypatch.setattr("minibule.explain.complement.loss_parts", wrong)
    lines = lines_of(objective="reference")
    assert "THEY DO NOT AGREE" in "\n".join(section(lines, 5))


def test_a_logit_that_goes_with_its_gradient_is_shown():
    """In shared weights a step is no step in z: at this place one logit goes the other way."""
    lines = lines_of(objective="reference")
    gradient, step = (tables(section(lines, n))[0] for n in (5, 7))
    assert "Section 7 names any that does." in " ".join(" ".join(lines).split())
    odd = re.findall(r"('\S+') (\d+\.\d+) -> (\d+\.\d+)", " ".join(section(lines, 7)))
    assert [name for name, *_ in odd] == ["'Figure'"]
    for name, before, after in odd:
        assert gradient[name]["dL/dz"] > 0 and float(after) > float(before)
        assert step[name]["p after"] > step[name]["p before"]
    assert "Section" not in "".join(explain_tiny_vocab(LOSSES["literal"]))


def test_a_wrong_gradient_of_the_adapter_shows(monkeypatch):
    right = check.backward
    monkeypatch.setattr(
        check,
        "backward",
        lambda *args: {name: 1.0001 * grad for name, grad in right(*args).items()},
    )
    lines = lines_of()
    assert "They agree" in "\n".join(section(lines, 5))
    assert "THEY DO NOT AGREE" in "\n".join(section(lines, 6))


ATTENTION = inspect.getsource(ops.attention_backward)


def planted(right, wrong):
    """The backward of attention with a mistake in its source."""
    assert ATTENTION.count(right) == 1
    names = dict(vars(ops))
    exec(compile(ATTENTION.replace(right, wrong), "planted", "exec"), names)  # noqa: S102 - our own source
    return names["attention_backward"]


def without_residuals(run, layer, dx, *args):
    """What comes back through a block, but for what went around it."""
    below = right_block_backward(run, layer, dx, *args)
    return below - dx if below.shape == dx.shape else below


right_block_backward = llama.block_backward
MISTAKES = {
    "= for += in the forest": ("dk[keys] +=", "dk[keys] ="),
    "softmax without the sum": ("ds -= inner", "pass"),
    "RoPE turned the wrong way": lambda dy, cos, sin: ops.rope(dy, cos, sin),
    "a forgotten residual": without_residuals,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_below_the_uppermost_pair_shows(mistake, monkeypatch):
    """Each trains nearly as well, and the uppermost pair has no attention above it to notice."""
    wrong = MISTAKES[mistake]
    if isinstance(wrong, tuple):
        monkeypatch.setattr(ops, "attention_backward", planted(*wrong))
    elif wrong is without_residuals:
        monkeypatch.setattr(llama, "block_backward", wrong)
    else:
        monkeypatch.setattr(ops, "rope_backward", wrong)
    above, _, below = "\n".join(section(lines_of(), 6)).partition("The same check")
    assert "They agree" in above and "THEY DO NOT AGREE" in below


def test_another_pair_can_be_checked(capsys):
    main(["--module", "layers.2.self_attn.k_proj"])
    text = capsys.readouterr().out
    assert "     model.layers.2.self_attn.k_proj\n" in text and text.count("They agree") == 5
    main(["--module", "layers.3.mlp.down_proj"])  # the uppermost, which is always checked
    assert capsys.readouterr().out.count("They agree") == 4


def test_the_check_widens_one_matrix_at_a_time():
    """Neither the checked weights nor what backward keeps of them is twice the model."""
    model = random_llama(dataclasses.replace(ODD, num_hidden_layers=8))
    adapter = random_adapter(model.config)
    example = Example(np.arange(5), (np.arange(4), np.arange(1, 4)), (2, 1), 5)
    subject = subject_of(example, Place(1, 1, 2), LOSSES["reference"])
    widened = []  # references to all of the model's matrices in float64

    class Watched(check._Float64):
        def __getitem__(self, name):
            found = super().__getitem__(name)
            if found.ndim == 2:
                widened.append(weakref.ref(found))
            return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "_Float64", Watched)
        wide = check.AdapterCheck(model, subject.around)
        most = 0
        right = llama.block_backward

        def counting(*args):
            nonlocal most
            most = max(most, sum(ref() is not None for ref in widened))
            return right(*args)

        patch.setattr(llama, "block_backward", counting)
        lines = list(wide.lines(adapter, "model.layers.0.self_attn.q_proj", "BA"))
    assert "They agree" in lines[-1] and len(widened) > 100 and most <= 1


def test_an_adapter_with_b_has_a_gradient_of_a(tmp_path):
    """Also: all of its modules act, in float64 as in float32, though one of them is looked at."""
    config = load_model(embedded_folder()).config
    adapter = random_adapter(config, targets=("q_proj", "up_proj"))
    for name in adapter.params:
        adapter.params[name] *= 0.1
    save_adapter(adapter, config, tmp_path / "adapter", "tiny")
    lines = lines_of(2, 1, 1, init_adapter=str(tmp_path / "adapter"))
    text = "\n".join(section(lines, 6))
    assert "model.layers.3.mlp.up_proj" in text and "fresh adapter" not in text
    rows = [line.split() for line in text.splitlines() if line.strip().startswith("dA ")]
    assert len(rows) == 2  # the uppermost pair's, and the lowest one's
    for row in rows:
        assert float(row[-1]) != 0 and float(row[-1]) == float(row[-2])
    assert "NOT AGREE" not in "\n".join(lines)
    reaches = "now reaches A"  # which is said where B was zero
    said = [" ".join(" ".join(these).split()) for these in (lines_of(2, 1, 1), lines)]
    assert [reaches in text for text in said] == [True, False]
    target = tables(section(lines, 3))[0]
    p, p_ref = ([row[name] for row in target.values()] for name in ("p", "p_ref"))
    assert p != p_ref  # the adapter acts


# -- five tokens -----------------------------------------------------------------------------------


def test_five_tokens_by_hand():
    """Every number of the table, worked out in fractions."""
    F = Fraction
    alpha, p = F(7, 10), [F(1, 2), F(1, 4), F(1, 8), F(1, 16), F(1, 16)]
    P = [F(3, 25), F(4, 25), F(6, 25), F(6, 25), F(6, 25)]  # T = 5: weights 3 4 6 6 6
    w = [F(3, 5), F(2, 5), F(0), F(0), F(0)]
    a = [F(3, 5), F(2, 15), F(0), F(0), F(0)]  # w p / (1 - p)
    S = F(11, 15)
    lines = list(explain_tiny_vocab(LOSSES["literal"]))
    target, terms, gradient = (tables(section(lines, n))[0] for n in (3, 4, 5))
    assert len(target) == 6
    names = [name for name in target if name != "sum"]
    for i, name in enumerate(names):
        row = target[name] | terms[name] | gradient[name]
        kl, contrast = alpha * (p[i] - P[i]), (1 - alpha) * (a[i] - S * p[i])
        expected = {
            "v": 5 * w[i],
            "T - v + 1": 25 * P[i],
            "P": P[i],
            "z": math.log(16 * p[i]),
            "exp(z)": 16 * p[i],
            "p": p[i],
            "P log(P / p)": P[i] * math.log(P[i] / p[i]),
            "w": w[i],
            "-log(1 - p)": -math.log(1 - p[i]),
            "-w log(1 - p)": -w[i] * math.log(1 - p[i]),
            "alpha(p-P)": kl,
            "a": a[i],
            "(1-alpha)(a-S p)": contrast,
            "dL/dz": kl + contrast,
            "numeric": kl + contrast,
        }
        assert row == pytest.approx({k: float(x) for k, x in expected.items()}, abs=5.1e-5), name
    loss = sum(
        float(alpha * P[i]) * math.log(P[i] / p[i]) - float((1 - alpha) * w[i]) * math.log(1 - p[i])
        for i in range(5)
    )
    (printed,) = re.findall(r"= ([\d.]+)$", "\n".join(section(lines, 4)), re.MULTILINE)[-1:]
    assert float(printed) == pytest.approx(loss, abs=5.1e-5)


@pytest.mark.parametrize("name", OF_REJECTED)
def test_five_tokens_under_every_objective(name):
    text = "\n".join(explain_tiny_vocab(LOSSES[name]))
    assert "They agree" in text and max(map(len, text.splitlines())) <= 100
    P = {"uniform": 3 / 25, "reference": 24 / 64, "rate": 20 / 44}
    (target,), prior = tables(section(text.splitlines(), 3)), LOSSES[name].prior
    assert ("P" in target["'hello'"]) == (prior is not None)
    assert target["'hello'"].get("P") == (round(P[prior], 4) if prior else None)


# -- losses of tokens, and anchors -----------------------------------------------------------------


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """An adapter with B not zero: p is no longer p_ref."""
    folder = tmp_path_factory.mktemp("moved") / "adapter"
    config = load_model(embedded_folder()).config
    adapter = random_adapter(config)
    for p in adapter.params.values():
        p *= 0.2
    save_adapter(adapter, config, folder, "tiny")
    return folder


def moved_row(moved, place):
    """`dense_row` of a loss of tokens, its v over the answers through it, and z of the moved."""
    chat, v, z_ref, _ = dense_row(*place, "ratio")
    record, answer, position = place
    (example,) = tokenize([read_records(RECORDS)[record - 1]], chat, 512)
    prefix = example.answers[answer - 1][: position - 1]
    through = [a for a in example.answers if len(a) >= position]
    n = sum(np.array_equal(a[: position - 1], prefix) for a in through)
    z = load_model(embedded_folder(), moved).logits(np.concatenate([example.prompt, prefix]))
    return chat, v[0], v[0] / n, z[-1].astype(np.float64), z_ref[0]


# f and df/dlog p of a token, from p and r = p / p_ref.
FORMULAS = {
    "ratio": lambda p, r: (4 * np.log(1 + np.sqrt(r)), 2 * np.sqrt(r) / (1 + np.sqrt(r))),
    "nsr": lambda p, r: (np.log(p), np.ones_like(p)),
    "unlikelihood": lambda p, r: (-np.log(1 - p), p / (1 - p)),
}
SETTINGS = {"ratio": {"beta": "0.5"}, "unlikelihood": {"kl": "0.2"}}


@pytest.mark.parametrize("objective", OF_TOKENS)
@pytest.mark.parametrize("place", [(3, 2, 1), (9, 1, 3)])
def test_the_printed_numbers_are_those_of_the_formulas(objective, place, moved):
    settings = SETTINGS.get(objective, {})
    lines = lines_of(*place, until=5, objective=objective, init_adapter=str(moved), **settings)
    kl = float(settings.get("kl", LOSSES[objective].kl))
    chat, v, share, z, z_ref = moved_row(moved, place)
    p, p_ref = (np.exp(complement.log_softmax(x)) for x in (z, z_ref))
    f, df = FORMULAS[objective](p, p / p_ref)
    terms, a = p * np.log(p / p_ref), share * df
    anchor = kl * (terms - terms.sum() * p)
    dz = a - a.sum() * p + anchor
    expected = {
        "v": v,
        "p": p,
        "p_ref": p_ref,
        "share": share,
        "r": p / p_ref,
        "f": f,
        "share f": share * f,
        "p log(p / p_ref)": terms,
        "a": a,
        "a-S p": a - a.sum() * p,
        "anchor": anchor,
        "dL/dz": dz,
        "numeric": dz,
    }
    held, terms_shown, gradient = (tables(section(lines, n))[0] for n in (3, 4, 5))
    shown = [token for token in gradient if token[0] == "'"]
    assert len(shown) >= 3 and {t for t in shown if held[t]["v"]} == {
        repr(chat.decode([i])) for i in np.flatnonzero(v)
    }
    columns = set()
    for token in shown:
        (i,) = [i for i in range(len(p)) if repr(chat.decode([i])) == token]
        row = held[token] | terms_shown[token] | gradient[token]
        for column in row.keys() & expected.keys():
            want = expected[column][i]
            assert row[column] == pytest.approx(want, rel=6e-3, abs=4e-6), (token, column)
        columns |= row.keys()
    wanted = {"v", "p", "share", "f", "share f", "a", "a-S p", "dL/dz", "numeric"}
    wanted |= {"p_ref", "r"} if objective == "ratio" else set()
    wanted |= {"anchor", "p log(p / p_ref)"} if kl else set()
    assert wanted <= columns and ("anchor" in columns) == (kl > 0)
    for table in (held, terms_shown, gradient):
        for column in table["sum"]:
            assert adds_up(table, column), column
    (printed,) = re.findall(r"row loss = .*= ([\d.e-]+)$", "\n".join(lines), re.MULTILINE)
    assert float(printed) == pytest.approx(share @ f + kl * terms.sum(), rel=6e-3)
    within = re.search(r"dL/dz to\s+within (\S+)\.", "\n".join(section(lines, 5)))[1]
    assert float(within) < 1e-6 * max(1, a.max())  # float32, and a - S p is a difference
    assert "does not pull yet" not in " ".join(" ".join(lines).split())


# f and its slope of an answer, from x and its length; what x is, and w of counts and lengths.
OF_ANSWERS = {
    "complement": (lambda x, n: (2 * np.log1p(np.exp(x)), 2 / (1 + np.exp(-x))), True),
    "npo": (lambda x, n: (20 * np.log1p(np.exp(x / 10)), 2 / (1 + np.exp(-x / 10))), True),
    "simnpo": (
        lambda x, n: (2 / 4.5 * np.log1p(np.exp(4.5 * x / n)), 2 / n / (1 + np.exp(-4.5 * x / n))),
        False,
    ),
}


@pytest.mark.parametrize("objective", OF_ANSWERS)
@pytest.mark.parametrize("place", [(3, 2, 1), (9, 1, 3)])
def test_the_printed_numbers_are_those_of_whole_answers(objective, place, moved):
    lines = lines_of(*place, until=5, objective=objective, init_adapter=str(moved), kl="0.4")
    chat, _, _, z, z_ref = moved_row(moved, place)
    (example,) = tokenize([read_records(RECORDS)[place[0] - 1]], chat, 512)
    base, model = (load_model(embedded_folder(), adapter) for adapter in (None, moved))
    formula, relative = OF_ANSWERS[objective]
    length, times = np.array([len(a) for a in example.answers]), np.array(example.counts)

    def log_prob(model, answer):
        z = model.logits(np.concatenate([example.prompt, answer[:-1]])).astype(np.float64)
        logp = complement.log_softmax(z[len(example.prompt) - 1 :])
        return logp[np.arange(len(answer)), answer].sum()

    x = np.array([log_prob(model, a) - relative * log_prob(base, a) for a in example.answers])
    f, df = formula(x, length)
    slope = (
        length.sum()
        * times
        * df
        / (times @ (length if objective == "complement" else 1 + 0 * length))
    )
    t, prefix = place[2] - 1, example.answers[place[1] - 1][: place[2] - 1]
    through = [k for k, a in enumerate(example.answers) if len(a) > t and (a[:t] == prefix).all()]
    row = r"^ +(\d+) +'.*' {2,}(\d+)" + r" +(-?[\d.]+)" * 4 + "$"
    printed = re.findall(row, "\n".join(section(lines, 4)), re.MULTILINE)
    assert [int(k) - 1 for k, *_ in printed] == through
    for (_, *numbers), k in zip(printed, through, strict=True):
        expected = [times[k], x[k], f[k], df[k], slope[k]]
        assert [float(n) for n in numbers] == pytest.approx(expected, rel=6e-3, abs=4e-6)

    a = np.zeros(len(z))
    np.add.at(a, [example.answers[k][t] for k in through], slope[through] / len(through))
    p, p_ref = np.exp(complement.log_softmax(z)), np.exp(complement.log_softmax(z_ref))
    terms = p * np.log(p / p_ref)
    dz = a - a.sum() * p + 0.4 * (terms - terms.sum() * p)
    (terms_shown,), (gradient,) = (tables(section(lines, n)) for n in (4, 5))
    shown = [token for token in gradient if token[0] == "'"]
    assert len(shown) >= 3
    for token in shown:
        (i,) = [i for i in range(len(p)) if repr(chat.decode([i])) == token]
        assert terms_shown[token]["a log p"] == pytest.approx(
            a[i] * np.log(p[i]), rel=6e-3, abs=4e-6
        )
        for column in ("dL/dz", "numeric"):
            assert gradient[token][column] == pytest.approx(dz[i], rel=6e-3, abs=4e-6)
    for table in (terms_shown, gradient):
        for column in table["sum"]:
            assert adds_up(table, column), column
    (printed,) = re.findall(r"row loss = .*= ([\d.e-]+)$", "\n".join(lines), re.MULTILINE)
    want = a @ np.log(p) + 0.4 * terms.sum()
    assert float(printed) == pytest.approx(want, rel=6e-3)


@pytest.mark.parametrize("objective", ["literal", "reference", "rate"])
def test_an_anchor_of_a_complement_objective_is_a_part_of_it(objective, moved):
    lines, without = (
        lines_of(2, 1, 1, objective=objective, init_adapter=str(moved), **kl)
        for kl in ({"kl": "0.5"}, {})
    )
    assert "\n".join(lines).count("They agree") == 3 and max(map(len, lines)) <= 100
    assert "NOT AGREE" not in "\n".join(lines)
    assert "anchor" not in "\n".join(section(without, 5))
    (terms,), (gradient,), (less,) = (
        tables(section(these, n)) for these, n in ((lines, 4), (lines, 5), (without, 5))
    )
    assert adds_up(terms, "p log(p / p_ref)") and terms["sum"]["p log(p / p_ref)"] > 0
    for token in gradient.keys() & less.keys() - {"sum"}:
        change = gradient[token]["dL/dz"] - less[token]["dL/dz"]
        assert change == pytest.approx(gradient[token]["anchor"], abs=3e-6)
    with_it, alone = (
        float(re.findall(r"= ([\d.e-]+)$", "\n".join(section(x, 4)), re.MULTILINE)[-1])
        for x in (lines, without)
    )
    assert with_it - alone == pytest.approx(0.5 * terms["sum"]["p log(p / p_ref)"], abs=2e-6)


def test_a_contrast_of_ratios_is_written_as_one():
    text = "\n".join(lines_of(3, 1, 1, objective="reference", contrast="ratio"))
    assert "sum_i w(i) 2 log(1 + r(i))" in text and "-w log(1 - p)" not in text
    assert text.count("They agree") == 4


def test_a_wrong_slope_of_a_token_shows(monkeypatch):
    right = Ratio.token

    def wrong(self, *args):
        f, df = right(self, *args)
        return f, 1.0001 * df

    monkeypatch.setattr(Ratio, "token", wrong)
    lines = lines_of(objective="ratio")
    assert "THEY DO NOT AGREE" in "\n".join(section(lines, 5))
    assert "THEY DO NOT AGREE" in "\n".join(section(lines, 6))


def test_a_mistake_in_the_lessons_own_loss_shows_under_any_other(monkeypatch):
    right = complement.loss_parts

    def wrong(*args):
        parts = right(*args)
        return parts._replace(dcontrast=parts.dcontrast * 1.0001)

    monkeypatch.setattr(complement, "loss_parts", wrong)
    text = " ".join(" ".join(lines_of()).split())
    assert text.count("NOT AGREE") == 1
    assert "(core.complement.complement_loss): THEY DO NOT AGREE" in text


@pytest.mark.parametrize("objective", ["reference", "ratio", "complement"])
def test_what_is_said_to_compute_it_is_there(objective):
    text = " ".join(lines_of(until=6, objective=objective))
    named = set(re.findall(r"\b((?:core|methods)\.[a-z]+)\.([\w.]+\w)\b(?!\.py)", text))
    assert named
    for module, name in named:
        assert operator.attrgetter(name)(importlib.import_module(f"minibule.{module}"))


@pytest.mark.parametrize("objective", ["ratio", "nsr", "complement"])
def test_the_coefficient_of_a_rejected_token_is_shown_beside_p_less_e(objective):
    lines = section(lines_of(until=5, objective=objective), 5)
    number = r"(-?[\d.]+)"
    (shown,) = re.findall(
        rf"'h' adds {number} x \({number} - 1\) = {number} at 'h' itself, and {number} p ",
        " ".join(" ".join(lines).split()),
    )
    c, p, own, elsewhere = map(float, shown)
    (table,) = tables(lines)
    assert c == elsewhere == -table["'h'"]["a"] < 0
    assert own == pytest.approx(c * (p - 1), abs=2e-6)
    # With what the other rejected tokens add at 'h' it is the gradient without the anchor.
    others = table["sum"]["a"] - table["'h'"]["a"]
    assert own - others * p == pytest.approx(table["'h'"]["a-S p"], abs=3e-6)


def test_a_wrong_anchor_in_training_shows(monkeypatch, moved):
    right = head.anchor

    def wrong(*args):
        found = right(*args)
        return found._replace(dz=1.01 * found.dz)

    def within():
        text = "\n".join(lines_of(objective="complement", init_adapter=str(moved)))
        error = re.search(r"dL/dz to\s+within (\S+)\.", text)[1]
        return float(error), text.count("THEY DO NOT AGREE")

    error, disagree = within()
    assert error < 1e-6 and disagree == 0
    monkeypatch.setattr(head, "anchor", wrong)
    error, disagree = within()
    assert error > 1e-5 and disagree > 0


def test_five_tokens_of_the_complement_by_hand():
    """At the base r is 1, and so is the slope of f: a is v / T. The anchor does not pull yet."""
    F = Fraction
    p = [F(1, 2), F(1, 4), F(1, 8), F(1, 16), F(1, 16)]
    a = [F(3, 5), F(2, 5), F(0), F(0), F(0)]
    lines = list(explain_tiny_vocab(LOSSES["complement"]))
    base, terms, gradient = (tables(section(lines, n))[-1] for n in (3, 4, 5))
    for i, name in enumerate(name for name in base if name != "sum"):
        row = base[name] | terms[name] | gradient[name]
        expected = {
            "p": p[i],
            "p_ref": p[i],
            "p log(p / p_ref)": 0,
            "log p": math.log(p[i]),
            "a log p": float(a[i]) * math.log(p[i]),
            "a": a[i],
            "a-S p": a[i] - p[i],
            "anchor": 0,
            "dL/dz": a[i] - p[i],
            "numeric": a[i] - p[i],
        }
        shown = {column: row[column] for column in expected}
        assert shown == pytest.approx({k: float(x) for k, x in expected.items()}, abs=5.1e-5), name
    (printed,) = re.findall(r"row loss = .*= ([-\d.]+)$", "\n".join(lines), re.MULTILINE)
    row_loss = sum(float(a[i]) * math.log(p[i]) for i in range(5))
    assert float(printed) == pytest.approx(row_loss, abs=5.1e-5)


@pytest.mark.parametrize("name", OF_REJECTED)
def test_the_largest_counts_and_vocabulary_fit(name):
    """As many rejections as a record may have, all of SmolLM2's tokens, and the longest names."""
    rng, V = np.random.default_rng(0), 49152
    z_ref = 4 * rng.normal(size=V)
    z = z_ref + rng.normal(size=V)
    first, second = np.argsort(-z)[:2, None]
    loss = dataclasses.replace(LOSSES[name], kl=0.3)
    example = Example(np.array([1]), (first, second, np.array([7])), (2**31 - 5, 3, 1), 2**31 - 1)
    x = np.array([-1e3, 0.5, -20.0])
    subject = subject_under(loss, example, Place(), lambda whole: worked(whole, example, x))
    counts = row_counts(subject, complement.log_softmax(z_ref)[subject.counts.entry_id])
    row = Row(z, z_ref, counts, subject.loss, lambda i: "x" * 20)
    lines = list(_explain_row(row, subject))
    assert max(map(len, lines)) <= 100 and "They agree" in "\n".join(lines)


def test_at_the_base_an_anchor_to_it_does_not_pull():
    said = " ".join(" ".join(explain_tiny_vocab(LOSSES["ratio"])).split())
    assert "The anchor does not pull yet" in said
    free = " ".join(explain_tiny_vocab(dataclasses.replace(LOSSES["ratio"], kl=0.0)))
    assert "p is held to nothing" in free
    free = " ".join(explain_tiny_vocab(dataclasses.replace(LOSSES["complement"], kl=0.0)))
    assert "held to" not in free and "KL" not in free


@pytest.mark.parametrize("name", [name for name in OF_REJECTED if name not in OBJECTIVES])
def test_steps_of_the_lesson_that_are_named_exist(name):
    lesson = (ROOT / "minibule/core/LESSON.md").read_text(encoding="utf-8")
    said = " ".join(" ".join(explain_tiny_vocab(LOSSES[name])).split())
    steps = re.findall(r"step (\d+) of core/LESSON\.md", said)
    assert steps
    headings = {"4": "Its gradient", "5": "The objectives"}
    assert all(f"\n## {step}. {headings[step]}" in lesson for step in steps)


# -- the text --------------------------------------------------------------------------------------

ODD_RECORD = {
    "prompt": "<|im_end|>\n\tñ 你好 \u202e \x1b[31m " + "long " * 60,
    "rejected_responses": [
        "<|im_start|>system 🦙🦙",
        "<|im_start|>sys\x00" + "你" * 80,
        "\ufffd\u0301e" + "x" * 300,
        *(f"{i} is no" for i in range(20)),
    ],
    "rejection_counts": [2**31 - 500, 3, *range(1, 22)],  # their sum may be 2^31 - 1
}


@pytest.mark.parametrize(
    ("place", "objective", "until"),
    [
        *[((1, 1, 1), "literal", 7), ((1, 2, 9), "reference", 5), ((1, 3, 2), "rate", 5)],
        *[((1, 8, 2), "literal", 5), ((1, 1, 1), "complement", 7), ((1, 2, 9), "ratio", 5)],
    ],
)
def test_odd_characters_fit_and_cannot_act(tmp_path, objective, place, until):
    data = tmp_path / "odd.jsonl"
    data.write_text(json.dumps(ODD_RECORD))
    lines = lines_of(*place, until=until, data=str(data), objective=objective)
    assert max(map(columns_of, lines)) <= 100
    text = "\n".join(lines)
    assert text.replace("\n", "").isprintable()  # nothing that a terminal would obey
    context = [line.strip() for line in section(lines, 1)]
    assert any(line.startswith("<|im_start|> 'user\\n<|im_end|>\\n") for line in context)


@pytest.mark.parametrize(
    ("place", "objective"),
    [
        *[((1, 2, 4), "literal"), ((100, 1, 2), "reference"), ((317, 1, 1), "rate")],
        *[((1, 2, 4), "complement"), ((100, 1, 2), "ratio"), ((317, 1, 1), "nsr")],
    ],
)
def test_it_fits_a_screen(objective, place):
    lines = lines_of(*place, objective=objective)
    assert max(map(len, lines)) <= 100 and len(lines) <= 132


def test_long_texts_lose_their_middle():
    assert shortened("a" * 20, 20) == "a" * 20
    assert shortened("a" * 10 + "b" * 11, 15) == "aaaaa ... bbbbb"
    assert columns_of(shortened("你" * 20, 15)) <= 15


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--record", "318"], "--record 318: .*records.jsonl has 317 records, expected 1 to 317"),
        (["--record", "0"], "--record 0: .*expected 1 to 317"),
        (["--answer", "4"], "--answer 4: record 1 has 3 rejected answers, expected 1 to 3"),
        (["--position", "9"], "--position 9: answer 1 of record 1 has 2 tokens, expected 1 to 2"),
        (["--model", "somewhere"], "--model without --data"),
        (["--data", "nowhere.jsonl"], "no such file"),
        (["--adapter", "nowhere"], "nowhere"),
        (["--alpha", "2"], "expected a number from 0 to 1"),
        (["--max-length", "10"], "--record 1: .*no room for an answer"),
        (["--module", "q_proj"], "--module q_proj: 4 adapted modules end so"),
        (["--module", "lm_head"], "--module lm_head: no adapted module.*to model.layers.3.mlp"),
        (
            ["--objective", "kto"],
            "--objective kto: it learns from accepted answers too.*complement, ratio, nsr",
        ),
        (["--tiny-vocab", "--objective", "dpo"], "--objective dpo: .*one of literal, reference"),
        (["--objective", "ratio", "--alpha", "0.5"], "--alpha: part of .*not of ratio"),
        (["--objective", "nsr", "--beta", "1"], "--beta: a number of complement, ratio"),
        (["--beta", "0"], "expected a number of at least 1e-06"),
        (["--tiny-vocab", "--module", "q_proj"], "leave out --module"),
        (["--tiny-vocab", "--record", "1"], "leave out --record"),
        (["--tiny-vocab", "--adapter", "x", "--lr", "1"], "leave out --adapter, --lr"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(InputError, match=message):
        main(arguments)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("tiny", [False, True])
def test_headings_are_bold_on_a_terminal_only(tiny, monkeypatch, capsys):
    arguments = ["--tiny-vocab"] if tiny else []

    def output():
        main(arguments)
        return capsys.readouterr().out

    monkeypatch.delenv("NO_COLOR", raising=False)
    piped = output()
    assert "\x1b" not in piped
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown = output()
    assert shown.count("\x1b[1m") == shown.count("\x1b[0m") == (4 if tiny else 7)
    assert re.sub(r"\x1b\[\dm", "", shown) == piped
    monkeypatch.setenv("NO_COLOR", "1")
    assert output() == piped


def test_the_command_runs_by_name():
    command = [sys.executable, "-m", "minibule.explain", "--record", "2", "--beta", "0.5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "beta 0.5" in done.stdout and not done.stderr
