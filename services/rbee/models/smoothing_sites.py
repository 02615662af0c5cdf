"""Where activations can be scaled exactly: what produces them, and which matrices read them.

A site is exact when dividing a channel where it is produced and multiplying the columns that read it leaves
every other number as it is. In every architecture of the table, decoders of RMS norms, a gated feed-forward
network and attention over values that pass unchanged, five places are: behind the two norms of a layer (read
by queries, keys and values; by gate and up), behind the attention (produced by the rows of the values),
behind the gated product (produced by the rows of "up"; those of "gate" pass through the activation and are
left alone) and behind the last norm (read by the output projection). Queries and keys are never divided,
since norms and rotations stand between, nor is what the second norms of some architectures add.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from rbee.models.ct2_layout import EMBEDDINGS, PROJECTION, Layout
from rbee.models.gguf_file import Float32


class SiteKind(StrEnum):
    ATTENTION_INPUT = "attention input"
    ATTENTION_OUTPUT = "attention output"
    FEED_FORWARD_INPUT = "feed-forward input"
    FEED_FORWARD_OUTPUT = "feed-forward output"
    PROJECTION_INPUT = "projection input"


@dataclass(frozen=True)
class Rows:
    """Rows ``start`` to ``stop`` of a variable."""

    variable: str
    start: int
    stop: int


@dataclass(frozen=True)
class Site:
    """One set of channels. ``layer`` counts from 0; the last site belongs to none.

    ``rows`` is the number of rows of all readers. Their columns are ``blocks`` times ``shared`` times a run
    of channels: query heads that share a head of keys and values read the same channels.
    """

    kind: SiteKind
    layer: int | None
    producers: tuple[Rows, ...]
    readers: tuple[str, ...]
    rows: int
    channels: int
    blocks: int = 1
    shared: int = 1

    def to_columns(self, channels: Float32) -> Float32:
        """A value per channel as a value per column."""
        runs = channels.reshape(self.blocks, 1, -1)
        return np.broadcast_to(runs, (self.blocks, self.shared, runs.shape[2])).reshape(-1)

    def to_channels(self, columns: Float32) -> Float32:
        """Values of columns (last axis) as those of channels: the largest of the columns that share one."""
        runs = columns.reshape(*columns.shape[:-1], self.blocks, self.shared, -1)
        largest: Float32 = runs.max(axis=-2)
        return largest.reshape(*columns.shape[:-1], self.channels)


@dataclass(frozen=True)
class LayerSites:
    attention_input: Site
    attention_output: Site
    feed_forward_input: Site
    feed_forward_output: Site


def layer_prefix(layer: int) -> str:
    return f"decoder/layer_{layer}/"


def norm_names(layout: Layout, layer: int) -> tuple[str, str]:
    """The norms before attention and before the feed-forward network."""
    prefix = layer_prefix(layer)
    if f"{prefix}input_layer_norm/gamma" in layout.variables:
        return f"{prefix}input_layer_norm/gamma", f"{prefix}pre_feedforward_layer_norm/gamma"
    return f"{prefix}self_attention/layer_norm/gamma", f"{prefix}ffn/layer_norm/gamma"


def layer_sites(layout: Layout, layer: int) -> LayerSites:
    """The sites of one layer, in the order in which a forward pass meets them."""
    s, prefix = layout.settings, layer_prefix(layer)
    attention, ffn = f"{prefix}self_attention/", f"{prefix}ffn/"
    before_attention, before_ffn = norm_names(layout, layer)
    width, inner = s.embedding_length, layout.weight(f"{ffn}linear_1/weight").shape[1]
    values = s.heads_kv * s.head_dim
    first = (s.heads + s.heads_kv) * s.head_dim

    def site(kind: SiteKind, produced: Rows, *readers: str, blocks: int = 1, shared: int = 1) -> Site:
        rows = sum(layout.weight(name).shape[0] for name in readers)
        channels = produced.stop - produced.start
        return Site(kind, layer, _with_bias(layout, produced), readers, rows, channels, blocks, shared)

    return LayerSites(
        attention_input=site(
            SiteKind.ATTENTION_INPUT, Rows(before_attention, 0, width), f"{attention}linear_0/weight"
        ),
        attention_output=site(
            SiteKind.ATTENTION_OUTPUT,
            Rows(f"{attention}linear_0/weight", first, first + values),
            f"{attention}linear_1/weight",
            blocks=s.heads_kv,
            shared=s.heads // s.heads_kv,
        ),
        feed_forward_input=site(
            SiteKind.FEED_FORWARD_INPUT,
            Rows(before_ffn, 0, width),
            f"{ffn}linear_0/weight",
            f"{ffn}linear_0_noact/weight",
        ),
        feed_forward_output=site(
            SiteKind.FEED_FORWARD_OUTPUT,
            Rows(f"{ffn}linear_0_noact/weight", 0, inner),
            f"{ffn}linear_1/weight",
        ),
    )


def projection_site(layout: Layout) -> Site:
    """The site behind the last norm."""
    rows, width = layout.weight(PROJECTION).shape
    produced = (Rows("decoder/layer_norm/gamma", 0, width),)
    return Site(SiteKind.PROJECTION_INPUT, None, produced, (PROJECTION,), rows, width)


def _with_bias(layout: Layout, rows: Rows) -> tuple[Rows, ...]:
    """A bias is part of what a matrix produces."""
    bias = rows.variable.removesuffix("weight") + "bias"
    return (rows, Rows(bias, rows.start, rows.stop)) if bias in layout.variables else (rows,)


def scaled(layout: Layout, site: Site, factors: Float32, int8_limit: int = 127) -> Layout:
    """The layout with the site's channels divided by ``factors`` where they are produced, and multiplied
    where they are read. An output projection that shares the embeddings' weights gets its own.

    The readers' weights will reach up to ``int8_limit`` when they are stored as int8.
    """
    layout = _with_own_projection(layout) if PROJECTION in site.readers else layout
    variables = dict(layout.variables)
    for rows in site.producers:
        weight = layout.weight(rows.variable)
        scale = np.ones(weight.shape[0], np.float32)
        scale[rows.start : rows.stop] = 1 / factors
        variables[rows.variable] = weight.with_rows_scaled(scale)
    for name in site.readers:
        columns = layout.weight(name).with_columns_scaled(site.to_columns(factors))
        variables[name] = replace(columns, int8_limit=int8_limit)
    return replace(layout, variables=variables)


def _with_own_projection(layout: Layout) -> Layout:
    if PROJECTION not in layout.aliases:
        return layout
    shared = layout.weight(EMBEDDINGS)
    uses = layout.uses.copy()
    uses.update({part.tensor for part in shared.parts if part.tensor is not None})
    aliases = {name: target for name, target in layout.aliases.items() if name != PROJECTION}
    return replace(layout, variables={**layout.variables, PROJECTION: shared}, aliases=aliases, uses=uses)
