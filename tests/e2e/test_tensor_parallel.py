"""Two ranks on the CPU behind the real server: the answers of one, and nobody sees a rank die."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from tests.fixtures.server import (
    MODEL,
    RunningServer,
    command_of,
    eventually,
    processes,
    run_to_end,
    starting,
)
from tests.fixtures.small_models import save_small_model
from tests.fixtures.streams import Body, Seen, all_of

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
LONG: Body = {"prompt": "The mill by the river", "max_tokens": 240, "ignore_eos": True}
BODIES: list[Body] = [{**LONG, "temperature": 0}, {**LONG, "temperature": 1, "seed": 4, "logprobs": 1}]
CUT = 40  # events of the first stream, at which a process is killed


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token is a byte."""
    folder: Path = tmp_path_factory.mktemp("model")
    save_small_model(CONFIG, folder)
    tokenizer = Tokenizer(BPE({character: token for token, character in enumerate(ByteLevel.alphabet())}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def flags(model: Path, tp: int) -> list[str]:
    engine = ["--device", "cpu", "--dtype", "float32", "--threads", str(tp), "--tp", str(tp)]
    return ["--model", str(model), "--served-model-name", MODEL, "--kv-cache-memory", "4MiB", *engine]


@pytest.fixture(scope="module")
def together(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with starting(tmp_path_factory.mktemp("together"), *flags(model, 2)) as running:
        running.wait_until_open()
        yield running


def ranks(server: RunningServer) -> list[int]:
    """The engine's process, and the one below it."""
    engine = server.engine_pid()
    below = [pid for pid, parent in processes().items() if parent == engine]
    return [engine, *(pid for pid in below if command_of(pid).endswith("engine.parallel"))]


async def test_answers_are_those_of_one_process(together: RunningServer, model: Path, tmp_path: Path) -> None:
    assert len(ranks(together)) == 2
    found = await all_of(together, BODIES)
    with starting(tmp_path / "alone", *flags(model, 1)) as alone:
        alone.wait_until_open()
        expected = await all_of(alone, BODIES)
    assert [seen.content for seen in found] == [seen.content for seen in expected]
    assert len(set(found[0].texts[0])) > 50
    assert [seen.usage["completion_tokens"] for seen in found] == [240, 240]


@pytest.mark.parametrize("rank", [1, 0])
async def test_a_dead_rank_takes_its_group_along_and_streams_go_on(together: RunningServer, rank: int) -> None:
    calm = await all_of(together, BODIES)
    before = ranks(together)
    left = [before[rank]]

    def kill(seen: Seen) -> None:
        while left and seen.num_events >= CUT:
            os.kill(left.pop(), signal.SIGKILL)

    died = await all_of(together, BODIES, kill)
    assert not left
    assert [seen.content for seen in died] == [seen.content for seen in calm]
    assert [seen.remarks for seen in died] == [1, 1]
    eventually(lambda: not set(before) & set(processes()), "nothing is left of the group")
    after = eventually(lambda: found if len(found := ranks(together)) == 2 else None, "there is a new one")
    assert after is not None and not set(after) & set(before)


def test_what_cannot_be_divided_is_refused_at_the_start(model: Path) -> None:
    ended = run_to_end(*flags(model, 3))
    assert ended.returncode != 0
    assert "--tp 3 does not divide 4 attention heads and 96 columns of MLPs evenly" in ended.stderr


def test_nothing_is_left_of_a_server_that_ends(together: RunningServer) -> None:
    """The last one here."""
    found = ranks(together)
    assert len(found) == 2
    together.send(signal.SIGTERM)
    assert together.exit_code() == 0
    eventually(lambda: not set(found) & set(processes()), "both ranks have ended")
