"""Two hosts on one machine, and the cable between them pulled out in the middle of a step.

    sudo python tests/drills/two_hosts.py --timeout 10

Two network namespaces joined by a veth pair stand for the hosts; they share the disk, and nothing else of the network.
torchrun meets torchrun over the link, as it would on real machines, and a small job trains on both: once undisturbed,
then until the link goes down, then, with the link up again, to its end. Both sides of the cut must end by themselves,
with a status other than 0 and a message that names the collective, and the losses must be those of the undisturbed run,
bit for bit.

Needs root, and a kernel that allows namespaces; elsewhere it says so and skips. Each host is started with one of

    torchrun --nnodes 2 --nproc_per_node 1 --node_rank <0 or 1> --master_addr <first host> --master_port 29400 ...
    torchrun --nnodes 2 --nproc_per_node 1 --rdzv_backend c10d --rdzv_endpoint <first host>:29400 --rdzv_id drill ...

With c10d the second host's torchrun asks the first's whether nodes have joined, and waits for TCP to give up once the
link is down: 15 minutes by Linux's default. The drill sets `net.ipv4.tcp_retries2` to 4 for that (about 3 s).
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import drills

ADDRESSES = ("10.231.77.1", "10.231.77.2")
LINK = "veth0"
START_SECONDS = 120


class Skip(Exception):
    """Why this machine cannot stand for two hosts."""


class Hosts:
    """Two namespaces and the link between them.

    Args:
        names: of the namespaces.
        rendezvous: how torchrun meets torchrun, "static" or "c10d".
    """

    def __init__(self, names: tuple[str, str], rendezvous: str) -> None:
        """Nothing is made yet."""
        self.names, self.rendezvous = names, rendezvous

    def __enter__(self) -> "Hosts":
        """Make them. Raises Skip with the reason where that is not possible."""
        if os.geteuid() != 0:
            raise Skip("network namespaces need root")
        try:
            for name in self.names:
                ip("netns", "add", name)
            first, second = self.names
            ip("link", "add", LINK, "netns", first, "type", "veth", "peer", "name", LINK, "netns", second)
            for name, address in zip(self.names, ADDRESSES, strict=True):
                ip("-n", name, "address", "add", f"{address}/24", "dev", LINK)
                ip("-n", name, "link", "set", "lo", "up")
                ip("-n", name, "link", "set", LINK, "up")
                if self.rendezvous == "c10d":
                    ip("netns", "exec", name, "sysctl", "-w", "net.ipv4.tcp_retries2=4")
        except (OSError, subprocess.CalledProcessError) as error:
            self.__exit__()
            raise Skip(f"no network namespaces here: {getattr(error, 'stderr', None) or error}".strip()) from None
        return self

    def __exit__(self, *_: object) -> None:
        """Remove them, and the link with them."""
        for name in self.names:
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                ip("netns", "delete", name)

    def set_link(self, state: str) -> None:
        """Pull the cable out ("down") or put it back ("up")."""
        ip("-n", self.names[0], "link", "set", LINK, state)

    def start(self, host: int, config: Path, log: Path, timeout: int, overrides: list[str]) -> subprocess.Popen[bytes]:
        """Start torchrun on one host."""
        launcher = ["--nnodes", "2", "--nproc_per_node", "1"]
        if self.rendezvous == "static":
            launcher += ["--node_rank", str(host), "--master_addr", ADDRESSES[0], "--master_port", "29400"]
        else:
            launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"{ADDRESSES[0]}:29400", "--rdzv_id", "drill"]
            # both namespaces have one host name, from which torchrun would guess the address of the rendezvous
            launcher += ["--rdzv_conf", f"is_host={int(host == 0)},read_timeout={timeout}", "--local_addr", ADDRESSES[host]]
        command = ["ip", "netns", "exec", self.names[host], *drills.torchrun(config, launcher, overrides)]
        return drills.start(command, log, GLOO_SOCKET_IFNAME=LINK)


def ip(*arguments: str) -> None:
    """Run `ip`. Raises CalledProcessError with what it said."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def both(hosts: Hosts, config: Path, timeout: int, overrides: list[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The job on both hosts; what is left of it is killed at the end."""
    running = [hosts.start(host, config, log_of(config, host), timeout, overrides) for host in (0, 1)]
    try:
        yield running
    finally:
        for process in running:
            if process.poll() is None:
                drills.kill(process.pid)  # its ranks go with it
            process.wait()


def log_of(config: Path, host: int) -> Path:
    """What a host printed."""
    return config.with_suffix(f".host{host}.log")


def complete(hosts: Hosts, config: Path, timeout: int, overrides: list[str]) -> None:
    """Train to the end."""
    with both(hosts, config, timeout, overrides) as running:
        statuses = [process.wait(timeout=START_SECONDS + 300) for process in running]
    if statuses != [0, 0]:
        raise SystemExit(f"the hosts ended with {statuses}:\n{log_of(config, 0).read_text()}\n{log_of(config, 1).read_text()}")


def cut(hosts: Hosts, config: Path, step: int, timeout: int, overrides: list[str]) -> bool:
    """Train, pull the cable after `step` and the first checkpoint, and tell whether both sides end as they should."""
    run = config.with_suffix("")
    with both(hosts, config, timeout, overrides) as running:
        deadline = time.monotonic() + START_SECONDS
        while drills.last_step(run) < step or all(map(drills.is_torn, drills.step_folders(run).values())):
            if time.monotonic() > deadline or any(process.poll() is not None for process in running):
                raise SystemExit(f"the job does not reach step {step}:\n{log_of(config, 0).read_text()}")
            time.sleep(0.002)
        hosts.set_link("down")
        begun, good = time.monotonic(), True
        spoke: dict[int, float] = {}
        ended: dict[int, float] = {}
        while len(ended) < 2 and time.monotonic() < begun + timeout + 120:
            for host, process in enumerate(running):
                if host not in spoke and "stopped: " in log_of(config, host).read_text():
                    spoke[host] = time.monotonic() - begun
                if host not in ended and process.poll() is not None:
                    ended[host] = time.monotonic() - begun
            time.sleep(0.05)
    for host, process in enumerate(running):
        said = re.findall(r"stopped: .*", log_of(config, host).read_text())
        print(
            f"host {host}: the rank stopped after {spoke.get(host, float('nan')):.1f} s, torchrun with status "
            f"{process.returncode} after {ended.get(host, float('nan')):.1f} s\n  {said[-1] if said else 'NO MESSAGE'}"
        )
        # 5 s for what a collective had waited before the cut, and for the process to end
        good &= bool(said) and process.returncode not in (0, None) and spoke.get(host, 1e9) < timeout + 5 and host in ended
    return good


def main() -> None:
    """Run the drill and print what happened; status 1 where it is not what should have."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="steps of the job (default: 60)")
    parser.add_argument("--cut-after", type=int, default=25, help="the link goes down after this step (default: 25)")
    parser.add_argument("--timeout", type=int, default=10, help="comm.timeout_seconds (default: 10)")
    parser.add_argument("--rendezvous", choices=("static", "c10d"), default="c10d", help="of torchrun (default: c10d)")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder, removed afterwards)")
    parser.add_argument("overrides", nargs="*", help="further arguments for the trainer, after --")
    options = parser.parse_args()

    names = (f"cistron-{os.getpid()}-a", f"cistron-{os.getpid()}-b")
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        try:
            hosts = stack.enter_context(Hosts(names, options.rendezvous))
        except Skip as reason:
            print(f"skipped: {reason}")
            return
        folder = options.folder or Path(temporary)
        jobs = {
            name: drills.write_job(folder, name, steps=options.steps, interval=10, timeout=options.timeout)
            for name in ("undisturbed", "cut")
        }
        complete(hosts, jobs["undisturbed"], options.timeout, options.overrides)
        good = cut(hosts, jobs["cut"], options.cut_after, options.timeout, options.overrides)
        hosts.set_link("up")
        complete(hosts, jobs["cut"], options.timeout, options.overrides)
        resumed = re.findall(r"resumed from .*", log_of(jobs["cut"], 0).read_text())
        same = drills.curve(folder / "cut") == drills.curve(folder / "undisturbed")
        print(f"after the restart: {resumed[-1] if resumed else 'NOT RESUMED'}")
        print(f"losses, gradient norms and rows of {options.steps} steps: {'bit-identical' if same else 'DIFFERENT'}")
    sys.exit(0 if good and resumed and same else 1)


if __name__ == "__main__":
    main()
