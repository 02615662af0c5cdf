"""Smoothing changes no result but the rounding; what it is calibrated with is what the engine computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ctranslate2
import numpy as np
import pytest

from rbee.models import activation_smoothing
from rbee.models.activation_smoothing import INT8_LIMIT, choose_factors, smooth
from rbee.models.conversion import convert
from rbee.models.ct2_layout import EMBEDDINGS, PROJECTION, Layout, lay_out
from rbee.models.decoder_pass import DecoderPass, Observation
from rbee.models.gguf_file import Float32, GgufFile, read_gguf
from rbee.models.quantisation import quantise_int8
from rbee.models.smoothing_sites import Site, SiteKind, layer_sites, projection_site, scaled
from support.gguf_factory import TinyModel
from support.tiny_variants import OF_ARCHITECTURES, VARIANTS, ids_for

MODELS = {**VARIANTS, **{f"architecture {name}": model for name, model in OF_ARCHITECTURES.items()}}
# Logits of these models are around 10; float32 keeps seven digits of them.
EXACT = 1e-4


def logits(gguf: GgufFile, layout: Layout, ids: list[int]) -> Float32:
    forward = DecoderPass(gguf, layout, [ids])
    assert list(forward.layers()) == list(range(layout.settings.layers))
    return forward.logits(forward.finish())


def engine_logits(source: Path, ids: list[int]) -> Float32:
    folder = convert(source, source.parent / "models", "float32", on_progress=lambda _done, _total: None)
    generator = ctranslate2.Generator(str(folder), intra_threads=1)
    tokens = read_gguf(source).require("tokenizer.ggml.tokens")
    assert isinstance(tokens, list)
    return np.array(generator.forward_batch([[tokens[i] for i in ids]]))[0]


def all_sites(layout: Layout) -> list[Site]:
    layers = [layer_sites(layout, layer) for layer in range(layout.settings.layers)]
    return [site for sites in layers for site in vars(sites).values()] + [projection_site(layout)]


@pytest.mark.parametrize("name", MODELS)
def test_the_pass_gives_the_engines_logits(tmp_path: Path, name: str) -> None:
    source = MODELS[name].write(tmp_path / "model.gguf")
    gguf, ids = read_gguf(source), ids_for(MODELS[name])
    expected = engine_logits(source, ids)
    assert expected.std() > 0.4
    assert np.abs(logits(gguf, lay_out(gguf), ids) - expected).max() < EXACT


@pytest.mark.parametrize("name", MODELS)
def test_factors_of_every_site_leave_the_logits_as_they_are(tmp_path: Path, name: str) -> None:
    gguf = read_gguf(MODELS[name].write(tmp_path / "model.gguf"))
    layout, ids, rng = lay_out(gguf), ids_for(MODELS[name]), np.random.default_rng(0)
    folded = layout
    for site in all_sites(layout):
        before = folded
        folded = scaled(folded, site, np.exp(rng.standard_normal(site.channels)).astype(np.float32))
        changed = {
            name for name, value in folded.variables.items() if value is not before.variables.get(name)
        }
        assert changed == {*site.readers, *(rows.variable for rows in site.producers)}
    assert np.abs(logits(gguf, folded, ids) - logits(gguf, layout, ids)).max() < EXACT


def test_texts_of_one_pass_do_not_see_each_other(tmp_path: Path) -> None:
    gguf = read_gguf(TinyModel().write(tmp_path / "model.gguf"))
    layout, ids = lay_out(gguf), ids_for(TinyModel())
    forward = DecoderPass(gguf, layout, [ids[:7], ids[7:]])
    list(forward.layers())
    together = forward.logits(forward.finish())
    apart = np.concatenate([logits(gguf, layout, ids[:7]), logits(gguf, layout, ids[7:])])
    assert np.abs(together - apart).max() < EXACT


def test_a_projection_that_shares_the_embeddings_gets_weights_of_its_own(tmp_path: Path) -> None:
    gguf = read_gguf(TinyModel(tied=True).write(tmp_path / "model.gguf"))
    layout = lay_out(gguf)
    smoothed = smooth(gguf, layout, [ids_for(TinyModel())], lambda _done, _total: None).layout
    assert layout.aliases == {PROJECTION: EMBEDDINGS}
    assert smoothed.aliases == {}
    assert smoothed.weight(EMBEDDINGS) is layout.weight(EMBEDDINGS)
    assert smoothed.weight(PROJECTION).int8_limit == INT8_LIMIT
    assert smoothed.uses["token_embd.weight"] == layout.uses["token_embd.weight"] + 1


def test_progress_counts_layers_from_none_to_all(tmp_path: Path) -> None:
    gguf = read_gguf(TinyModel(layers=3).write(tmp_path / "model.gguf"))
    seen: list[tuple[int, int]] = []
    smooth(gguf, lay_out(gguf), [[5, 6]], lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def observation(activations: Float32, weights: Float32) -> Observation:
    channels = weights.shape[1]
    site = Site(SiteKind.PROJECTION_INPUT, None, (), (PROJECTION,), len(weights), channels)
    return Observation(site, activations, [weights])


def int8_error(activations: Float32, weights: Float32, factors: Float32) -> float:
    """The relative error of the engine's int8 arithmetic, carried out in full."""
    scaled_weights, (x, w) = weights * factors, (activations / factors, weights * factors)
    steps = np.abs(x).max(axis=1, keepdims=True) / 127
    quantised, scale = quantise_int8(w.copy(), INT8_LIMIT)
    product = (np.rint(x / steps) * steps) @ (quantised / scale[:, None]).T
    exact = x @ scaled_weights.T
    return float(np.linalg.norm(product - exact) / np.linalg.norm(exact))


def test_outlying_channels_are_divided_so_that_the_error_falls() -> None:
    rng = np.random.default_rng(3)
    activations = rng.standard_normal((60, 96)).astype(np.float32)
    activations[:, [7, 50]] *= 60
    weights = rng.standard_normal((80, 96)).astype(np.float32)
    chosen = choose_factors(observation(activations, weights))
    assert chosen is not None
    _, factors = chosen
    assert factors[[7, 50]].min() > 3 * np.median(factors)
    plain = int8_error(activations, weights, np.ones(96, np.float32))
    assert int8_error(activations, weights, factors) < plain / 2


def test_factors_are_eighths_of_a_power_of_two() -> None:
    rng = np.random.default_rng(4)
    chosen = choose_factors(observation(*(rng.standard_normal((30, 16)).astype(np.float32) for _ in "xw")))
    assert chosen is not None
    eighths = np.log2(chosen[1].astype(np.float64)) * 8
    assert np.abs(eighths - np.rint(eighths)).max() < 1e-4


def test_the_estimate_ranks_exponents_as_the_arithmetic_does() -> None:
    rng = np.random.default_rng(5)
    spread = np.exp(rng.standard_normal(64) * 1.5)
    activations = (rng.standard_normal((120, 64)) * spread).astype(np.float32)
    weights = rng.standard_normal((90, 64)).astype(np.float32)
    chosen = choose_factors(observation(activations, weights))
    assert chosen is not None
    errors = []
    for exponents in activation_smoothing.EXPONENTS:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(activation_smoothing, "EXPONENTS", (exponents,))
            alone = choose_factors(observation(activations, weights))
        assert alone is not None
        errors.append(int8_error(activations, weights, alone[1]))
    assert int8_error(activations, weights, chosen[1]) < 1.1 * min(errors) < 0.9 * max(errors)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_site_that_is_not_finite_is_left_as_it_is(tmp_path: Path, broken: float) -> None:
    whole = TinyModel(layers=1)
    gate = whole.all_tensors()["blk.0.ffn_gate.weight"]
    gate[3, 4] = broken
    gguf = read_gguf(replace(whole, tensors={"blk.0.ffn_gate.weight": gate}).write(tmp_path / "model.gguf"))
    layout = lay_out(gguf)
    smoothed = smooth(gguf, layout, [[5, 6, 7]], lambda _done, _total: None)
    assert smoothed.layout.weight(PROJECTION).column_scale is None
    assert "feed-forward input" not in smoothed.exponents
    assert "attention input" in smoothed.exponents
