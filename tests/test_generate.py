"""Generation: the sampler keeps its promises, and a continuation does not depend on its neighbours."""

import io
import json
from dataclasses import replace

import pytest
import torch

from tinyllm import chat, checkpoint, generate
from tinyllm.data import next_token_batch
from tinyllm.decode import draw, next_token_probabilities, stream
from tinyllm.generate import GenerateConfig, continue_text
from tinyllm.model import TinyLLM
from tinyllm.train import TrainConfig, train

END = 2


def ids(model, prompt=(5, 9, 13), **settings):
    return list(stream(model, list(prompt), end=END, **{"max_new_tokens": 12} | settings))


def test_temperature_zero_is_the_likeliest_token():
    """Also among ties, where exactly one may win."""
    p = next_token_probabilities(torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 1.0]]), temperature=0)
    assert p.tolist() == [[0, 1, 0], [1, 0, 0]]


def test_a_temperature_too_low_for_float32_is_zero():
    """1 / 1e-39 is infinite, and a distribution of NaN would be drawn from without a word."""
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert torch.equal(next_token_probabilities(logits, 1e-39), next_token_probabilities(logits, 0))


def test_low_temperature_sharpens_and_high_flattens():
    """Dividing the logits by T scales every log-odds by 1/T."""
    logits = torch.randn(1, 50)
    for temperature in (0.5, 1.0, 2.0):
        p = next_token_probabilities(logits, temperature)
        odds = (p[0, 3] / p[0, 7]).log()
        torch.testing.assert_close(odds, (logits[0, 3] - logits[0, 7]) / temperature, rtol=1e-4, atol=1e-4)


def test_top_k_keeps_exactly_k_even_among_ties():
    """Comparing with the k-th value instead of counting would let every tie through."""
    p = next_token_probabilities(torch.zeros(1, 10), top_k=3)
    assert int((p > 0).sum()) == 3 and p[p > 0].tolist() == pytest.approx([1 / 3] * 3)


def test_top_p_keeps_the_token_that_crosses_p():
    """0.5 + 0.3 reaches 0.7 only with the second token; what is kept is rescaled to one."""
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    p = next_token_probabilities(logits, top_p=0.7)
    assert p[0].tolist() == pytest.approx([0, 0.625, 0.375])
    assert next_token_probabilities(logits, top_p=0.0)[0].tolist() == [0, 1, 0]
    assert next_token_probabilities(logits, top_p=1.0)[0].tolist() == pytest.approx([0.2, 0.5, 0.3])


def test_top_p_counts_what_top_k_left():
    """Of 0.5, 0.3 and 0.2 the first two weigh 0.625 and 0.375 after top_k=2, so 0.6 is reached by the first alone."""
    p = next_token_probabilities(torch.tensor([[0.2, 0.5, 0.3]]).log(), top_k=2, top_p=0.6)
    assert p[0].tolist() == [0, 1, 0]


def by_sorting(logits, temperature, top_k, top_p):
    """The definition: sort all of the vocabulary, equal ones by id, cut off after k and where p is reached."""
    p, order = (logits.float() / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    if top_k:
        p[:, top_k:] = 0
        p /= p.sum(-1, keepdim=True)
    before = p.cumsum(-1) - p
    p[:, 1:][before[:, 1:] >= top_p] = 0
    return torch.zeros_like(p).scatter(-1, order, p / p.sum(-1, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.01, 1, 5, 30])
def test_ranking_a_few_is_as_good_as_sorting_all(scale, dtype):
    """Rows that are flat, peaked, and in bfloat16 full of ties: the quick ways keep what the definition keeps. What is
    drawn is the first id whose cumulative probability exceeds the number."""
    logits = (torch.randn(4, 3000) * scale).to(dtype)
    uniform = torch.rand(4, dtype=torch.float64)
    for top_k in (0, 1, 40, 2000, 9999):
        for top_p in (0.3, 0.95, 1.0):
            p = next_token_probabilities(logits, 0.8, top_k, top_p)
            torch.testing.assert_close(p, by_sorting(logits, 0.8, top_k, top_p), rtol=1e-4, atol=1e-7)
            exceeds = p.double().cumsum(-1) > uniform[:, None] * p.double().sum(-1, keepdim=True)
            assert draw(p, uniform) == [row.tolist().index(True) for row in exceeds]


@torch.no_grad()
def test_the_cache_changes_nothing(model):
    """Decoding from the cache equals reading everything again for each token.

    Drawn, not greedy: a draw depends on the whole distribution, while the likeliest token of a random model is often
    the last one again, whatever was said before.
    """
    row, uniform = [5, 9, 13], torch.rand(12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for (id,), number in zip(ids(model, temperature=1.5, seed=3), uniform):
        p = next_token_probabilities(model(torch.tensor([row]))[:, -1], 1.5, top_p=0.95)
        assert [id] == draw(p, number[None])
        row.append(id)
    assert len(set(row)) > 6


def test_generation_stops_after_max_new_tokens(model):
    """Exactly that many, if the model does not end the text before."""
    assert len(list(stream(model, [5, 9], end=-1, max_new_tokens=5))) == 5


def test_a_continuation_does_not_depend_on_its_neighbours(model):
    """Sample i has its own generator: alone or in a batch of four it is the same."""
    together = list(zip(*ids(model, n=4, seed=7, temperature=1.5)))
    for i, sample in enumerate(together):
        alone = [id for (id,) in ids(model, n=1, seed=7 + i, temperature=1.5)]
        assert list(sample[:len(alone)]) == alone and set(sample[len(alone):]) <= {END}
    assert len(set(together)) > 1


def test_an_ended_continuation_stays_ended(model):
    """Its neighbours may go on; it only repeats the end token, and the stream stops when all have ended."""
    with torch.no_grad():
        model.embed.weight[END] = torch.randn(32) * 3              # make the end likely, but not at once for all
    samples = list(zip(*ids(model, n=6, temperature=2.0, top_p=1.0, max_new_tokens=40)))
    ends = [sample.index(END) for sample in samples if END in sample]
    assert ends and len(set(ends)) > 1
    assert all(set(sample[sample.index(END):]) == {END} for sample in samples if END in sample)
    for seed in range(6):
        alone = [id for (id,) in ids(model, temperature=2.0, top_p=1.0, max_new_tokens=40, seed=seed)]
        assert END not in alone[:-1]


def test_generation_stops_at_the_end_of_the_context(model):
    """Prompt and answer together never exceed what the model was trained to read."""
    assert len(ids(model, prompt=range(3, 43), temperature=1.0, max_new_tokens=99)) <= 8


@pytest.mark.parametrize(("length", "sentence"), [(48, "48 tokens long and context=48 leaves no room"),
                                                  (200, "shorten the prompt"), (0, "an empty prompt")])
def test_a_prompt_that_cannot_be_continued_is_refused(model, length, sentence):
    """Cutting it silently would answer another question."""
    with pytest.raises(ValueError, match=sentence):
        ids(model, prompt=range(length))


@pytest.fixture
def folder(tmp_path, tokenizer, config):
    config.vocab_size = tokenizer.vocab_size
    return str(checkpoint.save(tmp_path, TinyLLM(config), tokenizer, TrainConfig(), {"step": 1}))


def test_the_same_seed_writes_the_same_text(folder, capsys):
    """And another seed another one."""
    texts = []
    for seed in ("1", "1", "2"):
        generate.main(["猫 sat", "--checkpoint", folder, "--seed", seed, "--max-new-tokens", "15"])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2] and texts[0].startswith("猫 sat")


@pytest.mark.parametrize("flags", [["--temperature", "0"], ["--top-k", "1"], ["--top-p", "0"]])
def test_every_sampling_flag_reaches_the_sampler(folder, capsys, flags):
    """Each of these leaves only the likeliest token, so the seed no longer matters."""
    texts = []
    for extra in ([*flags, "--seed", "1"], [*flags, "--seed", "2"], ["--seed", "1"]):
        generate.main(["猫 sat", "--checkpoint", folder, "--max-new-tokens", "15", *extra])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_a_prompt_begins_like_a_document(tokenizer):
    """In training a document follows the end token of another; a model asked otherwise is asked something new."""
    assert generate.document_prompt(tokenizer, "猫 sat") == [tokenizer.eos, *tokenizer.encode("猫 sat")]


def test_a_character_of_several_tokens_appears_whole(tokenizer, config):
    """A memorised 龘, three byte tokens, is shown when it is complete; cut off in the middle it is one U+FFFD."""
    row = torch.tensor([[*generate.document_prompt(tokenizer, "好龘!"), tokenizer.eos]])
    model = TinyLLM(replace(config, vocab_size=tokenizer.vocab_size))
    train(model, lambda step: next_token_batch(row), TrainConfig(max_steps=60, dtype="float32", compile="off"))
    for room, text in ((20, "龘!"), (3, "龘"), (2, "\ufffd")):
        pieces = list(continue_text(model, tokenizer, "好", GenerateConfig(temperature=0.0, max_new_tokens=room)))
        assert "".join(pieces) == text


def test_json_is_for_programs(folder, capsys):
    """One object a prompt on stdout, everything else on stderr."""
    generate.main(["The cat", "--checkpoint", folder, "--json", "--max-new-tokens", "5"])
    out = json.loads(capsys.readouterr().out)
    assert out["prompt"] == "The cat" and set(out) == {"prompt", "text", "tokens", "seconds", "checkpoint"}
    assert out["tokens"] == 5                                        # those written, whatever the text encodes to


def test_without_a_prompt_lines_are_read_until_they_end(folder, capsys, monkeypatch):
    """Interactive in a terminal, a filter in a pipe."""
    monkeypatch.setattr("sys.stdin", io.StringIO("The cat\n米娅\n"))
    generate.main(["--checkpoint", folder, "--max-new-tokens", "3"])
    shown = capsys.readouterr().out
    assert "The cat" in shown and "米娅" in shown


def test_a_question_of_a_file_that_is_too_long_is_named_by_its_number(folder, capsys, monkeypatch):
    """What was asked before it is answered."""
    monkeypatch.setattr("sys.stdin", io.StringIO("The cat\n" + "x " * 200 + "\n"))
    with pytest.raises(SystemExit):
        generate.main(["--checkpoint", folder, "--max-new-tokens", "3", "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out)["prompt"] == "The cat" and "question 2: the prompt is" in err.splitlines()[-1]


def test_questions_in_a_file_from_windows_are_the_same_questions(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeff3+4?\r\n5+6?\r\n"))
    generate.main(["--checkpoint", folder, "--max-new-tokens", "2", "--json"])
    assert [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()] == ["3+4?", "5+6?"]


def test_the_calculator_completes_a_text_that_ends_with_an_equals_sign(folder, tokenizer):
    model, _ = checkpoint.load(folder)
    for prompt, begin in (("So 30+12=", "42"), ("So 30+12 is", "")):
        with_it, without = ("".join(continue_text(model, tokenizer, text, GenerateConfig(
            max_new_tokens=4, temperature=0, calculator=calculator)))
            for text, calculator in ((prompt, True), (prompt + begin, False)))
        assert with_it == begin + without
    counted = generate.as_json(model, tokenizer, "So 30+12=", GenerateConfig(max_new_tokens=3, calculator=True), False)
    assert counted["tokens"] <= 3 and counted["text"].startswith("42")


def test_a_long_prompt_exits_with_one_sentence(folder, capsys):
    """Exit code 2: the user's mistake, no traceback."""
    with pytest.raises(SystemExit) as exit:
        generate.main(["x " * 100, "--checkpoint", folder])
    err = capsys.readouterr().err
    assert exit.value.code == 2 and "leaves no room for an answer" in err and "Traceback" not in err


def test_nothing_printed_can_drive_a_terminal():
    """A model may write an escape character; the screen must not obey it."""
    assert generate.printable("a\x1b[2Jb\n\tc\x07é猫\u3000") == "a\ufffd[2Jb\n\tc\ufffdé猫\u3000"


def test_the_command_prints_only_what_is_printable(folder, capsys):
    """A model that knows nothing writes control bytes all the time; none of them reaches the screen."""
    model, tokenizer = checkpoint.load(folder)
    prompt = generate.document_prompt(tokenizer, "a")
    written = [id for (id,) in stream(model, prompt, end=tokenizer.eos, temperature=1.0, top_p=1.0, max_new_tokens=40)]
    assert any(byte < 32 for byte in b"".join(map(tokenizer.token_bytes, written)) if byte not in b"\n\t")
    generate.main(["a", "--checkpoint", folder, "--temperature", "1", "--top-p", "1", "--max-new-tokens", "40"])
    shown = capsys.readouterr().out
    assert shown == generate.printable(shown) and "\ufffd" in shown


# --- a question is answered ---

def test_a_chat_model_thinks_answers_and_votes(chat_folder, capsys):
    """Every attempt is printed in order, then the votes; steps that are false are pointed out."""
    generate.main(["几？", "--checkpoint", chat_folder, "--self-consistency", "3", "--temperature", "0"])
    shown = capsys.readouterr().out
    places = [shown.index(f"--- attempt {i} of 3 ---") for i in (1, 2, 3)] + [shown.index("votes\n")]
    assert places == sorted(places) and shown.count("2+2=5\n") == 3
    assert "false step in attempt 2: 2+2=5, correct is 4" in shown
    assert "   3 ████████████████████ 5" in shown and "agreement 100%    answer: 5" in shown


def test_the_calculator_corrects_a_step_while_it_is_written(chat_folder, capsys):
    """What was learnt wrong by heart comes out right, and nothing is left to point out."""
    generate.main(["几？", "--checkpoint", chat_folder, "--temperature", "0", "--calculator"])
    shown = capsys.readouterr().out
    assert "2+2=4" in shown and "false step" not in shown


def test_a_vote_is_json_for_programs(chat_folder, capsys):
    """The promised keys, for a question a line."""
    generate.main(["3+4?", "--checkpoint", chat_folder, "--self-consistency", "2", "--temperature", "0", "--json"])
    out = json.loads(capsys.readouterr().out)
    assert (out["answer"], out["votes"], out["agreement"]) == ("7", {"7": 2}, 1.0)
    assert {"reasoning", "answer", "logprob", "tokens"} <= set(out["samples"][0])
    assert out["samples"][0]["reasoning"] == "3+1=4\n3+4=7" and out["samples"][0]["logprob"] <= 0


def test_a_model_that_only_continues_texts_has_nothing_to_vote_on(folder, capsys):
    with pytest.raises(SystemExit) as exit:
        generate.main(["x", "--checkpoint", folder, "--self-consistency", "3"])
    assert exit.value.code == 2 and "only continues texts" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        generate.main(["x", "--checkpoint", folder, "--system", "Be kind."])
    assert "leave out --system" in capsys.readouterr().err


def test_what_a_model_is_told_before_the_question_reaches_it():
    told = GenerateConfig(system="Be kind.")
    assert generate.conversation(told, "几？") == [{"role": "system", "content": "Be kind."},
                                                  {"role": "user", "content": "几？"}]


def test_texts_that_are_written_at_the_same_time_are_shown_one_after_the_other():
    """The first as it comes; what the others have written meanwhile waits for its turn."""
    shown = []
    show = generate.InOrder(3, lambda number: f"<{number}>", shown.append)
    show(1, "b", ended=False)
    show(0, "a", ended=False)
    assert "".join(shown) == "<0>a"
    show(2, "c", ended=True)
    show(0, "A", ended=True)
    assert "".join(shown) == "<0>aA\n<1>b"
    show(1, "B", ended=True)
    assert "".join(shown) == "<0>aA\n<1>bB\n<2>c\n"


def test_a_long_conversation_forgets_its_oldest_turns(tokenizer):
    """The system message stays, a question goes with its answer, and the last question is never cut."""
    say = lambda role, text: {"role": role, "content": text}
    turns = [say("system", "s"), *(say(role, f"{role} {n} " * 3) for n in range(4) for role in ("user", "assistant"))]
    asked = [*turns, say("user", "and now?")]
    size = lambda messages: len(chat.render_prompt(tokenizer, messages))
    for n_fit in (5, 6):                                             # an answer without its question has no place
        kept = generate.fit_conversation(tokenizer, asked, context=size(asked[:1] + asked[-n_fit:]) + 10, room=10)
        assert kept == asked[:1] + asked[-5:]
    assert generate.fit_conversation(tokenizer, asked, context=12, room=10) == [asked[0], asked[-1]]
    assert generate.fit_conversation(tokenizer, asked, context=size(asked) + 10, room=10) == asked


def test_a_text_that_is_too_long_does_not_end_a_terminal_session(folder, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal("x " * 200 + "\nThe cat\n"))
    generate.main(["--checkpoint", folder, "--temperature", "0", "--max-new-tokens", "3"])
    out, err = capsys.readouterr()
    assert "leaves no room" in err and "The cat" in out


def test_a_terminal_keeps_the_conversation(chat_folder, capsys, monkeypatch):
    """The second prompt holds the first question and its answer; one that is too long is refused, and it goes on."""
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    asked, original = [], generate.answer
    monkeypatch.setattr("sys.stdin", Terminal("3+4?\n" + "x " * 200 + "\n几？\n"))
    monkeypatch.setattr(generate, "answer", lambda model, tokenizer, messages, config:
                        asked.append(messages) or original(model, tokenizer, messages, config))
    generate.main(["--checkpoint", chat_folder, "--temperature", "0"])
    assert [message["role"] for message in asked[-1]] == ["user", "assistant", "user"]
    assert [message["content"] for message in asked[-1]][::2] == ["3+4?", "几？"]
    assert "leaves no room for an answer" in capsys.readouterr().err
