"""What a fault does, once it was decided that it strikes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.utils.collections import AttributeDict
from celery.worker import control, state

from .broker import Broker
from .errors import hide_ours
from .faults import BackendDown, BrokerDown, Delay, Drop, Duplicate, Fault, Revoke, Sleep
from .memory import Server
from .simulation import TASK_RANK, Simulation

if TYPE_CHECKING:
    from .injection import Execution

__tracebackhide__ = hide_ours


class Effects:
    """The faults' way into the simulated world.

    ``consumer`` gives the worker's consumer, ``None`` when no worker runs. ``hook`` is pytest's, for those who watch.
    """

    def __init__(
        self, app: Any, simulation: Simulation, server: Server, broker: Broker, consumer: Callable[[], Any], hook: Any
    ) -> None:
        self._app = app
        self._simulation = simulation
        self._server = server
        self._broker = broker
        self._consumer = consumer
        self._hook = hook

    def before(self, fault: Fault, execution: Execution) -> None:
        """Tell other plugins that a fault is about to strike."""
        if self._hook is not None:
            self._hook.pytest_celery_faults_before_fault(fault=fault, execution=execution)

    def after(self, fault: Fault, execution: Execution) -> None:
        """Tell other plugins that a fault has struck; for an exception or a crash: is about to leave the task."""
        if self._hook is not None:
            self._hook.pytest_celery_faults_after_fault(fault=fault, execution=execution)

    def strike(self, fault: Fault, execution: Execution) -> None:
        """Do what a fault does where the code runs that it strikes; messages are the broker's business."""
        if isinstance(fault, (Drop, Duplicate, Delay)):
            return
        if isinstance(fault, Sleep):
            self._simulation.sleep(_length(fault, execution))
        elif isinstance(fault, BrokerDown):
            self._broker.go_down(fault.seconds)
        elif isinstance(fault, BackendDown):
            self._server.take_down("backend", fault.seconds)
        elif isinstance(fault, Revoke):
            self._revoke(execution.task_id, fault.terminate)
        else:
            fault.strike(execution)

    def crash(self) -> None:
        """The pool process that runs is killed."""
        child = self._simulation.current.data
        child.die("Crash()")
        self._simulation.end()

    def _revoke(self, task_id: str, terminate: bool) -> None:
        consumer = self._consumer()
        if self._simulation.current.rank != TASK_RANK:
            # In the worker's own process: as if the control message had come just before the task.
            worker_state = AttributeDict(app=self._app, hostname=consumer.hostname, consumer=consumer)
            control.revoke(worker_state, task_id, terminate=terminate)
            return
        self._app.control.revoke(task_id, terminate=terminate)
        if self._app.conf.worker_enable_remote_control:
            self._simulation.wait(
                "the worker to take notice of the revoke", ready=lambda: task_id in state.revoked and not terminate
            )


def _length(fault: Sleep, execution: Execution) -> float:
    """The seconds of a sleep in the execution that it strikes."""
    if fault.beyond is None:
        assert fault.seconds is not None
        return fault.seconds
    limit = execution.time_limits[fault.beyond]
    assert limit is not None
    return limit + 1
