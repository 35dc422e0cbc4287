"""Where jobs that want a model go: to a runner that has it loaded, while waiting for one costs less than a load."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Final

from orchestrator.scheduling.snapshot import AdmittedView, ModelView

#: Jobs that are sent to a runner beyond the one that it runs: at least one, so that it never waits for the next, and
#: as many as it ends within this time, in seconds.
AHEAD_SECONDS: Final = 0.5
MOST_AHEAD: Final = 64
#: What a load is taken to cost until one has been seen, in seconds.
USUAL_LOAD: Final = 10.0


class _Runners:
    """The runners of one pool on one host, as far as the plan has used them up."""

    __slots__ = ("load", "view")

    def __init__(self, view: ModelView) -> None:
        self.view, self.load = view, view.running

    @property
    def room(self) -> int:
        """How many more jobs they take now."""
        seconds = self.view.run_seconds
        ahead = 1 if not seconds else max(1, min(MOST_AHEAD, int(AHEAD_SECONDS / seconds)))
        return self.view.runners * (1 + ahead) - self.load


class Models:
    """The runners with models, on all hosts."""

    def __init__(self, views: Iterable[ModelView], admitted: Iterable[AdmittedView], nodes: Iterable[str]) -> None:
        """Make it.

        Args:
            views: The runners.
            admitted: Jobs on their way to hosts.
            nodes: The hosts that the plan sends jobs to.
        """
        here = frozenset(nodes)
        views = tuple(views)
        self._asleep = [view for view in views if view.asleep]
        self._all = [_Runners(view) for view in views if view.runners]
        self._here = [runners for runners in self._all if runners.view.node in here]
        self._waiting: Counter[str] = Counter()  # jobs that a pool's runners will have to do, by pool
        there: Counter[str] = Counter()
        for view in views:
            there[view.pool] += view.runners + view.asleep
        self._growing = {view.pool for view in views if there[view.pool] < view.most}
        for jobs in admitted:
            self._settle(jobs)

    def settles(self, jobs: AdmittedView) -> bool:
        """Tell whether jobs on their way run under the leases of a pool: then they need no further GPU."""
        model = jobs.resources.wants.model if jobs.resources.wants is not None else None
        return model is not None and any(
            runners.view.node == jobs.node and model in (runners.view.pool, runners.view.model) for runners in self._all
        )

    def place(self, model: str, tenant: str, queue: str) -> str | None:
        """Send a job to the host whose runners have the least to do; None if all have enough, or there is none."""
        fitting = [runners for runners in self._here if runners.view.serves(model, tenant, queue) and runners.room > 0]
        if not fitting:
            return None
        chosen = min(fitting, key=lambda runners: (runners.load / runners.view.runners, runners.view.node))
        chosen.load += 1
        return chosen.view.node

    def sleep(self, model: str, tenant: str, queue: str) -> bool:
        """Tell whether runners with the model sleep, and none is awake: they wake up for jobs that wait."""
        awake = any(runners.view.serves(model, tenant, queue) for runners in self._all)
        return not awake and any(view.serves(model, tenant, queue) for view in self._asleep)

    def wait_is_shorter(self, model: str, tenant: str, queue: str) -> tuple[float, float] | None:
        """Return what waiting for a runner and what a load would take, in seconds, if waiting takes less.

        The jobs that wait already count where the pool has as many runners as it may have; one that has not gets more
        for them.
        """
        fitting = [runners for runners in self._all if runners.view.serves(model, tenant, queue)]
        if not fitting:
            return None
        loads = [runners.view.load_seconds for runners in fitting if runners.view.load_seconds is not None]
        runs = [runners.view.run_seconds for runners in fitting if runners.view.run_seconds is not None]
        load_seconds = max(loads, default=USUAL_LOAD)
        if not runs:
            return 0.0, load_seconds
        pools = {runners.view.pool for runners in fitting}
        ahead = 0 if pools & self._growing else max(self._waiting[pool] for pool in pools)
        jobs = sum(runners.load for runners in fitting) + ahead + 1
        waiting = jobs * (sum(runs) / len(runs)) / sum(runners.view.runners for runners in fitting)
        return (waiting, load_seconds) if waiting <= load_seconds else None

    def wait(self, model: str, tenant: str, queue: str) -> None:
        """A job waits for a runner with the model."""
        for pool in {runners.view.pool for runners in self._all if runners.view.serves(model, tenant, queue)}:
            self._waiting[pool] += 1

    def _settle(self, jobs: AdmittedView) -> None:
        if jobs.node is None or not self.settles(jobs):
            return
        fitting: defaultdict[str, list[_Runners]] = defaultdict(list)
        for runners in self._all:
            wants = jobs.resources.wants
            if wants is not None and wants.model in (runners.view.pool, runners.view.model):
                fitting[runners.view.node].append(runners)
        for _ in range(jobs.count):
            min(fitting[jobs.node], key=lambda runners: runners.load / runners.view.runners).load += 1
