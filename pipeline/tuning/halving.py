"""Which trials are given up: Ray Tune's ASHA, asked after each evaluation.

Ray Tune's scheduler judges; its ``Tuner`` does not run the trials. A trial here is a training by
several workers, and the slots of a comparison keep those processes from trial to trial, where a
``Tuner`` over Ray Train starts them anew for each, hangs after an early stop where Ray runs without
its dashboard, as it does here, and goes on after a kill from pickled state.
"""

from types import SimpleNamespace

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from pipeline.config.tune import TuneStopping

# Trials end by themselves; rungs above their last evaluation are never reached.
_NO_END = 2**30


class Halving:
    """Asynchronous successive halving over evaluations.

    Args:
        config: when trials are judged and how many go on.
        higher_is_better: direction of the values.
    """

    def __init__(self, config: TuneStopping, higher_is_better: bool) -> None:
        self._scheduler = ASHAScheduler(
            time_attr="evaluations",
            metric="value",
            mode="max" if higher_is_better else "min",
            max_t=_NO_END,
            grace_period=config.grace,
            reduction_factor=config.factor,
        )
        self.config = config
        self._trials: dict[int, SimpleNamespace] = {}

    def stops(self, trial: int, evaluations: int, value: float) -> bool:
        """Whether a trial is given up.

        Args:
            trial: its number.
            evaluations: how many it has had, this one included.
            value: the best of them.
        """
        if trial not in self._trials:
            # The scheduler knows a trial by its id alone.
            self._trials[trial] = SimpleNamespace(trial_id=str(trial))
            self._scheduler.on_trial_add(None, self._trials[trial])
        result = {"evaluations": evaluations, "value": value}
        verdict = self._scheduler.on_trial_result(None, self._trials[trial], result)
        return bool(verdict == TrialScheduler.STOP)
