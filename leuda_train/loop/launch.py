"""a number of GPUs -> the same command in as many processes, by torch's own launcher."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from leuda_deploy.errors import InputError, TrainingError
from leuda_deploy.machine.stop import LAUNCHER


def launch(gpus: int, arguments: Sequence[str]) -> int:
    """Run `python -m leuda_train ARGUMENTS`, a process a GPU of this machine; the exit code.

    If a process fails, the others are ended; it says what was wrong, the launcher adds nothing. If
    this process is killed, they end, too, from their first moment on.
    Raises InputError if there are not so many GPUs, TrainingError if a signal ended a process.
    """
    there = torch.cuda.device_count()
    if gpus > there:
        raise InputError(
            f"--gpus {gpus}, but torch sees {there} CUDA GPUs on this machine; several processes "
            f"on CPUs: torchrun --nproc-per-node {gpus} -m leuda_train {' '.join(arguments)}"
        )
    # Ctrl-C and SIGTERM end it as they end every command; torch would wait for half a minute
    start = ["--standalone", "--signals-to-handle", "SIGHUP", "--nproc-per-node", str(gpus)]
    start += ["-m", "leuda_train", *arguments]
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun's own choice, without its warning
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    try:
        torchrun.main(start)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:  # it could not say anything
            raise TrainingError(
                f"process {rank} of {gpus} was ended by {failure.signal_name()} (SIGKILL is often "
                "the system, out of memory); started again, the run resumes"
            ) from None
        return failure.exitcode
    finally:
        del os.environ[LAUNCHER]  # what is started later is not of this launch
    return 0


def without_gpus(arguments: Sequence[str]) -> list[str]:
    """A command line without its --gpus N."""
    kept, skip = [], False
    for argument in arguments:
        if skip or argument.startswith("--gpus="):
            skip = False
        elif argument == "--gpus":
            skip = True
        else:
            kept.append(argument)
    return kept


def arguments_of_this_process() -> list[str]:
    """What the process that --gpus was given to hands on to each of its own."""
    return without_gpus(sys.argv[1:])
