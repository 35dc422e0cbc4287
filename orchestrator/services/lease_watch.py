"""Which holders are taken for dead: those whose leases this leader itself saw unrenewed for a whole TTL.

A lease that is past its end proves nothing: its holder may be one of many that the database kept waiting, or the
database's clock may have jumped. So the end of a lease is only acted on together with an observation of the same
``renewals`` for a TTL on the leader's own clock, without a gap in which the leader did not look.
"""

from collections.abc import Iterable


class LeaseWatch:
    """Remembers since when each lease was seen with the same number of renewals."""

    def __init__(self, *, ttl_seconds: float, longest_gap_seconds: float) -> None:
        """Make it.

        Args:
            ttl_seconds: A lease is given up after it was seen unchanged for so long.
            longest_gap_seconds: After a longer pause between two looks everything is observed anew.
        """
        self._ttl, self._longest_gap = ttl_seconds, longest_gap_seconds
        self._since: dict[tuple[int, int], float] = {}
        self._looked_at: float | None = None

    def observe(self, seen: Iterable[tuple[int, int]], *, now: float) -> list[tuple[int, int]]:
        """Note the silent leases that there are now, as (id, renewals); return those silent for a TTL.

        Args:
            seen: Every lease that is overdue; one that is missing was renewed or has ended.
            now: Monotonic seconds from before the look.
        """
        if self._looked_at is None or now - self._looked_at > self._longest_gap:
            self._since.clear()
        self._looked_at = now
        self._since = {lease: self._since.get(lease, now) for lease in seen}
        return sorted(lease for lease, since in self._since.items() if now - since >= self._ttl)

    def forget(self) -> None:
        """Observe everything anew."""
        self._since.clear()
        self._looked_at = None
