from __future__ import annotations

import contextlib
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.conftest import write_folder
from tokenizers import Tokenizer

from edgellm.export.checkpoint import open_checkpoint
from edgellm.export.family import families, locate
from edgellm.kernels.layout import dequantize
from edgellm.runtime.errors import CheckpointError


def edit_json(file: Path, **changes: object) -> None:
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@functools.cache
def extents(file: Path) -> tuple[int, int]:
    """Where a GGUF file's tensors begin and end; padding may follow."""
    reader = gguf.GGUFReader(file)
    return reader.data_offset, max(tensor.data_offset + tensor.n_bytes for tensor in reader.tensors)


def test_folder_gives_its_weights_by_canonical_name(tiny_model: Path) -> None:
    checkpoint = open_checkpoint(tiny_model)
    written = load_file(tiny_model / "model.safetensors")
    names = [name for name, _ in checkpoint.architecture.tensors()]
    assert len(names) == len(written)
    for name in names:
        assert torch.equal(
            checkpoint.matrix(name), written[locate(families()["llama"].hf, name, checkpoint.architecture).tensor]
        )
        assert checkpoint.stored(name) is None
    arch = checkpoint.architecture
    assert (arch.layers, arch.hidden, arch.heads, arch.kv_heads, arch.head_dim, arch.ff) == (2, 64, 4, 2, 16, 128)
    assert (arch.vocabulary, arch.context, arch.tied, arch.activation) == (320, 256, True, "silu")
    assert arch.parameters == sum(tensor.numel() for tensor in written.values())
    assert checkpoint.source_name == checkpoint.name == "tiny"


def test_stop_tokens_are_the_union_of_settings_tokenizer_and_template(tiny_model: Path, tmp_path: Path) -> None:
    assert open_checkpoint(tiny_model).tokens == {"bos": 1, "add_bos": False, "stop": [0, 2], "eos": 0}
    folder = shutil.copytree(tiny_model, tmp_path / "other")
    edit_json(folder / "generation_config.json", eos_token_id=[5, 7])
    edit_json(folder / "config.json", eos_token_id=9)
    edit_json(folder / "tokenizer_config.json", chat_template=None, add_bos_token=True)
    other = open_checkpoint(folder)
    assert other.tokens == {"bos": 1, "add_bos": True, "stop": [0, 5, 7, 9], "eos": 0}
    assert other.chat_template is None
    (folder / "chat_template.jinja").write_text("{{ '<|im_end|>' }}")
    assert open_checkpoint(folder).tokens["stop"] == [0, 2, 5, 7, 9]


def test_shards_and_bfloat16_read_as_float32(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "sharded")
    (folder / "model.safetensors").unlink()
    whole = load_file(tiny_model / "model.safetensors")
    shards: list[dict[str, torch.Tensor]] = [{}, {}]
    for index, (name, tensor) in enumerate(sorted(whole.items())):
        shards[index % 2][name] = tensor.to(torch.bfloat16)
    weight_map = {name: f"model-{i}.safetensors" for i, shard in enumerate(shards) for name in shard}
    for i, shard in enumerate(shards):
        save_file(shard, folder / f"model-{i}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    read = open_checkpoint(folder).matrix("layers.1.down")
    assert read.dtype == torch.float32
    assert torch.equal(read, whole["model.layers.1.mlp.down_proj.weight"].to(torch.bfloat16).float())
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard model-1\.safetensors is missing"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, r'"lama" is not supported; supported: gemma2, (.|\n)*nearest is "llama"'),
        ({"attention_bias": True}, r"self_attn\.q_proj\.bias is missing"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3 rotary scaling lacks low_freq_factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, '"dynamic" rotary scaling'),
        ({"hidden_act": "relu"}, 'activation "relu"'),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"intermediate_size": 192}, r"shape \(128, 64\); config.json says \(192, 64\)"),
        ({"num_hidden_layers": 3}, "tensor model.layers.2.self_attn.q_proj.weight is missing"),
        ({"num_hidden_layers": 1}, "has no tensor model.layers.1"),
        ({"tie_word_embeddings": False}, "tensor lm_head.weight is missing"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None"),
        ({"num_key_value_heads": 3}, "4 heads of 16 do not fit 3"),
    ],
)
def test_folder_refusals_name_the_reason(
    tiny_model: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "edited")
    edit_json(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(folder)
    assert caught.value.hint


def test_missing_and_foreign_files_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "nothing")
    folder = shutil.copytree(tiny_model, tmp_path / "copy")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickle(.|\n)*save_pretrained"):
        open_checkpoint(folder)
    with pytest.raises(CheckpointError, match="pickle"):
        open_checkpoint(folder / "pytorch_model.bin")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer.json(.|\n)*AutoTokenizer"):
        open_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        open_checkpoint(folder)


def test_nan_is_found_when_the_tensor_is_read(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] = float("nan")
    weights["model.norm.weight"][0] = float("inf")
    save_file(weights, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    checkpoint.matrix("layers.0.gate")
    with pytest.raises(CheckpointError, match=r"layers\.0\.up holds NaN"):
        checkpoint.matrix("layers.0.up")
    with pytest.raises(CheckpointError, match="norm holds NaN or infinite"):
        checkpoint.vector("norm")


def test_gguf_rows_come_in_rotate_half_order(tiny_gguf: Path, tiny_model: Path) -> None:
    packed, plain = open_checkpoint(tiny_gguf), open_checkpoint(tiny_model)
    assert packed.architecture.parameters == plain.architecture.parameters
    assert packed.tokens == plain.tokens
    assert packed.chat_template == plain.chat_template
    for name, (_, columns) in packed.architecture.tensors():
        ours, wanted = packed.matrix(name), plain.matrix(name)
        # One step of 4 bits over a block of 32 is about a fifth of the largest weight at worst.
        assert torch.allclose(ours, wanted, atol=0.15 * float(wanted.abs().max()) if columns else 0), name


def test_gguf_blocks_are_stored_without_loss(tiny_gguf: Path) -> None:
    checkpoint = open_checkpoint(tiny_gguf)
    seen = set()
    for name, (_, columns) in checkpoint.architecture.tensors():
        stored = checkpoint.stored(name)
        assert (stored is None) == (columns == 0)
        if stored is not None:
            seen.add((stored.format.bits, stored.format.zero, stored.format.group))
            np.testing.assert_array_equal(dequantize(stored), checkpoint.matrix(name).numpy())
    assert seen == {(4, "symmetric", 32), (4, "min", 32), (8, "symmetric", 32)}


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=60, deadline=None)
def test_a_cut_gguf_file_is_refused_wherever_it_is_cut(
    share: float, tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _, end = extents(tiny_gguf)
    cut = tmp_path_factory.getbasetemp() / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[: int(end * share)])
    with pytest.raises(CheckpointError, match=r"truncated|not a GGUF"):
        open_checkpoint(cut)


@given(share=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(max_examples=60, deadline=10_000)
def test_a_changed_gguf_header_is_refused_or_read_but_never_worse(
    share: float, flip: int, tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    changed = bytearray(tiny_gguf.read_bytes())
    changed[int(extents(tiny_gguf)[0] * share)] ^= flip
    file = tmp_path_factory.getbasetemp() / "changed.gguf"
    file.write_bytes(changed)
    with contextlib.suppress(CheckpointError):
        checkpoint = open_checkpoint(file)
        assert Tokenizer.from_str(checkpoint.tokenizer_json()).get_vocab_size() > 0
        for name, _ in checkpoint.architecture.tensors():
            assert torch.isfinite(checkpoint.matrix(name)).all()


def test_a_file_without_an_architecture_is_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "changed.gguf").write_bytes(
        tiny_gguf.read_bytes().replace(b"general.architecture", b"general.architectura")
    )
    with pytest.raises(CheckpointError, match='architecture "" is not supported'):
        open_checkpoint(tmp_path / "changed.gguf")


def test_an_array_that_claims_to_be_huge_is_refused_at_once(tiny_gguf: Path, tmp_path: Path) -> None:
    whole = tiny_gguf.read_bytes()
    at = whole.index(b"tokenizer.ggml.token_type") + 25 + 8  # past the key, and the two types
    assert int.from_bytes(whole[at : at + 8], "little") == 320
    (tmp_path / "huge.gguf").write_bytes(whole[:at] + (1 << 60).to_bytes(8, "little") + whole[at + 8 :])
    with pytest.raises(CheckpointError, match="past the end"):
        open_checkpoint(tmp_path / "huge.gguf")


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=20, deadline=None)
def test_a_cut_safetensors_file_is_refused(
    share: float, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cut") / "model"
    shutil.copytree(tiny_model, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama__expert_count": 8}, "mixture of experts"),
        ({"llama__rope__scaling__type": "longrope"}, '"longrope"'),
        ({"llama__rope__scaling__type": "yarn"}, r"yarn rotary scaling lacks llama\.rope\.scaling\.factor"),
        ({"llama__rope__dimension_count": 18}, "rotates 18 of 16 dimensions"),
        ({"llama__feed_forward_length": 256}, r"shape \(128, 64\); the file's settings say \(256, 64\)"),
        ({"llama__block_count": 3}, r"blk\.2\.attn_q\.weight is missing"),
        ({"llama__block_count": 1}, r"blk\.1\..*does not have"),
        ({"split__count": 2}, "one of 2 parts"),
        ({"general__architecture": "mamba2"}, '"mamba2" is not supported; supported: gemma2, '),
        ({"tokenizer__ggml__model": "t5"}, r'tokenizer is "t5"(.|\n)*Hugging Face folder'),
        ({"tokenizer__ggml__pre": "tekken"}, 'pre-tokenizer "tekken" is not known'),
    ],
)
def test_gguf_refusals_name_the_reason(
    make_gguf: Callable[..., Path], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(make_gguf(**changes))
    assert caught.value.hint


def test_yarn_reads_alike_from_gguf_and_from_a_folder(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    """llama.cpp's ggml_rope_yarn and transformers' "yarn" are the same formula under other names."""
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
    folder = write_folder(tmp_path / "folder", rope_parameters=rope)
    expected = open_checkpoint(folder).architecture.layers_as[0].rope
    keys = {"type": "yarn", "factor": 4.0, "original_context_length": 64}
    file = make_gguf(**{f"llama__rope__scaling__{key}": value for key, value in keys.items()})
    found = open_checkpoint(file).architecture.layers_as[0].rope
    np.testing.assert_array_equal(found.frequencies(), expected.frequencies())
    assert found.magnitude == expected.magnitude > 1
    louder = make_gguf(**{f"llama__rope__scaling__{key}": value for key, value in {**keys, "attn_factor": 2.0}.items()})
    assert open_checkpoint(louder).architecture.layers_as[0].rope.magnitude == pytest.approx(2 * expected.magnitude)
