"""What cannot be served is refused in one line that names what and why."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelRefused
from engine.loaders.checkpoint import open_checkpoint
from engine.loaders.gguf import GgufCheckpoint, half_split, hf_name
from engine.loaders.safetensors import SafetensorsCheckpoint
from engine.models.spec import spec_from_config
from engine.models.weights import Weights, allocate, destinations
from tests.fixtures.harness import CPU, load

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete tiny Llama, safetensors."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    weights = load(open_checkpoint(tmp_path, "dummy", seed=1))
    table = destinations(spec_from_config(CONFIG), weights)
    save_file({name: view.clone() for name, view in table.items()}, tmp_path / "model.safetensors")
    return tmp_path


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def same(a: Weights, b: Weights) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))


def test_dummy_weights_come_back_through_safetensors(folder: Path) -> None:
    assert same(load(SafetensorsCheckpoint(folder)), load(open_checkpoint(folder, "dummy", seed=1)))


def test_dummy_weights_depend_on_their_seed_only(folder: Path) -> None:
    again = load(open_checkpoint(folder, "dummy", seed=1))
    assert same(again, load(open_checkpoint(folder, "dummy", seed=1)))
    assert not same(again, load(open_checkpoint(folder, "dummy", seed=2)))


def test_a_tied_model_may_carry_its_head_twice(folder: Path) -> None:
    change_tensors(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert same(load(SafetensorsCheckpoint(folder)), load(open_checkpoint(folder, "dummy", seed=1)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("model.norm.weight"), "lacks 1 tensor: model.norm.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "tensor extra of the checkpoint has no place"),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(31)}),
            r"model.norm.weight has shape \[31\], expected \[32\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], words: str
) -> None:
    change_tensors(folder, change)
    with pytest.raises(ModelRefused, match=words):
        load(SafetensorsCheckpoint(folder))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "architecture GemmaForCausalLM is not supported"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, r"config\.json has no 'factor'"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "has 1 numbers, expe",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "'yarn' with truncate"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differ by the type of layer"),
        ({"partial_rotary_factor": 0.5}, "partial rotary embeddings are not supported in LlamaForCausalLM"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised by 'awq'"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
    ],
)
def test_configs_that_cannot_be_computed_are_named(change: dict[str, Any], words: str) -> None:
    config = {key: value for key, value in {**CONFIG, **change}.items() if value is not None}
    with pytest.raises(ModelRefused, match=words):
        spec_from_config(config)


def test_truncated_safetensors_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelRefused, match=r"model\.safetensors cannot be read"):
        SafetensorsCheckpoint(folder)


def test_a_shard_that_is_not_there_is_named(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelRefused, match="names model-00002-of-00002"):
        SafetensorsCheckpoint(folder)


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_broken_config_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelRefused, match=r"config\.json"):
        SafetensorsCheckpoint(folder)


# --- GGUF ---


def interleave(values: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of half_split: rows (half, pair) -> (pair, half)."""
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[part]}.weight"
    return {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}[stem] + ".weight"


def write_gguf(path: Path, tensors: dict[str, np.ndarray], architecture: str = "llama", **metadata: int) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in metadata.items():
        writer.add_uint32(f"{architecture}.{key.replace('__', '.')}", value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def as_gguf(folder: Path) -> dict[str, np.ndarray]:
    """The same tiny Llama under GGUF's names and row order."""
    tensors = {name: values.numpy() for name, values in load_file(folder / "model.safetensors").items()}
    heads = {"q_proj": 4, "k_proj": 2}
    for name in tensors:
        for part, count in heads.items():
            if part in name:
                tensors[name] = interleave(tensors[name], count)
    return {gguf_name(name): np.ascontiguousarray(values) for name, values in tensors.items()}


def test_gguf_holds_the_same_weights(folder: Path, as_gguf: dict[str, np.ndarray], tmp_path: Path) -> None:
    checkpoint = GgufCheckpoint(write_gguf(tmp_path / "tiny.gguf", as_gguf))
    expected = spec_from_config(CONFIG)
    assert (checkpoint.spec.norm_eps, checkpoint.spec.tied) == (expected.norm_eps, True)
    assert same(load(checkpoint), load(SafetensorsCheckpoint(folder)))


@pytest.mark.parametrize("keep", [0.0001, 0.1, 0.5, 0.999])
def test_truncated_gguf_is_refused(as_gguf: dict[str, np.ndarray], tmp_path: Path, keep: float) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", as_gguf)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ModelRefused, match=r"tiny\.gguf .*truncated"):
        GgufCheckpoint(path)


@pytest.mark.parametrize(
    ("architecture", "metadata", "words"),
    [
        ("gemma", {}, "architecture 'gemma' is not supported"),
        ("llama", {"rope__dimension_count": 4}, "partial rotary"),
    ],
)
def test_gguf_that_cannot_be_computed_is_named(
    as_gguf: dict[str, np.ndarray], tmp_path: Path, architecture: str, metadata: dict[str, int], words: str
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", as_gguf, architecture, **metadata)
    with pytest.raises(ModelRefused, match=words):
        GgufCheckpoint(path)


def test_gguf_without_an_alignment_is_refused(tmp_path: Path) -> None:
    key, path = b"general.alignment", tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(key)) + key + struct.pack("<II", 4, 0))
    with pytest.raises(ModelRefused, match="alignment is 0"):
        GgufCheckpoint(path)


def test_gguf_without_a_tensor_names_it(as_gguf: dict[str, np.ndarray], tmp_path: Path) -> None:
    del as_gguf["blk.1.ffn_up.weight"]
    checkpoint = GgufCheckpoint(write_gguf(tmp_path / "tiny.gguf", as_gguf))
    with pytest.raises(ModelRefused, match=r"lacks 1 tensor: model\.layers\.1\.mlp\.up_proj\.weight"):
        load(checkpoint)


def test_half_split_undoes_the_interleaving() -> None:
    values = np.arange(2 * 8 * 3).reshape(16, 3)
    assert np.array_equal(half_split(torch.from_numpy(interleave(values, 2)), 2).numpy(), values)


def test_unknown_names_stay_as_they_are() -> None:
    assert hf_name("blk.3.attn_q.bias") == "model.layers.3.self_attn.q_proj.bias"
    assert hf_name("blk.3.ssm_a.weight") == "blk.3.ssm_a.weight"


def test_fused_views_share_memory_with_the_weights() -> None:
    spec = spec_from_config(CONFIG)
    weights = allocate(spec, torch.float32, CPU)
    destinations(spec, weights)["model.layers.1.self_attn.k_proj.weight"].fill_(7.0)
    assert (weights.layers[1].qkv[32:48] == 7.0).all()
