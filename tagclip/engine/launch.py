"""The processes of a run: start them, let them meet, end all when one breaks.

detectron2's ``launch`` starts processes on GPUs only, knows no torchrun, and reports the process
that ends first, which may be one that only lost its connection to the one that broke. torch's
``elastic_launch`` named the cause sooner, but has one shutdown_timeout (30 s) for processes that
hang in a collective, which should go soon, and for those that save on SIGTERM, which need their
time.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import torch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import distributed
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.multiprocessing import ProcessExitedException, start_processes

from tagclip.errors import ConfigError, ProcessError
from tagclip.utils.cli import check_processes, forward_sigterm, is_lost_connection
from tagclip.utils.lost_logs import lost_logs
from tagclip.utils.parent import end_with_parent
from tagclip.utils.quiet import quiet_imports
from tagclip.utils.stopping import Stopped

__all__ = ["launch"]

# After one process has failed, seconds for the others to end; as long again after SIGTERM.
_GRACE = 5
# A process that lost the connection waits so long for one that knows the cause to end first.
_CAUSE = 10


@dataclass(frozen=True)
class _Team:
    """The processes of a run.

    Attributes:
        url: where they meet, as `torch.distributed.init_process_group` takes it.
        device: MODEL.DEVICE, cuda or cpu.
        local_size: processes on each machine.
        machines: number of machines.
        machine: number of this one.
    """

    url: str
    device: str
    local_size: int
    machines: int = 1
    machine: int = 0

    @property
    def size(self) -> int:
        """Number of all processes."""
        return self.local_size * self.machines

    def rank(self, local_rank: int) -> int:
        """Number of a process of this machine among all."""
        return self.machine * self.local_size + local_rank


def launch(
    main: Callable[[argparse.Namespace], Any], args: argparse.Namespace, device: str
) -> None:
    """Run ``main(args)`` in every process of a run; return when all have ended.

    Started by torchrun, this process is one of them. Otherwise ``--num-gpus`` processes are
    started on this machine, unless there is only one in all. Each takes one GPU (NCCL), or none
    if ``device`` is the CPU (gloo).

    Args:
        main: importable by its name.
        args: with detectron2's ``num_gpus``, ``num_machines``, ``machine_rank``, ``dist_url``.
        device: MODEL.DEVICE.

    Raises:
        ConfigError: these processes cannot run, or cannot meet.
        ProcessError: under torchrun, another process ended.
        ProcessExitedException: a process died without an error.
        ProcessRaisedException: a process raised an error; holds its traceback.
        Stopped: SIGTERM or SIGHUP came while the processes were not training.
    """
    if distributed.is_torchelastic_launched():
        _check_torchrun(args)
        team = _Team(
            "env://",
            device,
            local_size=int(os.environ["LOCAL_WORLD_SIZE"]),
            machines=int(os.environ["WORLD_SIZE"]) // int(os.environ["LOCAL_WORLD_SIZE"]),
            machine=int(os.environ["GROUP_RANK"]),
        )
        check_processes(
            team.local_size, team.machines, team.machine, device, option="--nproc-per-node"
        )
        _work(int(os.environ["LOCAL_RANK"]), team, main, args)
        return
    check_processes(args.num_gpus, args.num_machines, args.machine_rank, device)
    local_size = max(args.num_gpus, 1)
    if local_size * args.num_machines == 1:
        main(args)
        return
    url = _meeting_point(args)
    team = _Team(url, device, local_size, args.num_machines, args.machine_rank)
    received = forward_sigterm()
    # It would announce every process that it ends.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    context = start_processes(_work, args=(team, main, args), nprocs=local_size, join=False)
    try:
        while not context.join(grace_period=_GRACE):
            pass
    except ProcessExitedException as error:
        # Not in training: nobody there listens, and nothing there is to be saved.
        if received and error.signal_name == "SIGTERM":
            raise Stopped(received[0]) from error
        raise
    finally:
        # After Ctrl-C some may still run; checkpoints survive this.
        for process in context.processes:
            process.kill()


def _work(
    local_rank: int, team: _Team, main: Callable[[argparse.Namespace], Any], args: Any
) -> None:
    """What each process does."""
    # torch sends an orphan Ctrl-C, which one that a shell has started in the background ignores.
    end_with_parent(of_torchrun=distributed.is_torchelastic_launched())
    quiet_imports()
    if team.size == 1:
        main(args)
        return
    try:
        _meet(local_rank, team)
        with lost_logs():
            main(args)
        # Whoever is done first learns whether the others get there.
        comm.synchronize()
    except Exception as error:
        if not is_lost_connection(error):
            raise
        _wait_for_the_cause()
        raise ProcessError(
            f"process {team.rank(local_rank)} of {team.size}: found the connection to another one "
            f"broken ({_reason(error)}), expected all to run to the end; see what that one "
            "printed, or its log.txt.rank* in OUTPUT_DIR, then continue with --resume"
        ) from error
    distributed.destroy_process_group()


def _meet(local_rank: int, team: _Team) -> None:
    """Connect with the other processes, and take this one's share of the machine."""
    on_gpu = team.device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // team.local_size))
    try:
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            init_method=team.url,
            rank=team.rank(local_rank),
            world_size=team.size,
            timeout=DEFAULT_TIMEOUT,
        )
    except distributed.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise ConfigError(
            f"--dist-url: found the port of {team.url} in use, maybe by another run, expected a "
            "free one; give another port, or auto on a single machine"
        ) from error
    for machine in range(team.machines):
        first = machine * team.local_size
        group = distributed.new_group(list(range(first, first + team.local_size)))
        if machine == team.machine:
            comm._LOCAL_PROCESS_GROUP = group


def _wait_for_the_cause() -> None:
    """Let the process that broke end first: the first that ends is reported."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(_CAUSE)


def _reason(error: Exception) -> str:
    """First sentence of an error, without the place in the source file where it arose."""
    return re.sub(r"^\[[^]]*\] ", "", str(error).splitlines()[0]).split(". ")[0]


def _check_torchrun(args: argparse.Namespace) -> None:
    if args.num_gpus > 1 or args.num_machines > 1:
        raise ConfigError(
            f"command line: found --num-gpus {args.num_gpus} --num-machines {args.num_machines} "
            "under torchrun, expected neither; torchrun's --nproc-per-node and --nnodes say how "
            "many processes there are"
        )


def _meeting_point(args: argparse.Namespace) -> str:
    """URL for all processes: that of ``--dist-url``, or a free port of this machine."""
    advice = f"expected tcp://ADDRESS:PORT of machine 0 with --num-machines {args.num_machines}"
    if args.dist_url == "auto" and args.num_machines == 1:
        return f"tcp://127.0.0.1:{get_free_port()}"
    try:
        parts = urlsplit(args.dist_url)
        is_valid = parts.scheme == "file" or bool(
            parts.scheme == "tcp" and parts.hostname and parts.port
        )
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ConfigError(f"--dist-url: found {args.dist_url!r}, {advice}")
    if args.machine_rank > 0 and parts.hostname in ("127.0.0.1", "localhost"):
        logging.getLogger(__name__).warning(
            "--dist-url %s: this is no other machine", args.dist_url
        )
    return args.dist_url
