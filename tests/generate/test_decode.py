"""Generation from the cache against recomputing everything, and the command."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import ODD, ROOT, random_adapter, random_llama

from minibule.core import llama
from minibule.core.llama import check_ids
from minibule.core.ops import attention
from minibule.errors import InputError
from minibule.generate import decode, prefill, sampling
from minibule.generate.__main__ import main
from minibule.generate.cache import KeyValueCache
from minibule.generate.decode import Wanted, generate, generate_in_turn
from minibule.generate.sampling import Sampling, choose

NEVER = frozenset()
HEADS = (ODD.num_key_value_heads, ODD.head_dim)


@pytest.fixture
def model():
    model = random_llama()
    model.adapter = random_adapter()
    return model


def naive_greedy(model, prompt, n, stop=NEVER):
    ids = list(prompt)
    for _ in range(n):
        token = int(model.logits(ids)[-1].argmax())
        if token in stop:
            break
        ids.append(token)
    return ids[len(prompt) :]


PROMPTS = [np.array(p) for p in ([3, 1, 4], [1], [5, 9, 2, 6, 5, 3, 5], [8, 9])]


def test_greedy_from_the_cache_is_greedy_from_scratch(model):
    answers = generate(model, PROMPTS, Wanted(NEVER, 12, Sampling()))
    for prompt, (answer,) in zip(PROMPTS, answers, strict=True):
        assert answer == naive_greedy(model, prompt, 12)


def test_sequences_end_one_by_one(model):
    """Some stop early, the others go on undisturbed."""
    stop = frozenset(range(0, ODD.vocab_size, 5))
    answers = generate(model, PROMPTS, Wanted(stop, 12, Sampling()))
    lengths = set()
    for prompt, (answer,) in zip(PROMPTS, answers, strict=True):
        assert answer == naive_greedy(model, prompt, 12, stop)
        lengths.add(len(answer))
    assert len(lengths) > 1


def test_samples_do_not_depend_on_their_company(model):
    sampling = Sampling(temperature=1.0, seed=3)
    together = generate(model, PROMPTS, Wanted(NEVER, 8, sampling, samples=3))
    for prompt, samples in zip(PROMPTS, together, strict=True):
        (alone,) = generate(model, [prompt], Wanted(NEVER, 8, sampling, samples=3))
        assert samples == alone
        assert len({tuple(s) for s in samples}) == 3  # and they differ from each other
    other = Sampling(temperature=1.0, seed=4)
    assert together != generate(model, PROMPTS, Wanted(NEVER, 8, other, samples=3))


def test_samples_are_numbered_from_the_first(model):
    """Later samples are drawn as if all had been at once."""
    sampling = Sampling(temperature=1.0, seed=3)

    def drawn(**more):
        return generate(model, PROMPTS, Wanted(NEVER, 8, sampling, **more))

    together = drawn(samples=5)
    assert drawn(samples=3, first=2) == [several[2:] for several in together]


def test_other_prompts_get_other_draws(model):
    """With the same draws for all, the records of different prompts would be alike."""
    sampling = Sampling(temperature=1e6, seed=3)  # the model hardly matters: nearly uniform
    answers = generate(model, PROMPTS, Wanted(NEVER, 8, sampling, samples=2))
    assert len({tuple(sample) for samples in answers for sample in samples}) == 2 * len(PROMPTS)


def test_sampling_follows_the_distribution():
    logits = np.array([[1.0, 3.0, 2.0, -1.0]], np.float32)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    u = (np.arange(20_000) + 0.5) / 20_000  # every quantile once: no chance involved

    def shares(sampling):
        drawn = choose(logits.repeat(len(u), axis=0), sampling, u)
        return np.bincount(drawn, minlength=4) / len(u)

    np.testing.assert_allclose(shares(Sampling(1.0)), p, atol=1e-4)
    p2 = p**0.5 / (p**0.5).sum()
    np.testing.assert_allclose(shares(Sampling(2.0)), p2, atol=1e-4)
    k2 = np.array([0, p[1], p[2], 0]) / (p[1] + p[2])
    np.testing.assert_allclose(shares(Sampling(1.0, top_k=2)), k2, atol=1e-4)
    # p[1] = .66 alone is short of .8, with p[2] = .24 it is enough.
    np.testing.assert_allclose(shares(Sampling(1.0, top_p=0.8)), k2, atol=1e-4)
    np.testing.assert_allclose(shares(Sampling(1.0, top_p=0.5)), [0, 1, 0, 0])
    np.testing.assert_allclose(shares(Sampling(0.0)), [0, 1, 0, 0])


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_of_many_tokens_only_some_are_sorted(monkeypatch, spread, temperature):
    """The draws are those of sorting all, but where a quantile falls between two by rounding."""
    rng = np.random.default_rng(0)
    logits = (spread * rng.standard_normal((1, 5000))).astype(np.float32).repeat(400, axis=0)
    u = np.append(rng.random(397), [0.0, 0.5, np.nextafter(1.0, 0.0)])
    some = choose(logits, Sampling(temperature), u)
    monkeypatch.setattr(sampling, "MANY", 10**6)
    assert np.mean(some == choose(logits, Sampling(temperature), u)) > 0.99


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("number", [1, 2])
def test_however_the_prompts_are_cut_into_chunks(model, monkeypatch, two_threads, tokens, number):
    """Chunks that begin inside a prompt, that hold several, and in which none ends."""
    monkeypatch.setattr(prefill, "LEAST_TOKENS", 1)
    monkeypatch.setattr(prefill, "MOST_TOKENS", tokens)
    monkeypatch.setattr(prefill, "threads", lambda: number)
    answers = generate(model, PROMPTS, Wanted(NEVER, 4, Sampling(), samples=2))
    for prompt, samples in zip(PROMPTS, answers, strict=True):
        assert samples == [naive_greedy(model, prompt, 4)] * 2


def test_an_error_in_one_chunk_ends_the_others(model, monkeypatch, two_threads):
    """Those that wait for its keys must not wait for ever."""

    def fails(q, k, v, segments):
        if len(segments[0].keys) == segments[0].tokens.stop:  # the chunk that begins the prompt
            raise MemoryError
        return attention(q, k, v, segments)

    monkeypatch.setattr(prefill, "LEAST_TOKENS", 1)
    monkeypatch.setattr(prefill, "threads", lambda: 4)
    monkeypatch.setattr(prefill, "attention", fails)
    with pytest.raises(MemoryError):
        generate(model, [np.arange(30)], Wanted(NEVER, 1, Sampling()))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("at_once", [1, 7, 100])
def test_waiting_prompts_take_the_places_of_those_that_ended(
    model, monkeypatch, two_threads, threads, samples, at_once
):
    """Whoever is decoded together, in however many lanes: the same answers, in order."""
    stop = frozenset(range(0, ODD.vocab_size, 5))
    prompts = [np.array(p) for p in np.random.default_rng(0).integers(0, ODD.vocab_size, (17, 5))]
    prompts[3], prompts[11] = prompts[3][:2], np.arange(20)
    wanted = Wanted(stop, 12, Sampling(1.0), samples)
    alone = [generate(model, [prompt], wanted)[0] for prompt in prompts]
    assert len({len(answer) for several in alone for answer in several}) > 5
    rows, heard = [], [[] for _ in range(17 * samples)]

    def forward(model, ids, *arguments, **more):
        if not more:  # not of prompts
            rows.append(len(ids))
        return llama.forward(model, ids, *arguments, **more)

    monkeypatch.setattr(decode, "FEW", 1)
    monkeypatch.setattr(decode, "threads", lambda: threads)
    monkeypatch.setattr(decode, "llama", SimpleNamespace(forward=forward, check_ids=check_ids))
    in_turn = generate_in_turn(
        model, prompts, wanted, at_once, lambda i, token: heard[i].append(token)
    )
    assert list(in_turn) == alone
    assert heard == [answer for several in alone for answer in several]
    lanes = threads if at_once >= threads * samples else 1
    assert lanes * max(rows) < max(at_once, samples) + lanes
    if at_once == 7 and lanes == 1:  # the places are filled again and again
        assert np.mean(rows) > 4


def test_nothing_is_kept_of_answers_that_are_there(model, monkeypatch):
    lanes = []

    def advance(lane):
        lanes[:] = [lane]
        return of_lane(lane)

    of_lane = decode._Lane.advance
    monkeypatch.setattr(decode._Lane, "advance", advance)
    given = []
    for answers in generate_in_turn(model, PROMPTS, Wanted(NEVER, 6, Sampling(1.0), 2), 2):
        given.append(answers)
        assert len(lanes[0].draws) == len(lanes[0].sequences) <= 2
    assert [[len(answer) for answer in several] for several in given] == [[6, 6]] * len(PROMPTS)


def test_the_first_answers_do_not_wait_for_the_last(model):
    started = []
    wanted = Wanted(NEVER, 6, Sampling())
    in_turn = generate_in_turn(model, PROMPTS, wanted, 1, lambda i, _: started.append(i))
    next(in_turn)
    assert set(started) == {0}


def of_each(cache):
    """Of each sequence what its cache has: numbers, and arrays."""
    return [
        (
            (cache.positions[i], cache.sample[i]),
            [keys[:, p, :, : cache.prompt_lengths[p]].copy() for keys in cache.of_prompts],
            [keys[:, i, :, :length].copy() for keys in cache.own],
        )
        for i, (p, length) in enumerate(zip(cache.prompt, cache.lengths, strict=True))
    ]


def test_what_a_cache_keeps():
    """Each kept sequence keeps its own and its prompt's, whatever places these move to."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        P, samples = int(rng.integers(1, 5)), int(rng.integers(1, 4))
        cache = KeyValueCache(ODD, np.dtype(float), (P + 1, 9), (P * samples + 1, 4))
        for lengths in (rng.integers(1, 9, 1), rng.integers(1, 9, P - 1)):
            streams = rng.normal(size=(ODD.num_hidden_layers, 2, lengths.sum(), *HEADS))
            cache.join(list(streams), lengths, samples)
        for array in cache.own:
            array[...] = rng.normal(size=array.shape)
        cache.lengths = rng.integers(0, 4, P * samples)

        before, which = of_each(cache), rng.random(P * samples) < 0.6
        order = cache.keep(which)
        assert sorted(order.tolist()) == np.flatnonzero(which).tolist()
        for now, was in zip(of_each(cache), [before[i] for i in order], strict=True):
            assert now[0] == was[0]
            np.testing.assert_array_equal(now[1], was[1])
            np.testing.assert_array_equal(now[2], was[2])
        continued = {i // samples for i in np.flatnonzero(which)}
        assert cache.free_prompts == P + 1 - len(continued)


def test_on_token_hears_every_token(model):
    heard = [[] for _ in PROMPTS]
    answers = generate(
        model,
        PROMPTS,
        Wanted(NEVER, 5, Sampling()),
        on_token=lambda sequence, token: heard[sequence].append(token),
    )
    assert heard == [answer for (answer,) in answers]


def test_context_that_is_too_short(model):
    with pytest.raises(InputError, match="model's context of 64"):
        generate(model, [np.arange(30)], Wanted(NEVER, 35, Sampling()))


# -- the command -----------------------------------------------------------------------------------


def test_command(capsys):
    main(["--prompt", "hello"])
    greedy = capsys.readouterr().out
    assert greedy.strip() == "hello"  # the embedded base echoes
    main(["--prompt", "hello", "--temperature", "1", "-n", "3", "--seed", "1"])
    samples = capsys.readouterr().out
    assert [line[:4] for line in samples.splitlines()] == ["[1] ", "[2] ", "[3] "]
    main(["--prompt", "hello", "--temperature", "1", "-n", "3", "--seed", "1"])
    assert capsys.readouterr().out == samples
    main(["--prompt", "count to 3", "--raw", "--max-new-tokens", "4"])
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--prompt: not given, expected what the user says"),
        (["--top-p", "0"], "top_p = 0 (command line): expected a number above 0 and at most 1"),
        (["--top-p", "1.5"], "expected a number above 0 and at most 1"),
        (["--temperature", "-1"], "temperature = -1 (command line): expected a number of at least"),
        (["--temperature", "nan"], "expected a number of at least 0"),
        (["--seed", "-1"], "expected a whole number of at least 0"),
        (["--prompt", "x", "-n", "3"], "-n 3 at --temperature 0: the likeliest answer is the same"),
        (["-n", "0"], "n = 0 (command line): expected a whole number from 1 to 10,000"),
        (["-n", "1000000000"], "expected a whole number from 1 to 10,000"),
        (["--max-new-tokens", "0"], "expected a whole number of at least 1"),
        (["--promt", "hello"], "--promt: no such flag; did you mean --prompt?"),
    ],
)
def test_bad_arguments(arguments, says):
    with pytest.raises(InputError) as error:
        main(arguments)
    assert says in str(error.value)


def test_bad_arguments_are_a_line_and_status_2():
    done = subprocess.run(
        [sys.executable, "-m", "minibule.generate", "--prompt", "x", "-n", "none"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.splitlines() == [
        "error: settings that cannot be used:",
        "  n = none (command line): expected a whole number from 1 to 10,000",
    ]


def test_the_defaults_stand_once(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "of the answer (default: 128)" in shown and "(default: 1.0)" in shown
    assert Sampling() == Sampling(temperature=0.0, top_k=0, top_p=1.0, seed=0)


def test_a_prompt_that_is_no_text():
    with pytest.raises(InputError, match="expected UTF-8 text"):
        main(["--prompt", "\udcff"])
    with pytest.raises(InputError, match="expected UTF-8 text"):
        main(["--prompt", "\udcff", "--raw"])


@pytest.mark.parametrize(
    "shell",
    [
        "PYTHONIOENCODING=ascii {python} -m minibule.generate --prompt 'é' --raw --temperature 2",
        "{python} -m minibule.generate --prompt hello >&-",
        "set -o pipefail; {python} -m minibule.generate --prompt hi -n 50 --temperature 1 | true",
    ],
    ids=["a terminal that knows only ASCII", "closed output", "a reader that leaves"],
)
def test_no_output_brings_a_traceback(shell):
    done = subprocess.run(
        ["bash", "-c", shell.format(python=sys.executable)],
        capture_output=True,
        text=True,
        check=False,
        env={
            "PYTHONPATH": str(ROOT),
            "PATH": "/bin:/usr/bin",
            "OPENBLAS_NUM_THREADS": os.environ["OPENBLAS_NUM_THREADS"],
        },
    )
    assert not done.stderr and done.returncode == 0


def test_a_prompt_without_a_token():
    with pytest.raises(InputError, match="--prompt '': no token, expected text to go on from"):
        main(["--prompt", "", "--raw"])


def test_a_prompt_longer_than_the_context():
    with pytest.raises(InputError, match="context of 2,048"):
        main(["--prompt", "word " * 3000])
