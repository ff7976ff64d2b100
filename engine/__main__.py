"""`python -m engine`: reads an EngineConfig as one line of JSON from standard input, then serves its socket.

Standard input stays open as long as the parent lives; its end is the engine's end. Log lines go to standard error, as
JSON.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from engine.door import door_of
from engine.heart import Heart
from engine.importing import import_torch
from engine.logs import configure_logging
from engine.profile import Profiles, Tracer
from engine.server import Server
from scheduler.protocol import EngineConfig, Fatal, Progress

if TYPE_CHECKING:
    from engine.build import Phases

log = logging.getLogger("headrace.engine")

FAREWELL_S = 5.0  # how long the last frames may take to leave
STEP_S = 10.0  # how long a step may take to end once the engine is told to stop
PROFILER_ENVIRONMENT = {  # read while torch is imported, or when it first profiles
    "KINETO_LOG_LEVEL": "99",  # it says on standard error when it starts and stops
    "TEARDOWN_CUPTI": "0",  # to take CUPTI down and up again does not go well with CUDA graphs
}


def main() -> int:
    configure_logging()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the gateway decides
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=EngineConfig)
    if config.profiling:
        for name, value in PROFILER_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    heart = Heart()
    server = Server(door_of(config), pulse=heart.pulse)
    try:
        return serve(config, server, heart)
    finally:
        server.close(FAREWELL_S)


def serve(config: EngineConfig, server: Server, heart: Heart) -> int:
    server.broadcast(Progress("importing torch", 0, 0))
    gc.disable()  # imports make little garbage, and looking for it takes a tenth of their time
    import_torch()  # here, so that a gateway can connect meanwhile
    from engine.build import Phases, build
    from engine.compiling import CompileQueue
    from engine.errors import ModelRefused, OutOfMemory
    from engine.grammar import Compiler
    from engine.loop import Loop, StepsFail

    gc.freeze()  # collections pass over torch, which takes 0.1 s
    gc.enable()  # again: what steps leave on a device must not count as memory that they need
    phases = Phases(lambda name, done, total: server.broadcast(Progress(name, done, total)))
    try:
        scheduler, runner, ready = build(config, phases)
    except ModelRefused as error:
        return _give_up(server, Fatal("model", str(error)))
    except (OutOfMemory, MemoryError) as error:
        return _give_up(server, Fatal("memory", str(error) or "out of memory"))
    grammars = CompileQueue(lambda told: Compiler(told, ready.vocab_size).compile, server.wake, time.monotonic)
    profiles = Profiles(tracer(phases) if config.profiling else None, server.send)
    loop = Loop(scheduler, runner, server, ready.vocab_size, grammars, profiles=profiles, heart=heart)
    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    threading.Thread(target=_stop_with_parent, args=(loop.stop,), daemon=True).start()
    gc.collect()
    gc.freeze()  # and over the model: no step may stand still for that
    server.broadcast(ready)
    try:
        loop.run()
    except StepsFail as error:
        return _give_up(server, Fatal("internal", str(error)))
    return 0


def tracer(phases: Phases) -> Tracer | None:
    from engine.trace import TorchTracer

    try:
        made = TorchTracer()
        with phases.phase("preparing the profiler"):
            made.warm_up()
    except Exception:  # the engine serves all the same
        log.exception("there will be no profiles")
        return None
    return made


def _give_up(server: Server, fatal: Fatal) -> int:
    log.error("%s", fatal.message)
    server.broadcast(fatal)
    server.linger(FAREWELL_S)
    return 1


def _stop_with_parent(stop: Callable[[], None]) -> None:
    # Not through sys.stdin: a thread that holds its lock makes the interpreter abort when it shuts down.
    while os.read(0, 4096):
        pass
    stop()
    threading.Event().wait(STEP_S)
    os._exit(1)  # a step hangs, and nobody is left to tell


if __name__ == "__main__":
    sys.exit(main())
