"""When a trial is tried again, when it has failed, and when the machine is at fault and the search stops."""

from fakeface_lab.errors import SearchError

__all__ = ["MAX_DEATHS", "MAX_STARTS", "Retries"]

# Deaths of workers without a newly finished epoch, and starts without one (a killed driver is not the trial's fault).
MAX_DEATHS = 3
MAX_STARTS = 10
# Attempts in a row that the machine ended, and trials in a row that died of the same: to go on would burn all trials
# that are left in one night.
_MAX_DISTURBANCES = 3
_MAX_SAME_DEATHS = 3


class Retries:
    """Counts what went wrong in a row, over all trials of this process.

    Args:
        search: name of the search, for messages.
    """

    def __init__(self, search: str) -> None:
        self._search = search
        self._num_disturbances = self._num_same_deaths = 0
        self._last_death = ""

    def note_epoch(self) -> None:
        """Note that an epoch was finished: the machine works."""
        self._num_disturbances = 0

    def note_finished(self) -> None:
        """Note that a trial was finished."""
        self._num_same_deaths = 0

    def may_retry(self, num_deaths: int, reason: str) -> bool:
        """Return whether a trial whose worker has died so often is tried again; else it has failed.

        Raises:
            SearchError: several trials in a row died of the same.
        """
        if num_deaths < MAX_DEATHS:
            return True
        # Too much memory is a matter of the configuration, and the next one may be smaller.
        is_same = reason == self._last_death and "out of memory" not in reason
        self._num_same_deaths = self._num_same_deaths + 1 if is_same else 1
        self._last_death = reason
        if self._num_same_deaths >= _MAX_SAME_DEATHS:
            raise self._stopped(f"{_MAX_SAME_DEATHS} trials in a row died of the same", reason)
        return False

    def note_disturbance(self, reason: str) -> None:
        """Note an attempt that the machine ended (a full disk, a lost connection); the trial is tried again.

        Raises:
            SearchError: it was one too many in a row.
        """
        self._num_disturbances += 1
        if self._num_disturbances >= _MAX_DISTURBANCES:
            raise self._stopped(f"the machine ended {_MAX_DISTURBANCES} attempts in a row", reason)

    def _stopped(self, what: str, reason: str) -> SearchError:
        return SearchError(
            f"search {self._search!r}: stopped, {what} ({reason}); finished trials are kept, and the same command "
            f"resumes once the cause is gone"
        )
