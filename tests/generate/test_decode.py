"""Generation from the cache against recomputing everything, and the command."""

import subprocess
import sys

import numpy as np
import pytest
from helpers import ODD, ROOT, random_adapter, random_llama

from minibule.errors import InputError
from minibule.generate import decode as generate_module
from minibule.generate.__main__ import main
from minibule.generate.cache import KeyValueCache
from minibule.generate.decode import generate
from minibule.generate.sampling import Sampling, choose

NEVER = frozenset()


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
    answers = generate(model, PROMPTS, stop=NEVER, max_new_tokens=12, sampling=Sampling())
    for prompt, (answer,) in zip(PROMPTS, answers, strict=True):
        assert answer == naive_greedy(model, prompt, 12)


def test_sequences_end_one_by_one(model):
    """Some stop early, the others go on undisturbed."""
    stop = frozenset(range(0, ODD.vocab_size, 5))
    answers = generate(model, PROMPTS, stop=stop, max_new_tokens=12, sampling=Sampling())
    lengths = set()
    for prompt, (answer,) in zip(PROMPTS, answers, strict=True):
        assert answer == naive_greedy(model, prompt, 12, stop)
        lengths.add(len(answer))
    assert len(lengths) > 1


def test_samples_do_not_depend_on_their_company(model):
    sampling = Sampling(temperature=1.0, seed=3)
    together = generate(model, PROMPTS, stop=NEVER, max_new_tokens=8, sampling=sampling, samples=3)
    for prompt, samples in zip(PROMPTS, together, strict=True):
        (alone,) = generate(
            model, [prompt], stop=NEVER, max_new_tokens=8, sampling=sampling, samples=3
        )
        assert samples == alone
        assert len({tuple(s) for s in samples}) == 3  # and they differ from each other
    other = Sampling(temperature=1.0, seed=4)
    assert together != generate(
        model, PROMPTS, stop=NEVER, max_new_tokens=8, sampling=other, samples=3
    )


def test_samples_are_numbered_from_the_first(model):
    """Later samples are drawn as if all had been at once."""
    sampling = Sampling(temperature=1.0, seed=3)

    def drawn(**more):
        return generate(model, PROMPTS, stop=NEVER, max_new_tokens=8, sampling=sampling, **more)

    together = drawn(samples=5)
    assert drawn(samples=3, first=2) == [several[2:] for several in together]


def test_other_prompts_get_other_draws(model):
    """With the same draws for all, the records of different prompts would be alike."""
    sampling = Sampling(temperature=1e6, seed=3)  # the model hardly matters: nearly uniform
    answers = generate(model, PROMPTS, stop=NEVER, max_new_tokens=8, sampling=sampling, samples=2)
    assert len({tuple(sample) for samples in answers for sample in samples}) == 2 * len(PROMPTS)


def test_sampling_follows_the_distribution():
    logits = np.array([[1.0, 3.0, 2.0, -1.0]], np.float32)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    u = (np.arange(100_000) + 0.5) / 100_000  # every quantile once: no chance involved

    def shares(sampling):
        drawn = choose(logits.repeat(len(u), axis=0), sampling, u)
        return np.bincount(drawn, minlength=4) / len(u)

    np.testing.assert_allclose(shares(Sampling(1.0)), p, atol=2e-5)
    p2 = p**0.5 / (p**0.5).sum()
    np.testing.assert_allclose(shares(Sampling(2.0)), p2, atol=2e-5)
    k2 = np.array([0, p[1], p[2], 0]) / (p[1] + p[2])
    np.testing.assert_allclose(shares(Sampling(1.0, top_k=2)), k2, atol=2e-5)
    # p[1] = .66 alone is short of .8, with p[2] = .24 it is enough.
    np.testing.assert_allclose(shares(Sampling(1.0, top_p=0.8)), k2, atol=2e-5)
    np.testing.assert_allclose(shares(Sampling(1.0, top_p=0.5)), [0, 1, 0, 0])
    np.testing.assert_allclose(shares(Sampling(0.0)), [0, 1, 0, 0])


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("number", [1, 2])
def test_however_the_prompts_are_cut_into_chunks(model, monkeypatch, tokens, number):
    """Chunks that begin inside a prompt, that hold several, and in which none ends."""
    monkeypatch.setattr(generate_module, "LEAST_TOKENS", 1)
    monkeypatch.setattr(generate_module, "MOST_TOKENS", tokens)
    monkeypatch.setattr(generate_module, "threads", lambda: number)
    answers = generate(model, PROMPTS, stop=NEVER, max_new_tokens=4, sampling=Sampling(), samples=2)
    for prompt, samples in zip(PROMPTS, answers, strict=True):
        assert samples == [naive_greedy(model, prompt, 4)] * 2


def test_an_error_in_one_chunk_ends_the_others(model, monkeypatch):
    """Those that wait for its keys must not wait for ever."""

    def fails(q, k, v, segments):
        raise MemoryError

    monkeypatch.setattr(generate_module, "LEAST_TOKENS", 1)
    monkeypatch.setattr(generate_module, "threads", lambda: 4)
    monkeypatch.setattr(generate_module, "attention", fails)
    with pytest.raises(MemoryError):
        generate(model, [np.arange(30)], stop=NEVER, max_new_tokens=1, sampling=Sampling())


def test_what_a_cache_keeps():
    """Each kept sequence keeps its own, whatever place it moves to."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        B = int(rng.integers(1, 7))
        cache = KeyValueCache(rng.integers(1, 9, B))
        cache.keys = [rng.normal(size=(B, 2, 9, 4)) for _ in range(2)]
        cache.values = [rng.normal(size=(B, 2, 9, 4)) for _ in range(2)]
        lengths, keys = cache.lengths, [array.copy() for array in cache.keys]
        values = [array.copy() for array in cache.values]
        which = rng.random(B) < 0.6
        order = cache.keep(which)
        assert sorted(order.tolist()) == np.flatnonzero(which).tolist()
        np.testing.assert_array_equal(cache.lengths, lengths[order])
        for now, before in zip([*cache.keys, *cache.values], [*keys, *values], strict=True):
            np.testing.assert_array_equal(now[: len(order)], before[order])


def test_on_token_hears_every_token(model):
    heard = [[] for _ in PROMPTS]
    answers = generate(
        model,
        PROMPTS,
        stop=NEVER,
        max_new_tokens=5,
        sampling=Sampling(),
        on_token=lambda sequence, token: heard[sequence].append(token),
    )
    assert heard == [answer for (answer,) in answers]


def test_context_that_is_too_short(model):
    with pytest.raises(InputError, match="model's context of 64"):
        generate(model, [np.arange(30)], stop=NEVER, max_new_tokens=35, sampling=Sampling())


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
        "{python} -m minibule.generate --prompt hello -n 50 --temperature 1 | true",
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
        },
    )
    assert not done.stderr and done.returncode == 0


def test_a_prompt_without_a_token():
    with pytest.raises(InputError, match="--prompt '': no token, expected text to go on from"):
        main(["--prompt", "", "--raw"])


def test_a_prompt_longer_than_the_context():
    with pytest.raises(InputError, match="context of 2,048"):
        main(["--prompt", "word " * 3000])
