"""int8 keeps the embedded model's quality, on texts it was not calibrated on and on any x86 processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bench.quality import passage

from rbee.models.quality import divergence, measure_quality, token_logprobs
from rbee.models.sample_texts import SampleSet, digest_of, sample_texts
from rbee.models.text import load_text_model

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
KL_GOAL, PERPLEXITY_GOAL = 0.04, 1.03
MEASURE = """
import json, sys
from pathlib import Path
from rbee.models.quality import measure_quality
print(json.dumps(measure_quality(Path(sys.argv[1]), Path(sys.argv[2]), lambda _done, _total: None)))
"""


def _instructions() -> list[str]:
    """What oneDNN may be limited to here; without int8 dot products its best is AVX2 (or less) anyway."""
    facts = Path("/proc/cpuinfo")
    has_dot_products = facts.exists() and "vnni" in facts.read_text()
    return ["AVX2", "DEFAULT"] if has_dot_products else ["AVX2"]


@pytest.mark.parametrize("instructions", _instructions())
def test_int8_stays_within_the_goal_on_held_out_texts(
    embedded_gguf: Path, embedded_converted: Callable[[str], Path], instructions: str
) -> None:
    """Without int8 dot products (AVX2) the engine saturates sums, which plain int8 pays with 0.16 nats."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions, "PYTHONPATH": str(ROOT / "services")}
    command = [sys.executable, "-c", MEASURE, str(embedded_gguf), str(embedded_converted("int8"))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    report = json.loads(done.stdout)
    print(json.dumps(report, indent=1))
    assert report["positions"] > 700
    assert report["texts_sha256"] != digest_of(SampleSet.CALIBRATION)
    for measured in [report, *report["texts"]]:
        assert measured["kl_nats"] <= KL_GOAL
        assert measured["same_top"] >= 0.85
    assert report["perplexity"] <= PERPLEXITY_GOAL * report["reference_perplexity"]


@pytest.mark.parametrize("name", ["licence", "story"])
def test_int8_stays_near_float32_on_texts_that_do_not_ship(
    embedded_converted: Callable[[str], Path], name: str
) -> None:
    exact, int8 = embedded_converted("float32"), embedded_converted("int8")
    ids = load_text_model(exact).encode_prompt(passage(name), raw=True)
    found = divergence(token_logprobs(exact, ids, threads=1), token_logprobs(int8, ids, threads=1), ids)
    print(found)
    assert found.kl_nats <= KL_GOAL


def test_the_reference_of_a_measurement_is_what_the_engine_computes_in_float32(
    embedded_gguf: Path, embedded_converted: Callable[[str], Path]
) -> None:
    report = measure_quality(embedded_gguf, embedded_converted("float32"), lambda _done, _total: None)
    assert report["kl_nats"] < 1e-5
    assert report["same_top"] > 0.995
    assert report["perplexity"] == pytest.approx(report["reference_perplexity"], rel=1e-4)


def test_the_calibration_and_the_held_out_texts_share_no_sentence() -> None:
    calibration, held_out = (" ".join(sample_texts(which).values()) for which in SampleSet)
    sentences = [line.strip() for line in calibration.replace(". ", "\n").splitlines() if len(line) > 30]
    assert len(sentences) > 20
    assert not [sentence for sentence in sentences if sentence in held_out]
