"""The engine behind the worker: CTranslate2's generator, driven without ever blocking the event loop."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event

from rbee.core.errors import InferenceFailed, MemoryExhausted, RbeeError
from rbee.models.model_file import ModelFile, damaged, read_model_file
from rbee.worker.adapters.ctranslate2_run import CTranslate2Run
from rbee.worker.adapters.engine_memory import (
    MB,
    available_bytes,
    gpu_used_bytes,
    is_out_of_memory,
    load_unwinder,
)
from rbee.worker.adapters.engine_threads import EngineThreads, openmp_setter
from rbee.worker.adapters.file_position import position_in
from rbee.worker.adapters.turns import GaveUp, Turns
from rbee.worker.batching import CPU_COSTS, CUDA_COSTS, Candidate
from rbee.worker.lanes import LanePlan, Lanes
from rbee.worker.native import NativeThreads, Pending
from rbee.worker.ports import Decoding, LoadProgress
from rbee.worker.prefixes import SHORTEST_REST, KeptPrefixes, Prefix

# What pybind11 makes of C++ exceptions: std::exception, invalid_argument, out_of_range, overflow, bad_alloc.
_ENGINE_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError, OSError)
_POSITION_POLL_S = 0.02
_QUIET_S = 30.0
"""How long nothing may have run before the model is loaded anew to let go of kept prefixes."""
# The library takes this value for "a random seed in every thread".
_RANDOM_SEED = 2**32 - 1
_CPU_LANES = 2
"""Batches that run at once on a CPU when there are several slots, each on its share of the cores.

Two of eight requests on one core each made 113 tokens/s, one of sixteen on both cores 87, elsewhere
164 and 166 (embedded model, int8, two cores, AVX2); and who comes second need not wait for the first.
"""
# Below these, single precision overflows where mathematics has reached its limit long before.
_COLDEST = 1e-6
_SMALLEST_TOP_P = 1e-6
_SMALLEST_PENALTY = 1e-4


class CTranslate2Engine:
    """Implements ``rbee.worker.ports.Engine`` for one model folder.

    Args:
        slots: runs that may be under way at once.
        cores: processor cores that it may use.
        equal_lengths: whether only prompts of equal length share a batch.
        prefix_bytes: how much memory the state of shared beginnings of prompts may take.
        visible_devices: the value of CUDA_VISIBLE_DEVICES.

    The library's threads take up a seed when they sample for the first time, never again. So a request with a
    seed builds the generator anew, unless nothing has been sampled with it yet; and so does the next request
    without one, because it would continue the seeded sequence. Greedy requests need neither.
    """

    def __init__(
        self,
        folder: Path,
        *,
        worker_id: str,
        device: str,
        device_index: int,
        compute_type: str,
        slots: int,
        cores: int,
        equal_lengths: bool = False,
        prefix_bytes: int = 0,
        visible_devices: str | None = None,
    ) -> None:
        self._folder = folder
        self._worker_id = worker_id
        self._device, self._device_index = device, device_index
        self._compute_type = self._effective_type = compute_type
        self._slots = slots
        self._equal_lengths = equal_lengths
        self._visible = visible_devices
        self._cores = cores
        self._lanes_usual = usual = min(slots, cores, _CPU_LANES) if device == "cpu" else 1
        self._threads = EngineThreads(cores, usual, None)
        self._native = NativeThreads(slots + 2)
        self._turns = Turns()
        plan = LanePlan(slots, usual, CPU_COSTS if device == "cpu" else CUDA_COSTS)
        self._prefixes = KeptPrefixes(
            prefix_bytes, lambda: available_bytes(device, device_index, visible_devices)
        )
        self._lanes: Lanes[CTranslate2Run] = Lanes(plan, self._execute, self._prefixes)
        self._starting_over: gevent.Greenlet | None = None
        self._loop = gevent.get_hub().loop
        self._generator: Any = None
        self._layout: ModelFile | None = None
        self._loading: Pending[None] | None = None
        self._gpu_bytes: int | None = None
        self._is_loaded = False
        self._has_sampled = False
        self._is_seeded = False

    @property
    def device_summary(self) -> str:
        name = f"{self._device}:{self._device_index}"
        return f"{name}, {self._cores} threads" if self._device == "cpu" else name

    @property
    def memory_bytes(self) -> int:
        if not self._is_loaded or self._layout is None:
            return 0
        return self._gpu_bytes or self._layout.loaded_bytes(self._effective_type)

    @property
    def is_loaded(self) -> bool:
        return self._is_loaded

    def begin_loading(self) -> Pending[None]:
        """Start to load in a native thread, before anything else of the worker; ``load`` follows it.

        The libraries are imported here and not in that thread: under gevent's locks, imports in several
        threads at once are a risk.
        """
        import ctranslate2  # noqa: F401 (see above)

        if self._device == "cuda":
            import pynvml  # noqa: F401 (see above)
        elif self._lanes_usual > 1:
            self._threads = EngineThreads(self._cores, self._lanes_usual, openmp_setter())
        load_unwinder()
        self._loading = loading = self._native.begin(self._build)
        return loading

    def load(self, on_progress: Callable[[LoadProgress], None]) -> None:
        loading = self._loading or self.begin_loading()
        path = self._folder / "model.bin"
        layout = self._layout = self._native.call(read_model_file, path)
        ends = layout.layer_ends
        on_progress(LoadProgress(0, len(ends), 0))
        reported = 0

        def report(count: int) -> None:
            nonlocal reported
            while reported < count:
                reported += 1
                on_progress(LoadProgress(reported, len(ends), ends[reported - 1]))

        while not loading.wait(_POSITION_POLL_S):
            report(layout.layers_read(position_in(path) or 0))
        try:
            loading.result()
        except _ENGINE_ERRORS as error:
            raise self._load_failure(error) from None
        self._is_loaded = True
        report(len(ends))

    def start(
        self,
        prompt: Sequence[str],
        decoding: Decoding,
        on_stopped: Callable[[], None],
        prefix_tokens: int = 0,
    ) -> CTranslate2Run:
        if len(prompt) - prefix_tokens < SHORTEST_REST:
            prefix_tokens = 0
        run = CTranslate2Run(prompt, decoding, prefix_tokens)
        run.when_stopped(on_stopped)
        run.reloads_model = self._needs_new_generator(decoding)
        # An empty prompt fails, and would take a batch with it.
        is_alone = not prompt or (self._samples(decoding) and decoding.seed is not None)
        candidate = Candidate(
            len(prompt), decoding.max_tokens, self._kind(run), is_alone, run.prefix, prefix_tokens
        )
        waiting = self._lanes.add(run, candidate)

        def withdraw() -> None:
            if self._lanes.withdraw(waiting):
                run.stopped(None)

        run.when_cancelled(withdraw)
        return run

    def unload(self) -> None:
        self._is_loaded = False
        if self._starting_over is not None:
            self._starting_over.kill()
        # A run is over at its last token; the library needs a moment longer, with the generator in its hands.
        with self._turns.alone(lambda: False):
            self._native.call(self._drop)

    def _execute(self, runs: list[CTranslate2Run]) -> None:
        for run in runs:
            run.when_stopped(self._lanes.finished)
        # Until a run has come to its end: whatever cuts it short must not look like a complete answer.
        failure: RbeeError = InferenceFailed(self._worker_id, "the engine stopped unexpectedly")
        decoding = runs[0].decoding
        try:
            if self._samples(decoding) and (decoding.seed is not None or self._is_seeded):
                self._execute_alone(runs)
            else:
                with self._turns.shared(lambda: _all_cancelled(runs)), self._threads.running():
                    self._has_sampled |= self._samples(decoding)
                    _begin(runs)
                    self._native.call(self._generate, runs, *self._choose_prefix(runs))
        except GaveUp:
            pass
        except RbeeError as error:
            failure = error
        except _ENGINE_ERRORS as error:
            failure = self._run_failure(error, sum(len(r.prompt) + r.decoding.max_tokens for r in runs))
        finally:
            for run in runs:
                run.stopped(None if run.is_complete else failure)
            self._start_over_when_quiet()

    def _choose_prefix(self, runs: list[CTranslate2Run]) -> tuple[Prefix | None, bool]:
        """The prefix all of a batch have in common, and whether the engine keeps its state.

        Within a turn: a generator made anew has kept nothing.
        """
        prefix = runs[0].prefix
        if prefix is None or any(run.prefix != prefix for run in runs):
            return None, False
        if prefix in self._prefixes:
            for run in runs:
                run.reused_tokens = len(prefix)
        size = self._layout.cache_bytes_per_token() * len(prefix) if self._layout else 0
        return prefix, size > 0 and self._prefixes.keep(prefix, size)

    def _start_over_when_quiet(self) -> None:
        """The library lets go of kept states only with the generator: make a new one while nobody waits."""
        if self._starting_over is not None:
            self._starting_over.kill(block=False)
            self._starting_over = None
        if self._prefixes.is_full and self._is_loaded:
            self._starting_over = gevent.spawn_later(_QUIET_S, self._start_over)

    def _start_over(self) -> None:
        # Nobody may end it from here on: the turn must last as long as the native thread's work.
        self._starting_over = None
        suppressed = contextlib.suppress(GaveUp, *_ENGINE_ERRORS)
        with suppressed, self._turns.alone(lambda: not self._lanes.is_idle):
            self._native.call(self._rebuild)

    def _execute_alone(self, runs: list[CTranslate2Run]) -> None:
        """Start with fresh random generators, then let others in."""
        decoding = runs[0].decoding
        with self._turns.alone(lambda: _all_cancelled(runs)) as let_others_in:
            _begin(runs)
            if self._needs_new_generator(decoding):
                self._native.call(self._rebuild)
            self._seed(decoding.seed)
            self._has_sampled, self._is_seeded = True, decoding.seed is not None
            sampled = Event()
            with self._threads.running():
                pending = self._native.begin(self._generate, runs, *self._choose_prefix(runs), sampled.set)
                pending.when_done(sampled.set)
                sampled.wait()
                # The seed was for this run; threads that sample first from now on start at random.
                self._seed(None)
                let_others_in()
                pending.result()

    def _needs_new_generator(self, decoding: Decoding) -> bool:
        if not self._samples(decoding):
            return False
        return self._has_sampled if decoding.seed is not None else self._is_seeded

    @staticmethod
    def _samples(decoding: Decoding) -> bool:
        return decoding.temperature >= _COLDEST and decoding.top_k != 1

    @staticmethod
    def _seed(seed: int | None) -> None:
        import ctranslate2

        ctranslate2.set_random_seed(_RANDOM_SEED if seed is None else seed % _RANDOM_SEED)

    def _kind(self, run: CTranslate2Run) -> Hashable:
        """What has to be equal in a batch: the engine takes one value for all."""
        prompt_tokens, decoding = len(run.prompt), run.decoding
        how = (decoding.temperature, decoding.top_p, decoding.top_k) if self._samples(decoding) else None
        # Beside a prompt of one token the library gives the rest of the longer ones as if it were generated.
        length = prompt_tokens if self._equal_lengths or prompt_tokens < 2 else None
        # What is read in two parts is rounded otherwise.
        prefix = run.prefix if self._equal_lengths else None
        return length, prefix, how, decoding.repetition_penalty, decoding.stop_token_ids

    def _generate(
        self,
        runs: list[CTranslate2Run],
        prefix: Prefix | None,
        keeps: bool,
        on_sampled: Callable[[], None] | None = None,
    ) -> None:
        """Runs in a native thread until all runs have ended; ``on_sampled`` is for the event loop."""
        if self._generator is None:
            self._build()
        decoding = runs[0].decoding
        greedy = not self._samples(decoding)
        loop, use_share = self._loop, self._threads.follower()

        def on_step(step: Any) -> bool:
            nonlocal on_sampled
            use_share()
            if on_sampled is not None:
                loop.run_callback_threadsafe(on_sampled)
                on_sampled = None
            return runs[step.batch_id].on_step(step.token_id)

        self._generator.generate_batch(
            [run.prompt[len(prefix or ()) :] for run in runs],
            static_prompt=list(prefix) if prefix else None,
            cache_static_prompt=keeps,
            max_length=max(run.decoding.max_tokens for run in runs),
            include_prompt_in_result=False,
            end_token=sorted(decoding.stop_token_ids),
            sampling_topk=1 if greedy else min(decoding.top_k, self._vocabulary_size()),
            sampling_topp=max(decoding.top_p, _SMALLEST_TOP_P),
            sampling_temperature=1.0 if greedy else decoding.temperature,
            repetition_penalty=max(decoding.repetition_penalty, _SMALLEST_PENALTY),
            callback=on_step,
        )

    def _build(self) -> None:
        """Runs in a native thread."""
        import ctranslate2

        before = gpu_used_bytes(self._device_index, self._visible) if self._device == "cuda" else None
        self._generator = ctranslate2.Generator(
            str(self._folder),
            device=self._device,
            device_index=self._device_index,
            compute_type=self._compute_type,
            inter_threads=self._slots,
            intra_threads=self._threads.at_first,
        )
        self._has_sampled = self._is_seeded = False
        self._prefixes.forget()
        self._effective_type = str(self._generator.compute_type)
        after = gpu_used_bytes(self._device_index, self._visible) if self._device == "cuda" else None
        if before is not None and after is not None and after > before:
            self._gpu_bytes = after - before

    def _rebuild(self) -> None:
        """Runs in a native thread; the old generator goes first, so that memory never holds two."""
        self._drop()
        self._build()

    def _drop(self) -> None:
        """Runs in a native thread: the generator waits for its own threads when it goes."""
        self._generator = None

    def _vocabulary_size(self) -> int:
        shapes = {v.name: v.shape for v in self._layout.variables} if self._layout else {}
        return next(iter(shapes.get("decoder/embeddings/weight", ())), 1000)

    def _load_failure(self, error: BaseException) -> RbeeError:
        size = self._layout.size_bytes if self._layout else 0
        if is_out_of_memory(error):
            return self._out_of_memory(size)
        return damaged(str(error)[:300])

    def _run_failure(self, error: BaseException, tokens: int) -> RbeeError:
        if is_out_of_memory(error):
            per_token = self._layout.cache_bytes_per_token() if self._layout else 0
            return self._out_of_memory(per_token * tokens)
        return InferenceFailed(self._worker_id, str(error)[:300] or type(error).__name__)

    def _out_of_memory(self, estimate_bytes: int) -> MemoryExhausted:
        available = available_bytes(self._device, self._device_index, self._visible) // MB
        # The engine asked for more than there was; how much more it does not say.
        required = max(math.ceil(estimate_bytes / MB), available + 1)
        return MemoryExhausted(required, available, "vram" if self._device == "cuda" else "ram")


def _begin(runs: list[CTranslate2Run]) -> None:
    for run in runs:
        run.begins()


def _all_cancelled(runs: list[CTranslate2Run]) -> bool:
    return all(run.is_cancelled for run in runs)
