"""Shared by all tests: a tiny real model and a tiny real tokenizer, both made in well under a second."""

import time
from collections.abc import Callable

import pytest
import torch

from tinyllm import chat, checkpoint
from tinyllm import tokenizer as tokenizers
from tinyllm.data import Example, PackedExamples
from tinyllm.model import ModelConfig, TinyLLM
from tinyllm.sft import SFTConfig
from tinyllm.train import TrainConfig, train

SENTENCES = [
    "The cat sat on the warm mat and looked at the rain.", "A red bird sang in the old tree near the river.",
    "Mia gave two apples to Tom, and Tom gave her one pear.", "猫坐在暖和的垫子上，看着外面的雨。",
    "一只红色的小鸟在河边的老树上唱歌。", "米娅给了汤姆两个苹果，汤姆给了她一个梨。", "12 + 30 = 42, and 7 x 8 = 56.",
]
ROWS = [{"user": "3+4?", "cot": "3+1=4\n3+4=7", "final": "7"}, {"user": "几？", "cot": "2+2=5", "final": "5"}]


torch.set_num_threads(1)                                             # tiny tensors: a second thread only waits


def cpu_seconds(work: Callable[[], object]) -> float:
    """What work costs this thread, the least of three attempts: what else a machine does meanwhile is not counted."""
    seconds = []
    for _ in range(3):
        started = time.thread_time()
        work()
        seconds.append(time.thread_time() - started)
    return min(seconds)


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Every test starts from the same random numbers."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A bilingual vocabulary of at most 420 tokens."""
    return tokenizers.train(SENTENCES * 3, 420, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def config():
    return ModelConfig(vocab_size=420, dim=32, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=48, context=48)


@pytest.fixture
def model(config):
    """Random weights, ten times larger than at the start of training so that attention is not nearly uniform."""
    model = TinyLLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight *= 10
    return model


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory, tokenizer):
    """A tiny chat model that knows two answers by heart, one of them with a false step."""
    torch.manual_seed(0)
    model = TinyLLM(ModelConfig(vocab_size=tokenizer.vocab_size, dim=48, n_layers=2, n_heads=4, n_kv_heads=4,
                                ffn_dim=96, context=96))
    examples = [Example(*chat.render_example(tokenizer, chat.messages_of(row))) for row in ROWS]
    settings = TrainConfig(max_steps=160, lr=0.01, dtype="float32", compile="off")
    train(model, PackedExamples(examples, 96, 1, 0), settings)
    return str(checkpoint.save(tmp_path_factory.mktemp("chat"), model, tokenizer, SFTConfig(), {"step": 1}))
