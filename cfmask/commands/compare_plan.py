"""The command cfmask compare: a plan of methods, settings and seeds -> runs, then one report."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

from cfmask.commands.parser import command, print_report
from cfmask.commands.train_model import command_line
from cfmask.comparison.collected import TABLES, chosen_of, collected, is_done, mark_done
from cfmask.comparison.plan import Plan, Run
from cfmask.errors import InputError, at_least
from cfmask.terminal import complain, say

POOL = "pool"
# Carries out runs; gives those that failed, or None where others carry them out later.
Carry = Callable[[Sequence[Run]], "list[Run] | None"]


def compare_plan(args: Sequence[str]) -> None:
    """Compare methods: the whole of ``cfmask compare``.

    Args:
        args: command line without the program.
    """
    with command("cfmask compare", "Train methods by settings and seeds, and report.") as parser:
        parser.add_argument("plan", type=str, help="YAML file of methods, settings and seeds")
        parser.add_function_arguments(carry_out, as_group=False, skip={"plan"})
        carry_out(**parser.parse_args(args).as_dict())


def carry_out(plan: str, jobs: int = 1, cluster: str = POOL, collect: bool = False) -> None:
    """Carry out what a plan lacks, then report if all is there.

    Args:
        plan: the file.
        jobs: runs at a time on this machine.
        cluster: `pool` runs here; `slurm` submits an array of jobs through submitit, `local` and
            `debug` are submitit's own.
        collect: make the report of finished runs, and run nothing.
    """
    at_least(1, jobs, "runs at a time (jobs)")
    found = Plan.read(Path(plan))
    if not collect:
        _check(found)
        here = cluster == POOL
        carry: Carry = partial(_pool, jobs) if here else partial(_submit, found, cluster)
        tuned = _stage(found.tuning(), carry)
        if not (tuned and _stage(found.reported(chosen_of(found)[0]), carry)):
            say(f"Once these have ended, the same command goes on; they write to {found.out}/")
            return
    report = collected(found)
    print_report(report, Path(found.out) / "report")
    say(f"Tables of the comparison are in {found.out}/{TABLES}")


def _check(plan: Plan) -> None:
    """Refuse what train would refuse, before anything runs: each setting once."""
    for method in plan.methods:
        for setting in range(plan.count):
            run = plan.run(method, setting, (plan.tuning_seeds or plan.seeds)[0])
            if not is_done(run):
                with redirect_stdout(StringIO()):
                    command_line(run.words)


def _stage(runs: Sequence[Run], carry: Carry) -> bool:
    """Whether all runs have ended well; those that have not are carried out.

    Raises:
        InputError: some failed.
    """
    left = [run for run in runs if not is_done(run)]
    if not left:
        return True
    say(f"{len(left)} of {len(runs)} runs to go: {', '.join(run.folder.name for run in left)}")
    failed = carry(left)
    if failed:
        raise InputError(
            f"Expected {len(left)} runs to end well, but {len(failed)} did not: see "
            f"{_log(failed[0])}; mend it, and the same command goes on."
        )
    return failed is not None


def _pool(jobs: int, runs: Sequence[Run]) -> list[Run]:
    with ThreadPoolExecutor(jobs) as pool:
        ended = list(pool.map(partial(train_apart, threads=_share(jobs)), runs))
    return [run for run, well in zip(runs, ended) if not well]


def _share(jobs: int) -> int:
    return max(1, (os.cpu_count() or 1) // jobs)


def train_apart(run: Run, threads: int = 0) -> bool:
    """Train in a process of its own, whose output goes to a log; whether it ended well.

    Args:
        run: what to train.
        threads: of the process, unless the environment says; 0 leaves it to torch.
    """
    given = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    log = _log(run)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        words = [sys.executable, "-m", "cfmask", "train", *run.words]
        where = {**given, **os.environ}
        code = subprocess.run(words, stdout=file, stderr=file, env=where).returncode
    if code:
        complain(f"{run.folder.name}: ended with code {code}, see {log}")
        return False
    mark_done(run)
    say(f"{run.folder.name}: done")
    return True


def _log(run: Run) -> Path:
    return run.folder.parent.parent / "logs" / f"{run.folder.name}.log"


def _submit(plan: Plan, cluster: str, runs: Sequence[Run]) -> None:
    """Submit an array of jobs, one a run, and do not wait for it."""
    try:
        import submitit  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise InputError(
            "Expected submitit to be installed for a cluster: pip install 'cfmask[slurm]'; or "
            "leave --cluster out."
        ) from error
    executor = submitit.AutoExecutor(folder=Path(plan.out) / "jobs", cluster=cluster)
    executor.update_parameters(name="cfmask", **plan.slurm)
    jobs = executor.map_array(train_apart, list(runs))
    say(f"{len(jobs)} jobs submitted: {', '.join(job.job_id for job in jobs)}")
