"""`--address ray://...`: the command runs inside the cluster, on its head, and what it prints is shown here.

Ray Client carries single calls, not a scheduler's loop: Tune would move our searcher and callbacks into the cluster as
pickles, and every result would cross the line twice. So the whole command is sent, as `ray job submit` does, and needs
no second port. Folders are therefore those of the cluster's machines. Ctrl-C and SIGTERM are passed on; when this
process is killed, the command in the cluster ends with it, and running it again continues.
"""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

import ray
from ray.exceptions import RayError

from tuner.command import Command
from tuner.schedule import ClusterError, connect, disconnect


def run_in_cluster(address: str, typed: str, arguments: list[str], experiments: Path) -> int:
    """Runs `python -m tuner.run arguments` on the head of the cluster at `address` and shows what it prints.

    Args:
        address: ray://host:port of the Ray Client server.
        typed: what a person types to run this again.
        arguments: of the command, with absolute paths.
        experiments: the experiment file, which is sent along.

    Returns:
        The command's exit code.

    Raises:
        ClusterError: no such cluster, or the connection was lost.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    # Said twice, the later one counts.
    words = ["-u", "-m", "tuner.run", *arguments, "--address", "auto", "--experiments", experiments.name]
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        connect(address, threads=1, files=(experiments,))
        for number in before:  # only now: Ray sets its own, which end at once
            signal.signal(number, handle)
        on_head = {"node:__internal_head__": 0.001}
        actor = ray.remote(num_cpus=0, resources=on_head)(Command).remote(words, {"GRID_TUNER_COMMAND": typed})
        passed_on = False
        while True:
            if received and not passed_on:
                passed_on = True
                ray.get(actor.send_signal.remote(signal.SIGTERM))
            lines, code = ray.get(actor.read.remote())
            print("".join(lines), end="", flush=True)
            if code is not None:
                return int(code)
    except (RayError, ConnectionError) as error:
        raise ClusterError(
            f"--address {address}: the command in the cluster was lost ({str(error).splitlines()[0]}); what is done is "
            f"recorded, continue with: {typed}\nIf it happens again, submit it as a job, which needs no connection: "
            f"ray job submit --address http://HOST:8265 --working-dir . -- {typed}"
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        disconnect()
