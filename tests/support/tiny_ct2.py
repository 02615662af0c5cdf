"""A very small CTranslate2 model folder with random weights: it says nothing, but it is a real model."""

from __future__ import annotations

import json
from pathlib import Path

LAYERS, WIDTH, HEADS = 3, 32, 4
END = "<end>"


def write_tiny_model(folder: Path, *, context_length: int = 256, seed: int = 1) -> Path:
    """Writes model, vocabulary and byte-level tokenizer to ``folder``; returns it."""
    import numpy as np
    from ctranslate2.specs import common_spec, transformer_spec
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, END]
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        LAYERS,
        HEADS,
        activation=common_spec.Activation.SWISH,
        pre_norm=True,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=True,
    )
    source = np.random.default_rng(seed)

    def weights(rows: int, columns: int) -> np.ndarray:
        return source.normal(0, 0.4, (rows, columns)).astype(np.float32)

    spec.decoder.scale_embeddings = False
    spec.decoder.embeddings.weight = weights(len(tokens), WIDTH)
    spec.decoder.projection.weight = weights(len(tokens), WIDTH)
    spec.decoder.layer_norm.gamma = np.ones(WIDTH, np.float32)
    for layer in spec.decoder.layer:
        layer.self_attention.layer_norm.gamma = np.ones(WIDTH, np.float32)
        layer.self_attention.linear[0].weight = weights(3 * WIDTH, WIDTH)
        layer.self_attention.linear[1].weight = weights(WIDTH, WIDTH)
        layer.ffn.layer_norm.gamma = np.ones(WIDTH, np.float32)
        layer.ffn.linear_0.weight = weights(2 * WIDTH, WIDTH)
        layer.ffn.linear_0_noact.weight = weights(2 * WIDTH, WIDTH)
        layer.ffn.linear_1.weight = weights(WIDTH, 2 * WIDTH)
    spec.register_vocabulary(tokens)
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = END
    spec.validate()
    spec.optimize(quantization="float32")
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))

    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "recipe": 0,
        "source_sha256": "0" * 64,
        "source_size_bytes": 1,
        "architecture": "llama",
        "quantization": "F32",
        "compute_type": "float32",
        "context_length": context_length,
        "block_count": LAYERS,
        "vocab_size": len(tokens),
        "tokenizer": "bpe",
        "bos_token_id": None,
        "eos_token_id": len(tokens) - 1,
        "stop_token_ids": [len(tokens) - 1],
        "add_bos": False,
        "add_space_prefix": False,
        "parameters": 1,
    }
    (folder / "rbee.json").write_text(json.dumps(settings))
    return folder
