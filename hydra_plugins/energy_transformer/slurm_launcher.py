"""Hydra launcher ``slurm``: hydra-submitit-launcher's, made for sweeps whose state is in the run folders.

Hydra looks for launchers in the namespace hydra_plugins only, hence this place. Beyond what it derives from:

- a job has the resources its cells ask for, so cells of one sweep may differ in them;
- several cells can be packed into a job;
- cells that are finished, or in the queue already, are left out;
- a job that is killed ends the wait for it instead of hanging, without an accounting database: its cells are reported
  and the same command takes them up again;
- ``sweep.detach=true`` comes back after submitting.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

try:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as SubmititLauncher
except ImportError:  # Hydra imports every plugin at every start
    SubmititLauncher = None

if SubmititLauncher is None:

    class SlurmLauncher(Launcher):
        """Stands in where the extra ``slurm`` is not installed, and says so."""

        def __init__(self, **params: Any):
            pass

        def setup(self, **context: Any) -> None:
            from et.utils.errors import UserError, exit_on_user_error

            def refuse() -> None:
                raise UserError("hydra/launcher=slurm needs submitit: pip install 'energy-transformer[slurm]'")

            exit_on_user_error(refuse)

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            raise NotImplementedError

else:

    class SlurmLauncher(SubmititLauncher):
        """See the module's docstring; conf/hydra/launcher/slurm.yaml lists the parameters."""

        def __init__(self, cells_per_job: int = 1, **params: Any):
            super().__init__(**params)
            self.cells_per_job = cells_per_job

        def __call__(self, cells: Sequence[tuple]) -> list[JobReturn]:
            """In the job: run the cells of a pack one after another."""
            # The address of the submitting process's wandb service: on another machine, or with other runs in it.
            os.environ.pop("WANDB_SERVICE", None)
            run = super().__call__
            return [run(*cell) for cell in cells]

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            from hydra.core.singleton import Singleton

            from et.sweeps import cells as sweep_cells
            from et.sweeps import slurm

            exit_without_slurm()
            returns = [JobReturn(overrides=list(o), status=JobStatus.COMPLETED) for o in job_overrides]
            groups: dict[slurm.Resources, list[int]] = defaultdict(list)
            found = sweep_cells.inspect_all(job_overrides)
            for number, cell in enumerate(found):
                if self.wanted(cell):
                    groups[slurm.resources(cell.config["trainer"], self.params.get("gpus_per_node"))].append(number)
            gpu_options = (self.params.get(key) for key in ("gres", "mem_per_gpu", "additional_parameters"))
            if groups and not any(needs.gpus_per_node for needs in groups) and not any(gpu_options):
                print("these jobs ask for no GPU; hydra.launcher.gpus_per_node=1 does")
            jobs: dict[str, tuple[Any, list[int]]] = {}
            state = Singleton.get_state()
            for needs, members in groups.items():
                packs = slurm.packs(members, self.cells_per_job)
                arguments = [
                    [(list(job_overrides[n]), "hydra.sweep.dir", initial_job_idx + n, f"cell_{n}", state) for n in pack]
                    for pack in packs
                ]
                for job, pack in zip(self.submit(needs, arguments), packs, strict=True):
                    jobs[job.job_id] = (job, pack)
                    for number in pack:
                        slurm.note_job(found[number].folder, job.job_id)
            if OmegaConf.select(self.config, "sweep.detach", default=False):
                print(f"submitted {len(jobs)} jobs: {' '.join(jobs)}. sweep.dry_run=true tells how they stand")
                return returns
            self.wait(jobs)
            for job, pack in jobs.values():
                self.take_results(job, pack, [found[n] for n in pack], returns)
            return returns

        def wanted(self, cell: Any) -> bool:
            """Whether a cell is to be submitted."""
            from et.sweeps import cells as sweep_cells

            if cell.config is None:
                return False
            sweep = cell.config.get("sweep") or {}
            if sweep_cells.skipped(cell.overrides, sweep.get("skip", [])):
                return False
            return cell.config["force"] or cell.state not in ("done", "queued")

        def submit(self, needs: Any, packs: list[list[tuple]]) -> list[Any]:
            """Hand an array of packs to Slurm; the jobs, in the packs' order."""
            import submitit

            params = {
                key: value for key, value in self.params.items() if key not in ("submitit_folder", "gpus_per_node")
            }
            executor = submitit.AutoExecutor(
                folder=self.params["submitit_folder"], cluster="slurm",
                slurm_max_num_timeout=params.pop("max_num_timeout", 0),
            )  # fmt: skip
            common = {"name", "timeout_min", "cpus_per_task", "mem_gb", "stderr_to_stdout"}
            executor.update_parameters(
                nodes=needs.nodes, tasks_per_node=needs.tasks_per_node, slurm_gpus_per_node=needs.gpus_per_node,
                **{key if key in common else f"slurm_{key}": value for key, value in params.items()},
            )  # fmt: skip
            Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
            return executor.map_array(self, packs)

        def wait(self, jobs: dict[str, tuple[Any, list[int]]]) -> None:
            """Wait until every job has left a result or the queue."""
            from rich.progress import Progress

            from et.sweeps import slurm

            left, seconds = set(jobs), 1.0
            with Progress(transient=True) as progress:
                bar = progress.add_task("Slurm jobs", total=len(left))
                while left:
                    time.sleep(seconds)
                    seconds = min(10.0, seconds * 1.2)
                    ended = set(slurm.ended_jobs(left, slurm.queue()))
                    ended |= {job for job in left if first_task(jobs[job][0]).paths.result_pickle.exists()}
                    left -= ended
                    progress.update(bar, advance=len(ended))

        def take_results(self, job: Any, pack: list[int], cells: list[Any], returns: list[JobReturn]) -> None:
            """Put what a job returned into ``returns``; note in the folders of its cells where it returned nothing."""
            from submitit.core.utils import FailedJobError, UncompletedJobError

            from et.sweeps import cells as sweep_cells
            from et.sweeps import slurm
            from et.utils.errors import UserError

            job, problem = first_task(job), None
            for _ in range(20):  # another node's file may take some seconds to show
                if job.paths.result_pickle.exists():
                    break
                time.sleep(0.5)
            else:
                problem = f"ended ({(slurm.queue() or {}).get(job.job_id, 'gone')}) without a result"
            try:
                if problem is None:
                    for number, value in zip(pack, job.result(), strict=True):
                        returns[number] = value
            except (FailedJobError, UncompletedJobError):
                problem = "failed"
            if problem is not None:
                for cell in sweep_cells.inspect_all(cell.overrides for cell in cells):
                    if cell.state in ("open", "interrupted"):
                        message = f"Slurm job {job.job_id} {problem}; its log is {job.paths.stdout}"
                        sweep_cells.record_failure(cell.folder, UserError(message), cell.overrides)


def exit_without_slurm() -> None:
    """End the process with one sentence where Slurm does not answer; Hydra would print a traceback."""
    from et.sweeps import slurm
    from et.utils.errors import UserError, exit_on_user_error

    def check() -> None:
        if slurm.queue() is None:
            raise UserError(
                "hydra/launcher=slurm: Slurm does not answer (squeue is not there, or its controller is down). "
                "Start this on a login node of the cluster, or leave hydra/launcher=slurm out"
            )

    exit_on_user_error(check)


def first_task(job: Any) -> Any:
    """The first process of a job: the one that writes the record."""
    return job.task(0)
